# SPDX-License-Identifier: ISC
"""What a large message costs in memory: nothing that grows with it; and how much one account may have."""
import contextlib
import hashlib
import json
import pathlib
import re
import threading

from client import connect, message
from environment import eventually
from test_faults import send
from test_refusals import plain, session

KIB = 1 << 10
MIB = 1 << 20
LINE = b"0123456789" * 99 + b"01234\r\n"  # 997 octets


def memory(pids):
    """
    Octets that belong to these processes alone or are shared among them: anonymous and shared memory, each page
    once. Exact: the kernel walks the page tables for it.
    """
    total = 0
    for pid in pids:
        rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += sum(int(kib) * KIB for kib in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB", rollup, re.M))
    return total


class Peak(threading.Thread):
    """
    How much more they have had at most since it was made, seen in two ways: samples of memory(), which may miss a
    moment, and the kernel's own high-water marks, which miss nothing, and count pages of files too.
    """

    def __init__(self, pids):
        super().__init__(daemon=True)
        self.pids, self.before, self.most, self.samples = pids, memory(pids), 0, 0
        for pid in pids:
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")  # the mark back to what there is now
        self.mark = self.high_water()
        self.ending = threading.Event()

    def high_water(self):
        return sum(int(re.search(r"^VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)[1]) * KIB
                   for pid in self.pids)

    def run(self):
        while not self.ending.wait(0.003):
            self.most = max(self.most, memory(self.pids) - self.before)
            self.samples += 1

    def end(self):
        self.ending.set()
        self.join(10)
        return self.most, self.high_water() - self.mark


def send_large(stage, subject, lines):
    """Over a bare connection, in pieces; the hash of its body."""
    bare = session(stage)
    for line, code in (("MAIL FROM:<alice@example.org>", "250"), ("RCPT TO:<bob@example.net>", "250"), ("DATA", "354")):
        assert bare.ask(line).startswith(code)
    bare.send(f"From: <alice@example.org>\r\nSubject: {subject}\r\n\r\n".encode())
    for at in range(0, lines, 1000):
        bare.send(LINE * min(1000, lines - at))
    assert bare.ask(b".").startswith("250")
    bare.close()


def costs(stage, count, octets):
    """How much more memory it takes than when all is quiet, while so many messages of that size pass at once."""
    gateway, upstream = stage.gateway, stage.upstream
    offers, upstream.offers = upstream.offers, ("PIPELINING", "SIZE 200000000", "8BITMIME", "ENHANCEDSTATUSCODES")
    gateway.submission = {"message_size": "128M"}
    gateway.stop()
    gateway.start()
    try:
        client = connect(stage)
        client.sendmail("alice@example.org", ["bob@example.net"], message("small"))
        client.quit()
        upstream.take()
        gateway.wait_queue(0)
        pids = [gateway.process.pid, *gateway.children().values()]
        peak, lines = Peak(pids), octets // len(LINE) + 1
        peak.start()
        threads = [threading.Thread(target=send_large, args=(stage, f"large {n}", lines)) for n in range(count)]
        for thread in threads:
            thread.start()
        messages = upstream.wait(count, 120)
        for thread in threads:
            thread.join(60)
        gateway.wait_queue(0)
        sampled, marked = peak.end()
        whole = hashlib.sha256(LINE * lines).digest()
        assert sorted(m.subject for m in messages) == [f"large {n}" for n in range(count)]
        assert all(hashlib.sha256(m.body).digest() == whole for m in messages)
        print(f"# {count} of {octets} octets: {peak.before / MIB:.1f} MiB before, then {sampled / MIB:.2f} MiB more in"
              f" {peak.samples} samples, {marked / MIB:.2f} MiB by the kernel's marks", flush=True)
        return max(sampled, marked)
    finally:
        upstream.offers = offers
        with upstream.lock:
            upstream.messages.clear()


def test_one_of_100_MiB(stage):
    assert costs(stage, 1, 100 * MIB) < 2 * MIB


def test_eight_of_10_MB_at_once(stage):
    assert costs(stage, 8, 10_000_000) < 16 * MIB


def test_one_account_has_its_share(stage):
    """Of headers that do not end: what is too much gets 452 and is dropped; others are served, and who goes makes room."""
    stage.gateway.submission = {"account_memory": "16M", "recipients": 100000, "threads": 1}
    stage.gateway.stop()
    stage.gateway.start()
    stage.account("greedy@example.org", "secret-2")
    submit, other = [stage.gateway.children()["submit"]], session(stage)
    before, field = memory(submit), b"X-Field: " + b"x" * 900 + b"\r\n"
    with contextlib.ExitStack() as crowd:
        there = []

        def enter():
            greedy = session(stage, login=False, source=f"127.3.0.{len(there) + 1}")
            crowd.callback(greedy.close)
            there.append(greedy)
            assert greedy.ask(plain("greedy@example.org", "secret-2")).startswith("235")
            assert greedy.ask("MAIL FROM:<greedy@example.org>").startswith("250")
            return greedy

        def begin(fields):
            greedy = enter()
            assert greedy.ask("RCPT TO:<bob@example.net>").startswith("250")
            assert greedy.ask("DATA").startswith("354")
            greedy.send(b"From: <greedy@example.org>\r\n" + field * fields)
            assert other.ask("NOOP").startswith("250")  # it has been read
            return greedy

        def end(greedy):
            return greedy.ask(b"\r\nbody\r\n.")

        full = [begin(270) for _ in range(68)]
        assert not stage.gateway.events("share.full")
        last = begin(1)
        for _ in range(200):
            last.send(field)
            assert other.ask("NOOP").startswith("250")
            if json.loads(stage.gateway.tool("--json", "status"))["shares_full"] == 1:
                break
        stage.gateway.wait_event("share.full", account="greedy@example.org", what="memory")
        more = memory(submit) - before
        print(f"# {len(there)} headers: {more / MIB:.0f} MiB more", flush=True)
        assert 8 * MIB < more < 32 * MIB
        send(stage, "another")
        assert stage.upstream.take().subject == "another"
        # That one says no more, and takes none of the others with it.
        assert all(end(greedy).startswith("250") for greedy in full[:5])
        stage.upstream.wait(5)
        assert end(last).startswith("452 4.3.1 Too much mail of this account")
        # Recipients take what the headers have left, and then there are no more of them.
        last = enter()
        for n in range(20000):
            answer = last.ask(f"RCPT TO:<{n:064}@{'x' * 60}.{'y' * 60}.example>")
            if not answer.startswith("250"):
                break
        assert answer.startswith("452 4.3.1 Too much mail of this account"), f"{n}: {answer}"
        last.close()
        eventually(lambda: end(begin(270)).startswith("250"))
    other.close()

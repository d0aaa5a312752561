# SPDX-License-Identifier: ISC
"""Load balancers in front, and crowds that want all there is: connections, descriptors, time, memory."""
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import struct
import threading
import time

from client import Bare, message
from crowd import Crowd
from environment import eventually, run, unprivileged
from stage import alone
from test_faults import with_clock
from test_memory import MIB, Peak, memory
from test_refusals import LOGIN, plain, session

V2 = b"\r\n\r\n\0\r\nQUIT\n"


def v2(source, command=0x21, extensions=b""):
    """The binary header of a proxy; to 127.0.0.1 or ::1, port 587."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    there = "::1" if ":" in source else "127.0.0.1"
    body = socket.inet_pton(family, source) + socket.inet_pton(family, there) + struct.pack("!HH", 40000, 587) + extensions
    return V2 + struct.pack("!BBH", command, 0x21 if ":" in source else 0x11, len(body)) + body


def restart(stage, **settings):
    """The gateway anew with such settings; stage.prepare() undoes it."""
    vars(stage.gateway).update(settings)
    stage.gateway.stop()
    stage.gateway.start()


def kill_submit(stage):
    os.kill(stage.gateway.children()["submit"], signal.SIGKILL)
    stage.gateway.wait_event("child.started", child="submit", count=2)


class Proxy(Bare):
    """A proxy's connection: its header, then the client's octets."""

    def __init__(self, stage, header, source="127.0.0.1", port=None, pieces=False):
        self.socket = socket.create_connection(("127.0.0.1", port or stage.gateway.port), 20, (source, 0))
        for at in range(len(header)) if pieces else ():
            self.send(header[at:at + 1])
        if not pieces:
            self.send(header)
        self.file = self.socket.makefile("rb")


# ---- behind a proxy ----

def test_a_proxy_speaks_for_its_clients(stage):
    """Limits, log, networks and Received know the client; so does what follows the header at once, or TLS."""
    restart(stage, listener={"proxies": ["127.0.0.1", "127.0.2.0/24"], "networks": True},
            submission={"connections_per_address": 1, "threads": 1})
    stage.account("proxied@example.org", "secret-2")
    stage.cluster.sql("select postern.network_grant('proxied@example.org', '203.0.113.0/24')")
    for header, client in ((b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 587\r\n", "203.0.113.7"),
                           (v2("203.0.113.8"), "203.0.113.8"),
                           (v2("203.0.113.9", extensions=b"\x04\0\2xx"), "203.0.113.9")):
        for pieces in (False, True):
            proxy = Proxy(stage, header, pieces=pieces)
            assert proxy.reply().startswith("220 "), header
            # The client's second connection: the limit is of his address, not of the proxy's.
            second = Proxy(stage, header)
            assert second.reply().startswith("421 4.7.0"), header
            second.close()
            assert proxy.ask("EHLO server.example").startswith("250")
            assert proxy.ask("MAIL FROM:<proxied@example.org>").startswith("250"), "his network is not known"
            assert proxy.ask("RCPT TO:<bob@example.net>").startswith("250")
            assert proxy.ask("DATA").startswith("354")
            assert proxy.ask("From: <proxied@example.org>\r\n\r\nhello\r\n.").startswith("250")
            taken = stage.upstream.take()
            assert f"[{client}]".encode() not in taken.header, "Received tells where a user is"
            assert proxy.ask("QUIT").startswith("221")
            assert proxy.reply() == ""
            proxy.close()
            stage.gateway.wait_event("session.closed", ip=client)
    proxy = Proxy(stage, v2("2001:db8::25"), "127.0.2.77")
    assert proxy.reply().startswith("220 ")
    proxy.close()
    stage.gateway.wait_event("session.closed", ip="2001:db8::25")
    # TLS from the first octet of the client on, in the same segment as the header or not.
    proxy = Proxy(stage, v2("203.0.113.10"), port=stage.gateway.tls_port)
    proxy.start_tls()
    assert proxy.reply().startswith("220 ")
    assert proxy.ask("EHLO c").startswith("250") and proxy.ask(plain()).startswith("235")
    proxy.close()
    proxy = Proxy(stage, v2("203.0.113.11") + b"NOOP\r\n")
    assert proxy.reply().startswith("220 ") and proxy.reply().startswith("250")
    proxy.close()
    # A health check speaks for nobody but itself.
    for header in (V2 + b"\x20\0\0\0", b"PROXY UNKNOWN\r\n"):
        proxy = Proxy(stage, header, "127.0.2.78")
        assert proxy.reply().startswith("220 ")
        assert proxy.ask("QUIT").startswith("221")
        assert proxy.reply() == ""
        proxy.close()
    stage.gateway.wait_event("session.closed", ip="127.0.2.78", count=2)


def test_who_is_no_proxy_is_not_heard(stage):
    """Neither a stranger who knows the protocol, nor a proxy that does not speak it, nor a silent one."""
    restart(stage, listener={"proxies": ["127.0.2.0/24"]})
    strangers = ((v2("203.0.113.7"), "127.0.0.1", "it is none of the listener's proxies"),
                 (b"EHLO c\r\n", "127.0.2.1", "it sent no header of the PROXY protocol"),
                 (V2 + b"\x21\x11\xff\xff", "127.0.2.5", "it sent no header of the PROXY protocol"),
                 (b"", "127.0.2.1", "no header came in time"),
                 (b"PROXY TCP4 203.0.113.7", "127.0.2.2", "no header came in time"))
    for proxy, (header, source, why) in [(Proxy(stage, header, source), (header, source, why))
                                         for header, source, why in strangers]:
        try:
            assert proxy.reply() == "", header
        except ConnectionResetError:
            pass  # what it said was not even read
        proxy.close()
    # Each reason is told of once a minute; all are counted.
    for why in {why for _, _, why in strangers}:
        stage.gateway.wait_event("proxy.refused", why=why)
        assert len(stage.gateway.events("proxy.refused", why=why)) == 1, why
    assert json.loads(stage.gateway.tool("--json", "status"))["proxies_refused"] == len(strangers)
    proxy = Proxy(stage, V2, "127.0.2.3")
    proxy.close()
    stage.gateway.wait_event("proxy.refused", ip="127.0.2.3", why="it closed before its header")
    assert not stage.gateway.events("session.closed")
    # Half a header costs nothing while it waits for the rest.
    proxy = Proxy(stage, b"PROXY TCP4 203.0.113.7 ", "127.0.2.4")
    before = stage.gateway.cpu_seconds("submit")
    time.sleep(1)
    assert stage.gateway.cpu_seconds("submit") - before < 0.2, "it spins"
    proxy.send(b"127.0.0.1 1 2\r\n")
    assert proxy.reply().startswith("220 ")
    proxy.close()


# ---- without descriptors ----

BIG = b"".join(b"%07d %s\r\n" % (n, b"x" * 60) for n in range(10000))  # goes to a file of its own


def deliver(stage, bare, subject, body=b"hello\r\n"):
    """The answer to the final dot."""
    for line, code in ((f"MAIL FROM:<{LOGIN}>", "250"), ("RCPT TO:<bob@example.net>", "250"), ("DATA", "354")):
        answer = bare.ask(line)
        assert answer.startswith(code), answer
    return bare.ask(message(subject, body) + b".")


def strangers_come(stage, crowd, count):
    """So many, each from an address of its own, who say nothing and leave with the crowd: how each was answered."""
    answers = []
    for n in range(count):
        stranger = Bare(stage, source=f"127.1.0.{n + 1}")
        crowd.callback(stranger.close)
        answers.append(stranger.reply()[:3])
    return answers


def test_fewer_descriptors_than_connections(stage):
    """The log says so at the start; a crowd of strangers takes neither the spool's nor those of who was here before."""
    restart(stage, descriptors=200)
    few = stage.gateway.wait_event("descriptors.few")
    places = int(few["connections"])
    assert int(few["have"]) == 200 and 50 < places < 200, few
    here = session(stage)
    with contextlib.ExitStack() as crowd:
        answers = strangers_come(stage, crowd, 200)
        assert answers == ["220"] * (places // 2) + ["421"] * (200 - places // 2), answers
        stage.gateway.wait_event("connections.refused", limit="strangers")
        assert deliver(stage, here, "big", BIG).startswith("250")
        assert deliver(stage, here, "small").startswith("250")
        assert sorted(m.subject for m in stage.upstream.wait(2)) == ["big", "small"]
        others = [session(stage) for _ in range(places - places // 2 - 1)]
        assert Bare(stage).reply().startswith("421"), "more than all"
        stage.gateway.wait_queue(0)
        for other in others:
            assert other.ask("NOOP").startswith("250")
            other.close()
    here.close()


def test_who_has_logged_in_before_is_no_stranger_after_a_restart(stage):
    """Although strangers have come before anybody else: whether the gateway was stopped or the process was killed."""
    vars(stage.gateway).update(submission={"connections": 20})
    with_clock(stage)
    networks = stage.folder / "gw/spool/in/networks"
    for minute, (source, start_anew) in enumerate((("127.2.0.1", restart), ("127.2.0.2", kill_submit)), 1):
        session(stage, source=source).close()
        stage.gateway.set_clock(60 * minute)
        eventually(lambda s=source: networks.exists() and f"{s} " in networks.read_text())
        start_anew(stage)
        with contextlib.ExitStack() as crowd:
            answers = strangers_come(stage, crowd, 15)
            assert answers == ["220"] * 10 + ["421"] * 5, answers
            here = session(stage, source=source)
            assert deliver(stage, here, source).startswith("250")
            assert stage.upstream.take().subject == source
            here.close()


def test_who_was_cut_off_has_a_descriptor_until_he_goes(stage):
    """Those who are told to go and do not close their end take no more descriptors than connections have."""
    restart(stage, descriptors=200)
    few = stage.gateway.wait_event("descriptors.few")
    here, submit = session(stage), stage.gateway.children()["submit"]
    before, most = open_descriptors(submit), 0
    with contextlib.ExitStack() as crowd:
        for n in range(400):
            stranger = crowd.enter_context(socket.socket())
            stranger.bind((f"127.1.{n // 200}.{n % 200 + 1}", 0))
            stranger.connect(("127.0.0.1", stage.gateway.port))
            with contextlib.suppress(ConnectionError):  # it was sent away
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            most = max(most, open_descriptors(submit))
        stage.gateway.wait_event("session.closed", reason="not_smtp")
        stage.gateway.wait_event("connections.refused", limit="strangers")
        assert deliver(stage, here, "big", BIG).startswith("250")
        most = max(most, open_descriptors(submit))
    # Beside those: one that is being sent away, and what the message needs.
    assert most <= before + int(few["connections"]) // 2 + 4, f"{before} before, then {most}: {few}"
    assert stage.upstream.take().subject == "big"
    here.close()


def test_who_owes_a_header_has_a_descriptor(stage):
    """Proxies that say nothing take none of the connections' and the messages' descriptors."""
    restart(stage, descriptors=200, listener={"proxies": ["127.0.0.0/8"]})
    few = stage.gateway.wait_event("descriptors.few")
    here = Proxy(stage, v2("203.0.113.7"), port=stage.gateway.tls_port)
    here.start_tls()
    here.reply()
    assert here.ask("EHLO c").startswith("250") and here.ask(plain()).startswith("235")
    with contextlib.ExitStack() as crowd:
        for _ in range(260):
            crowd.enter_context(socket.create_connection(("127.0.0.1", stage.gateway.port), 20))
        assert deliver(stage, here, "big 1", BIG).startswith("250"), few
        stage.gateway.wait_event("proxy.refused", why="too many have not sent their header yet")
        assert deliver(stage, here, "big 2", BIG).startswith("250"), few
    assert sorted(m.subject for m in stage.upstream.wait(2)) == ["big 1", "big 2"]
    here.close()


def open_descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def allow_descriptors(stage, pid, most):
    """From now on it gets none whose number is not below that; "": as many as it could ever have."""
    hard = re.search(r"^Max open files +\d+ +(\d+)", pathlib.Path(f"/proc/{pid}/limits").read_text(), re.M)[1]
    run(*unprivileged(stage.gateway.user), "prlimit", f"--pid={pid}", f"--nofile={most or hard}:{hard}")


def test_out_of_descriptors(stage):
    """Newcomers wait and cost nothing, sessions go on, mail is delivered; what needs a file is asked for again."""
    here, submit = session(stage), stage.gateway.children()["submit"]
    allow_descriptors(stage, submit, 3)
    try:
        newcomers = [Bare(stage) for _ in range(20)]
        newcomers[0].socket.settimeout(2)
        before = stage.gateway.cpu_seconds("submit")
        try:
            greeting = newcomers[0].file.readline()
        except TimeoutError:
            greeting = None
        assert greeting is None, f"there was a descriptor: {greeting}"
        assert stage.gateway.cpu_seconds("submit") - before < 0.3, "it spins"
        assert here.ask("NOOP").startswith("250")
        assert deliver(stage, here, "big 1", BIG).startswith("451 4.3.0")
        assert deliver(stage, here, "small 1").startswith("250")
        assert stage.upstream.take().subject == "small 1"
    finally:
        allow_descriptors(stage, submit, "")
    for newcomer in newcomers[1:]:
        assert newcomer.reply().startswith("220")
        newcomer.close()
    newcomers[0].close()
    assert deliver(stage, here, "big 2", BIG).startswith("250")
    assert stage.upstream.take().subject == "big 2"
    assert stage.gateway.children()["submit"] == submit, "submit has died"
    here.close()


# ---- who does not listen ----

DEAF = 20
# What may go on for ever: each recipient that is accepted begins the count of replies anew.
COMMANDS = b"".join(b"MAIL FROM:<%s>\r\nRCPT TO:<somebody-%d@example.net>\r\nRSET\r\n" % (LOGIN.encode(), n) for n in range(300))


class Deaf(threading.Thread):
    """Logged in, it says commands without end, and reads no reply."""

    def __init__(self, stage):
        super().__init__(daemon=True)
        self.bare = session(stage)
        self.octets, self.seconds, self.error = 0, 0, None

    def run(self):
        began = time.monotonic()
        try:
            while time.monotonic() < began + 60:
                self.octets += self.bare.socket.send(COMMANDS)
        except OSError as error:  # also of TLS
            self.error = error
        self.seconds = time.monotonic() - began


def test_who_never_reads_is_let_go(stage):
    """What is not read waits in the kernel's buffers and in little of ours; then nothing is run, and time runs out."""
    restart(stage, submission={"command_timeout": "4s"})
    session(stage).close()  # what the first one needs is no part of it
    deaf = [Deaf(stage) for _ in range(DEAF)]
    pids = [stage.gateway.process.pid, *stage.gateway.children().values()]
    peak = Peak(pids)
    peak.start()
    for one in deaf:
        one.start()
    closed = stage.gateway.wait_event("session.closed", 60, DEAF, reason="timeout")
    for one in deaf:
        one.join(60)
        one.bare.close()
    sampled, _ = peak.end()
    said, heard = sum(one.octets for one in deaf), int(closed["out"])
    print(f"# {DEAF} clients said {said / MIB:.1f} MiB and read nothing: {heard / MIB:.1f} MiB of replies left for the last of"
          f" them, {sampled / DEAF / 1024:.1f} KiB of memory each in {peak.samples} samples", flush=True)
    assert all(one.error and one.seconds < 60 for one in deaf), [(one.error, one.seconds) for one in deaf]
    assert sampled / DEAF < 256 << 10  # 64 KiB of replies, 16 KiB of commands, records of TLS
    here = session(stage)
    assert deliver(stage, here, "behind deaf ones").startswith("250")
    here.close()
    assert stage.upstream.take().subject == "behind deaf ones"


# ---- crowds ----

IDLE = int(os.environ.get("POSTERN_IDLE", "1000"))
LOGINS = int(os.environ.get("POSTERN_LOGINS", "150"))
LOGINS_A_SECOND = 10
JUNK = {"silent": 500, "slow": 500, "flood": 500, "half": 500}


def test_many_idle_sessions_need_little_memory(stage):
    """What they need in user space, of all our processes."""
    restart(stage)
    session(stage).close()  # what the first one needs is no part of it
    pids = [stage.gateway.process.pid, *stage.gateway.children().values()]
    before, began = memory(pids), time.monotonic()
    crowd = Crowd("idle", stage.gateway.tls_port, IDLE, 50, (LOGIN, "secret-1"))
    came = time.monotonic() - began
    more = memory(pids) - before
    print(f"# {IDLE} idle sessions, logged in over TLS within {came:.1f} s: {before / MIB:.1f} MiB before, {more / MIB:.1f} MiB more,"
          f" {more / IDLE / 1024:.1f} KiB each", flush=True)
    here = session(stage)
    assert deliver(stage, here, "among idle ones").startswith("250")
    here.close()
    assert stage.upstream.take().subject == "among idle ones"
    assert crowd.leave()["here"] == IDLE, "idle sessions were closed"
    assert more / IDLE < 24 << 10  # 5,000 of them: 117 MiB


def connections(stage):
    """How many descriptors `submit` has; but for a few they are connections."""
    return len(os.listdir(f"/proc/{stage.gateway.children()['submit']}/fd"))


def log_in(stage):
    """How long a real login took: connecting, TLS, AUTH, QUIT."""
    began = time.monotonic()
    here = session(stage)
    assert here.ask("QUIT").startswith("221")
    took = time.monotonic() - began
    here.close()
    return took


def log_in_at_intervals(stage, count):
    """So many logins, each begun at its time, however long those before it take."""
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        began, logins = time.monotonic(), []
        for n in range(count):
            time.sleep(max(0, began + n / LOGINS_A_SECOND - time.monotonic()))
            logins.append(pool.submit(log_in, stage))
        return sorted(login.result() for login in logins)


def wait_all_here(crowds):
    """Until nearly all are served at one moment: some are always on their way."""
    until = time.monotonic() + 60
    while any(crowd.met()["here"] < JUNK[kind] * 9 // 10 for kind, crowd in crowds.items()):
        assert time.monotonic() < until, {kind: crowd.met() for kind, crowd in crowds.items()}
        time.sleep(0.1)


def logins_beside_junk(stage, sources):
    """The junk is there before the first login and behind the last; what it met meanwhile is what each kind should."""
    # So that those who do not log in are let go while the others do, and come again.
    restart(stage, submission={"login_timeout": "5s"})
    quiet, own, junk = log_in_at_intervals(stage, 20), connections(stage), sum(JUNK.values())
    with contextlib.ExitStack() as stack:
        crowds = {kind: stack.enter_context(Crowd(
            kind, stage.gateway.tls_port if kind == "half" else stage.gateway.port, count, sources))
            for kind, count in JUNK.items()}
        wait_all_here(crowds)
        before, held = {kind: crowd.met() for kind, crowd in crowds.items()}, connections(stage) - own
        took = log_in_at_intervals(stage, LOGINS)
        held = min(held, connections(stage) - own)
        met = {kind: {name: number - before[kind][name] for name, number in crowd.met().items() if name != "here"}
               for kind, crowd in crowds.items()}
        wait_all_here(crowds)
        here = session(stage)
        assert deliver(stage, here, "beside junk").startswith("250")
        assert stage.upstream.take().subject == "beside junk"
        here.close()
    p50, p99 = statistics.median(took), took[int(len(took) * 0.99)]
    print(f"# {LOGINS} logins beside {junk} junk connections from {sources} addresses: p50 {p50 * 1000:.0f} ms,"
          f" p99 {p99 * 1000:.0f} ms, longest {took[-1] * 1000:.0f} ms; p50 without them"
          f" {statistics.median(quiet) * 1000:.0f} ms; {held} were held at least; met meanwhile: {met}", flush=True)
    assert held > junk // 2, "the junk was not there"
    for kind, count in JUNK.items():
        # One address may hold no more than these: who comes again is sent away until those before him are gone.
        assert sources == 1 or met[kind]["sent_away"] < count // 10, (kind, met)
    # The silent and the slow were let go for their silence, flooders for that or, where the machine runs enough of
    # their commands by then, for what led nowhere; all came again.
    for kind in ("silent", "slow", "flood"):
        assert met[kind]["ended"] > JUNK[kind] and met[kind]["made"] > JUNK[kind], (kind, met)
    assert met["half"]["heard"] > JUNK["half"], met  # it was worth a signature each time
    assert stage.gateway.events("session.closed", reason="timeout", state="before EHLO")
    assert stage.gateway.events("session.closed", reason="peer_closed", state="handshake")
    assert p99 < 1, took[-10:]


@alone
def test_logins_beside_junk_from_many_addresses(stage):
    logins_beside_junk(stage, 2000)


@alone
def test_logins_beside_junk_from_one_address(stage):
    logins_beside_junk(stage, 1)

# SPDX-License-Identifier: ISC
"""An upstream that is hostile for long: every recipient of every message ends in exactly one way.

POSTERN_HOSTILE_S is for how long (25 s), POSTERN_HOSTILE_SEED what the upstream does.
"""
import collections
import os
import random
import threading
import time

from client import Bare
from environment import free_port
from hostile_upstream import HostileUpstream
from load import LINE, LINES, encode

SECONDS = float(os.environ.get("POSTERN_HOSTILE_S", "25"))
SEED = int(os.environ.get("POSTERN_HOSTILE_SEED", str(time.time_ns() % 1000000)))
LOGIN = "alice@example.org"
UNSETTLED_MAX = 300  # recipients on their way: then clients wait
CLIENTS = 3
PAUSE_S = 0.1  # of a client between two messages
DRAIN_S = 180
LOG_MAX = 50 << 20  # octets of the file


def body_of(subject):
    """What the message of that subject says: its lines are in its name."""
    return subject.encode() + b"\r\n.\r\n..two\r\n" + LINES[:int(subject.rsplit("-", 1)[1]) * LINE]


def complaint(subject, octets):
    if not subject.startswith("hostile-"):
        return f"nobody sent {subject}"
    return None if octets.partition(b"\r\n\r\n")[2] == body_of(subject) else f"{subject} came with other octets"


class Events:
    """Reads the gateway's log as it grows, and lets go of it."""

    def __init__(self, gateway):
        self.gateway, self.ending = gateway, False
        self.delivered, self.bounced = collections.Counter(), collections.Counter()
        self.counts = collections.Counter()
        self.settled, self.stopped, self.reports = 0, False, []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.ending:
            time.sleep(0.2)
            self.read()

    def read(self):
        with self.gateway.news:
            lines, self.gateway.lines = self.gateway.lines, []
        for line in lines:
            self.take(line)
        log = self.gateway.folder / "log"
        if log.exists() and log.stat().st_size > LOG_MAX:
            os.truncate(log, 0)

    def take(self, line):
        words = dict(word.partition("=")[::2] for word in line.split(" "))
        event = words.get("event", "")
        self.counts[event] += 1
        if "Sanitizer" in line or "runtime error" in line or event in ("child.died", "spool.alarm", "message.dropped",
                                                                       "message.damaged"):
            self.reports.append(line)
        self.stopped |= event == "upstream.stopped"
        if event == "message.delivered" and words["to"] != LOGIN:
            self.delivered[words["to"]] += 1
            self.settled += 1
        if event == "message.bounced":
            self.bounced[words["to"]] += 1
            self.settled += 1

    def end(self):
        self.ending = True
        self.thread.join(10)
        self.read()


class Clients:
    """Send without end, each recipient once, as long as not too much is on its way."""

    def __init__(self, stage, events):
        self.stage, self.events = stage, events
        self.lock = threading.Lock()
        self.acknowledged = []  # recipients
        self.doubtful = set()  # of messages whose answer did not come
        self.messages, self.number, self.ending = 0, 0, threading.Event()
        self.threads = [threading.Thread(target=self.client, args=(random.Random(f"{SEED} client {n}"),), daemon=True)
                        for n in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.ending.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"

    def client(self, chance):
        while not self.ending.is_set():
            bare = Bare(self.stage, tls=True, timeout=60)
            assert bare.reply().startswith("220")
            bare.ask("EHLO client.test")
            assert bare.ask("AUTH PLAIN " + encode(f"\0{LOGIN}\0secret-1")).startswith("235")
            for _ in range(100):
                self.ending.wait(PAUSE_S)
                while len(self.acknowledged) - self.events.settled > UNSETTLED_MAX and not self.ending.is_set():
                    self.ending.wait(0.2)
                if self.ending.is_set():
                    break
                self.send(bare, chance)
            bare.close()

    def send(self, bare, chance):
        with self.lock:
            self.number += 1
            number = self.number
        count = 1 if chance.random() < 0.6 else chance.randint(2, 8)
        recipients = [f"{'never' if chance.random() < 0.05 else 'r'}{number}x{i}@"
                      f"{'plain.example' if chance.random() < 0.3 else 'example.net'}" for i in range(count)]
        lines = chance.randint(0, 5000) if chance.random() < 0.05 else chance.randint(0, 50)
        subject = f"hostile-{number}-{lines}"
        assert bare.ask(f"MAIL FROM:<{LOGIN}>").startswith("250")
        for recipient in recipients:
            assert bare.ask(f"RCPT TO:<{recipient}>").startswith("250")
        assert bare.ask("DATA").startswith("354")
        stuffed = body_of(subject).replace(b"\r\n.", b"\r\n..")
        answer = bare.ask(f"From: <{LOGIN}>\r\nSubject: {subject}\r\n\r\n".encode() + stuffed + b".")
        assert answer.startswith("250"), answer
        with self.lock:
            self.messages += 1
            self.acknowledged.extend(recipients)


def configure(stage, upstream):
    """Two routes: one of three hosts with TLS and a login, one of two without, one host of which is away for good."""
    gateway = stage.gateway
    ports = [free_port() for _ in range(5)]
    for name, port in zip("abc", ports):
        upstream.add(name, port, secure=True)
    for name, port in zip("de", ports[3:]):
        upstream.add(name, port)
    secret = stage.folder / "hostile.password"
    secret.write_text("pw\n")
    patience = {"connect_timeout": "1s", "greeting_timeout": "1s", "command_timeout": "2s", "data_timeout": "10s",
                "idle_timeout": "2s", "connections": 8}
    gateway.upstreams = {
        "up": {"hosts": [f"localhost:{port}" for port in ports[:3]], "tls": "verify", "username": "us",
               "password_file": str(secret), "ca_file": str(stage.authority.certificate), **patience},
        "plain": {"hosts": [f"127.0.0.1:{port}" for port in [free_port(), *ports[3:]]], "tls": "none", **patience}}
    gateway.extra = 'domain_route = ( { domain = "plain.example"  route = "plain" } )'
    gateway.retry = {**gateway.retry, "bounces_per_hour": 100000}  # none waits for its hour
    gateway.stop()
    gateway.start()


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) >> 10


def judge(clients, events, books):
    """Every recipient ends once. How many ended how, and what is wrong with that."""
    ends, wrong = collections.Counter(), []
    for recipient in clients.acknowledged:
        entry = books.entries[recipient]
        delivered, bounced = events.delivered[recipient], events.bounced[recipient]
        notices = {notice for notice, _ in entry.told}
        ends["delivered"] += delivered
        ends["bounced"] += bounced
        ends["copies whose answer was no acceptance"] += entry.lost
        ends["copies whose answer was doubtful"] += entry.doubtful
        if delivered + bounced != 1:
            wrong.append(f"{recipient} has ended {delivered + bounced} times")
        if entry.taken > 1:
            wrong.append(f"{recipient} was taken {entry.taken} times")
        if delivered and not entry.taken + entry.doubtful:
            wrong.append(f"{recipient} was not taken, and is told to be delivered")
        if bounced and entry.taken:
            wrong.append(f"{recipient} was taken, and has bounced")
        if bounced and not entry.refused:
            wrong.append(f"{recipient} was not refused, and has bounced")
        if bounced and not (len(notices) == 1 and any(v in ("taken", "doubtful") for _, v in entry.told)):
            wrong.append(f"{recipient} has bounced, and the notices that came are {entry.told}")
        if bounced and sum(v == "taken" for _, v in entry.told) > 1:
            wrong.append(f"the notice about {recipient} was taken more than once")
        if notices and not bounced:
            wrong.append(f"{recipient} has not bounced, and its sender was told so")
    return ends, wrong


def drain(gateway, events):
    """Until the queue is empty: the upstream is good."""
    until, last = time.monotonic() + DRAIN_S, 0
    while (left := gateway.queue_count()) > 0:
        assert time.monotonic() < until, f"{left} are left:\n{gateway.tool('queue', 'list')}"
        if time.monotonic() > last + 5:
            gateway.tool("queue", "retry", "all")
            last = time.monotonic()
        time.sleep(0.2)
    events.end()


def test_every_message_ends_once(stage):
    print(f"# POSTERN_HOSTILE_S={SECONDS:.0f} POSTERN_HOSTILE_SEED={SEED}", flush=True)
    certificate, key = stage.authority.issue("hostile", "DNS:localhost")
    wrong_certificate, wrong_key = stage.authority.issue("another", "DNS:another.example")
    upstream = HostileUpstream(SEED, certificate, key, wrong_certificate, wrong_key, complaint)
    gateway, books = stage.gateway, upstream.books
    configure(stage, upstream)
    relay = gateway.children()["relay"]
    events = Events(gateway)
    clients = Clients(stage, events)
    began, told, before = time.monotonic(), time.monotonic(), resident(relay)
    try:
        while time.monotonic() < began + SECONDS:
            time.sleep(1)
            assert all(thread.is_alive() for thread in clients.threads), "a client has died"
            assert not events.reports and not books.wrong, (events.reports[:5], books.wrong)
            if events.stopped:  # an operator sees it, and tries again
                events.stopped = False
                gateway.tool("queue", "retry", "all")
            if time.monotonic() > told + 60:
                told = time.monotonic()
                print(f"# {told - began:.0f} s: {clients.messages} messages, {len(clients.acknowledged)} recipients,"
                      f" {events.settled} settled; relay {resident(relay)} MiB", flush=True)
        clients.stop()
        upstream.become_good()
        drain(gateway, events)
    finally:
        clients.ending.set()
        upstream.close()
    ends, wrong = judge(clients, events, books)
    after = resident(relay)
    print("# faults: " + ", ".join(f"{count} {name}" for name, count in sorted(books.faults.items())))
    print("# events: " + ", ".join(f"{count} {name}" for name, count in sorted(events.counts.items()) if "." in name))
    print("# final dots answered: " + ", ".join(f"{count} {name}" for name, count in sorted(books.answers.items())))
    print(f"# {clients.messages} messages to {len(clients.acknowledged)} recipients in {SECONDS:.0f} s: "
          + ", ".join(f"{count} {name}" for name, count in sorted(ends.items()))
          + f", 0 queued, {len(wrong)} wrong; relay {before} MiB, then {after} MiB", flush=True)
    assert not wrong, wrong[:20]
    assert not events.reports and not books.wrong, (events.reports[:5], books.wrong)
    assert gateway.children()["relay"] == relay
    assert after < before + 64, "the memory of `relay` grows"

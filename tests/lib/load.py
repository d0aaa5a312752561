# SPDX-License-Identifier: ISC
"""Clients that send without pause, and the books of what they were answered and of what came to the upstream."""
import base64
import random
import threading
import time
from dataclasses import dataclass, field

from client import Bare

LINES = b"".join(b"%07d %s\r\n" % (i, b"0123456789abcdef" * 3) for i in range(12000))
LINE = len(LINES) // 12000


def encode(text):
    return base64.b64encode(text.encode()).decode()


@dataclass
class Sent:
    """One message of a client: its fate, and the copies that came."""
    lines: int
    connection: tuple  # of the client
    fate: str = "in doubt"  # until it is "acknowledged" or "refused"
    copies: list = field(default_factory=list)

    def body(self, subject):
        return subject.encode() + b"\r\n" + LINES[:self.lines * LINE]


@dataclass
class Reply:
    verb: str
    text: str
    asked: float
    took: float


class Load:
    """
    `clients` threads, each with a session at a time, over which it sends a few messages; the first `kept` of
    them as many as they can. A connection that ends is made anew. Some messages have up to `lines` lines of
    58 octets, most up to 100.
    """

    def __init__(self, stage, clients=6, kept=0, lines=9000, name="load", login=("alice@example.org", "secret-1"),
                 seed=0):
        self.stage, self.kept, self.lines, self.name, self.login = stage, kept, lines, name, login
        self.lock = threading.Condition()
        self.sent = {}  # by subject
        self.replies = []
        self.lost_connections = 0
        self.acknowledged = self.acknowledged_octets = 0
        self.paused = False
        self.ending = threading.Event()
        self.threads = [threading.Thread(target=self.client, args=(n, random.Random(f"{seed} {name} {n}")), daemon=True)
                        for n in range(clients)]

    # ---- the clients ----

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.ending.set()
        self.pause(False)
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"

    def client(self, number, chance):
        connection = 0
        while not self.ending.is_set():
            connection += 1
            try:
                bare = Bare(self.stage, tls=True)
            except OSError:
                self.ending.wait(0.02)  # nobody listens now
                continue
            try:
                if not self.session(bare, (number, connection), chance):
                    self.ending.wait(0.02)
            except OSError:
                with self.lock:
                    self.lost_connections += 1
            finally:
                bare.close()

    def ask(self, bare, line, verb):
        """Its reply, noted; an end of the connection is an error."""
        began = time.monotonic()
        text = bare.ask(line)
        if not text:
            raise ConnectionResetError
        with self.lock:
            self.replies.append(Reply(verb, text, began, time.monotonic() - began))
        return text

    def session(self, bare, connection, chance):
        """False when it was sent away."""
        if not bare.reply().startswith("220"):
            return False
        self.ask(bare, "EHLO client.test", "EHLO")
        if not self.log_in(bare, chance):
            return False
        count, most = 0, float("inf") if connection[0] < self.kept else chance.randint(1, 8)
        while not self.ending.is_set() and count < most:
            self.wait_paused()
            subject = f"{self.name}-{connection[0]}-{connection[1]}-{count}"
            lines = chance.randint(0, self.lines) if chance.random() < 0.1 else chance.randint(0, min(self.lines, 100))
            if not self.message(bare, subject, Sent(lines, connection)):
                self.ending.wait(0.02)
            count += 1
        self.ask(bare, "QUIT", "QUIT")
        return True

    def pause(self, paused=True):
        """Whether clients begin no more messages."""
        with self.lock:
            self.paused = paused
            self.lock.notify_all()

    def wait_paused(self):
        with self.lock:
            self.lock.wait_for(lambda: not self.paused or self.ending.is_set())

    def log_in(self, bare, chance):
        """With a mechanism that may be answered from memory, or one that is not."""
        if chance.random() < 0.7:
            steps = ["AUTH PLAIN " + encode("\0".join(("", *self.login)))]
        else:
            steps = ["AUTH LOGIN", encode(self.login[0]), encode(self.login[1])]
        for step in steps:
            text = self.ask(bare, step, "AUTH")
            if not text.startswith("334"):
                break
        return text.startswith("235")

    def message(self, bare, subject, sent):
        sender = self.login[0]
        for line, verb in ((f"MAIL FROM:<{sender}>", "MAIL"), ("RCPT TO:<bob@example.net>", "RCPT")):
            if not self.ask(bare, line, verb).startswith("250"):
                return False
        if not self.ask(bare, "DATA", "DATA").startswith("354"):
            self.ask(bare, "RSET", "RSET")
            return False
        with self.lock:
            self.sent[subject] = sent
        text = self.ask(bare, f"From: <{sender}>\r\nSubject: {subject}\r\n\r\n".encode() + sent.body(subject) + b".", "DOT")
        with self.lock:
            sent.fate = "acknowledged" if text.startswith("250") else "refused"
            if sent.fate == "acknowledged":
                self.acknowledged += 1
                self.acknowledged_octets += sent.lines * LINE
            self.lock.notify_all()
        return text.startswith("250")

    def wait_acknowledged(self, more, seconds=20):
        """Until so many more were answered 250."""
        with self.lock:
            wanted = self.acknowledged + more
            assert self.lock.wait_for(lambda: self.acknowledged >= wanted, seconds), \
                f"{wanted - self.acknowledged} of {more} messages not accepted within {seconds} s; " \
                f"the last replies: {[r.text for r in self.replies[-5:]]}"

    # ---- the books ----

    def not_successes(self):
        with self.lock:
            return [r for r in self.replies if r.text[0] not in "23"]

    def collect(self):
        """Takes what has come to the upstream; each must be whole, and one that was not refused."""
        with self.stage.upstream.lock:
            messages, self.stage.upstream.messages = self.stage.upstream.messages, []
            self.stage.upstream.commands.clear()
        for message in messages:
            sent = self.sent.get(message.subject)
            assert sent, f"nobody sent {message.subject}"
            assert sent.fate != "refused", f"{message.subject} was refused, and came"
            assert message.body == sent.body(message.subject), f"{message.subject} came with other octets"
            message.octets = b""
            sent.copies.append(message)

    def missing(self):
        """What was acknowledged and has not come."""
        self.collect()
        with self.lock:
            return [subject for subject, sent in self.sent.items() if sent.fate == "acknowledged" and not sent.copies]

    def wait_all(self, silence=30):
        """
        Until all has come that is acknowledged now; nothing of it is lost. An empty queue tells nothing: a `relay`
        that has just started has not read it yet.
        """
        missing, at = self.missing(), time.monotonic()
        while missing:
            time.sleep(0.1)
            left = [subject for subject in missing if not self.sent[subject].copies]
            if len(left) < len(missing):
                at = time.monotonic()
            assert time.monotonic() < at + silence, f"{len(left)} acknowledged messages did not come: {left[:5]}"
            missing = left
            self.collect()

    def close_books(self):
        """
        At the end: all that was acknowledged has come, nothing is left, nothing has come that was refused, and nobody
        was told that something is wrong for good.
        """
        self.stop()
        self.wait_all()
        self.stage.gateway.wait_queue(0)
        self.collect()
        for_good = [reply for reply in self.not_successes() if reply.text[0] == "5"]
        assert not for_good, for_good
        came = [subject for subject, sent in self.sent.items() if sent.fate == "refused" and sent.copies]
        assert not came, f"refused, and came: {came}"
        unanswered = [sent.connection for sent in self.sent.values() if sent.fate == "in doubt"]
        assert len(unanswered) == len(set(unanswered)), "more than one a connection was left without an answer"

    def twice(self):
        """Subjects that came more than once."""
        return {subject: sent.copies for subject, sent in self.sent.items() if len(sent.copies) > 1}

# SPDX-License-Identifier: ISC
"""An upstream of several hosts that does anything but what it should, and keeps books of what it has answered.

Every choice comes from a seed; which connection meets it depends on time. A mood says how often a host is odd, and
changes every few seconds; `good` ends all that.
"""
import collections
import random
import re
import socket
import ssl
import struct
import threading
import time

PATIENCE_S = 60  # for the gateway's next word: it ends its connections itself, and sooner
LATE_S = 3  # an answer that took so long may have come too late
FLOOD = 1 << 22  # octets of something endless
MESSAGE_MAX = 1 << 23
MOODS = {"calm": 0.3, "moody": 1.0, "wild": 3.0, "away": 1.0, "silent": 1.0}

# What the answer to a final dot is worth. Only the first must be heard as "delivered"; the second may be.
TAKEN, DOUBTFUL, LOST, REFUSED, LATER = "taken", "doubtful", "lost", "refused", "later"


class Gone(Exception):
    """This connection is over."""


class Entry:
    """What the upstream has said of one recipient."""
    __slots__ = ("taken", "doubtful", "lost", "refused", "told")

    def __init__(self):
        self.taken = self.doubtful = self.lost = self.refused = 0
        self.told = ()  # notices that name it: pairs of their Message-ID and what was answered


class Books:
    """By recipient: a test gives each to one message."""

    def __init__(self, check):
        self.lock = threading.Lock()
        self.entries = collections.defaultdict(Entry)
        self.faults, self.answers = collections.Counter(), collections.Counter()
        self.wrong = []  # what must never be
        self.check = check  # (subject, octets) of a whole message: what is wrong with it, or None

    def fault(self, phase, name):
        with self.lock:
            self.faults[f"{phase} {name}"] += 1

    def accuse(self, text):
        with self.lock:
            if len(self.wrong) < 20:
                self.wrong.append(text)

    def refuse(self, recipient):
        with self.lock:
            self.entries[recipient].refused += 1

    def message(self, sender, recipients, octets, verdict):
        """A message whose final dot has come, and what that was answered."""
        if not octets:
            return  # 354 although the gateway had nobody left: only a dot ends that (RFC 2920 3.1)
        with self.lock:
            self.answers[verdict] += 1
        if sender:
            subject = re.search(rb"^Subject: (.*)\r$", octets, re.M)
            if complaint := self.check(subject.group(1).decode() if subject else "", octets):
                self.accuse(complaint)
            about, told = recipients, None
        else:
            about = [r.decode() for r in re.findall(rb"^Final-Recipient: rfc822; ?(.*)\r$", octets, re.M)]
            told = re.search(rb"^Message-ID: (.*)\r$", octets, re.M | re.I).group(1).decode()
        with self.lock:
            for recipient in about:
                entry = self.entries[recipient]
                if told:
                    entry.told += ((told, verdict),)
                elif verdict == LATER:
                    pass
                else:
                    setattr(entry, verdict, getattr(entry, verdict) + 1)


# ---- odd answers: name, weight, what it is worth, steps ----

def malformed(chance, good):
    text = good[4:]
    return chance.choice((
        ("class 1", b"150" + text.encode()), ("class 6", b"650 no such class\r\n"), ("class 0", b"050 ok\r\n"),
        ("class 9", b"999 ok\r\n"), ("empty line", b"\r\n" + good.encode() + b"\r\n"), ("words", b"all is well\r\n"),
        ("two digits", b"25\r\n"), ("four digits", b"2500 ok\r\n"), ("letters", b"2x0 ok\r\n"), ("no blank", b"250_ok\r\n"),
        ("HTTP", b"HTTP/1.1 200 OK\r\n\r\n"), ("blank in front", b" " + good.encode() + b"\r\n"),
        ("code that changes", b"250-ok\r\n550 no\r\n"), ("code that changes back", b"550-no\r\n250 ok\r\n"),
        ("bare LF", good.encode() + b"\n"), ("NUL", good.encode() + b"\0\r\n"), ("minus", b"-250 ok\r\n"), ("octets", chance.randbytes(40) + b"\n\r\n"),
    ))


class Talk:
    """One connection."""

    def __init__(self, host, connection, number):
        self.host, self.books, self.socket = host, host.upstream.books, connection
        self.chance = random.Random(f"{host.upstream.seed} {host.name} {number}")
        self.received, self.tls, self.logged_in, self.pipelining = b"", False, False, False
        self.refuse_from_here = False
        self.sender, self.recipients, self.named = None, [], []
        self.shifted = self.said_no = False  # more answers than questions: which is to which is not known
        connection.settimeout(PATIENCE_S)

    # ---- octets ----

    def line(self):
        while b"\n" not in self.received:
            more = self.socket.recv(65536)
            if not more:
                raise Gone
            self.received += more
            if len(self.received) > MESSAGE_MAX:
                raise Gone
        line, _, self.received = self.received.partition(b"\n")
        return line.removesuffix(b"\r")

    def send(self, octets):
        self.socket.sendall(octets)

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Gone

    def hang(self):
        """Says nothing more, and reads on, until the gateway has had enough."""
        while self.socket.recv(65536):
            pass
        raise Gone

    def drip(self, octets):
        """An octet a moment, and never the end of the line."""
        self.send(octets[:5])
        for _ in range(4 * PATIENCE_S):
            time.sleep(0.25)
            if self.host.upstream.good:
                raise Gone
            self.send(b"x")
        raise Gone

    def flood(self, octets):
        for _ in range(FLOOD // len(octets)):
            self.send(octets)
        raise Gone

    # ---- answers ----

    def is_odd(self, phase):
        share = {"DOT": 0.15, "greeting": 0.08, "body": 0.06}.get(phase, 0.04)
        return not self.host.upstream.good and self.chance.random() < share * MOODS[self.host.mood]

    def answer(self, phase, good, may_refuse=False):
        """Says `good` or something odd; what that is worth. Gone, when this was the last word."""
        if not self.is_odd(phase):
            self.send(good.encode() + b"\r\n")
            return TAKEN
        kind = self.chance.choices(
            ("later", "refusal", "malformed", "another success", "wrong class", "lines", "light octets", "surplus", "slow",
             "drip", "endless line", "endless lines", "hang", "close", "reset", "half a line", "half a reply", "last word",
             "closing"),
            (14, 8, 14, 6, 4, 4, 4, 5, 5, 2, 2, 2, 2, 8, 8, 4, 4, 6, 5))[0]
        if kind == "refusal" and not may_refuse:
            kind = "later"
        self.books.fault(phase, kind)
        return getattr(self, "say_" + kind.replace(" ", "_"))(phase, good)

    def say_later(self, phase, _good):
        self.send(self.chance.choice((b"451 4.3.0 later\r\n", b"450 4.2.0 busy\r\n", b"452 4.2.2 full\r\n", b"499 what\r\n")))
        return LATER

    def say_refusal(self, phase, _good):
        self.said_no = True
        self.send(self.chance.choice((b"554 5.7.1 no\r\n", b"550 no\r\n", b"552-5.3.4 too\r\n552 5.3.4 big\r\n", b"599 never\r\n")))
        return REFUSED

    def say_malformed(self, phase, good):
        name, octets = malformed(self.chance, good)
        self.books.fault("malformed", name)
        self.send(octets)
        return LOST

    def say_another_success(self, phase, good):
        """Of class 2 where that is what matters; elsewhere it is out of place."""
        self.send(self.chance.choice((b"250\r\n", b"250 \r\n", b"200 fine\r\n", b"259 2.9.9 fine\r\n")))
        return TAKEN if good[0] == "2" else LOST

    def say_wrong_class(self, phase, good):
        self.send(b"250 not that\r\n" if good[0] == "3" else b"354 go on\r\n")
        return LOST if good[0] == "3" else LATER

    def say_lines(self, phase, good):
        self.send(b"".join(f"{good[:3]}-line {i}\r\n".encode() for i in range(50)) + good.encode() + b"\r\n")
        return TAKEN

    def say_light_octets(self, phase, good):
        """Another alphabet, a control character: each may pass or not."""
        self.send(good.encode() + self.chance.choice((b" \xc3\xbc\xff\r\n", b" \x07\r\n")))
        return DOUBTFUL

    def say_surplus(self, phase, good):
        surplus = self.chance.choice((b"250 and more\r\n", b"550 or not\r\n", b"354 go\r\n", b"25"))
        self.shifted = True
        self.said_no |= surplus[0] == ord("5")
        self.send(good.encode() + b"\r\n" + surplus)
        return DOUBTFUL

    def say_slow(self, phase, good):
        for octet in good.encode() + b"\r\n":
            time.sleep(0.01)
            self.send(bytes([octet]))
        return TAKEN

    def say_drip(self, phase, good):
        self.drip(good.encode())

    def say_endless_line(self, phase, good):
        self.flood(good.encode() * 100)

    def say_endless_lines(self, phase, good):
        self.flood(f"{good[:3]}-and\r\n".encode() * 100)

    def say_hang(self, phase, _good):
        self.hang()

    def say_close(self, phase, _good):
        raise Gone

    def say_reset(self, phase, _good):
        self.reset()

    def say_half_a_line(self, phase, good):
        self.send(good.encode())
        raise Gone

    def say_half_a_reply(self, phase, good):
        self.send(f"{good[:3]}-more to come\r\n".encode())
        raise Gone

    def say_last_word(self, phase, good):
        """The right answer, and then the end."""
        self.send(good.encode() + b"\r\n")
        return TAKEN if phase == "DOT" else self.close_after(TAKEN)

    def say_closing(self, phase, _good):
        code = self.chance.choice(("421 4.3.2", "221 2.0.0"))
        self.send(f"{code} closing\r\n".encode())
        return LOST if code[0] == "2" else LATER

    @staticmethod
    def close_after(_verdict):
        raise Gone

    # ---- the session ----

    def run(self):
        if self.host.implicit:
            self.start_tls()
        self.answer("greeting", "220 hostile ESMTP")
        while True:
            self.command(self.line().decode("utf-8", "replace"))

    def command(self, line):
        if line.startswith("\x16\x03"):
            raise Gone  # the gateway heard a 220 that was none, and begins TLS: nothing in the clear
        verb = line.split(" ")[0].split(":")[0].upper()
        if not self.tls and self.host.secure and verb not in ("EHLO", "STARTTLS", "QUIT", "RSET"):
            self.books.accuse(f"in the clear: {line}")
        handler = getattr(self, "on_" + verb.lower(), None)
        if handler:
            handler(line)
        else:
            if not self.shifted:  # else it may be content, after a 354 that was one too many
                self.books.accuse(f"not a command: {line[:80]}")
            self.send(b"500 5.5.1 what?\r\n")

    def on_ehlo(self, _line):
        offers = ["SIZE 100000000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
        self.pipelining = self.chance.random() < 0.7
        if self.pipelining:
            offers.append("PIPELINING")
        if self.host.secure and not self.tls and not self.is_odd("STARTTLS"):
            offers.append("STARTTLS")
        if self.host.secure and (self.tls or self.chance.random() < 0.3):
            offers.append("AUTH PLAIN")
        if self.is_odd("EHLO"):
            self.pipelining = False
            self.answer("EHLO", "250 hostile")
        else:
            self.send("".join(f"250-{o}\r\n" for o in ["hostile", *offers]).encode() + b"250 HELP\r\n")

    def on_starttls(self, _line):
        if self.is_odd("STARTTLS"):
            self.books.fault("STARTTLS", "injection")
            self.send(b"220 go\r\n250-hostile\r\n250 AUTH PLAIN\r\n")
        elif self.answer("STARTTLS", "220 go") in (TAKEN, DOUBTFUL):
            self.start_tls()

    def start_tls(self):
        context = self.host.upstream.context
        if self.is_odd("TLS"):
            kind = self.chance.choice(("hang", "garbage", "close", "another's certificate", "reset"))
            self.books.fault("TLS", kind)
            if kind == "hang":
                self.hang()
            if kind == "garbage":
                self.send(self.chance.randbytes(100))
            if kind == "reset":
                self.reset()
            if kind != "another's certificate":
                raise Gone
            context = self.host.upstream.wrong_context
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.received, self.tls = b"", True

    def on_auth(self, _line):
        if self.is_odd("AUTH") and self.chance.random() < 0.05:
            self.books.fault("AUTH", "refusal")
            self.send(b"535 5.7.8 no\r\n")
        elif self.answer("AUTH", "235 2.7.0 welcome") == TAKEN:
            self.logged_in = True

    def on_mail(self, line):
        self.sender, self.recipients, self.named = line[line.index("<") + 1:line.index(">")], [], []
        self.said_no &= self.shifted
        # A notice is never refused, because nobody would be told of it; nor a sender whose recipients do not follow.
        may_refuse = self.pipelining and self.sender != ""
        self.refuse_from_here = self.answer("MAIL", "250 2.1.0 ok", may_refuse) == REFUSED

    def on_rcpt(self, line):
        recipient = line[line.index("<") + 1:line.rindex(">")]
        self.named.append(recipient)
        self.note_shift()  # the answer may be the end of this connection
        if recipient.startswith("never"):
            self.said_no = True
            self.send(b"550 5.1.1 no such user\r\n")
            verdict = REFUSED
        else:
            verdict = self.answer("RCPT", "250 2.1.5 ok", may_refuse=self.sender != "")
        if verdict == REFUSED or self.refuse_from_here:
            self.books.refuse(recipient)
        elif verdict in (TAKEN, DOUBTFUL):
            self.recipients.append(recipient)
        self.note_shift()

    def note_shift(self):
        """A refusal that the gateway may take for anybody's, also for one whose command was not read yet."""
        if (self.shifted and self.said_no) or self.refuse_from_here:
            unread = re.findall(r"^RCPT TO:<(.*)>\r$", self.received.decode("utf-8", "replace"), re.M)
            for recipient in self.named + unread:
                self.books.refuse(recipient)

    def on_data(self, _line):
        if not self.recipients:
            self.said_no = True
            self.note_shift()
            self.send(b"554 5.5.1 nobody to send it to\r\n")
            return
        verdict = self.answer("DATA", "354 go", may_refuse=self.sender != "")
        self.note_shift()
        if verdict == REFUSED:
            for recipient in self.recipients:
                self.books.refuse(recipient)
        if verdict in (TAKEN, DOUBTFUL):
            self.take_content()

    def take_content(self):
        lines, size = [], 0
        odd = self.is_odd("body") and self.chance.choice(("close", "reset", "talk", "dot answered", "hang", "slow"))
        if odd:
            self.books.fault("body", odd)
        at = self.chance.randrange(12)  # line at which it is odd
        while (line := self.line()) != b".":
            if odd and len(lines) == at:
                self.be_odd_in_content(odd)
            lines.append(line[1:] if line.startswith(b".") else line)
            size += len(line)
            if size > MESSAGE_MAX:
                raise Gone
        self.answer_dot(b"".join(line + b"\r\n" for line in lines))

    def be_odd_in_content(self, odd):
        if odd == "close":
            raise Gone
        if odd == "reset":
            self.reset()
        if odd == "hang":
            self.hang()
        if odd == "slow":
            time.sleep(0.5)
        if odd in ("talk", "dot answered"):
            self.shifted = True  # the answer to the dot may be heard as that to the next command
        if odd == "talk":
            self.send(b"451 4.3.0 enough\r\n")
        if odd == "dot answered":
            self.send(b"250 2.0.0 taken, whatever it is\r\n")

    def answer_dot(self, octets):
        came, verdict = time.monotonic(), LOST
        try:
            # Behind an answer too many a refusal would be heard as that of the next sender, who may never be told of.
            verdict = self.answer("DOT", "250 2.0.0 taken", may_refuse=self.sender != "" and not self.shifted)
            if verdict == TAKEN and time.monotonic() > came + LATE_S:
                verdict = DOUBTFUL
        finally:
            if verdict == REFUSED:
                for recipient in self.recipients:
                    self.books.refuse(recipient)
                verdict = LATER
            if self.shifted:
                verdict = DOUBTFUL
            self.books.message(self.sender, self.recipients, octets, verdict)
        self.sender, self.recipients, self.named = None, [], []
        if self.is_odd("RSET"):
            self.books.fault("after the dot", "close")
            raise Gone

    def on_rset(self, _line):
        self.recipients, self.named = [], []
        self.answer("RSET", "250 2.0.0 ok")

    def on_quit(self, _line):
        self.answer("QUIT", "221 2.0.0 bye")
        raise Gone


class Host:
    """Listens on its port, unless it is away."""

    def __init__(self, upstream, name, port, secure, implicit):
        self.upstream, self.name, self.port, self.secure, self.implicit = upstream, name, port, secure, implicit
        self.mood, self.number = "calm", 0
        self.listener = None
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        chance = random.Random(f"{self.upstream.seed} {self.name}")
        while not self.upstream.closed:
            self.mood = "calm" if self.upstream.good else chance.choice(list(MOODS))
            self.upstream.books.fault("mood", self.mood)
            self.be_there(time.monotonic() + 1 + 3 * chance.random())
        self.stop_listening()

    def stop_listening(self):
        if self.listener:
            self.listener.close()
        self.listener = None

    def be_there(self, until):
        if self.mood == "away":
            self.stop_listening()
        elif not self.listener:
            self.listener = socket.socket()
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind(("127.0.0.1", self.port))
            self.listener.listen(2)  # few: while it is silent, the rest finds a black hole
            self.listener.settimeout(0.1)
        while time.monotonic() < until and not self.upstream.closed:
            if self.mood in ("away", "silent"):
                if self.upstream.good:
                    return
                time.sleep(0.1)
                continue
            try:
                connection = self.listener.accept()[0]
            except TimeoutError:
                continue
            self.number += 1
            threading.Thread(target=self.talk, args=(Talk(self, connection, self.number),), daemon=True).start()

    @staticmethod
    def talk(talk):
        try:
            talk.run()
        except (Gone, OSError, ssl.SSLError):
            pass
        except Exception as error:  # a defect of this program
            talk.books.accuse(f"hostile_upstream.py: {error!r}")
        finally:
            talk.note_shift()
            talk.socket.close()


class HostileUpstream:
    """Hosts by name; `secure` ones offer TLS and a login, and nothing of a message may come to them without."""

    def __init__(self, seed, certificate, key, wrong_certificate, wrong_key, check):
        self.seed, self.good, self.closed = seed, False, False
        self.books = Books(check)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.wrong_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.wrong_context.load_cert_chain(wrong_certificate, wrong_key)
        self.hosts = []

    def add(self, name, port, secure=False, implicit=False):
        self.hosts.append(Host(self, name, port, secure, implicit))

    def become_good(self):
        self.good = True

    def close(self):
        self.closed = True

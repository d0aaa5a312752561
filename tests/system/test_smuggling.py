# SPDX-License-Identifier: ISC
"""The smuggling matrix: whatever a message has in it that some server takes for its end, one message leaves."""
import itertools
import re
import socket
import threading

from client import Bare
from test_refusals import plain

# Each is tried behind the text of a message, with a second transaction behind it.
BREAKS = {"lf": b"\n", "cr": b"\r", "crlf": b"\r\n", "crcrlf": b"\r\r\n", "lfcr": b"\n\r", "nul": b"\r\n\0", "nul-lf": b"\0\n",
          "nul-in": b"\r\0\n"}
MIDDLES = {"dot": b".", "dots": b"..", "dot-nul": b".\0", "nul-dot": b"\0.", "dot-blank": b". ", "blank-dot": b" ."}
BATCH = 40  # messages on one connection
TRANSACTION = (b"MAIL FROM:<alice@example.org>\r\nRCPT TO:<smuggled@example.net>\r\nDATA\r\n"
               b"From: alice@example.org\r\nSubject: smuggled\r\n\r\nsmuggled\r\n")


def ends(chunked):
    """(name, octets) of every end that is none; in chunks that of DATA is none either."""
    for (first, a), (middle, dot), (last, b) in itertools.product(BREAKS.items(), MIDDLES.items(), BREAKS.items()):
        end = a + dot + b
        if chunked or b"\r\n.\r\n" not in end:
            yield f"{first}.{middle}.{last}", end
    for name, end in (("eot", b"\x04"), ("sub", b"\r\n\x1a\r\n"), ("vt", b"\v.\v"), ("ff", b"\f.\f"), ("nel", b"\x85.\x85"),
                      ("utf8-nel", b"\xc2\x85.\xc2\x85"), ("ls", b"\xe2\x80\xa8.\xe2\x80\xa8"),
                      ("wide-dot", b"\r\n\xef\xbc\x8e\r\n"), ("high-crlf", b"\x8d\x8a.\x8d\x8a")):
        yield name, end


class Recorder:
    """An upstream that keeps every octet, and answers whatever it is asked."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.lock = threading.Condition()
        self.streams, self.messages = [], []
        self.odd = []  # lines that no client says
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection = self.server.accept()[0]
            except OSError:
                return
            stream = bytearray()
            self.streams.append(stream)
            threading.Thread(target=self.serve, args=(connection, stream), daemon=True).start()

    def serve(self, connection, stream):
        connection.sendall(b"220 recorder\r\n")
        at, data = 0, None
        try:
            while more := connection.recv(65536):
                stream += more
                while (end := stream.find(b"\r\n", at)) >= 0:
                    line, at = bytes(stream[at:end]), end + 2
                    if data is None:
                        data = self.command(connection, line)
                    elif line == b".":
                        with self.lock:
                            self.messages.append(b"".join(data))
                            self.lock.notify_all()
                        data = None
                        connection.sendall(b"250 taken\r\n")
                    else:
                        data.append(line + b"\r\n")
        except OSError:
            pass

    def command(self, connection, line):
        verb = line[:4].upper()
        connection.sendall({b"EHLO": b"250-recorder\r\n250-8BITMIME\r\n250 PIPELINING\r\n", b"DATA": b"354 go\r\n",
                            b"QUIT": b"221 bye\r\n"}.get(verb, b"250 ok\r\n"))
        if not re.fullmatch(rb"(EHLO|MAIL|RCPT|DATA|RSET|NOOP|QUIT)\b[ -~]*", line):
            self.odd.append(line)
        return [] if verb == b"DATA" else None

    def close(self):
        self.server.close()


class Sender:
    """Sends one message after another on a connection, and counts what is taken."""

    def __init__(self, stage, chunked, pipelined):
        self.bare, self.chunked, self.pipelined = Bare(stage, tls=True), chunked, pipelined
        assert self.bare.reply().startswith("220")
        assert self.bare.ask("EHLO client.test").startswith("250")
        assert self.bare.ask(plain()).startswith("235")

    def give(self, name, end):
        """The reply to the message; whatever is behind the false end must be part of it."""
        text = (b"From: alice@example.org\r\nSubject: " + name.encode() + b"\r\n\r\ntext" + end + TRANSACTION
                + b"tail\r\n")
        envelope = b"MAIL FROM:<alice@example.org> BODY=8BITMIME\r\nRCPT TO:<bob@example.net>\r\n"
        if self.chunked:
            cut = text.index(end)
            chunks = [text[:cut + 1 + len(end) // 2], text[cut + 1 + len(end) // 2:]]
            parts = [envelope + b"BDAT %d\r\n" % len(chunks[0]) + chunks[0], b"BDAT %d LAST\r\n" % len(chunks[1]) + chunks[1]]
            answers = [3, 1]
        else:
            parts, answers = [envelope + b"DATA\r\n", text + b".\r\n"], [3, 1]
        if self.pipelined and self.chunked:
            parts, answers = [b"".join(parts) + b"NOOP\r\n"], [5]
        elif self.pipelined:
            parts[1] += b"NOOP\r\n"
            answers[1] += 1
        replies = []
        for part, count in zip(parts, answers):
            self.bare.send(part)
            replies += [self.bare.reply() for _ in range(count)]
        if self.pipelined:  # in step: what came behind was a command, and nothing else was
            assert replies.pop() == "250 2.0.0 OK", (name, replies)
        assert self.bare.ask("VRFY x").startswith("252 "), (name, replies)
        if self.bare.ask("RSET")[:3] != "250":
            raise AssertionError(name)
        final = replies[-2] if self.chunked and not replies[-2].startswith("250") else replies[-1]
        assert all(r[:3] in ("250", "354", "550", "503") for r in replies), (name, replies)
        return final


def check_upstream(recorder, accepted):
    with recorder.lock:
        assert recorder.lock.wait_for(lambda: len(recorder.messages) >= len(accepted), 30), \
            f"{len(recorder.messages)} of {len(accepted)}, and {recorder.odd}"
        messages = list(recorder.messages)
    subjects = [re.search(rb"^Subject: (.*)\r\n", m, re.MULTILINE).group(1).decode() for m in messages]
    assert sorted(subjects) == sorted(accepted), set(subjects) ^ set(accepted)
    assert not recorder.odd, recorder.odd
    for stream in recorder.streams:
        assert b"\0" not in stream
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n", bytes(stream)), "a bare line end left"
    for text in messages:
        assert b"smuggled\r\n" in text and text.endswith(b"tail\r\n"), text


def test_smuggling_one_message_in_one_message_out(stage):
    count = 0
    for newline in ("refuse", "normalize"):
        recorder = Recorder()
        stage.gateway.upstreams = {"up": {"hosts": [f"127.0.0.1:{recorder.port}"], "tls": "none"}}
        stage.gateway.listener = {"bare_newline": newline}
        stage.gateway.stop()
        stage.gateway.start()
        accepted = []
        for chunked, pipelined in itertools.product((False, True), (False, True)):
            sender, variants = None, list(ends(chunked))
            for number, (name, end) in enumerate(variants):
                if number % BATCH == 0:
                    if sender:
                        sender.bare.close()
                    sender = Sender(stage, chunked, pipelined)
                full = f"{newline}-{'bdat' if chunked else 'data'}-{pipelined}-{name}"
                final = sender.give(full, end)
                bare = re.search(rb"\r(?!\n)|(?<!\r)\n", end)
                refused = b"\0" in end or (newline == "refuse" and bare)
                assert final.startswith("550 5.6.11 " if refused else "250 2.0.0 queued"), (full, final)
                if not refused:
                    accepted.append(full)
                count += 1
            sender.bare.close()
        assert len(accepted) > (20 if newline == "refuse" else 400), "hardly anything was taken: this shows nothing"
        check_upstream(recorder, accepted)
        stage.gateway.wait_queue(0)
        assert len(recorder.messages) == len(accepted)
        recorder.close()
        print(f"# bare_newline = {newline}: {len(accepted)} messages taken")
    print(f"# the matrix has {count} messages")

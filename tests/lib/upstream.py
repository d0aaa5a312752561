# SPDX-License-Identifier: ISC
"""An upstream that keeps what it gets: a small SMTP server whose replies a test chooses."""
import base64
import email
import socket
import socketserver
import ssl
import threading
import time
from dataclasses import dataclass


@dataclass
class Message:
    sender: str
    recipients: list
    octets: bytes  # dots removed
    mail_line: str = ""
    tls: bool = False
    login: str = ""
    connection: int = 0
    opened: float = 0  # when its connection was
    taken: float = 0  # when its final dot had come
    answered: float = 0  # when the reply to its final dot left; 0: it could not

    @property
    def header(self):
        return self.octets.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    @property
    def subject(self):
        return email.message_from_bytes(self.header)["Subject"]

    @property
    def body(self):
        return self.octets.partition(b"\r\n\r\n")[2]


class Session(socketserver.StreamRequestHandler):
    """One connection; the server's `reply` may answer any command in its place."""

    def handle(self):
        self.upstream = self.server.upstream
        self.tls, self.login, self.opened = False, "", time.monotonic()
        with self.upstream.lock:
            self.upstream.connections += 1
            self.number = self.upstream.connections
            self.upstream.open.append(self.connection)
        try:
            if self.upstream.implicit:
                self.start_tls()
            self.serve()
        except (OSError, ssl.SSLError, ValueError):
            pass
        finally:
            with self.upstream.lock:
                if self.connection in self.upstream.open:
                    self.upstream.open.remove(self.connection)

    def say(self, text):
        self.connection.sendall(text.encode("utf-8", "surrogateescape") + b"\r\n")

    def start_tls(self):
        before = self.connection
        self.connection = self.upstream.context.wrap_socket(before, server_side=True)
        with self.upstream.lock:
            self.upstream.open = [self.connection if s is before else s for s in self.upstream.open]
        self.rfile = self.connection.makefile("rb")
        self.tls = True

    def serve(self):
        greeting = self.upstream.choose("CONNECT", "")
        self.say(greeting or "220 upstream.test ESMTP")
        self.reset()
        while True:
            raw = self.rfile.readline(65536)
            if not raw:
                return
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            verb = line.split(" ")[0].split(":")[0].upper()
            with self.upstream.lock:
                self.upstream.commands.append(line)
            chosen = self.upstream.choose(verb, line)
            if chosen == "DROP":
                return
            if verb == "QUIT":
                self.say("221 bye")
                return
            if verb == "DATA" and not chosen and self.recipients:
                if not self.take_data():
                    return
            else:
                self.answer(verb, line, chosen)

    def reset(self):
        self.sender, self.mail_line, self.recipients = None, "", []

    def answer(self, verb, line, chosen):
        if verb == "EHLO":
            offers = ["upstream.test", *self.upstream.offers]
            if self.upstream.context and not self.tls:
                offers.append("STARTTLS")
            if self.upstream.logins and (self.tls or not self.upstream.context):
                offers.append("AUTH PLAIN")
            default = "\r\n".join(f"250{' ' if i == len(offers) - 1 else '-'}{o}" for i, o in enumerate(offers))
        elif verb == "STARTTLS" and self.upstream.context and not chosen:
            self.say("220 go")
            self.start_tls()
            self.reset()
            return
        elif verb == "AUTH":
            default = self.authenticate(line)
        elif verb == "MAIL" and self.upstream.logins and not self.login:
            default = "530 5.7.0 log in first"
        elif verb == "MAIL":
            default = "250 2.1.0 ok"
        elif verb == "RCPT":
            default = "250 2.1.5 ok" if self.sender is not None else "503 5.5.1 MAIL first"
        elif verb == "DATA":
            default = "554 5.5.1 no valid recipients"
        elif verb in ("RSET", "NOOP", "HELO"):
            default = "250 2.0.0 ok"
        else:
            default = "500 5.5.1 what?"
        reply = chosen or default
        if reply[0] == "2":
            if verb == "MAIL":
                self.sender, self.mail_line = line[line.index("<") + 1:line.index(">")], line
                self.recipients = []
            elif verb == "RCPT":
                self.recipients.append(line[line.index("<") + 1:line.rindex(">")])
            elif verb == "RSET":
                self.reset()
        self.say(reply)

    def authenticate(self, line):
        words = line.split(" ")
        try:
            _, login, password = base64.b64decode(words[2]).decode().split("\0")
        except (IndexError, ValueError):
            return "501 5.5.2 malformed"
        if self.upstream.logins.get(login) != password:
            return "535 5.7.8 wrong"
        self.login = login
        return "235 2.7.0 welcome"

    def take_data(self):
        self.say("354 go")
        lines = []
        while True:
            line = self.rfile.readline(1 << 20)
            if not line:
                return False
            if line == b".\r\n":
                break
            lines.append(line[1:] if line.startswith(b".") else line)
        message = Message(self.sender, self.recipients, b"".join(lines), self.mail_line, self.tls, self.login,
                          self.number, self.opened, time.monotonic())
        reply = self.upstream.choose("DOT", "") or "250 2.0.0 taken"
        if reply == "DROP":
            return False
        if reply == "KEEP-AND-DROP":  # it has the message, and we never hear of it
            self.upstream.keep(message)
            return False
        if reply[0] == "2":
            self.upstream.keep(message)
        self.reset()
        answered = time.monotonic()
        self.say(reply)
        message.answered = answered
        return True


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


class Upstream:
    """start() listens; `messages` is what it has taken, in order."""

    def __init__(self, port, certificate=None, key=None, implicit=False, logins=None,
                 offers=("PIPELINING", "SIZE 104857600", "8BITMIME", "ENHANCEDSTATUSCODES", "SMTPUTF8")):
        self.port, self.implicit, self.logins, self.offers = port, implicit, logins or {}, offers
        self.context = None
        if certificate:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate, key)
        self.lock = threading.Condition()
        self.messages, self.commands, self.open = [], [], []
        self.connections = 0
        self.reply = None  # function of (verb, line): a reply, "DROP", or None for the usual one
        self.server = None

    def choose(self, verb, line):
        return self.reply(verb, line) if self.reply else None

    def start(self):
        self.server = Server(("127.0.0.1", self.port), Session)
        self.server.upstream = self
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self):
        """Refuses connections from now on and drops those there are."""
        if not self.server:
            return
        self.server.shutdown()
        self.server.server_close()
        self.server = None
        with self.lock:
            connections, self.open = self.open, []
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def keep(self, message):
        with self.lock:
            self.messages.append(message)
            self.lock.notify_all()

    def wait(self, count, seconds=20):
        """The messages, once there are so many."""
        until = time.monotonic() + seconds
        with self.lock:
            while len(self.messages) < count:
                left = until - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"{len(self.messages)} of {count} messages came within {seconds} s")
                self.lock.wait(left)
            return list(self.messages)

    def take(self, seconds=20):
        """Waits for one message and empties the box."""
        message = self.wait(1, seconds)[0]
        with self.lock:
            self.messages.clear()
        return message

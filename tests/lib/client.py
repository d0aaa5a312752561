# SPDX-License-Identifier: ISC
"""Clients: Python's own, a bare one that sends octets, and messages to send."""
import base64
import contextlib
import hashlib
import hmac
import random
import secrets
import smtplib
import socket
import ssl

MESSAGE = (b"From: Alice <alice@example.org>\r\nTo: bob@example.net\r\nSubject: hello\r\n"
           b"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nMessage-ID: <m1@example.org>\r\n\r\nHello Bob\r\n")


def message(subject="hello", body=b"Hello Bob\r\n", sender="alice@example.org", extra=b""):
    return (f"From: <{sender}>\r\nTo: bob@example.net\r\nSubject: {subject}\r\n"
            f"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{abs(hash(subject))}@example.org>\r\n").encode() \
        + extra + b"\r\n" + body


def trust_all():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connect(stage, login="alice@example.org", password="secret-1", implicit=False, timeout=30):
    """smtplib, over TLS and logged in."""
    if implicit:
        client = smtplib.SMTP_SSL("127.0.0.1", stage.gateway.tls_port, context=trust_all(), timeout=timeout)
    else:
        client = smtplib.SMTP("127.0.0.1", stage.gateway.port, timeout=timeout)
        client.starttls(context=trust_all())
    client.ehlo("client.test")
    if login:
        client.login(login, password)
    return client


def scram_proof(password, first, challenge):
    """The client's last message (RFC 5802 3) to the server's first one, both as they travel."""
    binding, authzid, first = base64.b64decode(first).decode("utf-8", "replace").split(",", 2)
    header = base64.b64encode(f"{binding},{authzid},".encode()).decode()
    challenge = base64.b64decode(challenge).decode()
    fields = dict(field.split("=", 1) for field in challenge.split(","))
    last = f"c={header},r={fields['r']}"
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
    key = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(hashlib.sha256(key).digest(), f"{first},{challenge},{last}".encode(), "sha256")
    proof = bytes(a ^ b for a, b in zip(key, signature))
    return base64.b64encode(f"{last},p={base64.b64encode(proof).decode()}".encode()).decode()


def scram(bare, login, password):
    """A login by SCRAM-SHA-256; the last reply."""
    first = base64.b64encode(f"n,,n={login},r={secrets.token_hex(12)}".encode()).decode()
    answer = bare.ask(f"AUTH SCRAM-SHA-256 {first}")
    if answer.startswith("334 "):
        answer = bare.ask(scram_proof(password, first, answer[4:]))
    return bare.ask("") if answer.startswith("334 ") else answer


def another_address():
    """Of 127/8: a network from which nobody has guessed."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"


class Bare:
    """Octets over a socket, replies as text; nothing is done that a test does not ask for."""

    def __init__(self, stage, tls=False, timeout=20, source="127.0.0.1"):
        self.socket = socket.create_connection(
            ("127.0.0.1", stage.gateway.tls_port if tls else stage.gateway.port), timeout=timeout,
            source_address=(source, 0))
        if tls:
            self.socket = trust_all().wrap_socket(self.socket)
        self.file = self.socket.makefile("rb")

    def reply(self):
        """A whole reply; "" at the end."""
        lines = []
        while True:
            line = self.file.readline().decode("utf-8", "replace")
            lines.append(line)
            if len(line) < 4 or line[3] != "-":
                return "".join(lines).rstrip("\r\n")

    def send(self, octets):
        self.socket.sendall(octets if isinstance(octets, bytes) else octets.encode())

    def ask(self, line):
        self.send((line if isinstance(line, bytes) else line.encode()) + b"\r\n")
        return self.reply()

    def start_tls(self):
        self.socket = trust_all().wrap_socket(self.socket)
        self.file = self.socket.makefile("rb")

    def close(self):
        # The socket stays open as long as the file does.
        self.file.close()
        self.socket.close()


@contextlib.contextmanager
def bare_session(stage, source):
    """Over TLS, past EHLO."""
    bare = Bare(stage, tls=True, source=source)
    try:
        assert bare.reply().startswith("220 ")
        assert bare.ask("EHLO client.test").startswith("250")
        yield bare
    finally:
        bare.close()

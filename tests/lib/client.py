# SPDX-License-Identifier: ISC
"""Clients: Python's own, a bare one that sends octets, and messages to send."""
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
    context = ssl.create_default_context()
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


class Bare:
    """Octets over a socket, replies as text; nothing is done that a test does not ask for."""

    def __init__(self, stage, tls=False, timeout=20):
        self.socket = socket.create_connection(
            ("127.0.0.1", stage.gateway.tls_port if tls else stage.gateway.port), timeout=timeout)
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

# SPDX-License-Identifier: ISC
"""Logging in with a client certificate: EXTERNAL."""
import base64
import hashlib
import socket
import ssl
import time

from client import MESSAGE, trust_all
from environment import eventually, run
from test_refusals import LOGIN, plain

OFFER = "AUTH SCRAM-SHA-256 PLAIN LOGIN"
VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


def self_signed(stage, name, *options):
    """Certificate, key and the SHA-256 that is granted."""
    certificate, key = stage.folder / f"{name}.crt", stage.folder / f"{name}.key"
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
        "-out", certificate, "-days", "30", "-subj", f"/CN={name}", *options)
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    return certificate, key, hashlib.sha256(der).hexdigest()


def grant(stage, fingerprint, label="server", login=LOGIN):
    stage.cluster.sql("select postern.certificate_grant(:'login', :'fingerprint', :'label')",
                      login=login, fingerprint=fingerprint, label=label)


def listening(stage, asked=True):
    stage.gateway.stop()
    stage.gateway.listener = {"client_certificates": asked}
    stage.gateway.start()


class Client:
    """Past EHLO under TLS, perhaps with a certificate; `offer` is what EHLO says of AUTH."""

    def __init__(self, stage, certificate=None, key=None, version="TLSv1.3", implicit=False, session=None, context=None):
        self.context = context or trust_all()
        self.context.minimum_version = self.context.maximum_version = VERSIONS[version]
        if certificate:
            self.context.load_cert_chain(certificate, key)
        port = stage.gateway.tls_port if implicit else stage.gateway.port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.file = self.socket.makefile("rb")
        if not implicit:
            self.reply()
            self.ask("EHLO c")
            self.ask("STARTTLS")
        self.socket = self.context.wrap_socket(self.socket, session=session)
        assert self.socket.version() == version
        self.file = self.socket.makefile("rb")
        if implicit:
            self.reply()
        offer = [line[4:] for line in self.ask("EHLO c").splitlines() if line[4:].startswith("AUTH ")]
        self.offer = offer[0] if offer else ""

    def reply(self):
        lines = []
        while True:
            line = self.file.readline().decode()
            lines.append(line.rstrip("\r\n"))
            if len(line) < 4 or line[3] != "-":
                return "\n".join(lines)

    def ask(self, line):
        self.socket.sendall(line.encode() + b"\r\n")
        return self.reply()

    def close(self):
        self.file.close()
        self.socket.close()


def b64(text):
    return base64.b64encode(text.encode()).decode()


def test_a_granted_certificate_logs_in(stage):
    listening(stage)
    certificate, key, fingerprint = self_signed(stage, "granted")
    grant(stage, fingerprint)
    for version in VERSIONS:
        for implicit in (False, True):
            client = Client(stage, certificate, key, version, implicit)
            assert client.offer == OFFER + " EXTERNAL", client.offer
            assert client.ask("AUTH EXTERNAL =") == "235 2.7.0 Authentication succeeded"
            assert client.ask("EHLO c").count("AUTH") == 0
            assert client.ask("AUTH EXTERNAL =").startswith("503")
            for line in ("MAIL FROM:<eve@example.com>", "MAIL FROM:<alice@example.org>", "RCPT TO:<bob@example.net>", "DATA"):
                answer = client.ask(line)
                assert answer[0] == ("5" if "eve" in line else "3" if line == "DATA" else "2"), (line, answer)
            assert client.ask(MESSAGE.decode() + ".").startswith("250")
            client.close()
            assert b"with ESMTPSA id" in stage.upstream.take().header
    events = stage.gateway.events("login.accepted", mechanism="EXTERNAL", account=LOGIN)
    assert len(events) == 4, events
    eventually(lambda: stage.cluster.sql(f"select last_used_at is not null from postern.credential where verifier = '{fingerprint}'") == "t")


def test_the_forms_of_the_response(stage):
    listening(stage)
    certificate, key, fingerprint = self_signed(stage, "forms")
    grant(stage, fingerprint, "forms")
    stage.account("certs-other@example.org", "secret-2")
    for commands, code in ((("AUTH EXTERNAL", ""), "235"), (("AUTH EXTERNAL", "="), "235"),
                           (("auth external", b64("Alice@Example.org")), "235"), ((f"AUTH EXTERNAL {b64(LOGIN)}",), "235"),
                           ((f"AUTH EXTERNAL {b64('certs-other@example.org')}",), "535"), ((f"AUTH EXTERNAL {b64('alice')}",), "535"),
                           ((f"AUTH EXTERNAL {b64(LOGIN + chr(0))}",), "501"), (("AUTH EXTERNAL ?",), "501"),
                           (("AUTH EXTERNAL", "*"), "501")):
        client = Client(stage, certificate, key)
        for command in commands[:-1]:
            assert client.ask(command) == "334 "
        answer = client.ask(commands[-1])
        assert answer.startswith(code), (commands, answer)
        if code != "235":
            assert client.ask("MAIL FROM:<alice@example.org>").startswith("530")
            assert client.ask("AUTH EXTERNAL =").startswith("235")
        client.close()


def test_who_shows_no_certificate_is_served_as_before(stage):
    certificate, key, fingerprint = self_signed(stage, "unasked")
    grant(stage, fingerprint, "unasked")
    for asked in (True, False):
        listening(stage, asked)
        for version in VERSIONS:
            # Where nobody asks, nobody shows.
            client = Client(stage, version=version) if asked else Client(stage, certificate, key, version)
            assert client.offer == OFFER, client.offer
            assert client.ask("AUTH EXTERNAL =") == "504 5.5.4 Unknown authentication mechanism"
            assert client.ask(plain()).startswith("235")
            client.close()


def test_an_unknown_certificate_is_a_wrong_password(stage):
    listening(stage)
    certificate, key, fingerprint = self_signed(stage, "unknown")
    client = Client(stage, certificate, key)
    assert client.offer == OFFER + " EXTERNAL"
    for _ in range(4):
        began = time.monotonic()
        assert client.ask("AUTH EXTERNAL =") == "535 5.7.8 Authentication failed"
        assert 0.299 <= time.monotonic() - began < 1.5
    assert client.ask("AUTH EXTERNAL =").startswith("535")
    assert client.reply() == "421 4.7.0 Too many failed logins" and client.reply() == ""
    assert stage.gateway.events("login.refused", mechanism="EXTERNAL", reason="unknown_certificate")
    # The name in it says nothing, and neither does who signed it.
    signed, signed_key = stage.authority.issue(LOGIN, f"email:{LOGIN}")
    client = Client(stage, signed, signed_key)
    assert client.ask("AUTH EXTERNAL =").startswith("535")
    assert client.ask(plain()).startswith("235")
    client.close()


def test_revocation_expiry_and_suspension_hold(stage):
    listening(stage)
    login, _ = stage.account("certs@example.org", "secret-3")
    certificate, key, fingerprint = self_signed(stage, "holds")
    grant(stage, fingerprint, "holds", login)
    first, second = Client(stage, certificate, key), Client(stage, certificate, key)
    assert first.ask("AUTH EXTERNAL =").startswith("235")
    stage.cluster.sql(f"select postern.account_suspend('{login}', 'ticket 9')")
    began = time.monotonic()
    assert first.reply().startswith("421 4.7.0") and time.monotonic() - began < 1
    assert second.ask("AUTH EXTERNAL =") == "525 5.7.13 account suspended: ticket 9"
    stage.cluster.sql(f"select postern.account_resume('{login}')")
    assert second.ask("AUTH EXTERNAL =").startswith("235")
    stage.cluster.sql(f"update postern.credential set expires_at = now() where verifier = '{fingerprint}'")
    assert second.reply().startswith("421 4.7.0")
    second = Client(stage, certificate, key)
    assert second.ask("AUTH EXTERNAL =").startswith("535")
    stage.cluster.sql(f"update postern.credential set expires_at = null where verifier = '{fingerprint}'")
    assert second.ask("AUTH EXTERNAL =").startswith("235")
    stage.cluster.sql(f"select postern.credential_revoke('{login}', 'holds')")
    assert second.reply().startswith("421 4.7.0")
    second = Client(stage, certificate, key)
    assert second.ask("AUTH EXTERNAL =").startswith("535")
    # Granted anew, to another account: it is that one's.
    grant(stage, fingerprint, "holds")
    assert second.ask(f"AUTH EXTERNAL {b64(login)}").startswith("535")
    assert second.ask(f"AUTH EXTERNAL {b64(LOGIN)}").startswith("235")


def test_a_resumed_session_proves_as_much(stage):
    """The ticket of a session carries the certificate; whether it is granted the database tells anew."""
    listening(stage)
    certificate, key, fingerprint = self_signed(stage, "resumed")
    grant(stage, fingerprint, "resumed")
    for version in VERSIONS:
        first = Client(stage, certificate, key, version)
        assert first.ask("AUTH EXTERNAL =").startswith("235")
        again = Client(stage, version=version, session=first.socket.session, context=first.context)
        assert again.socket.session_reused
        assert again.offer == OFFER + " EXTERNAL"
        assert again.ask("AUTH EXTERNAL =").startswith("235")
        again.close()
    first = Client(stage, version=version, context=first.context)
    stage.cluster.sql(f"select postern.credential_revoke('{LOGIN}', 'resumed')")
    again = Client(stage, version=version, session=first.socket.session, context=first.context)
    assert again.socket.session_reused and again.ask("AUTH EXTERNAL =").startswith("535")
    again.close()


def test_each_listener_asks_for_itself(stage):
    """A session resumed from a listener that asked shows nothing to one that does not."""
    stage.gateway.tls_listener = {}
    listening(stage)
    certificate, key, fingerprint = self_signed(stage, "itself")
    grant(stage, fingerprint, "itself")
    for version in VERSIONS:
        first = Client(stage, certificate, key, version)
        assert first.ask("AUTH EXTERNAL =").startswith("235")
        other = Client(stage, version=version, implicit=True, session=first.socket.session, context=first.context)
        assert other.socket.session_reused and other.offer == OFFER
        assert other.ask("AUTH EXTERNAL =").startswith("504")
        other.close()
        first.close()


def test_an_expired_certificate_is_the_one_that_was_granted(stage):
    """The admin grants and revokes it; its own dates say nothing."""
    listening(stage)
    certificate, key, _ = self_signed(stage, "dated")
    request = stage.folder / "dated.csr"
    run("openssl", "x509", "-x509toreq", "-in", certificate, "-signkey", key, "-out", request)
    run("openssl", "x509", "-req", "-in", request, "-signkey", key, "-days", "-1", "-out", certificate)
    grant(stage, hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest(), "dated")
    client = Client(stage, certificate, key)
    assert client.ask("AUTH EXTERNAL =").startswith("235")
    client.close()


def test_certificates_of_any_size(stage):
    listening(stage)
    for size, fits in ((12000, True), (40000, False), (100000, False)):
        text = "x" * size
        certificate, key, fingerprint = self_signed(stage, f"big{size}", "-addext", f"nsComment={text}")
        grant(stage, fingerprint, f"big{size}")
        for version in VERSIONS:
            try:
                client = Client(stage, certificate, key, version)
                assert client.ask("AUTH EXTERNAL =").startswith("235")
                client.close()
                served = True
            except (OSError, ssl.SSLError):
                served = False
            assert served == fits, (size, version)
    Client(stage).close()


def test_gsasl(stage):
    listening(stage)
    certificate, key, fingerprint = self_signed(stage, "gsasl")
    command = ("gsasl", "--smtp", "--connect", f"localhost:{stage.gateway.port}", "--mechanism=EXTERNAL", "--no-cb",
               f"--authorization-id={LOGIN}", f"--x509-ca-file={stage.authority.certificate}",
               f"--x509-cert-file={certificate}", f"--x509-key-file={key}")
    grant(stage, fingerprint, "gsasl")
    said = run(*command, input=b"").stdout.decode()
    assert "235 2.7.0" in said, said

# SPDX-License-Identifier: ISC
"""What scanners and strangers find of TLS, on both listeners."""
import json
import socket
import ssl
import subprocess

from client import Bare, trust_all

# A private authority's own: it publishes no list of what it has revoked.
PRIVATE = {"cert_revocation"}
# What testssl.sh says of the openssl that it runs, not of us. That one hangs up as soon as the handshake is over: when
# the ticket of TLS 1.3 comes later, there is none to resume with, and it calls that a connect problem.
SCANNER = {"engine_problem", "sessionresumption_ticket"}


def listeners(stage):
    """Port and how openssl and testssl.sh are told to speak there."""
    return (stage.gateway.port, "starttls"), (stage.gateway.tls_port, "implicit")


def test_testssl_finds_nothing(stage):
    """Protocols, ciphers, forward secrecy, preferences, certificate, all known attacks."""
    scans = []
    for port, kind in listeners(stage):
        report = stage.folder / f"testssl-{kind}.json"
        command = ["testssl", "--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--ip", "127.0.0.1",
                   "--add-ca", stage.authority.certificate, "-p", "-s", "-f", "-P", "-S", "-U", "--jsonfile", report,
                   *(["--starttls", "smtp"] if kind == "starttls" else []), f"localhost:{port}"]
        scans.append((kind, report, subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)))
    for kind, report, scan in scans:
        said, _ = scan.communicate(timeout=180)
        findings = {f["id"]: (f["severity"], f["finding"]) for f in json.loads(report.read_text(encoding="utf-8"))}
        bad = {name: f for name, f in findings.items() if f[0] not in ("OK", "INFO", "DEBUG")}
        assert set(bad) <= PRIVATE | SCANNER, (kind, bad)
        assert "connect problem" in bad.get("sessionresumption_ticket", ("", "connect problem"))[1], (kind, bad)
        # It has got as far as that: a scan that saw nothing has no findings either.
        assert findings["TLS1_2"][0] == findings["TLS1_3"][0] == findings["cert_chain_of_trust"][0] == "OK", (kind, said)
        for name in ("secure_client_renego", "secure_renego", "fallback_SCSV", "BEAST", "LUCKY13", "SWEET32", "RC4"):
            assert findings[name][0] == "OK", (kind, name, findings.get(name), said)


def test_renegotiation_ends_the_session(stage):
    before = len(stage.gateway.events("session.closed", reason="tls_failed", state="before EHLO"))
    for port, kind in listeners(stage):
        command = ["openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{port}",
                   *(["-starttls", "smtp"] if kind == "starttls" else [])]
        done = subprocess.run(command, input=b"R\nNOOP\r\n", capture_output=True, timeout=20, check=False)
        assert b"RENEGOTIATING" in done.stderr and done.returncode != 0, (kind, done.stderr)
        assert b"250 2.0.0" not in done.stdout, (kind, "the NOOP behind it was answered")
    stage.gateway.wait_event("session.closed", reason="tls_failed", state="before EHLO", count=before + 2)


def handshake(stage, kind, protocols):
    """What was chosen of the application protocols that the client offers."""
    bare = Bare(stage, tls=False) if kind == "starttls" else None
    context = trust_all()
    if protocols:
        context.set_alpn_protocols(protocols)
    if bare:
        bare.reply()
        bare.ask("EHLO client.test")
        assert bare.ask("STARTTLS").startswith("220")
        plain = bare.socket
    else:
        plain = socket.create_connection(("127.0.0.1", stage.gateway.tls_port), timeout=20)
    with context.wrap_socket(plain) as secure:
        return secure.selected_alpn_protocol()


def test_what_was_meant_for_another_protocol_is_refused(stage):
    """ALPACA: a browser's TLS that somebody has turned to us ends before a word is said."""
    for _, kind in listeners(stage):
        assert handshake(stage, kind, None) is None
        assert handshake(stage, kind, ["smtp"]) == "smtp"
        assert handshake(stage, kind, ["h2", "smtp"]) == "smtp"
        for foreign in (["http/1.1"], ["h2", "http/1.1"], ["imap"], ["SMTP"]):
            try:
                handshake(stage, kind, foreign)
                raise AssertionError(f"{foreign} was taken for SMTP")
            except ssl.SSLError as error:
                assert "no application protocol" in str(error), error


def test_http_inside_tls_is_cut_off(stage):
    for verb in ("GET / HTTP/1.1", "POST /mail HTTP/1.1", "PUT / HTTP/1.1", "CONNECT a:25 HTTP/1.1", "OPTIONS * HTTP/1.1"):
        for tls in (False, True):
            bare = Bare(stage, tls=tls)
            bare.reply()
            if not tls:
                bare.ask("EHLO client.test")
                assert bare.ask("STARTTLS").startswith("220")
                bare.start_tls()
            bare.send(f"{verb}\r\nHost: localhost\r\n\r\nEHLO evil\r\n")
            assert bare.reply().startswith("500 5.5.1"), verb
            assert bare.reply() == "", verb
            bare.close()

# SPDX-License-Identifier: ISC
"""Strangers and liars, on both sides."""
import base64
import json
import re
import select
import socket
import ssl
import subprocess
import time
from contextlib import suppress

from client import MESSAGE, Bare, connect, message, trust_all
from dkim_check import perl_dkim
from environment import eventually, free_port, parse_logfmt
from test_faults import configured, send
from test_refusals import LOGIN, plain, session
from upstream import Upstream


def begin_data(stage):
    bare = session(stage)
    assert bare.ask("MAIL FROM:<alice@example.org>").startswith("250")
    assert bare.ask("RCPT TO:<bob@example.net>").startswith("250")
    assert bare.ask("DATA").startswith("354")
    return bare


def test_headers_without_end(stage):
    for header in (b"X-Long: " + b"x" * 70 + (b"\r\n " + b"y" * 900) * 80 + b"\r\n",  # one field over 64 KiB
                   b"X-Many: x\r\n" * 1200,
                   b"X-Big: " + b"x" * 900 + (b"\r\nX-Big: " + b"x" * 900) * 400 + b"\r\n"):  # over 256 KiB
        bare = begin_data(stage)
        answer = bare.ask(header + MESSAGE + b".")
        assert answer.startswith("552 5.3.4") or answer.startswith("550 5.6.0"), (header[:20], answer)
        assert bare.ask("NOOP").startswith("250")
        bare.close()
    assert not stage.upstream.messages


def test_tls_that_ends_in_the_middle_of_a_message(stage):
    """close_notify, then octets in the clear: the transaction is gone, the clear text is not read."""
    in_data, in_chunk = begin_data(stage), session(stage)
    in_data.send(b"From: alice@example.org\r\n\r\nhalf")
    assert in_chunk.ask("MAIL FROM:<alice@example.org>").startswith("250")
    assert in_chunk.ask("RCPT TO:<bob@example.net>").startswith("250")
    in_chunk.send(b"BDAT 36 LAST\r\nFrom: alice@example.org\r\n\r\nhalf")
    for bare in (in_data, in_chunk):
        raw = bare.socket
        try:
            raw = bare.socket.unwrap()
        except (OSError, ssl.SSLError):
            pass
        try:
            raw.sendall(b"\r\n.\r\nMAIL FROM:<alice@example.org>\r\n")
        except OSError:
            pass
    send(stage, "after it")
    assert b"after it" in stage.upstream.take().octets
    stage.gateway.wait_queue(0)
    assert not stage.upstream.messages


def test_old_tls_is_not_spoken(stage):
    for version in ("-tls1", "-tls1_1"):
        done = subprocess.run(
            ["openssl", "s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-connect", f"127.0.0.1:{stage.gateway.tls_port}"],
            input=b"", capture_output=True, timeout=20, check=False)
        assert b"Cipher is (NONE)" in done.stdout or done.returncode != 0, done.stdout[-300:]
    for version, protocol in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
        context = trust_all()
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(("127.0.0.1", stage.gateway.tls_port)) as connection:
            with context.wrap_socket(connection) as secure:
                assert secure.version() == protocol
    context = trust_all()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES256-SHA:AES128-GCM-SHA256:@SECLEVEL=0")  # no forward secrecy
    try:
        with socket.create_connection(("127.0.0.1", stage.gateway.tls_port)) as connection:
            context.wrap_socket(connection)
        raise AssertionError("RSA key exchange was accepted")
    except ssl.SSLError:
        pass


def test_names_that_would_break_sql_or_the_log(stage):
    names = ["' or 1=1 --", "a\nevent=login.accepted account=admin", "\\x00", "%n%s", "a\" reason=\"ok", "{a,b}",
             "ü@example.org", "x" * 300, "\udcff"]
    for name in names:
        bare = session(stage, login=False)
        response = base64.b64encode(b"\0" + name.encode("utf-8", "surrogateescape") + b"\0pw").decode()
        answer = bare.ask(f"AUTH PLAIN {response}")
        assert answer[:3] in ("535", "501"), (name, answer)
        bare.close()
    for line in stage.gateway.lines:
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f]", line), line
        assert line.startswith("event="), line
        assert parse_logfmt(line).get("account") != "admin", line


def test_a_trace_steers_no_terminal(stage):
    bare = begin_data(stage)
    header = "From: alice@example.org\r\nMessage-ID: <x\x9b2J\u202e\u2028\u061c\ufeff@example.org>\r\n\r\n"
    qid = bare.ask(header.encode() + b"x\r\n.").rpartition(" ")[2]
    bare.close()
    stage.upstream.take()
    eventually(lambda: " delivered " in stage.gateway.tool("trace", qid, check=False).stdout)
    for options in [], ["--json"]:
        told = stage.gateway.tool(*options, "trace", qid)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]", told), told
        assert "\\u202e\\u2028\\u061c\\ufeff@example.org" in told, told  # history keeps no C1 controls
    assert "\u202e\u2028\u061c\ufeff@example.org" in json.loads(told.splitlines()[0])["detail"], told


def test_a_hello_that_is_too_long_is_not_gathered(stage):
    """It comes in records, and never whole."""
    with socket.create_connection(("127.0.0.1", stage.gateway.tls_port), 10) as sock:
        hello = b"\1" + (130000).to_bytes(3, "big") + b"\3\3" + bytes(40000)
        with suppress(ConnectionError):
            for at in range(0, len(hello), 4000):
                piece = hello[at:at + 4000]
                sock.sendall(b"\x16\3\1" + len(piece).to_bytes(2, "big") + piece)
            while sock.recv(1000):
                pass  # an alert, then the end: else the wait is over after 10 s
    stage.gateway.wait_event("session.closed", reason="tls_failed", state="handshake")


def test_names_that_would_break_received(stage):
    for name in ("x) by evil.example (", "a b", "a\tb", "<script>", "ä.example", "[127.0.0.1", "x" * 2000):
        bare = Bare(stage, tls=True)
        bare.reply()
        if bare.ask(f"EHLO {name}").startswith("250"):
            assert bare.ask(plain()).startswith("235")
            bare.ask("MAIL FROM:<alice@example.org>")
            bare.ask("RCPT TO:<bob@example.net>")
            bare.ask("DATA")
            assert bare.ask(MESSAGE + b".").startswith("250")
            header = stage.upstream.take().header.decode()
            assert "evil" not in header and "script" not in header, header
        bare.close()


def test_malformed_header_fields(stage):
    for field in (b"Subject : x\r\n", b" folded first\r\n", b"no colon here\r\n", b": empty\r\n", b"Sub ject: x\r\n",
                  b"X: a\r\n \r\n b\r\n", b"X\x01Y: a\r\n", b"X: a\x01b\r\n"):
        bare = begin_data(stage)
        answer = bare.ask(field + MESSAGE + b".")
        assert answer.startswith("550 5.6."), (field, answer)
        bare.close()
    # A signature that is garbage is only a field: ours is valid beside it.
    client = connect(stage)
    client.sendmail(LOGIN, ["bob@example.net"], b"DKIM-Signature: garbage\r\n" + MESSAGE)
    taken = stage.upstream.take()
    assert ("rsa-sha256", "pass") in perl_dkim(taken.octets, stage.zone)


def test_parameters_are_passed_or_refused_never_decoded(stage):
    bare = session(stage)
    for line, code in (("MAIL FROM:<alice@example.org> AUTH=x+0D+0ARCPT", "250"),
                       ("MAIL FROM:<alice@example.org> AUTH=x+0d", "501"),
                       ("MAIL FROM:<alice@example.org> ENVID=a+0D+0Ab", "555"),
                       ("MAIL FROM:<alice@example.org> BODY=7BIT BODY=7BIT", "501"),
                       ("MAIL FROM:<alice@example.org> SIZE=-1", "501"),
                       ("MAIL FROM:<alice@example.org> SIZE=18446744073709551617", "5"),
                       ("MAIL FROM:<@relay.example:alice@example.org>", "501")):
        answer = bare.ask(line)
        assert answer.startswith(code), (line, answer)
        bare.ask("RSET")
    bare.close()


# Ways to name one host and mean another. What the grammar has (RFC 5321 4.1.2) means what its domain says.
RELAY_FORMS = (("bob%example.com@example.net", "250"),
               ("bob%example.com%example.edu@example.net", "250"),
               ("bob%example.com@[127.0.0.1]", "250"),
               ("example.com!bob@example.net", "250"),
               ("example.edu!example.com!bob%example.org@example.net", "250"),
               ('"bob@example.com"@example.net', "250"),
               ('"bob%example.com"@example.net', "250"),
               (r'"\"bob@example.com\"@example.edu"@example.net', "250"),
               ('"@example.edu:bob@example.com"@example.net', "250"),
               ("example.com!bob", "501"),
               ("bob%example.com", "501"),
               ("bob@example.com@example.net", "501"),
               ("@example.net:bob@example.com", "501"),
               ("@example.net,@example.edu:bob@example.com", "501"),
               ('""bob@example.com"@example.edu"@example.net', "501"),
               ('"bob@example.com"', "501"),
               ('"bob@example.com"@example.edu@example.net', "501"),
               ("bob@example.com:25", "501"))


def stranger(stage, way):
    """Past EHLO, without a login."""
    bare = Bare(stage, tls=way == "465")
    assert bare.reply().startswith("220 ")
    assert bare.ask("EHLO client.test").startswith("250")
    if way == "587 with TLS":
        assert bare.ask("STARTTLS").startswith("220 ")
        bare.start_tls()
        assert bare.ask("EHLO client.test").startswith("250")
    return bare


def test_an_open_relay_it_is_not(stage):
    before = len(stage.upstream.commands)
    for way in ("587", "587 with TLS", "465"):
        for form, _ in RELAY_FORMS:
            bare = stranger(stage, way)
            for sender in ("alice@example.org", "", form):
                answer = bare.ask(f"MAIL FROM:<{sender}>")
                assert answer.startswith("530 5.7.0"), (way, sender, answer)
            assert bare.ask(f"RCPT TO:<{form}>")[0] == "5", (way, form)
            assert bare.ask("DATA")[0] == "5", (way, form)
            bare.close()
    stage.gateway.wait_queue(0)
    assert len(stage.upstream.commands) == before, stage.upstream.commands[before:]


def test_recipients_are_never_rewritten(stage):
    """Logged in they go where the upstream sends them, octet for octet, or are refused."""
    for recipient, code in RELAY_FORMS:
        bare = session(stage)
        assert bare.ask("MAIL FROM:<alice@example.org>").startswith("250")
        answer = bare.ask(f"RCPT TO:<{recipient}>")
        assert answer.startswith(code), (recipient, answer)
        if code == "250":
            assert bare.ask("DATA").startswith("354")
            assert bare.ask(MESSAGE + b".").startswith("250")
            assert stage.upstream.take().recipients == [recipient]
        bare.close()
    assert not stage.upstream.messages


def test_replies_injected_behind_starttls(stage):
    """What stands behind the 220 of an upstream was said in the clear by anybody."""
    certificate, key = stage.authority.issue("upstream", "DNS:localhost")
    liar = Upstream(free_port(), certificate, key).start()
    liar.reply = lambda verb, line: "220 go\r\n250-faked\r\n250 AUTH PLAIN" if verb == "STARTTLS" else None
    configured(stage, hosts=[f"localhost:{liar.port}", f"localhost:{stage.upstream.port}"], tls="verify",
               ca_file=str(stage.authority.certificate))
    send(stage)
    event = stage.gateway.wait_event("upstream.failed", why="the upstream talked before TLS")
    assert event["host"] == "localhost"
    assert not any(c.startswith("MAIL") for c in liar.commands), liar.commands
    stage.gateway.tool("queue", "delete", stage.gateway.tool("queue", "list").split("qid=")[1].split()[0])
    liar.stop()


def say_all(bare, octets, count):
    """Sends all that while it reads so many replies; in one thread, as TLS wants it."""
    tls, lines, replies, until = bare.socket, b"", [], time.monotonic() + 30
    tls.setblocking(False)
    while len(replies) < count:
        assert time.monotonic() < until, (len(replies), replies[-1:])
        select.select([tls], [tls] if octets else [], [], 1)
        try:
            octets = octets[tls.send(octets[:16384]):] if octets else octets
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        try:
            while piece := tls.recv(65536):
                lines += piece
            raise AssertionError(f"it has closed after {lines[-200:]}")
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        replies = [line for line in lines.splitlines() if line[3:4] == b" "]
    tls.settimeout(20)
    return replies


def test_a_client_says_all_at_once_and_reads(stage):
    """More replies than may wait: it gets them all, in order."""
    envelope = ["RSET", "MAIL FROM:<alice@example.org>", "RCPT TO:<b@c>"]
    for commands, codes in ((envelope * 7000 + ["HELP"], [b"250"] * 21000 + [b"214"]),
                            ((envelope + ["HELP"] * 900) * 4 + ["NOOP"], ([b"250"] * 3 + [b"214"] * 900) * 4 + [b"250"]),
                            (["MAIL FROM:<alice@example.org>"] + ["RCPT TO:<b@c>"] * 6000 + ["HELP"], None)):
        bare = session(stage)
        replies = say_all(bare, "".join(f"{c}\r\n" for c in commands).encode(), len(commands))
        assert codes is None or [reply[:3] for reply in replies] == codes
        assert replies[-1].decode() == bare.ask(commands[-1]).splitlines()[-1], (commands[1], replies[-1])
        bare.close()


def test_many_recipients_and_big_messages_together(stage):
    client = connect(stage, timeout=60)
    recipients = [f"r{n}@example.net" for n in range(1000)]
    body = b"".join(b"%08d %s\r\n" % (n, b"x" * 60) for n in range(20000))
    client.sendmail(LOGIN, recipients, message("big", body))
    taken = stage.upstream.take(30)
    assert sorted(taken.recipients) == sorted(recipients) and taken.octets.endswith(body)

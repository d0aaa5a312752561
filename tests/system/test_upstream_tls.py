# SPDX-License-Identifier: ISC
"""TLS upstream, stripped, refused or not verified: what reached the host, octet for octet."""

import base64
import contextlib

from client import connect, message
from environment import eventually, free_port
from test_certificates import self_signed
from test_failover import LOGIN, Deaf, routes
from upstream import Upstream

SECRETS = (b"MAIL", b"RCPT", b"AUTH", b"HELO", b"DATA", b"pw", b"bob@", b"alice@")
EHLO_WITH = b"250-deaf\r\n250-AUTH PLAIN\r\n250-STARTTLS\r\n250 PIPELINING\r\n"
EHLO_WITHOUT = b"250-deaf\r\n250-AUTH PLAIN\r\n250 PIPELINING\r\n"
REST = ((b"HELO", b"250 deaf\r\n"), (b"AUTH", b"235 ok\r\n"), (b"MAIL", b"250 ok\r\n"), (b"RCPT", b"250 ok\r\n"),
        (b"DATA", b"354 go\r\n"))


def stripped():
    """Hosts that lead to clear text, and what the log says of each."""
    def deaf(*answers):
        return Deaf(answers=(*answers, *REST))

    return {
        "notoffered": (deaf((b"EHLO", EHLO_WITHOUT)), "the upstream does not offer STARTTLS"),
        "refused": (deaf((b"EHLO", EHLO_WITH), (b"STARTTLS", b"454 4.7.0 not now\r\n")), "STARTTLS was refused: 454"),
        "unknown": (deaf((b"EHLO", EHLO_WITH), (b"STARTTLS", b"502 5.5.1 what?\r\n")), "STARTTLS was refused: 502"),
        "okay": (deaf((b"EHLO", EHLO_WITH), (b"STARTTLS", b"250 as good as\r\n")), "STARTTLS was refused: 250"),
        "noehlo": (deaf((b"EHLO", b"502 5.5.1 HELO only\r\n")), "EHLO was refused: 502"),
        "injected": (deaf((b"EHLO", EHLO_WITH), (b"STARTTLS", b"220 go\r\n" + EHLO_WITHOUT)),
                     "the upstream talked before TLS"),
        "injectedhalf": (deaf((b"EHLO", EHLO_WITH), (b"STARTTLS", b"220 go\r\n2")), "the upstream talked before TLS"),
        "lines": (deaf((b"EHLO", EHLO_WITH + b"220 go\r\n")), "the upstream talked before it was asked"),
        "clear": (Clear(answers=((b"EHLO", EHLO_WITH), (b"STARTTLS", b"220 go\r\n"), *REST)), "TLS failed"),
    }


class Clear(Deaf):
    """Answers the first octets of TLS in the clear."""

    def __init__(self, answers):
        super().__init__(answers=(*answers, (b"\x16\x03", EHLO_WITHOUT)))


def send_to_all(stage, names):
    client = connect(stage)
    for name in names:
        client.sendmail(LOGIN, [f"bob@{name}.example"], message(name))
    client.quit()


def forget(stage):
    """One that is just being sent must be asked for again."""
    def gone():
        left = stage.gateway.tool("queue", "list").splitlines()
        for line in left:
            stage.gateway.tool("queue", "delete", line.split("qid=")[1].split()[0], check=False)
        return not left

    eventually(gone)


def test_nothing_goes_in_the_clear_by_accident(stage):
    """Neither where TLS must be verified nor where it must only be; with a login and without."""
    for settings in ({"tls": "verify", "username": "us"}, {"tls": "verify"}, {"tls": "require"}):
        hosts = stripped()
        try:
            routes(stage, {name: [host.port] for name, (host, _) in hosts.items()}, **settings)
            send_to_all(stage, hosts)
            for name, (host, why) in hosts.items():
                event = stage.gateway.wait_event("upstream.failed", upstream=name)
                assert event["why"].startswith(why), (name, event)
                stage.gateway.wait_event("message.deferred", to=f"bob@{name}.example")
                clear, tls, _ = host.heard.partition(b"\x16\x03")
                assert clear.startswith(b"EHLO gateway.test\r\n"), (name, host.heard)
                assert not any(secret in clear for secret in SECRETS), (name, host.heard)
                assert bool(tls) == (name == "clear"), (name, host.heard)
            assert not stage.gateway.events("message.delivered") and not stage.gateway.events("message.bounced")
        finally:
            forget(stage)
            for host, _ in hosts.values():
                host.close()


def certificates(stage):
    """Names of certificates: the pair, what is wrong with it, or None."""
    issue = stage.authority.issue
    return {"good": (issue("valid", "DNS:localhost"), None),
            "othername": (issue("othername", "DNS:other.example"), "not match"),
            "noname": (issue("localhost", "IP:127.0.0.2"), "not match"),
            "commonname": (issue("commonname", common="localhost"), "no name but a common name"),
            "othersort": (issue("othersort", "email:x@localhost", common="localhost"), "no name but a common name"),
            "commontoo": (issue("commontoo", "email:x@localhost", "DNS:localhost", common="other.example"), None),
            "wildcard": (issue("wildcard", "DNS:*.localhost"), "not match"),
            "expired": (issue("expired", "DNS:localhost", dates=("20200101000000Z", "20200102000000Z")), "expired"),
            "early": (issue("early", "DNS:localhost", dates=("20400101000000Z", "20400102000000Z")), "not yet"),
            "selfsigned": (self_signed(stage, "selfsigned", "-addext", "subjectAltName=DNS:localhost")[:2], "issuer"),
            "client": (issue("client", "DNS:localhost", usage="clientAuth"), "purpose")}


def test_certificates_under_each_policy(stage):
    """Verified: only the good one gets anything. Else: all of them mail under TLS, and none a password."""
    pairs = certificates(stage)
    for policy, username in (("verify", "us"), ("require", ""), ("opportunistic", "")):  # others have no password
        hosts = {name: Upstream(free_port(), *pair, logins={"us": "pw"} if username else None).start()
                 for name, (pair, _) in pairs.items()}
        try:
            routes(stage, {name: [host.port] for name, host in hosts.items()}, tls=policy, username=username)
            assert len(stage.gateway.events("upstream.unprotected", tls=policy)) == (0 if policy == "verify" else len(hosts))
            send_to_all(stage, hosts)
            for name, (_, wrong) in pairs.items():
                if policy != "verify" or not wrong:
                    assert hosts[name].wait(1)[0].tls, (policy, name)
                    continue
                event = stage.gateway.wait_event("upstream.failed", upstream=name)
                assert wrong in event["why"], (name, event)
                said = {command.split(" ")[0] for command in hosts[name].commands}
                assert said == {"EHLO", "STARTTLS"}, (name, said)
                assert hosts[name].commands.count("EHLO gateway.test") <= hosts[name].connections, "said under that TLS"
        finally:
            forget(stage)
            for host in hosts.values():
                host.stop()


def test_a_chain_without_end(stage):
    """What a host shows of itself is bounded before anything of it is understood."""
    (certificate, key), _ = certificates(stage)["good"]
    long = stage.folder / "long.crt"
    names = ",".join(f"DNS:{number:050}.example" for number in range(250))  # some 16 KB
    bulk = self_signed(stage, "bulk", "-addext", f"subjectAltName={names}")[0]
    long.write_text(certificate.read_text() + bulk.read_text() * 3)
    host = Upstream(free_port(), long, key).start()
    try:
        routes(stage, {"long": [host.port, stage.upstream.port]})
        send_to_all(stage, ["long"])
        assert "TLS failed" in stage.gateway.wait_event("upstream.failed", upstream="long", port=host.port)["why"]
        assert not any(c.startswith("MAIL") for c in host.commands)
    finally:
        forget(stage)
        host.stop()


class Echo(Deaf):
    """Repeats what it does not like, as some servers do: the command for a login as well."""

    def __init__(self, code):
        super().__init__(answers=((b"EHLO", b"250-deaf\r\n250 AUTH PLAIN\r\n"),))
        self.code = code

    def serve(self, connection):
        with contextlib.suppress(OSError):
            connection.sendall(self.greeting)
            while octets := connection.recv(65536):
                self.heard += octets
                connection.sendall(self.answers[0][1] if octets.startswith(b"EHLO") else self.code + b" what: " + octets)


def test_a_password_that_comes_back_is_shown_to_nobody(stage):
    """Not in the log, not to operators, not in history: of an answer to AUTH, only its codes."""
    hosts = {"later": Echo(b"454 4.7.0"), "bare": Echo(b"454"), "never": Echo(b"535 5.7.8"), "asks": Echo(b"334")}
    said = {"later": "the login failed: 454 4.7.0", "bare": "the login failed: 454", "asks": "the login failed: 334",
            "never": "the upstream refuses our login: 535 5.7.8"}
    try:
        routes(stage, {name: [host.port] for name, host in hosts.items()}, tls="none", username="us")
        send_to_all(stage, hosts)
        for name in hosts:
            if name == "never":
                event, key = stage.gateway.wait_event("upstream.stopped", upstream=name), "reply"
            else:
                event, key = stage.gateway.wait_event("upstream.failed", upstream=name), "why"
                stage.gateway.wait_event("message.deferred", to=f"bob@{name}.example")
            assert event[key] == said[name], (name, event)
        sql = stage.cluster.sql
        eventually(lambda: sql("select count(*) from postern.delivery where reply like 'the login failed%'").strip() == "3")
        shown = "".join(stage.gateway.lines) + stage.gateway.tool("queue", "list") + sql("select reply from postern.delivery")
        for host in hosts.values():
            secret = host.heard.partition(b"AUTH PLAIN ")[2].split(b"\r")[0]
            assert base64.b64decode(secret).endswith(b"\0pw"), host.heard
            assert secret.decode() not in shown
    finally:
        forget(stage)
        for host in hosts.values():
            host.close()

# SPDX-License-Identifier: ISC
"""Every client that people use gets its message through: once, as it was, plus our fields."""
import pathlib
import re
import smtplib
import tempfile

from client import MESSAGE, connect, message
from dkim_check import opendkim, perl_dkim, python_dkim
from environment import eventually, run
from postfix import Postfix
from stage import DOMAIN

LOGIN, PASSWORD = "alice@example.org", "secret-1"


def added(taken):
    """What we put before a message; the rest must be the message."""
    before = taken.octets[:taken.octets.index(b"\r\nFrom: ")]
    return [name.decode() for name in re.findall(rb"^([^\s:]+):", before, re.M)]


def expect(stage, sent):
    taken = stage.upstream.take()
    assert taken.octets.endswith(sent), taken.octets
    assert added(taken) == ["DKIM-Signature", "DKIM-Signature", "Received"], taken.header
    assert b"127.0.0.1" not in taken.header, "the client's address must not be told"
    assert taken.recipients == ["bob@example.net"] and taken.sender == LOGIN, taken
    stage.gateway.wait_queue(0)
    assert not stage.upstream.messages, "it came twice"


def message_file(stage, octets=MESSAGE):
    path = stage.folder / "message.eml"
    path.write_bytes(octets)
    return path


def swaks(stage, *options):
    path = message_file(stage, MESSAGE[:-2])  # swaks adds a line end
    run("swaks", "--server", "127.0.0.1", "--auth", "PLAIN", "--au", LOGIN, "--ap", PASSWORD, "--from", LOGIN,
        "--to", "bob@example.net", "--data", f"@{path}", *options)
    expect(stage, MESSAGE)


def test_swaks_over_starttls(stage):
    swaks(stage, "--port", stage.gateway.port, "--tls")


def test_swaks_over_implicit_tls(stage):
    swaks(stage, "--port", stage.gateway.tls_port, "--tls-on-connect")


def test_curl(stage):
    run("curl", "-sS", "--ssl-reqd", "--cacert", stage.authority.certificate,
        f"smtp://localhost:{stage.gateway.port}", "--user", f"{LOGIN}:{PASSWORD}", "--mail-from", LOGIN,
        "--mail-rcpt", "bob@example.net", "-T", message_file(stage))
    expect(stage, MESSAGE)


def msmtp(stage, method):
    with tempfile.TemporaryDirectory() as folder:
        conf = pathlib.Path(folder) / "msmtprc"
        conf.write_text(f"account default\nhost localhost\nport {stage.gateway.port}\nfrom {LOGIN}\nauth {method}\n"
                        f"user {LOGIN}\npassword {PASSWORD}\ntls on\ntls_trust_file {stage.authority.certificate}\n")
        conf.chmod(0o600)
        run("msmtp", "-C", conf, "bob@example.net", input=MESSAGE)
    expect(stage, MESSAGE)


def test_msmtp_with_plain(stage):
    msmtp(stage, "plain")


def test_msmtp_with_scram(stage):
    msmtp(stage, "scram-sha-256")
    assert stage.gateway.events("login.accepted")[-1]["mechanism"] == "SCRAM-SHA-256"


def test_smtplib(stage):
    client = connect(stage)
    client.sendmail(LOGIN, ["bob@example.net"], MESSAGE)
    client.quit()
    expect(stage, MESSAGE)


def test_login_by_the_mechanism_login(stage):
    client = connect(stage, login=None)
    client.user, client.password = LOGIN, PASSWORD
    assert client.auth("LOGIN", client.auth_login, initial_response_ok=False)[0] == 235
    client.sendmail(LOGIN, ["bob@example.net"], MESSAGE)
    client.quit()
    expect(stage, MESSAGE)


def gsasl(stage, login, password):
    return run("gsasl", "--smtp", "--connect", f"localhost:{stage.gateway.port}", "--mechanism=SCRAM-SHA-256",
               f"--authentication-id={login}", f"--password={password}", "--no-cb",
               f"--x509-ca-file={stage.authority.certificate}", input=b"").stdout.decode()


def test_gsasl_with_scram(stage):
    assert "235 2.7.0" in gsasl(stage, LOGIN, PASSWORD)


def test_scram_takes_the_main_password_beside_others(stage):
    stage.account("device@example.org", "first")
    stage.cluster.sql("select postern.app_password_create('device@example.org', 'phone')")
    stage.cluster.sql("select postern.account_set_password('device@example.org', 'second')")
    assert "235 2.7.0" in gsasl(stage, "device@example.org", "second")


def test_postfix_as_a_customers_relay(stage):
    """Many messages over kept connections, one of them refused for good: each ends once."""
    postfix = Postfix(stage.folder / "pf", stage.gateway.port, stage.authority.certificate, LOGIN, PASSWORD).start()
    try:
        inside = smtplib.SMTP("127.0.0.1", postfix.port, timeout=30)
        for i in range(20):
            inside.sendmail(LOGIN, ["bob@example.net", "carol@example.net"], message(f"relayed {i}"))
        inside.sendmail(LOGIN, ["bob@example.net"], message("not ours", sender="eve@example.com"))
        inside.quit()
        taken = stage.upstream.wait(20)
        eventually(lambda: "550 5.7.1" in postfix.log(), 20)
        assert sorted(m.subject for m in taken) == sorted(f"relayed {i}" for i in range(20)), postfix.log()
        assert all(m.recipients == ["bob@example.net", "carol@example.net"] for m in taken)
        stage.gateway.wait_queue(0)
        assert len(stage.upstream.messages) == 20
    finally:
        postfix.stop()


BODIES = {
    "plain": b"Hello Bob\r\n",
    "8-bit": "Grüße aus Köln\r\n".encode(),
    "empty": b"",
    "dots": b".\r\n..\r\n.a\r\n\r\n...\r\nend.\r\n.\r\n",
    "trailing lines": b"text  \r\n \r\n\r\n\r\n",
    "10 MiB": b"".join(b"%010d 0123456789 abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKL\r\n" % i for i in range(165000)),
}


def test_bodies_arrive_as_sent_with_valid_signatures(stage):
    for name, body in BODIES.items():
        sent = message(name, body)
        client = connect(stage)
        client.sendmail(LOGIN, ["bob@example.net"], sent, mail_options=["BODY=8BITMIME"])
        client.quit()
        taken = stage.upstream.take(60)
        assert taken.octets.endswith(sent), f"{name}: changed"
        verdicts = python_dkim(taken.octets, stage.zone)
        assert verdicts == [("rsa-sha256", True), ("ed25519-sha256", True)], f"{name}: {verdicts}"
        assert ("rsa-sha256", "pass") in perl_dkim(taken.octets, stage.zone), name
        for selector in ("e", "r"):
            said = opendkim(only_signature(taken.octets, selector.encode()), stage.zone, stage.folder)
            assert f"d={DOMAIN}" in said and "succeeded" in said, f"{name} {selector}: {said}"


def only_signature(octets, selector):
    """Without the other signatures: opendkim -t judges one."""
    header, _, rest = octets.partition(b"\r\nReceived:")
    fields = re.split(rb"\r\n(?=\S)", header)
    return b"\r\n".join(f for f in fields if b"; s=" + selector in f.replace(b"\r\n\t", b" ")) + b"\r\nReceived:" + rest


def test_a_changed_message_is_not_valid(stage):
    client = connect(stage)
    client.sendmail(LOGIN, ["bob@example.net"], MESSAGE)
    client.quit()
    taken = stage.upstream.take()
    changed = taken.octets.replace(b"Hello Bob", b"Hello Eve")
    assert all(verdict is not True for _, verdict in python_dkim(changed, stage.zone))
    changed = taken.octets.replace(b"\r\nFrom:", b"\r\nReply-To: eve@example.com\r\nFrom:")
    assert all(verdict is not True for _, verdict in python_dkim(changed, stage.zone)), "a field could be added"

# SPDX-License-Identifier: ISC
"""Every client that people use gets its message through: once, as it was, plus our fields."""
import email
import email.message
import email.policy
import json
import os
import pathlib
import re
import smtplib
import tempfile

from client import MESSAGE, connect, message
from dkim_check import opendkim, perl_dkim, python_dkim
from environment import TOP, eventually, run
from exim import Exim
from postfix import Postfix
from stage import DOMAIN

LOGIN, PASSWORD = "alice@example.org", "secret-1"
SIGNED = [("rsa-sha256", True), ("ed25519-sha256", True)]

SUBJECT, TEXT = "Grüße aus Köln: 漢字", "Grüße an alle, .\n.\n..und Punkte 漢字\n"
ATTACHED, NAME = bytes(range(256)) * 300, "Übersicht.bin"


def make_letter():
    """What people send: a subject and a text that are not ASCII, and a file."""
    made = email.message.EmailMessage(email.policy.SMTP)
    made["From"], made["To"], made["Subject"] = f"Älice <{LOGIN}>", "bob@example.net", SUBJECT
    made["Date"], made["Message-ID"] = "Tue, 24 Nov 2026 10:00:00 +0000", "<letter@example.org>"
    made.set_content(TEXT, cte="8bit")
    made.add_attachment(ATTACHED, "application", "octet-stream", filename=NAME)
    made.set_boundary("letter")
    return made.as_bytes()


LETTER = make_letter()


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
    return taken


def expect_letter(stage, taken=None):
    """The same for a client that has put the letter together itself."""
    taken = taken or stage.upstream.take()
    assert python_dkim(taken.octets, stage.zone) == SIGNED
    read = email.message_from_bytes(taken.octets, policy=email.policy.default)
    assert str(read["Subject"]) == SUBJECT, taken.header
    text = read.get_body().get_content().replace("\r\n", "\n")
    assert text == TEXT, text
    files = {part.get_filename(): part.get_content() for part in read.iter_attachments()}
    assert files == {NAME: ATTACHED}, files.keys()
    assert taken.sender == LOGIN, taken
    return taken


def letter_files(stage):
    """Its text and the file, for clients that take them from there."""
    (stage.folder / NAME).write_bytes(ATTACHED)
    (stage.folder / "text").write_text(TEXT, encoding="utf-8")
    return stage.folder / "text", stage.folder / NAME


def message_file(stage, octets=LETTER):
    path = stage.folder / "message.eml"
    path.write_bytes(octets)
    return path


# Clients read their arguments as the locale says.
UTF8 = {**os.environ, "LC_ALL": "C.UTF-8"}


def expect_utf8(stage):
    taken = expect_letter(stage)
    assert taken.recipients == ["bób@example.net"] and "SMTPUTF8" in taken.mail_line, taken


def swaks(stage, *options):
    path = message_file(stage, LETTER[:-2])  # swaks adds a line end
    run("swaks", "--server", "127.0.0.1", "--auth", "PLAIN", "--au", LOGIN, "--ap", PASSWORD, "--from", LOGIN,
        "--to", "bob@example.net", "--data", f"@{path}", *options)
    expect_letter(stage, expect(stage, LETTER))


def test_swaks_over_starttls(stage):
    swaks(stage, "--port", stage.gateway.port, "--tls")


def test_swaks_over_implicit_tls(stage):
    swaks(stage, "--port", stage.gateway.tls_port, "--tls-on-connect")


def curl(stage, url, recipient="bob@example.net"):
    run("curl", "-sS", "--ssl-reqd", "--cacert", stage.authority.certificate, url, "--user", f"{LOGIN}:{PASSWORD}",
        "--mail-from", LOGIN, "--mail-rcpt", recipient, "-T", message_file(stage), env=UTF8)


def test_curl(stage):
    for url in (f"smtp://localhost:{stage.gateway.port}", f"smtps://localhost:{stage.gateway.tls_port}"):
        curl(stage, url)
        expect_letter(stage, expect(stage, LETTER))


def test_curl_to_an_address_in_utf8(stage):
    curl(stage, f"smtp://localhost:{stage.gateway.port}", "bób@example.net")
    expect_utf8(stage)


def msmtp(stage, method):
    with tempfile.TemporaryDirectory() as folder:
        conf = pathlib.Path(folder) / "msmtprc"
        conf.write_text(f"account default\nhost localhost\nport {stage.gateway.port}\nfrom {LOGIN}\nauth {method}\n"
                        f"user {LOGIN}\npassword {PASSWORD}\ntls on\ntls_trust_file {stage.authority.certificate}\n")
        conf.chmod(0o600)
        run("msmtp", "-C", conf, "bob@example.net", input=LETTER)
    expect_letter(stage, expect(stage, LETTER))


def test_msmtp_with_plain(stage):
    msmtp(stage, "plain")


def test_msmtp_with_scram(stage):
    msmtp(stage, "scram-sha-256")
    assert stage.gateway.events("login.accepted")[-1]["mechanism"] == "SCRAM-SHA-256"


def test_smtplib(stage):
    for implicit in (False, True):
        client = connect(stage, implicit=implicit)
        client.sendmail(LOGIN, ["bob@example.net"], LETTER, mail_options=["BODY=8BITMIME"])
        client.quit()
        expect_letter(stage, expect(stage, LETTER))


def test_smtplib_to_an_address_in_utf8(stage):
    client = connect(stage)
    client.send_message(email.message_from_bytes(LETTER, policy=email.policy.SMTPUTF8), LOGIN, ["bób@example.net"])
    client.quit()
    expect_utf8(stage)


def test_s_nail(stage):
    text, attached = letter_files(stage)
    for mta in (f"smtp://{{}}@localhost:{stage.gateway.port}", f"smtps://{{}}@localhost:{stage.gateway.tls_port}"):
        run("s-nail", "-:/", "-S", "v15-compat", "-S", f"mta={mta.format('alice%40example.org:' + PASSWORD)}",
            "-S", "smtp-use-starttls", "-S", "smtp-auth=plain", "-S", "tls-verify=strict",
            "-S", f"tls-ca-file={stage.authority.certificate}", "-S", f"from={LOGIN}", "-S", "sendcharsets=utf-8",
            "-S", "sendwait", "-s", SUBJECT, "-a", attached, "bob@example.net", input=text.read_bytes(), env=UTF8)
        taken = expect_letter(stage)
        assert taken.recipients == ["bob@example.net"], taken


NODEMAILER = TOP / ".cache/nodemailer/node_modules/nodemailer"


def nodemailer(stage, recipient, **transport):
    assert NODEMAILER.exists(), f"no {NODEMAILER}: scripts/test system fetches it"
    authority = stage.authority.certificate.read_text()
    arguments = (str(NODEMAILER),
                 {"host": "localhost", "auth": {"user": LOGIN, "pass": PASSWORD}, "tls": {"ca": authority}, **transport},
                 {"from": f"Älice <{LOGIN}>", "to": recipient, "subject": SUBJECT, "text": TEXT,
                  "attachments": [{"path": str(letter_files(stage)[1])}]})
    run("node", pathlib.Path(__file__).parent / "data/nodemailer/send.js", *map(json.dumps, arguments))


def test_nodemailer(stage):
    for transport in ({"port": stage.gateway.port, "requireTLS": True}, {"port": stage.gateway.tls_port, "secure": True}):
        nodemailer(stage, "bob@example.net", **transport)
        taken = expect_letter(stage)
        assert taken.recipients == ["bob@example.net"], taken


def test_nodemailer_to_an_address_in_utf8(stage):
    nodemailer(stage, "bób@example.net", port=stage.gateway.port, requireTLS=True)
    expect_utf8(stage)


def test_git_send_email(stage):
    """Whoever gets the patch has the same file, octet by octet, and the same words.

    Not with --attach: then git encodes a subject that is encoded already.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**UTF8, "HOME": folder, "GIT_CONFIG_NOSYSTEM": "1"}

        def git(repository, *words, **options):
            return run("git", "-C", f"{folder}/{repository}", "-c", "user.name=Älice", "-c", f"user.email={LOGIN}", *words,
                       env=environment, **options).stdout.decode().strip()

        for repository in ("from", "tls", "ssl"):
            run("git", "init", "-q", f"{folder}/{repository}", env=environment)
        git("from", "commit", "-q", "--allow-empty", "-m", "start")
        pathlib.Path(folder, "from", NAME).write_bytes(ATTACHED)
        git("from", "add", ".")
        git("from", "commit", "-q", "-m", f"{SUBJECT}\n\n{TEXT}")
        for port, encryption in ((stage.gateway.port, "tls"), (stage.gateway.tls_port, "ssl")):
            git("from", "send-email", "--from", f"Älice <{LOGIN}>", "--to", "bob@example.net", "--confirm=never",
                "--suppress-cc=all", "--smtp-server=localhost", f"--smtp-server-port={port}",
                f"--smtp-encryption={encryption}", f"--smtp-ssl-cert-path={stage.authority.certificate}",
                f"--smtp-user={LOGIN}", f"--smtp-pass={PASSWORD}", "-1")
            taken = stage.upstream.take()
            assert python_dkim(taken.octets, stage.zone) == SIGNED
            git(encryption, "am", "-q", input=taken.octets)
            for what in ("HEAD^{tree}", "HEAD:" + NAME):
                assert git(encryption, "rev-parse", what) == git("from", "rev-parse", what)
            said = [git(repository, "log", "-1", "--format=%an%n%B") for repository in ("from", encryption)]
            assert said[0] == said[1], said


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


def relays(stage, mta):
    """What a customer's mail system sends on arrives as it was; it hears of what we refuse, and tries again later."""
    long_lines = message("long lines", b"\r\n".join(bytes([c]) * 998 for c in b"abc") + "\r\nGrüße\r\n".encode())
    with smtplib.SMTP("127.0.0.1", mta.port, timeout=30) as inside:
        inside.sendmail(LOGIN, ["bob@example.net"], LETTER, mail_options=["BODY=8BITMIME"])
        taken = expect_letter(stage)
        assert taken.body == LETTER.partition(b"\r\n\r\n")[2], "the body is another"
        inside.sendmail(LOGIN, ["bob@example.net"], long_lines, mail_options=["BODY=8BITMIME"])
        taken = stage.upstream.take()
        assert taken.octets.endswith(long_lines) and python_dkim(taken.octets, stage.zone) == SIGNED
        inside.send_message(email.message_from_bytes(LETTER, policy=email.policy.SMTPUTF8), LOGIN, ["bób@example.net"])
        expect_utf8(stage)
        inside.sendmail(LOGIN, ["bob@example.net"], message("not ours", sender="eve@example.com"))
        eventually(lambda: "550 5.7.1" in mta.log(), 20)
        stage.cluster.stop()
        try:
            inside.sendmail(LOGIN, ["bob@example.net"], LETTER)
            eventually(lambda: re.search(r"45[14] 4\.[37]\.0", mta.log()), 20)
        finally:
            stage.cluster.start()
        # Postfix leaves a message alone for a minute when its look at the queue meets the end of a delivery.
        expect_letter(stage, stage.upstream.take(90))
    stage.gateway.wait_queue(0)
    assert not stage.upstream.messages, "something came twice"


def test_postfix_relays_what_people_send(stage):
    postfix = Postfix(stage.folder / "pfl", stage.gateway.port, stage.authority.certificate, LOGIN, PASSWORD).start()
    try:
        relays(stage, postfix)
        assert "sender non-delivery notification" in postfix.log(), postfix.log()
    finally:
        postfix.stop()


def test_exim_relays_what_people_send(stage):
    exim = Exim(stage.folder / "exim", stage.gateway.port, stage.authority.certificate, LOGIN, PASSWORD).start()
    try:
        relays(stage, exim)
        eventually(lambda: "550 5.7.1" in exim.bounces())
    finally:
        exim.stop()


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

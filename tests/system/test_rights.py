# SPDX-License-Identifier: ISC
"""Who may send as whom, over the wire: the table of the unit test, patterns, the null sender, Sender."""
import email
import email.utils
import re

from client import connect, message
from dkim_check import python_dkim
from environment import TOP
from test_database import fails
from test_refusals import plain, session

LOGIN, PASSWORD = "rights@example.org", "secret-r"
REPLIES = {"yes": "250 2.0.0 queued as ", "no": "550 5.7.1 ", "bad": "550 5.6.0 ", "ends": "550 5.6.11 ",
           "utf8": "553 5.6.7 ", "big": "552 5.3.4 "}
PATTERNS = ("alice@example.org", "tag+*@tags.example", "@owned.example", "@.sub.example", "grüße@example.org")
MAY_SEND = re.compile(r"(alice|grüße)@example\.org|tag\+.+@tags\.example|.+@owned\.example|.+@[^@]+\.sub\.example")
SENDERS = ("from", "sender", "resent-from", "resent-sender")


def unescape(text):
    escapes = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
    octets = re.sub(rb"\\(x..|.)", lambda m: bytes([int(m[1][1:], 16)]) if len(m[1]) > 1 else escapes[m[1].decode()],
                    text.encode())
    return re.sub(rb"\{(\d+)\*([^}]*)\}", lambda m: int(m[1]) * m[2], octets)


def table():
    """(verdict, whether with SMTPUTF8, header) of each row."""
    rows = []
    for line in (TOP / "tests/unit/rights.txt").read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#=":
            word, _, header = line.split(" ", 2)
            rows.append((word.removesuffix("+u"), word.endswith("+u"), unescape(header)))
    return rows


def set_up(stage, login=LOGIN, patterns=PATTERNS):
    if stage.cluster.sql(f"select count(*) from postern.account where login = '{login}'") == "0":
        stage.account(login, PASSWORD, *patterns)


def logged_in(stage, login=LOGIN):
    bare = session(stage, login=False)
    assert bare.ask(plain(login, PASSWORD)).startswith("235")
    return bare


def give(bare, header, body, sender="alice@example.org", parameters=""):
    """A message as a client gives it; the answer to its final dot."""
    bare.send(f"MAIL FROM:<{sender}>{parameters}\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n")
    for code in ("250", "250", "354"):
        assert bare.reply().startswith(code)
    dotted = (header + b"\r\n\r\n" + body + b"\r\n").replace(b"\r\n.", b"\r\n..")
    return bare.ask(dotted + b".")


def senders_of(taken):
    """Every address that a reader finds where a sender stands: one that parses, and one that looks for brackets."""
    for name, value in email.message_from_string(taken.header.decode()).items():
        value = re.sub(r"\r?\n(?=[ \t])", "", value)  # RFC 5322 2.2.3: unfolded first
        if name.lower() in SENDERS:
            yield from (address for _, address in email.utils.getaddresses([value]))
            yield from re.findall(r"<\s*([^<>]*?)\s*>", value)


def test_each_header_of_the_table(stage):
    set_up(stage)
    rows, wrong = table(), []
    bare = logged_in(stage)
    for number, (verdict, smtputf8, header) in enumerate(rows):
        answer = give(bare, header, f"row {number}".encode(), parameters=" SMTPUTF8" if smtputf8 else "")
        if not answer.startswith(REPLIES[verdict]):
            wrong.append((verdict, answer, header[:100]))
    bare.close()
    assert not wrong, wrong
    wanted = [number for number, row in enumerate(rows) if row[0] == "yes"]
    taken = stage.upstream.wait(len(wanted), 60)
    stage.gateway.wait_queue(0)
    came = sorted(int(re.search(rb"row (\d+)", one.body)[1]) for one in taken)
    assert came == wanted and len(stage.upstream.messages) == len(wanted)
    for one in taken:
        found = list(senders_of(one))
        assert found and all(MAY_SEND.fullmatch(re.sub(r"[A-Z]", lambda m: m[0].lower(), a)) for a in found), (
            found, one.header)
        number = int(re.search(rb"row (\d+)", one.body)[1])
        first = email.utils.getaddresses([email.message_from_bytes(one.header)["From"]])[0][1]
        if first.lower().endswith("@example.org") and number % 7 == 0:
            assert ("rsa-sha256" in dict(python_dkim(one.octets, stage.zone))), one.header
    verdicts = [row[0] for row in rows]
    print(f"# {len(rows)} headers: " + ", ".join(f"{verdicts.count(word)} {word}" for word in REPLIES), flush=True)


def test_mail_from_must_be_the_accounts(stage):
    set_up(stage)
    bare = logged_in(stage)
    for sender, answer in (
            ("alice@example.org", "250"), ("ALICE@Example.ORG", "250"), ("any@owned.example", "250"),
            ("tag+1@tags.example", "250"), ("any@x.sub.example", "250"), (LOGIN, "250"), ("", "250"),
            ("eve@example.org", "550 5.7.1"), ("any@x.owned.example", "550 5.7.1"), ("tag@tags.example", "550 5.7.1"),
            ("tag+@tags.example", "550 5.7.1"), ("any@sub.example", "550 5.7.1"), ('"alice"@example.org', "550 5.7.1"),
            ('"alice@example.org"@evil.example', "550 5.7.1"), ("alice%evil.example@example.org", "550 5.7.1"),
            ("alice@[127.0.0.1]", "550 5.7.1"), ("alice@example.org.", "501 5.1.7"), ("alice", "501 5.1.7"),
            ("@relay.example:alice@example.org", "501 5.1.7"), ("alice@example.org> SIZE=1 <", "501"),
            ("alice@example.org@evil.example", "501 5.1.7"), ("аlice@example.org", "553 5.6.7"),
            ("grüße@example.org", "553 5.6.7")):
        got = bare.ask(f"MAIL FROM:<{sender}>")
        assert got.startswith(answer), (sender, got)
        bare.ask("RSET")
    for sender, answer in (("grüße@example.org", "250"), ("GRÜSSE@example.org", "550 5.7.1"),
                           ("аlice@example.org", "550 5.7.1"), ("alice@example。org", "550 5.7.1")):
        got = bare.ask(f"MAIL FROM:<{sender}> SMTPUTF8")
        assert got.startswith(answer), (sender, got)
        bare.ask("RSET")
    bare.close()


def test_the_null_sender_is_allowed_and_charged(stage):
    set_up(stage)
    stage.cluster.sql(f"select postern.limit_set('{LOGIN}', 'messages', '1 day', 2)")
    try:
        bare = logged_in(stage)
        header = b"From: alice@example.org\r\nSubject: read\r\nAuto-Submitted: auto-replied"
        assert give(bare, header.replace(b"alice", b"eve"), b"x", sender="").startswith("550 5.7.1"), "From is judged as ever"
        for _ in range(2):
            assert give(bare, header, b"x", sender="").startswith("250")
        assert stage.cluster.sql(f"select used from postern.usage('{LOGIN}')") == "2"
        bare.send("MAIL FROM:<>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n")
        assert [bare.reply()[:3] for _ in range(3)] == ["250", "250", "450"]
        bare.close()
        assert [one.sender for one in stage.upstream.wait(2)] == ["", ""]
    finally:
        stage.cluster.sql(f"select postern.limit_set('{LOGIN}', 'messages', '1 day', null)")


def sender_of(stage, login, header, parameters=""):
    bare = logged_in(stage, login)
    assert give(bare, header.encode(), b"x", sender=login if "@" in login else "", parameters=parameters).startswith("250")
    bare.close()
    taken = stage.upstream.take()
    signature = next(v for n, v in email.message_from_bytes(taken.header).items() if n == "DKIM-Signature")
    names = re.search(r"h=([^;]*);", re.sub(r"\s", "", signature))[1].lower().split(":")
    found = email.message_from_bytes(taken.header).get_all("Sender") or []
    assert names.count("sender") == len(found), "what is there is signed"
    assert dict(python_dkim(taken.octets, stage.zone)).get("rsa-sha256"), taken.header
    return found


def test_a_plan_adds_sender(stage):
    stage.cluster.sql("select postern.plan_set('told'); update postern.plan set add_sender = true where name = 'told'")
    for login in ("Told@example.org", "told-by-name"):
        if stage.cluster.sql(f"select count(*) from postern.account where login = '{login}'") == "0":
            stage.cluster.sql("select postern.account_create(:'l', :'p', 'told'), postern.sender_grant(:'l', '@example.org')",
                              l=login, p=PASSWORD)
    login = "Told@example.org"
    assert sender_of(stage, login, "From: info@example.org") == [login]
    assert sender_of(stage, login, "From: info@example.org, other@example.org") == [login]
    assert sender_of(stage, login, "From: told@EXAMPLE.org") == []
    assert sender_of(stage, login, "From: info@example.org, A <told@example.org>") == []
    assert sender_of(stage, login, "From: info@example.org\r\nSender: info@example.org") == ["info@example.org"]
    assert sender_of(stage, "told-by-name", "From: info@example.org") == [], "that login is no address"
    set_up(stage, "untold@example.org", ("@example.org",))
    assert sender_of(stage, "untold@example.org", "From: info@example.org") == [], "nothing is rewritten unless asked for"


def test_a_right_is_taken_back_whatever_its_case(stage):
    login = "right-granted@example.org"
    set_up(stage, login, ())
    stage.cluster.sql(f"select postern.sender_grant('{login}', 'Info@Shop.Example')")
    stage.cluster.sql(f"select postern.sender_grant('{login}', 'INFO@shop.example')")
    bare = logged_in(stage, login)
    assert bare.ask("MAIL FROM:<info@shop.example>").startswith("250")
    said = fails(lambda: stage.cluster.sql(f"select postern.sender_revoke('{login}', 'sales@shop.example')"))
    assert "has no sender right" in said and "It has: info@shop.example" in said, said
    stage.cluster.sql(f"select postern.sender_revoke('{login}', 'info@SHOP.example')")
    assert bare.reply().startswith("421 4.7.0")
    bare = logged_in(stage, login)
    assert bare.ask("MAIL FROM:<info@shop.example>").startswith("550 5.7.1")
    bare.close()
    audit = stage.cluster.sql(f"select action, detail from postern.audit where object = '{login}' and action like 'sender_%'")
    assert audit.splitlines() == ["sender_grant|sender: none -> info@shop.example",
                                  "sender_revoke|sender: info@shop.example -> none"], audit
    for pattern, words in (("alice", "it has no @"), ("a b@x.example", "a blank"), ("a@b@x.example", "more than one @"),
                           ("*@x.example", "only behind a +"), ("a*+*@x.example", "only behind a +"), ("a@*.example", "@.domain"),
                           ("@", "no domain"), ("@.", "no domain"), ("a@x..example", "a dot too many"),
                           ("a@x.example.", "a dot too many"), ("", "empty"), ("x" * 311 + "@x.example", "longer than 320")):
        said = fails(lambda: stage.cluster.sql(f"select postern.sender_grant('{login}', :'p')", p=pattern))
        assert "is no sender pattern" in said and words in said, (pattern, said)


def test_a_renamed_sender_is_felt_in_a_live_session(stage):
    login = "renamed@example.org"
    set_up(stage, login, ("old@example.org",))
    client = connect(stage, login, PASSWORD)
    client.sendmail("old@example.org", ["bob@example.net"], message("before", sender="old@example.org"))
    stage.cluster.sql(f"begin; select postern.sender_revoke('{login}', 'old@example.org');"
                      f"select postern.sender_grant('{login}', 'new@example.org'); commit")
    assert client.getreply()[0] == 421
    client = connect(stage, login, PASSWORD)
    client.sendmail("new@example.org", ["bob@example.net"], message("after", sender="new@example.org"))
    assert client.mail("old@example.org")[0] == 550
    client.close()
    stage.upstream.wait(2)

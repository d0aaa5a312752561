# SPDX-License-Identifier: ISC
"""A day of an admin at an ISP: through the scripts alone, as a member of postern_admin, with a gateway at work."""
import base64
import hashlib
import hmac
import time

from client import message
from environment import TOP, eventually
from test_refusals import plain, session

SCRIPTS = TOP / "scripts" / "admin"
ANNA, BEN = "customer-7@isp.example", "clear-7@isp.example"


def verifier(password, salt):
    """As PostgreSQL's own programs compute it on the client."""
    def mac(key, what):
        return hmac.digest(key, what, "sha256")

    def b64(octets):
        return base64.b64encode(octets).decode()

    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 4096)
    stored = hashlib.sha256(mac(salted, b"Client Key")).digest()
    return f"SCRAM-SHA-256$4096:{b64(salt)}${b64(stored)}:{b64(mac(salted, b'Server Key'))}"


def submit(bare, sender, subject):
    """The reply that ends it: to the final dot, or to what was refused before."""
    for line, wanted in ((f"MAIL FROM:<{sender}>", "250"), ("RCPT TO:<bob@example.net>", "250"), ("DATA", "354")):
        said = bare.ask(line)
        if not said.startswith(wanted):
            return said
    return bare.ask(message(subject, sender=sender) + b".")


def test_an_admins_day(stage):
    def script(name, answers="", **variables):
        return stage.cluster.script(SCRIPTS / f"{name}.sql", answers=answers, **variables).strip()

    def enter(login, password):
        bare = session(stage, login=False)
        said = bare.ask(plain(login, password))
        return bare, said

    # In the morning: the customers of another system, and some who chose a password on paper.
    script("plan_set", plan="home", recipients="50", connections="5")
    script("plan_limit_set", plan="home", measure="messages", per="1 hour", amount="2")
    ready = [verifier(f"right-{n}", bytes(16 * [n])) for n in range(10)]
    rows = ["login,password,plan"]
    rows += [f"customer-{n}@isp.example,{ready[n % 10]},home" for n in range(10000)]
    rows += [f"clear-{n}@isp.example,paper-{n},home" for n in range(100)]
    assert script("accounts_create", answers="\n".join(rows) + "\n") == "10100"
    for login, password in (("customer-0@isp.example", "right-0"), ("CUSTOMER-9999@isp.example", "right-9"),
                            ("clear-99@isp.example", "paper-99")):
        bare, said = enter(login, password)
        assert said.startswith("235"), (login, said)
        bare.close()

    # A limit is reached, raised, and felt at once, in the same session.
    early, said = enter(ANNA, "right-7")
    assert said.startswith("235")
    script("sender_grant", login=ANNA, sender="info@shop.example")
    # Who has logged in before the change is heard of ends with it; that may be a moment after the script.
    assert early.reply().startswith("421 4.7.0 The account was changed")
    early.close()
    anna, said = enter(ANNA, "right-7")
    assert said.startswith("235")
    first = submit(anna, "info@shop.example", "first")
    assert first.startswith("250") and submit(anna, ANNA, "second").startswith("250")
    said = submit(anna, ANNA, "third")
    assert said.startswith("450 4.7.1 limit messages/hour reached: 2 of 2"), said
    script("limit_set", login=ANNA, measure="messages", per="1 hour", amount="3")
    anna.ask("RSET")
    assert submit(anna, ANNA, "third").startswith("250")
    assert script("usage", login=ANNA).startswith("messages|hour|3|3|20")
    assert script("usage_top", measure="messages", count="1") == f"{ANNA}|messages|hour|3|3|100"
    stage.upstream.wait(3)

    # A sender gets another name.
    script("sender_rename", login=ANNA, old="info@shop.example", new="sales@shop.example")

    def mail_from(sender):
        bare, said = enter(ANNA, "right-7")
        said = bare.ask(f"MAIL FROM:<{sender}>") if said.startswith("235") else said
        bare.close()
        return said

    eventually(lambda: mail_from("info@shop.example").startswith("550 5.7.1"))
    assert mail_from("sales@shop.example").startswith("250")

    # A telephone is lost.
    app = script("app_password_create", login=BEN, label="phone", mechanisms="PLAIN", networks="127.0.0.0/8", expires="2100-01-01")
    bare, said = enter(BEN, app)
    assert said.startswith("235")
    bare.close()
    script("credential_revoke", login=BEN, label="phone")
    eventually(lambda: enter(BEN, app)[1].startswith("535"))
    bare, said = enter(BEN, "paper-7")
    assert said.startswith("235")

    # Ben's machine sends spam: he is out in the middle of a message, and is told why, but only he.
    assert bare.ask(f"MAIL FROM:<{BEN}>").startswith("250")
    script("account_suspend", login=BEN, reason="sends spam, call 555 0100")
    since = time.monotonic()
    said = bare.reply()
    took = time.monotonic() - since
    assert said.startswith("421 4.7.0") and took < 1 and bare.reply() == "", (said, took)
    said = enter(BEN, "paper-7")[1]
    assert said.startswith("525 5.7.13") and "sends spam, call 555 0100" in said, said
    assert enter(BEN, "wrong")[1] == "535 5.7.8 Authentication failed"
    script("account_resume", login=BEN)
    eventually(lambda: enter(BEN, "paper-7")[1].startswith("235"))

    # Anna asks where her mail is.
    qid = first.split()[-1]
    eventually(lambda: len(script("trace", id=qid).splitlines()) == 2)
    story = [row.split("|")[1:] for row in script("trace", id=qid).splitlines()]
    assert [row[:2] for row in story] == [["accepted", ""], ["delivered", "bob@example.net"]], story
    assert 'sender="info@shop.example"' in story[0][2] and 'reply="250' in story[1][2], story
    named = message("first", sender="info@shop.example").decode().partition("Message-ID: ")[2].split("\r\n")[0]
    assert [row.split("|")[1] for row in script("trace", id=named).splitlines()] == ["accepted", "delivered"]
    eventually(lambda: len(script("sent", login=ANNA).splitlines()) == 3)
    sent = [row.split("|") for row in script("sent", login=ANNA).splitlines()]
    assert sent[-1][1] == qid and [row[2] for row in sent] == [ANNA, ANNA, "info@shop.example"], sent

    # In the evening: who did what?
    told = [row.split("|")[1:3] for row in script("audit", object=ANNA).splitlines()]
    assert told == [["ops", action] for action in ("sender_grant", "sender_revoke", "limit_set", "sender_grant", "account_create")]
    assert script("audit", object=BEN).splitlines()[1].endswith("state: active -> suspended; reason: none -> sends spam, call 555 0100")

# SPDX-License-Identifier: ISC
"""What is refused, in the words that a mail program shows."""
import base64
import smtplib
import time

from client import MESSAGE, Bare, connect, message
from environment import eventually

LOGIN, PASSWORD = "alice@example.org", "secret-1"


def plain(login=LOGIN, password=PASSWORD):
    return "AUTH PLAIN " + base64.b64encode(f"\0{login}\0{password}".encode()).decode()


def session(stage, login=True, source="127.0.0.1"):
    """Over TLS, past EHLO, logged in."""
    bare = Bare(stage, tls=True, source=source)
    assert bare.reply().startswith("220 ")
    assert bare.ask("EHLO client.test").startswith("250")
    if login:
        assert bare.ask(plain()).startswith("235")
    return bare


def test_wrong_password_and_unknown_user_look_the_same(stage):
    answers = set()
    for login in (LOGIN, "nobody-here@example.org"):
        bare = session(stage, login=False)
        began = time.monotonic()
        answers.add(bare.ask(plain(login, "wrong")))
        # 300 ms, of which a clock of whole milliseconds may lose one.
        took = time.monotonic() - began
        assert 0.299 <= took < 1.5, took
        bare.close()
    assert answers == {"535 5.7.8 Authentication failed"}, answers
    reasons = [e["reason"] for e in stage.gateway.events("login.refused")]
    assert reasons[-2:] == ["bad_password", "unknown_user"], reasons


def test_failures_end_the_connection(stage):
    bare = session(stage, login=False)
    answers = [bare.ask(plain(password="wrong")) for _ in range(5)]
    assert answers == ["535 5.7.8 Authentication failed"] * 5, answers
    assert bare.reply().startswith("421 4.7.0") and bare.reply() == ""


def test_login_needs_tls(stage):
    bare = Bare(stage)
    bare.reply()
    assert "AUTH" not in bare.ask("EHLO client.test")
    assert bare.ask(plain()) == "538 5.7.11 Encryption required for authentication"
    assert bare.ask("MAIL FROM:<alice@example.org>").startswith("530 5.7.0")
    bare.close()


def test_mail_needs_a_login(stage):
    bare = session(stage, login=False)
    assert bare.ask("MAIL FROM:<alice@example.org>") == "530 5.7.0 Authentication required"
    bare.close()


def test_another_sender_is_refused(stage):
    bare = session(stage)
    assert bare.ask("MAIL FROM:<eve@example.org>").startswith("550 5.7.1"), "MAIL FROM"
    for sender in (b"eve@example.org", b"alice@example.org, eve@example.org", b"alice@example.org <eve@example.org>"):
        assert bare.ask("MAIL FROM:<alice@example.org>").startswith("250")
        assert bare.ask("RCPT TO:<bob@example.net>").startswith("250")
        assert bare.ask("DATA").startswith("354")
        answer = bare.ask(MESSAGE.replace(b"Alice <alice@example.org>", sender) + b".")
        assert answer.startswith("550 5."), (sender, answer)
    bare.close()
    stage.gateway.wait_queue(0)
    assert not stage.upstream.messages


def test_a_granted_sender_may_be_used(stage):
    stage.cluster.sql("select postern.sender_grant('alice@example.org', '@shop.example')")
    try:
        client = connect(stage)
        client.sendmail("info@shop.example", ["bob@example.net"], message(sender="info@shop.example"))
        client.quit()
        taken = stage.upstream.take()
        assert taken.sender == "info@shop.example"
        assert b"DKIM-Signature" not in taken.header, "that domain has no key"
        stage.gateway.wait_event("message.unsigned", domain="shop.example")
    finally:
        stage.cluster.sql("select postern.sender_revoke('alice@example.org', '@shop.example')")


def test_the_fourth_of_three_messages_waits(stage):
    stage.account("limited@example.org", "secret-2")
    stage.cluster.sql("select postern.limit_set('limited@example.org', 'messages', '1 hour', 3)")
    client = connect(stage, "limited@example.org", "secret-2")
    for number in range(3):
        client.sendmail("limited@example.org", ["bob@example.net"],
                        message(f"limited {number}", sender="limited@example.org"))
    try:
        client.sendmail("limited@example.org", ["bob@example.net"], message("too much", sender="limited@example.org"))
        raise AssertionError("the fourth was accepted")
    except smtplib.SMTPDataError as error:
        text = error.smtp_error.decode()
        assert error.smtp_code == 450 and text.startswith("4.7.1 limit messages/hour reached: 3 of 3, next at 20"), text
    other = connect(stage)
    other.sendmail(LOGIN, ["bob@example.net"], message("another account"))
    other.quit()
    client.quit()
    stage.upstream.wait(4)
    stage.gateway.wait_queue(0)
    assert len(stage.upstream.messages) == 4


def test_a_suspended_account_is_out_at_once(stage):
    stage.account("suspended@example.org", "secret-3")
    bare = session(stage, login=False)
    assert bare.ask(plain("suspended@example.org", "secret-3")).startswith("235")
    stage.cluster.sql("select postern.account_suspend('suspended@example.org', 'ticket 1')")
    assert bare.reply().startswith("421 4.7.0")
    bare = session(stage, login=False)
    assert bare.ask(plain("suspended@example.org", "secret-3")) == "525 5.7.13 account suspended: ticket 1"
    stage.cluster.sql("select postern.account_resume('suspended@example.org')")
    bare = session(stage, login=False)
    assert bare.ask(plain("suspended@example.org", "secret-3")).startswith("235")
    bare.close()


def test_a_changed_password_counts_at_once(stage):
    stage.account("new-password@example.org", "before")
    bare = session(stage, login=False)
    assert bare.ask(plain("new-password@example.org", "before")).startswith("235")
    stage.cluster.sql("select postern.account_set_password('new-password@example.org', 'after')")
    bare = session(stage, login=False)
    assert bare.ask(plain("new-password@example.org", "before")).startswith("535"), "the old one was remembered"
    assert bare.ask(plain("new-password@example.org", "after")).startswith("235")
    bare.close()


def test_an_expired_password_is_not_remembered(stage):
    """Not for a moment more, however late the database answered."""
    login = "expiring@example.org"
    with stage.database("late") as cluster:
        stage.gateway.tool("database", "migrate")
        cluster.sql("alter function postern.auth_lookup rename to auth_lookup_at_once")
        columns = cluster.sql("select pg_get_function_result('postern.auth_lookup_at_once'::regproc)")
        cluster.sql(f"""
            create function postern.auth_lookup(login text) returns {columns} language sql security definer
                as $$ select found.* from postern.auth_lookup_at_once(login) found, pg_sleep(0.5) $$;
            grant execute on function postern.auth_lookup to postern_auth;
            select postern.account_create('{login}')""")
        stage.gateway.stop()
        stage.gateway.start()
        password = cluster.sql(f"select postern.app_password_create('{login}', 'phone', expires_at => now() + interval '3 seconds')")
        bare = session(stage, login=False)
        assert bare.ask(plain(login, password)).startswith("235")
        bare.close()
        cluster.sql("select pg_sleep_until(max(expires_at)) from postern.credential")
        bare = session(stage, login=False)
        assert bare.ask(plain(login, password)).startswith("535")
        bare.close()
        stage.gateway.stop()


def test_login_with_a_zero_octet(stage):
    bare = session(stage, login=False)
    for answers in ((LOGIN + "\0x", PASSWORD), (LOGIN, PASSWORD + "\0x")):
        reply = bare.ask("AUTH LOGIN")
        for answer in answers:
            if reply.startswith("334"):
                reply = bare.ask(base64.b64encode(answer.encode()))
        assert reply.startswith("501"), (answers, reply)
    bare.close()


def test_only_one_end_of_data(stage):
    """Every end that some server believed in; the second message must not leave."""
    smuggled = b"MAIL FROM:<alice@example.org>\r\nRCPT TO:<eve@example.net>\r\nDATA\r\n" + MESSAGE
    for end in (b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r"):
        bare = session(stage)
        assert bare.ask("MAIL FROM:<alice@example.org>").startswith("250")
        assert bare.ask("RCPT TO:<bob@example.net>").startswith("250")
        assert bare.ask("DATA").startswith("354")
        answer = bare.ask(MESSAGE + b"text" + end + smuggled + b".")
        assert answer.startswith("550 5.6.11"), (end, answer)
        assert bare.ask("NOOP").startswith("250")
        bare.close()
    stage.gateway.wait_queue(0)
    assert not stage.upstream.messages


def test_nothing_said_before_tls_counts_after_it(stage):
    bare = Bare(stage)
    bare.reply()
    bare.ask("EHLO client.test")
    bare.send(b"STARTTLS\r\nMAIL FROM:<alice@example.org>\r\n")
    answer = bare.reply()
    assert answer.startswith("503 5.5.0"), answer
    assert bare.reply() == "", "the connection must be closed"
    bare = Bare(stage)
    bare.reply()
    bare.ask("EHLO client.test")
    assert bare.ask("STARTTLS").startswith("220")
    bare.start_tls()
    answer = bare.ask(plain())
    assert answer.startswith("503"), f"EHLO was before TLS: {answer}"
    bare.close()


def test_odd_lines(stage):
    bare = session(stage)
    for line, code in ((b"GARBAGE", "500"), (b"NOOP\0x", "500"), (b"MAIL FROM:<alice@example.org> FOO=1", "555"),
                       (b"MAIL FROM:alice@example.org", "501"), (b"RCPT TO:<bob@example.net>", "503"),
                       (b"DATA", "503"), (b"MAIL FROM:<alice@example.org> SIZE=99999999999", "552"),
                       (b"VRFY bob", "252"), (b"HELP", "214"), (b"EHLO x) by evil (", "250"),
                       (b"NOOP " + b"x" * 5000, "500")):
        answer = bare.ask(line)
        assert answer.startswith(code), (line[:60], answer)
    assert bare.ask("NOOP").startswith("250")
    bare.close()
    bare = Bare(stage)
    bare.reply()
    answer = bare.ask("GET / HTTP/1.1")
    assert answer.startswith("500") and bare.reply() == "", answer


def test_headers_are_completed_and_bcc_is_gone(stage):
    client = connect(stage)
    client.sendmail(LOGIN, ["bob@example.net", "carol@example.net"],
                    b"From: alice@example.org\r\nTo: bob@example.net\r\nBcc: carol@example.net\r\n\r\nHello\r\n")
    client.quit()
    taken = stage.upstream.take()
    header = taken.header.decode()
    assert "Bcc" not in header and "carol" not in header
    assert "\r\nDate: " in header and "\r\nMessage-ID: <" in header
    assert sorted(taken.recipients) == ["bob@example.net", "carol@example.net"]


def test_an_account_has_the_connections_of_its_plan(stage):
    stage.cluster.sql("select postern.plan_set('two', connections => 2)")
    stage.cluster.sql("select postern.account_create('two@example.org', 'pw', 'two')")
    first, second = session(stage, login=False), session(stage, login=False)
    assert first.ask(plain("two@example.org", "pw")).startswith("235")
    assert second.ask(plain("two@example.org", "pw")).startswith("235")
    third = session(stage, login=False)
    assert third.ask(plain("two@example.org", "pw")).startswith("421 4.7.0")
    assert third.reply() == ""
    stage.gateway.wait_event("session.closed", reason="too_many_connections")
    first.close()
    eventually(lambda: session(stage, login=False).ask(plain("two@example.org", "pw")).startswith("235"))
    second.close()


def test_a_plan_may_demand_a_signature(stage):
    stage.cluster.sql("select postern.plan_set('signed', sign_required => true)")
    stage.cluster.sql("select postern.account_create('x@unsigned.example', 'pw', 'signed')")
    client = connect(stage, "x@unsigned.example", "pw")
    client.sendmail("x@unsigned.example", ["bob@example.net"], message("s", sender="x@unsigned.example"))
    client.quit()
    qid = stage.gateway.wait_event("message.unsigned", domain="unsigned.example")["qid"]
    stage.gateway.wait_event("message.deferred", qid=qid)
    assert not stage.upstream.messages
    stage.gateway.tool("dkim", "create", "unsigned.example")
    assert b"DKIM-Signature" in stage.upstream.take().octets
    stage.gateway.wait_queue(0)


def test_a_loop_is_seen(stage):
    client = connect(stage)
    hops = b"Received: from a by b; Tue, 24 Nov 2026 10:00:00 +0000\r\n"
    client.sendmail(LOGIN, ["bob@example.net"], hops * 20 + MESSAGE)
    stage.upstream.take()
    try:
        client.sendmail(LOGIN, ["bob@example.net"], hops * 101 + MESSAGE)
        raise AssertionError("a looping message was accepted")
    except smtplib.SMTPDataError as error:
        assert error.smtp_code == 554 and error.smtp_error.startswith(b"5.4.6"), error


def test_recipients_beyond_the_limit_wait(stage):
    stage.gateway.submission = {"recipients": 100}
    stage.gateway.stop()
    stage.gateway.start()
    bare = session(stage)
    assert bare.ask("MAIL FROM:<alice@example.org>").startswith("250")
    for number in range(100):
        assert bare.ask(f"RCPT TO:<r{number}@example.net>").startswith("250")
    assert bare.ask("RCPT TO:<one-more@example.net>").startswith("452 4.5.3")
    assert bare.ask("DATA").startswith("354")
    assert bare.ask(MESSAGE + b".").startswith("250 2.0.0 queued as ")
    bare.close()
    assert len(stage.upstream.take().recipients) == 100


def test_recipients_that_the_spool_has_no_room_for_wait(stage):
    """Whatever the limit: what is taken can be stored, and arrives."""
    stage.gateway.submission = {"recipients": 100000}
    stage.gateway.stop()
    stage.gateway.start()
    domain = ".".join(["d" * 60] * 3)
    accepted, answer, bare = 0, "250", session(stage)
    assert bare.ask("MAIL FROM:<alice@example.org>").startswith("250")
    while answer.startswith("250"):
        bare.send("".join(f"RCPT TO:<r{accepted + n:06}@{domain}>\r\n" for n in range(100)))
        for _ in range(100):
            answer = bare.reply()
            accepted += answer.startswith("250")
    assert answer.startswith(f"452 4.5.3 Too many recipients; at most {accepted} "), answer
    assert accepted > 10000, accepted
    assert bare.ask("DATA").startswith("354")
    assert bare.ask(MESSAGE + b".").startswith("250 2.0.0 queued as ")
    bare.close()
    arrived = set()
    while len(arrived) < accepted:
        arrived.update(stage.upstream.take().recipients)
    stage.gateway.wait_queue(0)


# ---- how often ----

# What is said, the answer, whether it counts as an error of protocol, what is said before; None: no login.
ERRORS = (
    ("FOO", "500 5.5.1 Unknown command", True, ()),
    ("NOOP " + "x" * 5000, "500 5.5.2 Line too long", True, ()),
    ("AUTH PLAIN " + "A" * 20000, "500 5.5.2 Line too long", True, ()),
    ("NOOP \x01", "500 5.5.2 Control", True, ()),
    (b"NOOP \xff", "500 5.5.2 Control", True, ()),
    ("EHLO", "501 5.5.4 Syntax", True, ()),
    ("MAIL TO:<bob@example.net>", "501 5.5.4 Syntax", True, ()),
    ("RCPT FROM:<bob@example.net>", "501 5.5.4 Syntax", True, ("MAIL FROM:<alice@example.org>",)),
    ("RCPT TO:<bob@example.net>", "503 5.5.1 Bad sequence", True, ()),
    ("DATA", "503 5.5.1 Bad sequence", True, ()),
    ("BDAT 0", "503 5.5.1 Bad sequence", True, ()),
    ("BDAT 4\r\nab", "503 5.5.1 Bad sequence", True, ()),
    ("MAIL FROM:<alice@example.org>", "503 5.5.1 Bad sequence", True, ("MAIL FROM:<alice@example.org>",)),
    (plain(), "503 5.5.1 Already logged in", True, ()),
    ("STARTTLS", "503 5.5.1 TLS is already active", True, ()),
    ("MAIL FROM:<alice@example.org> RET=HDRS", "555 5.5.4", True, ()),
    ("RCPT TO:<bob@example.net> NOTIFY=NEVER", "555 5.5.4", True, ("MAIL FROM:<alice@example.org>",)),
    ("AUTH CRAM-MD5", "504 5.5.4", True, None),
    ("AUTH PLAIN *", "501 5.5.2", True, None),
    (("AUTH PLAIN", "A" * 20000), "500 5.5.6", True, None),
    (("AUTH PLAIN", "*"), "501 5.7.0", False, None),
    ("MAIL FROM:<alice@example.org>", "530 5.7.0", False, None),
    ("MAIL FROM:<@@>", "501 5.1.7", False, ()),
    ("MAIL FROM:<eve@example.org>", "550 5.7.1", False, ()),
    ("MAIL FROM:<alice@example.org> SIZE=99999999999", "552 5.3.4", False, ()),
    ("MAIL FROM:<\u00e4@example.org>", "553 5.6.7", False, ()),
    ("RCPT TO:<bad", "501 5.1.3", False, ("MAIL FROM:<alice@example.org>",)),
    ("DATA", "503 5.5.1 Not possible now", False, ("MAIL FROM:<alice@example.org>",)),
    ("BDAT 4\r\nab", "503 5.5.1 Not possible now", False, ("MAIL FROM:<eve@example.org>",)),
    ("NOOP", "250", False, ()),
)


def test_what_counts_as_an_error(stage):
    """Said four times (a fifth failed login ends a connection), it leaves room for so many others."""
    for line, answer, counts, before in ERRORS:
        bare = session(stage, login=before is not None)
        for prepared in before or ():
            bare.ask(prepared)
        for _ in range(4):
            said = [bare.ask(step) for step in (line if isinstance(line, tuple) else (line,))][-1]
            assert said.startswith(answer), (line, said)
        for _ in range(16 if counts else 20):
            assert bare.ask("FOO").startswith("500 5.5.1"), line
        bare.send("FOO\r\nNOOP\r\n")
        assert bare.reply().startswith("500 5.5.1"), line
        assert bare.reply().startswith("421 4.7.0 Too many commands that are not SMTP"), line
        assert bare.reply() == "", line
        bare.close()

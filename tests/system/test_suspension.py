# SPDX-License-Identifier: ISC
"""An account is suspended and resumed: live sessions, queued mail, and everything that is away meanwhile."""
import base64
import contextlib
import os
import signal
import socket
import threading
import time

from client import connect, message
from environment import eventually
from test_database import fails
from test_refusals import plain, session

HELD, HELD_PASSWORD = "halted@example.org", "secret-h"
FREE = "alice@example.org"
WITHIN = 1.0  # seconds from the change until a session has ended
CHANGED = "421 4.7.0 The account was changed, connect again"
DAY = 24 * 3600


def set_up(stage):
    """The account exists and is active; its number."""
    stage.cluster.sql("select postern.account_create(:'l', :'p') where not exists"
                      " (select from postern.account where login = :'l');"
                      "select postern.account_resume(:'l') where exists"
                      " (select from postern.account where login = :'l' and state = 'suspended')",
                      l=HELD, p=HELD_PASSWORD)
    return stage.cluster.sql("select id from postern.account where login = :'l'", l=HELD)


@contextlib.contextmanager
def account(stage):
    """It is active before and after; its number."""
    try:
        yield set_up(stage)
    finally:
        stage.cluster.start_if_stopped()
        set_up(stage)


def suspend(stage, login=HELD, reason="ticket 1"):
    stage.cluster.sql("select postern.account_suspend(:'l', :'r')", l=login, r=reason)


def resume(stage, login=HELD):
    stage.cluster.sql("select postern.account_resume(:'l')", l=login)


def send(stage, login, subject, recipients=("bob@example.net",)):
    client = connect(stage, login, HELD_PASSWORD if login == HELD else "secret-1")
    client.sendmail(login, list(recipients), message(subject, sender=login))
    client.quit()


def subjects(stage):
    with stage.upstream.lock:
        return [taken.subject for taken in stage.upstream.messages]


def passes(stage, subject):
    """A later message of another account leaves; what should have left before it would have."""
    send(stage, FREE, subject)
    eventually(lambda: subject in subjects(stage))


# ---- live sessions ----


def logged_in(stage, login=HELD, password=HELD_PASSWORD):
    bare = session(stage, login=False)
    assert bare.ask(plain(login, password)).startswith("235")
    return bare


def begin(bare, *commands):
    for command in commands:
        answer = bare.ask(command)
        assert answer[0] in "23", (command, answer)
    return bare


ENVELOPE = (f"MAIL FROM:<{HELD}>", "RCPT TO:<bob@example.net>")
HEADER = f"From: {HELD}\r\nSubject: cut short\r\n\r\n"


def ends(bare, since):
    """The last words, and how long after the change they came."""
    answer = bare.reply()
    took = time.monotonic() - since
    assert bare.reply() == "", "the connection must be closed"
    bare.close()
    return answer, took


def test_a_session_ends_between_commands(stage):
    with account(stage):
        for commands in ((), ENVELOPE[:1], ENVELOPE):
            bare = begin(logged_in(stage), *commands)
            since = time.monotonic()
            suspend(stage)
            answer, took = ends(bare, since)
            assert answer == CHANGED and took < WITHIN, (commands, answer, took)
            resume(stage)
            print(f"# after {len(commands)} commands: {took * 1000:.0f} ms", flush=True)


def test_a_session_that_is_silent_in_mid_message_ends(stage):
    with account(stage):
        bare = begin(logged_in(stage), *ENVELOPE, "DATA")
        bare.send(HEADER + "half of it\r\n")
        since = time.monotonic()
        suspend(stage)
        answer, took = ends(bare, since)
        assert answer == CHANGED and took < WITHIN, (answer, took)
        print(f"# {took * 1000:.0f} ms", flush=True)


def test_a_session_that_dribbles_in_mid_message_ends(stage):
    with account(stage):
        bare = begin(logged_in(stage), *ENVELOPE, "DATA")
        bare.send(HEADER)
        since = time.monotonic()
        suspend(stage)
        bare.socket.settimeout(0.02)
        answer = b""
        while b"\n" not in answer:
            assert time.monotonic() - since < WITHIN, "it lives on"
            with contextlib.suppress(OSError):
                bare.socket.sendall(b"x\r\n")
            with contextlib.suppress(socket.timeout):
                got = bare.socket.recv(1000)
                assert got, "closed without a word"
                answer += got
        assert answer.decode() == CHANGED + "\r\n"
        bare.close()


def used(stage, login):
    return stage.cluster.sql("select used from postern.usage(:'l')", l=login)


def test_a_message_that_ends_after_the_suspension_is_not_taken(stage):
    """Nor is it charged."""
    with account(stage):
        stage.cluster.sql("select postern.limit_set(:'l', 'messages', '1 day', 1000)", l=HELD)
        try:
            before = used(stage, HELD)
            refused = len(stage.gateway.events("message.refused", reply="ACCOUNT_CHANGED", account=HELD))
            bare = begin(logged_in(stage), *ENVELOPE, "DATA")
            bare.send(HEADER)
            assert used(stage, HELD) == str(int(before) + 1)
            suspend(stage)
            stage.gateway.wait_event("message.refused", reply="ACCOUNT_CHANGED", account=HELD, count=refused + 1)
            bare.send("the rest\r\n.\r\n")
            assert ends(bare, 0)[0] == CHANGED
            eventually(lambda: used(stage, HELD) == before)
            resume(stage)
            send(stage, HELD, "later")
            eventually(lambda: subjects(stage) == ["later"])
        finally:
            stage.cluster.sql("select postern.limit_set(:'l', 'messages', '1 day', null)", l=HELD)


def test_another_change_lets_a_message_end(stage):
    with account(stage):
        bare = begin(logged_in(stage), *ENVELOPE, "DATA")
        bare.send(HEADER)
        stage.cluster.sql("select postern.sender_grant(:'l', '@renamed.example')", l=HELD)
        try:
            # Another session of the account has heard of it: so has this one, in the same loop or sooner.
            others = [logged_in(stage) for _ in range(4)]
            stage.cluster.sql("select postern.sender_revoke(:'l', '@renamed.example')", l=HELD)
            assert all(other.reply() == CHANGED for other in others)
            bare.send("the rest\r\n.\r\n")
            assert bare.reply().startswith("250 2.0.0 queued as ")
            assert ends(bare, 0)[0] == CHANGED
            assert stage.upstream.take().subject == "cut short"
        finally:
            stage.cluster.sql("delete from postern.sender where pattern = '@renamed.example'")


def change_while_data_is_asked(stage, change, is_changed):
    """`auth` cannot charge, because somebody holds the row until the change has been told. All answers from DATA on."""
    holder = threading.Thread(target=stage.cluster.sql, args=(f"""
        begin; select 'locked' from postern.rate_state where account = postern.account_id('{HELD}') for update;
        do $$ begin while not ({is_changed}) loop perform pg_sleep(0.02); end loop; end $$;
        select pg_sleep(0.1); commit""",))
    bare = begin(logged_in(stage), *ENVELOPE)
    holder.start()
    eventually(lambda: stage.cluster.sql("select count(*) from pg_stat_activity where wait_event = 'PgSleep'") == "1")
    bare.send("DATA\r\n")
    change()
    answers = []
    while answers[-1:] != [""]:
        answers.append(bare.reply())
    holder.join(30)
    bare.close()
    return answers[:-1]


def test_data_is_not_begun_after_a_change(stage):
    with account(stage):
        stage.cluster.sql("select postern.limit_set(:'l', 'messages', '1 day', 1000)", l=HELD)
        send(stage, HELD, "the first charge makes the row")
        stage.upstream.take()
        grant = "select postern.sender_grant(:'l', '@granted.example')"
        is_granted = "exists (select from postern.sender where pattern = '@granted.example')"
        is_suspended = f"exists (select from postern.account where login = '{HELD}' and state = 'suspended')"
        try:
            for change, is_changed in ((lambda: stage.cluster.sql(grant, l=HELD), is_granted),
                                       (lambda: suspend(stage), is_suspended)):
                answers = change_while_data_is_asked(stage, change, is_changed)
                # 451 comes first when the row was held for longer than `auth` waits.
                assert answers[-1] == CHANGED and all(a[:3] in ("421", "451") for a in answers), answers
        finally:
            stage.cluster.sql("delete from postern.sender where pattern = '@granted.example'")
            stage.cluster.sql("select postern.limit_set(:'l', 'messages', '1 day', null)", l=HELD)


def test_a_login_in_steps_does_not_succeed(stage):
    with account(stage) as number:
        login, password = (base64.b64encode(text.encode()).decode() for text in (HELD, HELD_PASSWORD))
        bare = session(stage, login=False)
        assert bare.ask("AUTH LOGIN").startswith("334") and bare.ask(login).startswith("334")
        suspend(stage)
        stage.gateway.wait_event("account.held", number=number)
        answer = bare.ask(password)
        assert answer.startswith("525 5.7.13"), answer
        bare.close()


# ---- queued mail ----


@contextlib.contextmanager
def queued(stage, suspended=True):
    """A message of each account waits; one of them may be suspended already. They may leave now."""
    number = set_up(stage)
    stage.gateway.retry = {"first": "1s", "max": "1s"}
    stage.gateway.stop()
    stage.gateway.start()
    stage.upstream.reply = lambda verb, line: "451 4.7.1 later" if verb == "MAIL" else None
    try:
        for login in (HELD, FREE):
            send(stage, login, f"of {login}")
        stage.gateway.wait_event("message.deferred", count=2)
        if suspended:
            suspend(stage)
            stage.gateway.wait_event("account.held", number=number)
        yield number
    finally:
        stage.upstream.reply = None
        stage.cluster.start_if_stopped()
        if stage.gateway.process is None:
            stage.gateway.start()
        set_up(stage)


def only_the_other_leaves(stage):
    stage.upstream.reply = None
    stage.gateway.tool("queue", "retry", "all")
    eventually(lambda: f"of {FREE}" in subjects(stage), 20)
    passes(stage, "later")
    assert f"of {HELD}" not in subjects(stage)
    stage.gateway.wait_queue(1)
    assert stage.gateway.queue_count("account-suspended") == 1


def both_leave(stage):
    stage.upstream.reply = None
    eventually(lambda: {f"of {HELD}", f"of {FREE}"} <= set(subjects(stage)), 20)
    stage.gateway.wait_queue(0)
    assert subjects(stage).count(f"of {HELD}") == 1


def test_mail_waits_and_leaves_at_once(stage):
    with queued(stage) as number:
        assert stage.gateway.queue_count("account-suspended") == 1
        # The queue and the log name it by its number, and the overview says whose that is.
        held = next(line for line in stage.gateway.tool("queue", "list").splitlines() if "state=account-suspended" in line)
        assert f"account={number} " in held, held
        assert stage.cluster.sql(f"select login from postern.account_overview where account = {number}") == HELD
        only_the_other_leaves(stage)
        since = time.monotonic()
        resume(stage)
        both_leave(stage)
        assert time.monotonic() - since < 2 * WITHIN


def test_it_stays_held_while_processes_die(stage):
    def restart():
        stage.gateway.stop()
        stage.gateway.start()

    def kill_all():
        stage.gateway.kill_all()
        stage.gateway.start()

    def kill(role):
        pid = stage.gateway.children()[role]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: stage.gateway.children().get(role, pid) != pid)
        # The queue is asked over the socket of the new one.
        eventually(lambda: stage.gateway.tool("queue", "list", check=False).returncode == 0)

    with queued(stage):
        for death in (restart, lambda: kill("relay"), lambda: kill("auth"), kill_all, lambda: kill("relay")):
            death()
            eventually(lambda: stage.gateway.queue_count("account-suspended") == 1)
            bare = session(stage, login=False)
            assert bare.ask(plain(HELD, HELD_PASSWORD))[0] == "5"
            bare.close()
        only_the_other_leaves(stage)
        kill("relay")
        resume(stage)
        both_leave(stage)


def test_nothing_leaves_until_the_database_has_told(stage):
    with queued(stage):
        held = stage.cluster.sql("select count(*) from postern.account where state <> 'active' and state_reason is not null")
        stage.cluster.stop()
        stage.gateway.stop()
        stage.upstream.reply = None
        stage.gateway.start()
        stage.gateway.wait_event("accounts.unknown")
        eventually(lambda: stage.gateway.queue_count("accounts-unknown") == 2)
        os.kill(stage.gateway.children()["relay"], signal.SIGKILL)
        stage.gateway.wait_event("accounts.unknown", count=2)
        eventually(lambda: stage.gateway.queue_count("accounts-unknown") == 2)
        stage.gateway.tool("queue", "retry", "all")
        assert stage.gateway.queue_count("accounts-unknown") == 2 and not subjects(stage)
        stage.cluster.start()
        stage.gateway.wait_event("accounts.known", held=held)
        only_the_other_leaves(stage)
        resume(stage)
        both_leave(stage)


def test_the_last_word_stands_while_the_database_is_away(stage):
    with queued(stage):
        stage.cluster.stop()
        stage.upstream.reply = None
        stage.gateway.tool("queue", "retry", "all")
        eventually(lambda: subjects(stage) == [f"of {FREE}"])
        stage.gateway.wait_queue(1)
        assert stage.gateway.queue_count("account-suspended") == 1
        stage.cluster.start()
        resume(stage)
        both_leave(stage)


def test_suspended_while_the_gateway_is_down(stage):
    with queued(stage, suspended=False):
        stage.gateway.stop()
        suspend(stage)
        stage.gateway.start()
        only_the_other_leaves(stage)
        stage.gateway.stop()
        resume(stage)
        stage.gateway.start()
        both_leave(stage)


def test_suspended_while_relay_is_cut_off(stage):
    with queued(stage, suspended=False) as number:
        def cut_off_while(change):
            stage.cluster.sql("alter role postern_relay connection limit 0;"
                              "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = 'postern_relay'")
            change(stage)
            stage.cluster.sql("alter role postern_relay connection limit -1")

        cut_off_while(suspend)
        stage.gateway.wait_event("account.held", number=number)
        only_the_other_leaves(stage)
        cut_off_while(resume)
        both_leave(stage)


class Gate:
    """The upstream keeps final dots waiting until it is opened; `waiting` is how many."""

    def __init__(self, stage, answer=None):
        self.opened, self.waiting, self.lock = threading.Event(), 0, threading.Lock()
        self.answer = answer
        stage.upstream.reply = self.reply

    def reply(self, verb, _line):
        if verb != "DOT" or self.opened.is_set():
            return None
        with self.lock:
            self.waiting += 1
        self.opened.wait(30)
        return self.answer


def test_what_waits_for_a_connection_does_not_leave(stage):
    """The transaction that is under way ends well."""
    with account(stage) as number:
        stage.gateway.upstreams["up"]["connections"] = 1
        stage.gateway.stop()
        stage.gateway.start()
        gate = Gate(stage)
        try:
            send(stage, HELD, "first")
            eventually(lambda: gate.waiting == 1)
            for subject in ("second", "third"):
                send(stage, HELD, subject)
            eventually(lambda: stage.gateway.queue_count("sending") == 3)
            suspend(stage)
            stage.gateway.wait_event("account.held", number=number)
            gate.opened.set()
            passes(stage, "another")
            assert subjects(stage) == ["first", "another"]
            eventually(lambda: stage.gateway.queue_count("account-suspended") == 2)
            resume(stage)
            stage.gateway.wait_queue(0)
            assert sorted(subjects(stage)) == ["another", "first", "second", "third"]
        finally:
            gate.opened.set()
            set_up(stage)


def test_a_bounce_to_a_suspended_account_leaves(stage):
    with account(stage) as number:
        gate = Gate(stage, "550 5.1.1 nobody here")
        try:
            send(stage, HELD, "to nobody")
            eventually(lambda: gate.waiting == 1)
            suspend(stage)
            stage.gateway.wait_event("account.held", number=number)
            gate.opened.set()
            bounce = stage.upstream.take()
            assert bounce.sender == "" and bounce.recipients == [HELD] and b"to nobody" in bounce.octets
            stage.gateway.wait_queue(0)
        finally:
            gate.opened.set()
            set_up(stage)


def test_held_mail_does_not_age(stage):
    stage.gateway.make_clock()
    with queued(stage):
        held = next(line for line in stage.gateway.tool("queue", "list").splitlines() if "state=account-suspended" in line)
        qid = held.split()[0].removeprefix("qid=")
        for day in (3, 6, 9):
            stage.gateway.set_clock(day * DAY)
            stage.gateway.tool("queue", "retry", qid)
            assert stage.gateway.queue_count("account-suspended") == 1
        deferred = len(stage.gateway.events("message.deferred", qid=qid))
        resume(stage)
        stage.gateway.wait_event("message.deferred", qid=qid, count=deferred + 1)
        assert not stage.gateway.events("message.bounced", qid=qid)
        stage.upstream.reply = None
        eventually(lambda: f"of {HELD}" in subjects(stage), 20)


def test_a_closed_account_keeps_its_promises(stage):
    """What it sent is delivered, but for mail that was held when it was closed."""
    for login in ("closing@example.org", "spammer@example.org"):
        stage.account(login, "secret-c")
    stage.upstream.reply = lambda verb, line: "451 4.7.1 later" if verb == "MAIL" else None
    for login in ("closing@example.org", "spammer@example.org"):
        client = connect(stage, login, "secret-c")
        client.sendmail(login, ["bob@example.net"], message(f"of {login}", sender=login))
        client.quit()
    stage.gateway.wait_event("message.deferred", count=2)
    number = stage.cluster.sql("select postern.account_id('spammer@example.org')")
    suspend(stage, "spammer@example.org", "sends spam")
    stage.gateway.wait_event("account.held", number=number)
    stage.cluster.sql("select postern.account_close(l) from unnest(array['closing@example.org', 'spammer@example.org']) l")
    stage.upstream.reply = None
    stage.gateway.tool("queue", "retry", "all")
    eventually(lambda: subjects(stage) == ["of closing@example.org"])
    passes(stage, "another")
    assert stage.gateway.queue_count("account-suspended") == 1
    qid = next(line for line in stage.gateway.tool("queue", "list").splitlines()
               if "state=account-suspended" in line).split()[0].removeprefix("qid=")
    stage.gateway.tool("queue", "delete", qid)
    stage.gateway.wait_queue(0)


# ---- what admins are told ----


def test_a_suspension_is_told_and_audited(stage):
    def refused(statement):
        return fails(lambda: stage.cluster.sql(statement))

    with account(stage):
        for reason in ("null", "''", "' '"):
            assert "a reason is needed" in refused(f"select postern.account_suspend('{HELD}', {reason})")
        assert "HINT:  One line" in refused(f"select postern.account_suspend('{HELD}', E'two\\nlines')")
        assert "is not suspended, but active" in refused(f"select postern.account_resume('{HELD}')")
        suspend(stage, reason="ticket 1")
        suspend(stage, reason="ticket 2")
        resume(stage)
        said = stage.cluster.sql(f"select detail from postern.audit where object = '{HELD}'"
                                 " and action in ('account_suspend', 'account_resume') order by at desc, detail limit 3")
        assert set(said.splitlines()) == {"state: active -> suspended; reason: none -> ticket 1", "reason: ticket 1 -> ticket 2",
                                          "state: suspended -> active; reason: ticket 2 -> none"}, said


def plans(cluster, statement):
    """How the server runs what is inside the functions of a statement."""
    return cluster.sql("load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;"
                       f" set client_min_messages = log; {statement}", stderr=True)


def test_the_held_among_200000_accounts_come_by_an_index(stage):
    with stage.database("many") as cluster:
        stage.gateway.tool("database", "migrate")
        cluster.sql("insert into postern.account (login, state, state_reason) select 'user-' || i || '@example.org',"
                    " case when i % 1000 = 0 then 'suspended' else 'active' end, case when i % 1000 = 0 then 'x' end"
                    " from generate_series(1, 200000) i; analyze postern.account")
        assert cluster.sql("select count(*) from postern.held_accounts()") == "200"
        assert cluster.sql("select postern.held_among('{999,1000,1001}')") == "1000"
        for statement in ("postern.held_accounts()", "postern.held_among('{999,1000,1001}')",
                          "postern.auth_lookup('user-7@example.org')"):
            told = plans(cluster, f"select * from {statement}")
            assert "Index" in told and "Seq Scan on account" not in told, told

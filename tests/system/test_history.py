# SPDX-License-Identifier: ISC
"""History: what is kept of a message, for how long, and what an admin sees of it."""
import json
import os
import re
import signal
import subprocess
import time

from client import connect, message
from environment import eventually
from test_database import fails

LOGIN = "alice@example.org"
DAY = 86400


def send(stage, *recipients, message_id="m@example.org", size=100):
    """One message; its id."""
    # Other tests have killed relay, at times far from now.
    stage.cluster.sql("delete from postern.history_gap")
    client = connect(stage)
    client.mail(LOGIN)
    for recipient in recipients or ("bob@example.net",):
        assert client.rcpt(recipient)[0] == 250
    header = f"From: <{LOGIN}>\r\nTo: bob@example.net\r\nMessage-ID: ".encode()
    text = message_id if isinstance(message_id, bytes) else f"<{message_id}>".encode()
    code, said = client.data(header + text + b"\r\n\r\n" + b"x" * size + b"\r\n")
    client.quit()
    assert code == 250, said
    return said.decode().rsplit(" ", 1)[1]


def trace(stage, name):
    """Its story: (event, recipient, detail)."""
    done = stage.gateway.tool("--json", "trace", name, check=False)
    assert done.returncode in (0, 1), done
    return [(row["event"], row["recipient"], row["detail"]) for row in map(json.loads, done.stdout.splitlines())]


def wait_story(stage, name, *events, seconds=10):
    """Its story, once these are its events."""
    try:
        eventually(lambda: [event for event, _, _ in trace(stage, name)] == list(events), seconds)
    except AssertionError:
        raise AssertionError(f"{name}: {trace(stage, name)}") from None
    return trace(stage, name)


def test_a_message_that_is_delivered(stage):
    stage.upstream.reply = lambda verb, line: "250 2.0.0 Ok: queued as 4YxQ3z" if verb == "DOT" else None
    qid = send(stage, "bob@example.net", "BOB@Example.NET", message_id="delivered@example.org")
    accepted, *delivered = wait_story(stage, qid, "accepted", "delivered", "delivered")
    size = len(stage.upstream.take().octets)
    assert f"id={qid} login={LOGIN} session=" in accepted[2] and f'sender="{LOGIN}" from_domain=example.org' in accepted[2]
    assert 'message_id="delivered@example.org"' in accepted[2] and accepted[2].endswith(" recipients=2"), accepted
    assert 100 < int(accepted[2].partition(" size=")[2].split()[0]) < size
    assert [recipient for _, recipient, _ in delivered] == ["bob@example.net", "BOB@Example.NET"]
    selectors = " ".join(sorted((name.split(".")[0] for name in stage.zone), reverse=True))
    for _, _, detail in delivered:
        assert detail == (f'attempt=1 upstream=up host=localhost signed={selectors} reply="250 2.0.0 Ok: queued as 4YxQ3z"'), detail
    for name in (qid.upper(), "delivered@example.org", "<delivered@example.org>", " <delivered@example.org> "):
        assert trace(stage, name) == [accepted, *delivered], name
    lines = stage.gateway.tool("trace", qid).splitlines()
    day = time.strftime("%Y-%m-%dT", time.gmtime())
    assert len(lines) == 3 and all(line.startswith(day) and line[23] == "Z" for line in lines), lines
    assert lines[1][25:].startswith("delivered bob@example.net attempt=1 upstream=up"), lines[1]
    # Two forms of an address are one recipient, once a month.
    twice = stage.cluster.sql("select count(*) from postern.recipient_seen group by account, recipient, seen_on having count(*) > 1")
    assert twice == "", twice
    account, recipient = stage.cluster.sql("select account, recipient from postern.recipient_seen limit 1").split("|")
    assert stage.cluster.sql(f"set role postern_auth; select postern.recipients_new({account}, array[{recipient}, 5, 5, 6]),"
                             f" postern.recipients_new(0, array[{recipient}])") == "2|1"


def test_upper_and_lower_case_is_one_recipient(stage):
    login, password = stage.account("case@example.org", "secret-1")
    client = connect(stage, login, password)
    client.sendmail(login, ["Bob@example.net", "bob@EXAMPLE.net", "carl@example.net"], message(sender=login))
    client.quit()
    eventually(lambda: stage.cluster.sql("select count(*) from postern.delivery d join postern.message m on m.id = d.message"
                                         f" where m.login = '{login}'") == "3")
    assert stage.cluster.sql("select count(*) from postern.recipient_seen s join postern.account a on a.id = s.account"
                             f" where a.login = '{login}'") == "2"


def test_a_message_that_is_deferred_first(stage):
    replies = ["451 4.3.0 later", "450 4.2.1 later still"]
    stage.upstream.reply = lambda verb, line: replies.pop() if verb == "RCPT" and "slow@" in line and replies else None
    qid = send(stage, "quick@example.net", "slow@example.net")
    story = wait_story(stage, qid, "accepted", "delivered", "deferred", "deferred", "delivered")
    assert story[1][1] == "quick@example.net" and {s[1] for s in story[2:]} == {"slow@example.net"}
    assert [detail.partition(" signed")[0] for _, _, detail in story[2:]] == [
        'attempt=1 upstream=up host=localhost reply="450 4.2.1 later still"',
        'attempt=2 upstream=up host=localhost reply="451 4.3.0 later"',
        "attempt=3 upstream=up host=localhost"]


def test_a_message_that_waits(stage):
    stage.upstream.reply = lambda verb, line: "451 4.3.0 later" if verb == "RCPT" and "slow@" in line else None
    qid = send(stage, "quick@example.net", "slow@example.net", "slow@example.org")
    eventually(lambda: any(event == "deferred" for event, _, _ in trace(stage, qid)))
    story = trace(stage, qid)
    assert story[-1] == ("waiting", None, f"2 of 3 recipients have no outcome yet; see postern queue show {qid}")
    assert qid in stage.gateway.tool("queue", "show", qid)


def test_a_message_that_is_refused(stage):
    stage.upstream.reply = lambda verb, line: "550 5.1.1 no such user" if verb == "RCPT" and "bad@" in line else None
    qid = send(stage, "good@example.net", "bad@example.net")
    story = wait_story(stage, qid, "accepted", "delivered", "refused")
    bounce = story[2][2].partition("notice=")[2].split()[0]
    assert story[2][:2] == ("refused", "bad@example.net") and story[2][2].endswith('reply="550 5.1.1 no such user"')
    accepted, delivered = wait_story(stage, bounce, "accepted", "delivered")
    assert f"id={bounce} login={LOGIN} session=" in accepted[2] and 'sender="" message_id="' in accepted[2], accepted
    assert delivered[1] == LOGIN


def test_a_bounce_is_no_mail_of_the_account(stage):
    login, password = stage.account("bounced@example.org", "secret-1")
    stage.upstream.reply = lambda verb, line: "550 5.1.1 no such user" if verb == "RCPT" and "bad@" in line else None
    client = connect(stage, login, password)
    client.sendmail(login, ["bad@example.net"], message(sender=login))
    client.quit()
    outcomes = ("select string_agg(d.outcome, ' ' order by d.at) from postern.message m join postern.delivery d"
                f" on d.message = m.id where m.login = '{login}'")
    eventually(lambda: stage.cluster.sql(outcomes) == "refused delivered")
    assert stage.cluster.sql("select count(*) from postern.recipient_seen s join postern.account a on a.id = s.account"
                             f" where a.login = '{login}'") == "0"


def test_a_message_that_expires(stage):
    stage.upstream.reply = lambda verb, line: "451 4.3.0 later" if verb == "RCPT" and "slow@" in line else None
    stage.gateway.stop()
    stage.gateway.make_clock()
    stage.gateway.start()
    qid = send(stage, "slow@example.net")
    wait_story(stage, qid, "accepted", "deferred", "waiting")
    stage.gateway.set_clock(5 * 3600)
    stage.gateway.wait_event("message.delayed")
    eventually(lambda: "delayed" in [event for event, _, _ in trace(stage, qid)])
    stage.gateway.set_clock(5 * DAY + 60)
    stage.gateway.wait_event("message.bounced")
    eventually(lambda: "expired" in [event for event, _, _ in trace(stage, qid)])
    story = trace(stage, qid)
    assert [event for event, _, _ in story if event not in ("deferred", "waiting")] == ["accepted", "delayed", "expired"], story
    delayed, expired = ([s for s in story if s[0] == event][0] for event in ("delayed", "expired"))
    assert delayed[1] == expired[1] == "slow@example.net"
    assert expired[2].endswith('reply="451 4.3.0 later"'), expired
    for _, _, detail in (delayed, expired):
        wait_story(stage, detail.partition("notice=")[2].split()[0], "accepted", "delivered")
    assert "waiting" not in [event for event, _, _ in story]


def test_a_message_that_is_deleted(stage):
    stage.upstream.reply = lambda verb, line: "451 4.3.0 later" if verb == "RCPT" and "slow" in line else None
    stage.gateway.stop()
    stage.gateway.retry = {"first": "1h", "max": "1h"}
    stage.gateway.start()
    qid = send(stage, "quick@example.net", "slow1@example.net", "slow2@example.net")
    wait_story(stage, qid, "accepted", "delivered", "deferred", "deferred", "waiting")
    stage.gateway.tool("queue", "delete", qid)
    story = wait_story(stage, qid, "accepted", "delivered", "deferred", "deferred", "deleted")
    assert story[-1] == ("deleted", None, f'attempt=1 reply="uid={os.getuid()}"')


def test_words_of_strangers(stage):
    """Quotes and backslashes stay, what is no text becomes U+FFFD, and nothing ends what it stands in, or looks like our words."""
    odd = b'<a"b\\c\',{}()$1;--\xc3\xa9\xff\xc2\x9b<\xe2\x82>@example.org>'
    stage.upstream.reply = lambda verb, line: 'x'.join(['250 2.0.0 "quoted" \\back\\ {a,b} NULL', "\udcff\udcfe", "y" * 900]) \
        if verb == "DOT" else None
    qid = send(stage, message_id=odd)
    accepted, delivered = wait_story(stage, qid, "accepted", "delivered")
    kept = 'a"b\\c\',{}()$1;--\u00e9\ufffd\ufffd\ufffd<\ufffd\ufffd>@example.org'
    assert f"message_id={json.dumps(kept, ensure_ascii=False)} size=" in accepted[2], accepted
    assert r'reply="250 2.0.0 \"quoted\" \\back\\ {a,b} NULLx' in delivered[2], delivered
    assert trace(stage, f"<{kept}>") == [accepted, delivered]
    qid = send(stage, message_id=b'<a@b> size=7 recipients=0 login=ceo@example.org x="<>')
    (_, _, accepted), _ = wait_story(stage, qid, "accepted", "delivered")
    assert r' message_id="a@b> size=7 recipients=0 login=ceo@example.org x=\"<" size=' in accepted, accepted
    outside = re.sub(r'"(\\.|[^"\\])*"', '""', accepted)
    assert re.findall(r"(\w+)=", outside) == ["id", "login", "session", "sender", "from_domain", "message_id", "size", "recipients"]
    long = "long" + "l" * 400 + "@example.org"
    qid = send(stage, message_id=long)
    story = wait_story(stage, long, "accepted", "delivered")
    assert 'message_id="' + long[:250] + '"' in story[0][2] and trace(stage, qid) == story
    for nothing in (b"", b"<>", b"\r\n <folded@example.org>", b" no brackets ", b"<>>", b">x<"):
        qid = send(stage, message_id=nothing)
        wait_story(stage, qid, "accepted", "delivered")
    assert trace(stage, "folded@example.org") and trace(stage, "no brackets")


def test_what_is_not_known(stage):
    for name in ("abcdefghijklmnop", "<nobody@example.org>", "", "%", "'"):
        done = stage.gateway.tool("trace", name, check=False)
        assert done.returncode == 1 and not done.stdout and "nothing is known" in done.stderr, (name, done)
    for words in (["trace"], ["trace", "a", "b"]):
        done = stage.gateway.tool(*words, check=False)
        assert done.returncode == 2 and "trace ID|MESSAGE-ID" in done.stderr


def test_several_of_one_message_id(stage):
    first, second = send(stage, message_id="twice@example.org"), send(stage, message_id="twice@example.org")
    story = wait_story(stage, "twice@example.org", "accepted", "delivered", "accepted", "delivered")
    assert first in story[0][2] and second in story[2][2]


def test_a_clean_stop_loses_nothing(stage):
    gaps = stage.cluster.sql("select count(*) from postern.history_gap")
    for number in range(3):
        qid = send(stage, message_id=f"last{number}@example.org")
        stage.upstream.take()
        began = time.monotonic()
        assert stage.gateway.stop() == 0
        assert time.monotonic() - began < 2
        assert stage.cluster.sql(f"select event from postern.trace('{qid}')").split() == ["accepted", "delivered"]
        assert stage.cluster.sql("select count(*) from postern.history_writer") == "0"
        stage.gateway.start()
    assert stage.cluster.sql("select count(*) from postern.history_gap") == gaps


def fill_queue(stage, count):
    """So many messages that wait for the upstream; their ids."""
    stage.upstream.reply = lambda verb, line: "451 4.3.0 later" if verb == "MAIL" else None
    qids = [send(stage, message_id=f"wait{number}@example.org") for number in range(count)]
    eventually(lambda: all(len(stage.gateway.events("message.deferred", qid=qid)) for qid in qids))
    return qids


def deliver_without_database(stage, away, back):
    qids = fill_queue(stage, 40)
    lost = json.loads(stage.gateway.tool("--json", "status"))["history_lost"]
    gaps = stage.cluster.sql("select count(*) from postern.history_gap")
    away()
    try:
        stage.upstream.reply = None
        began = time.monotonic()
        stage.gateway.tool("queue", "retry", "all")
        stage.upstream.wait(len(qids), 10)
        took = time.monotonic() - began
        stage.gateway.wait_queue(0)
        stage.gateway.wait_event("history.failing")
    finally:
        back()
    print(f"# {len(qids)} messages delivered in {took:.2f} s")
    stage.gateway.wait_event("history.back")
    assert took < 5, took
    for qid in qids:
        eventually(lambda: trace(stage, qid)[-1][0] == "delivered", 20)
    assert stage.cluster.sql("select count(*), count(distinct message) from postern.delivery where outcome = 'delivered'"
                             " and message = any(string_to_array(:'ids', ' '))", ids=" ".join(qids)) == "40|40"
    assert json.loads(stage.gateway.tool("--json", "status"))["history_lost"] == lost
    assert stage.cluster.sql("select count(*) from postern.history_gap") == gaps
    assert not stage.gateway.events("history.lost")


def test_the_database_is_stopped(stage):
    deliver_without_database(stage, stage.cluster.stop, stage.cluster.start)


def test_the_database_hangs(stage):
    deliver_without_database(stage, lambda: stage.cluster.freeze(True), lambda: stage.cluster.freeze(False))


def test_a_stop_without_the_database(stage):
    """It ends in time, and says what is missing when it is back."""
    qid = send(stage, message_id="before@example.org")
    wait_story(stage, qid, "accepted", "delivered")
    stage.upstream.take()
    queued = fill_queue(stage, 1)[0]
    wait_story(stage, queued, "accepted", "deferred", "waiting")
    stage.cluster.stop()
    stage.upstream.reply = None
    stage.gateway.tool("queue", "retry", "all")
    stage.upstream.take()
    began = time.monotonic()
    stage.gateway.stop()
    took = time.monotonic() - began
    lost = stage.gateway.events("history.lost")
    stage.cluster.start()
    stage.gateway.start()
    assert took < 5, took
    assert len(lost) == 1 and int(lost[0]["count"]) >= 1, lost
    eventually(lambda: "lost" in [event for event, _, _ in trace(stage, queued)])
    story = trace(stage, queued)
    assert [event for event, _, _ in story if event != "deferred"] == ["accepted", "lost", "waiting"], story
    missing = [detail for event, _, detail in story if event == "lost"][0]
    assert missing.startswith("history of this time is missing: gateway=") and str(stage.gateway.folder) in missing
    assert [event for event, _, _ in trace(stage, qid)] == ["accepted", "delivered"]


def test_relay_is_killed(stage):
    """What it had in memory is gone, and trace says so; what is told again is there once."""
    queued = fill_queue(stage, 3)
    for qid in queued:
        wait_story(stage, qid, "accepted", "deferred", "waiting")
    gaps = int(stage.cluster.sql("select count(*) from postern.history_gap"))
    before = stage.gateway.children()["relay"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: stage.gateway.children().get("relay", before) != before)
    stage.upstream.reply = None
    stage.gateway.tool("queue", "retry", "all")
    stage.gateway.wait_queue(0)
    for qid in queued:
        eventually(lambda: trace(stage, qid)[-1][0] == "delivered")
        events = [event for event, _, _ in trace(stage, qid) if event != "deferred"]
        assert events == ["accepted", "lost", "delivered"], trace(stage, qid)
        assert stage.cluster.sql(f"select count(*) from postern.message where id = '{qid}'") == "1"
    assert int(stage.cluster.sql("select count(*) from postern.history_gap where lost is null")) == gaps + 1
    assert stage.cluster.sql("select count(*) from postern.history_writer") == "1"


# ---- the SQL alone ----

def microseconds(text):
    """Of a time in UTC."""
    return f"(extract(epoch from timestamptz '{text}+00') * 1000000)::bigint"


def write(batch, at, run=1, gateway="gw", qid="a" * 16, ends=False, gap="null"):
    """A batch of one message that was delivered."""
    us = microseconds(at)
    return (f"select postern.history_write('{gateway}', {run}, {batch}, {us}, {ends},"
            f" array[row(1, 100, 1, {us}, '{qid}', 'a@x', null, 'a@x', 'x', '{qid}@x')::postern.history_message],"
            f" array[row(0, 1, {us}, 1, 77, '{qid}', 'delivered', 'b@x', 'up', 'h', 's', null, '250 ok')::postern.history_delivery],"
            f" {gap});")


def months(cluster, table="message"):
    return cluster.sql(f"select right(inhrelid::regclass::text, 7) from pg_inherits where inhparent = 'postern.{table}'::regclass"
                       " order by 1").split()


def month(cluster, more):
    return cluster.sql(f"select to_char(now() at time zone 'UTC' + interval '{more} months', 'YYYY_MM')")


def first_of(cluster, more):
    """First second of the month so many from now."""
    return cluster.sql(f"select date_trunc('month', now() at time zone 'UTC') + interval '{more} months'")


class Schema:
    """A database of its own."""

    def __init__(self, stage, name):
        self.stage, self.database = stage, stage.database(name)

    def __enter__(self):
        cluster = self.database.__enter__()
        self.stage.gateway.tool("database", "migrate")
        return cluster

    def __exit__(self, *error):
        return self.database.__exit__(*error)


def test_a_batch_is_written_once(stage):
    with Schema(stage, "history_once") as cluster:
        now = first_of(cluster, 0)
        cluster.sql(write(1, now) * 3 + write(2, now, qid="b" * 16) * 2 + write(1, now))
        assert cluster.sql("select count(*) from postern.message") == cluster.sql("select count(*) from postern.delivery") == "2"
        # The same message, told again by the next run; and one of a gateway that has nothing to do with it.
        cluster.sql(write(1, now, run=2) + write(1, now, gateway="other", qid="c" * 16))
        assert cluster.sql("select id, count(*) from postern.message group by 1 order by 1").split() == [
            c * 16 + "|1" for c in "abc"]
        assert cluster.sql("select gateway, run, batch from postern.history_writer order by 1, 2").split() == ["gw|2|1", "other|1|1"]
        assert cluster.sql("select gateway, lost from postern.history_gap") == "gw|"
        gap = f"array[{microseconds(now)}, {microseconds(now)}, 7]"
        cluster.sql(write(2, now, run=2, gap=gap) * 2 + write(3, now, run=2, ends=True))
        assert cluster.sql("select lost from postern.history_gap order by 1").split() == ["7"]
        assert cluster.sql("select gateway from postern.history_writer") == "other"
        cluster.sql(write(1, now, run=3))
        assert cluster.sql("select count(*) from postern.history_gap") == "2"


def test_months_come_by_themselves(stage):
    with Schema(stage, "history_months") as cluster:
        assert months(cluster) == []
        now = first_of(cluster, 0)
        cluster.sql(write(1, now))
        expected = [month(cluster, more) for more in range(-3, 2)]
        for table in ("message", "delivery", "recipient_seen"):
            assert months(cluster, table) == expected
        # The last moment of the next month, and the first one of that behind it.
        behind = first_of(cluster, 2)
        last = cluster.sql(f"select timestamp '{behind}' - interval '1 microsecond'")
        cluster.sql(write(2, last, qid="b" * 16))
        assert months(cluster) == expected
        cluster.sql(write(3, behind, qid="c" * 16))
        expected.append(month(cluster, 2))
        assert months(cluster) == months(cluster, "delivery") == months(cluster, "recipient_seen") == expected
        for more, qid in ((0, "a"), (1, "b"), (2, "c")):
            for table, column in (("message", "id"), ("delivery", "message")):
                assert cluster.sql(f"select {column} from postern.{table}_{month(cluster, more)}") == qid * 16
        # A clock that is wrong makes no months without end, and what is older than is kept is not written.
        cluster.sql(write(4, "2406-01-01 00:00", qid="d" * 16) + write(5, first_of(cluster, -4), qid="e" * 16)
                    + write(6, first_of(cluster, -3), qid="f" * 16))
        assert months(cluster)[-1] <= month(cluster, 12)
        assert cluster.sql("select string_agg(left(id, 1), '' order by id) from postern.message") == "abcdf"


def test_what_is_old_vanishes(stage):
    with Schema(stage, "history_old") as cluster:
        now = first_of(cluster, 0)
        cluster.sql(write(1, now))
        for more in (-5, -4):
            cluster.sql(f"select postern.history_make_month('{first_of(cluster, more)}'::date);"
                        f"insert into postern.message select '{'o' * 16}', 1, 'a@x', null, 'a@x', 'x', null, 1, 1, '{first_of(cluster, more)}+00';"
                        f"insert into postern.history_gap values ('gw', '{first_of(cluster, more)}', '{first_of(cluster, more)}', 1)")
        cluster.sql(write(2, now, qid="b" * 16))
        assert months(cluster)[0] == month(cluster, -5)  # looked at a moment ago
        due = "update postern.history_kept set checked_at = now() - interval '61 minutes';"
        # Somebody reads it: neither does he wait nor do those who write, for longer than a moment.
        reader = subprocess.Popen(["psql", "-XAtq", "-d", cluster.database], env=cluster.environment, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        reader.stdin.write("begin; select count(*) from postern.message;\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == "4\n"
        began = time.monotonic()
        cluster.sql(due + write(3, now, qid="c" * 16))
        assert time.monotonic() - began < 1.5
        assert months(cluster)[0] == month(cluster, -5)
        reader.stdin.write("select count(*) from postern.message;\n")
        reader.stdin.close()
        assert reader.stdout.readline() == "5\n"
        reader.wait(10)
        cluster.sql(due + write(4, now, qid="d" * 16))
        for table in ("message", "delivery", "recipient_seen"):
            assert months(cluster, table) == [month(cluster, more) for more in range(-3, 2)]
        assert cluster.sql("select string_agg(left(id, 1), '' order by id) from postern.message") == "abcd"
        assert cluster.sql("select count(*) from postern.history_gap") == "0"
        cluster.sql("select postern.setting_set('history_months', '1');" + due + write(5, now, qid="e" * 16))
        assert months(cluster) == [month(cluster, more) for more in range(-1, 2)]
        cluster.sql("select postern.setting_set('history_months', '2');" + due + write(6, now, qid="f" * 16))
        assert months(cluster) == [month(cluster, more) for more in range(-2, 2)]


def at_once(cluster, scripts):
    """Each over a connection of its own."""
    processes = []
    for script in scripts:
        processes.append(subprocess.Popen(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", cluster.database],
                                          env=cluster.environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                          stderr=subprocess.PIPE))
        processes[-1].stdin.write(script.encode())
    for process in processes:
        process.stdin.close()
    said = [process.stderr.read().decode() for process in processes]
    assert [process.wait(60) for process in processes] == [0] * len(processes), said


def test_many_gateways_need_a_month_at_once(stage):
    with Schema(stage, "history_race") as cluster:
        for number in range(5):
            at = first_of(cluster, 2 + number)
            scripts = ["".join(write(number * 10 + batch, at, gateway=f"gw{gateway}", qid=f"{number}{gateway}{batch}" + "x" * 13)
                               for batch in range(1, 10)) for gateway in range(6)]
            scripts.append("update postern.history_kept set checked_at = '-infinity';")
            at_once(cluster, scripts)
        assert cluster.sql("select count(*) from postern.message") == cluster.sql("select count(*) from postern.delivery") \
            == str(5 * 6 * 9)


def test_many_gateways_have_the_same_recipients(stage):
    """In orders of their own."""
    with Schema(stage, "history_order") as cluster:
        us = microseconds(first_of(cluster, 0))
        cluster.sql(write(1, first_of(cluster, 0)))
        at_once(cluster, ["".join(
            f"select postern.history_write('gw{gateway}', 1, {batch}, {us}, false, null, (select array_agg(row(0, 1, {us}, 1,"
            f" {batch * 10000} + n, 'm', 'delivered', 'b@x', 'up', 'h', 's', null, 'ok')::postern.history_delivery order by n"
            f" {'desc' if gateway % 2 else 'asc'}) from generate_series(1, 2000) n), null);" for batch in range(1, 30))
            for gateway in range(6)])
        assert cluster.sql("select count(*) from postern.recipient_seen where recipient > 1000") == str(29 * 2000)


def test_nobody_writes_history_but_relay(stage):
    def as_role(role, statement):
        return stage.cluster.sql(f"set role {role}; {statement}")

    tables = ("message", "delivery", "recipient_seen", "history_gap", "history_writer", "history_kept")
    for role in ("postern_relay", "postern_auth"):
        assert "permission denied" in fails(lambda: as_role(role, "select * from postern.queue_history"))
        for table in tables:
            for statement in (f"select * from postern.{table}", f"delete from postern.{table}"):
                assert "permission denied" in fails(lambda: as_role(role, statement)), (role, statement)
        assert "permission denied" in fails(lambda: as_role(role, "select * from postern.trace('x')"))
        assert "permission denied" in fails(lambda: as_role(role, "select postern.setting_set('history_months', '1')"))
        partition = f"postern.message_{month(stage.cluster, 0)}"
        assert "permission denied" in fails(lambda: as_role(role, f"select * from {partition}"))
    for table in tables[:4]:
        as_role("postern_admin", f"select * from postern.{table} limit 1")
        assert "permission denied" in fails(lambda: as_role("postern_admin", f"delete from postern.{table}"))
    for role in ("postern_admin", "postern_auth"):
        assert "permission denied" in fails(lambda: as_role(role, write(1, "2026-11-01 00:00")))
    for helper in ("history_make_month('2020-01-01')", "history_drop_before('2020-01-01')", "history_keep('2020-01-01')"):
        for role in ("postern_admin", "postern_auth", "postern_relay"):
            assert "permission denied" in fails(lambda: as_role(role, f"select postern.{helper}"))
    assert "permission denied" in fails(lambda: as_role("postern_relay", "select postern.recipients_new(1, '{1}')"))
    as_role("postern_auth", "select postern.recipients_new(1, '{1}')")


def test_settings_are_checked(stage):
    for name, value in (("history_months", "0"), ("history_months", "121"), ("history_months", "x"), ("history_months", "-1"),
                        ("history_months", "99999999999"), ("scram_iterations", "4095"), ("scram_iterations", "65537")):
        said = fails(lambda: stage.cluster.sql("select postern.setting_set(:'n', :'v')", n=name, v=value))
        assert "cannot be" in said and "A number from" in said, said
    assert "cannot be" in fails(lambda: stage.cluster.sql("select postern.setting_set('history_months', null)"))
    assert "there is no setting" in fails(lambda: stage.cluster.sql("select postern.setting_set('server_secret', 'x')"))
    stage.cluster.sql("select postern.setting_set('history_months', '4'); select postern.setting_set('history_months', '3')")
    assert stage.cluster.sql("select detail from postern.audit where action = 'setting_set' order by at desc, detail desc limit 2"
                             ).split("\n") == ["4 -> 3", "3 -> 4"]


def test_everything_is_found_by_an_index(stage):
    """With so many rows that reading them all would take long, and with the planner as it comes."""
    with Schema(stage, "history_big") as cluster:
        cluster.sql(write(1, first_of(cluster, 0)) + """
            insert into postern.message select 'm' || n, n % 200000, 'a@x', 's', 'a@x', 'x', n || '@x', 1, 1, now() - interval '10 days'
                from generate_series(1, 200000) n;
            insert into postern.delivery select 'm' || n, now() - interval '10 days', 0, 1, 'delivered', 'b@x', 'up', 'h', 'ok'
                from generate_series(1, 200000) n;
            insert into postern.recipient_seen select n % 20000, n, postern.history_month_of(now()) from generate_series(1, 200000) n;
            analyze postern.message, postern.delivery, postern.recipient_seen""")
        plans = (
            "select * from postern.queue_history where id = 'm5'",
            "select * from postern.message where message_id = '5@x'",
            "select * from postern.message where account = 5 order by accepted_at desc limit 10",
            "select count(distinct r) from unnest('{1,2,3}'::bigint[]) r where not exists"
            " (select from postern.recipient_seen s where s.account = 5 and s.recipient = r)",
        )
        for statement in plans:
            plan = cluster.sql("explain " + statement)
            full = month(cluster, 0)
            assert "Index" in plan and not [line for line in plan.splitlines() if "Seq Scan" in line and full in line], plan
        for call, wanted in (("select count(*) from postern.trace('m77777')", "2"),
                             ("select count(*) from postern.trace('<77777@x>')", "2"),
                             ("select postern.recipients_new(5, '{5,20005,6}')", "1")):
            began = time.monotonic()
            assert cluster.sql(call) == wanted
            assert time.monotonic() - began < 1

# SPDX-License-Identifier: ISC
"""Limits that change while sessions live: what clients are told, what admins see, and that both agree."""
import datetime
import json
import re
import time
from types import SimpleNamespace

from answer_cutter import AnswerCutter
from client import Bare
from environment import eventually
from gateway import Gateway
from postgres import Session
from test_database import fails
from test_refusals import plain

PER = {"hour": "1 hour", "day": "1 day", "minute": "1 minute"}


class Client:
    """A session of an account, over which messages are sent one by one."""

    def __init__(self, stage, login, password="pw"):
        self.login = login
        self.bare = Bare(stage, tls=True)
        self.bare.reply()
        self.bare.ask("EHLO client.test")
        assert self.bare.ask(plain(login, password)).startswith("235")

    def begin(self, *recipients):
        """Up to DATA."""
        assert self.bare.ask(f"MAIL FROM:<{self.login}>").startswith("250")
        for recipient in recipients or ("bob@example.net",):
            assert self.bare.ask(f"RCPT TO:<{recipient}>").startswith("250")

    def send(self, *recipients, header=b""):
        """The reply that ends it."""
        self.begin(*recipients)
        reply = self.bare.ask("DATA")
        if reply.startswith("354"):
            return self.bare.ask(header + f"From: <{self.login}>\r\n\r\nHello\r\n.".encode())
        self.bare.send("RSET\r\n")
        assert self.bare.reply().startswith("250")
        return reply


def limit(stage, login, measure, per, amount):
    stage.cluster.sql(f"select postern.limit_set('{login}', '{measure}', '{per}', {amount})")


def plan(stage, name, *limits):
    stage.cluster.sql(f"select postern.plan_set('{name}')")
    for measure, per, amount in limits:
        stage.cluster.sql(f"select postern.plan_limit_set('{name}', '{measure}', '{per}', {amount})")


def usage(stage, login):
    """(measure, per) -> (used, amount, next_at in seconds or "")."""
    rows = stage.cluster.sql("select measure, per, used, amount, extract(epoch from next_at)::bigint"
                             f" from postern.usage('{login}')").splitlines()
    return {(measure, per): (int(used), int(amount), next_at and int(next_at))
            for measure, per, used, amount, next_at in (row.split("|") for row in rows)}


def used(stage, login, measure, per):
    return usage(stage, login)[measure, per][0]


def parse_refusal(reply):
    """(measure, per), (used, amount, next_at)."""
    found = re.fullmatch(r"450 4\.7\.1 limit (\w+)/(\w+) reached: (\d+) of (\d+), next at (\S+)", reply)
    assert found, reply
    at = datetime.datetime.fromisoformat(found[5].replace("Z", "+00:00"))
    return (found[1], found[2]), (int(found[3]), int(found[4]), int(at.timestamp()))


def test_a_changed_limit_is_felt_at_once(stage):
    login, _ = stage.account("limited-anew@example.org", "pw")
    client = Client(stage, login)
    assert client.send().startswith("250")
    limit(stage, login, "messages", "1 hour", 2)
    assert [client.send()[:3] for _ in range(3)] == ["250", "250", "450"]
    limit(stage, login, "messages", "1 hour", 3)
    assert [client.send()[:3] for _ in range(2)] == ["250", "450"]
    limit(stage, login, "messages", "1 hour", 1)
    assert "reached: 3 of 1," in client.send()
    limit(stage, login, "messages", "1 hour", 0)
    assert client.send() == "450 4.7.1 limit messages/hour reached: 3 of 0, next at no time: nothing is allowed"
    assert usage(stage, login) == {("messages", "hour"): (3, 0, "")}
    limit(stage, login, "messages", "1 hour", "null")
    assert client.send().startswith("250") and usage(stage, login) == {}
    assert stage.cluster.sql("select string_agg(detail, '; ' order by at) from postern.audit"
                             f" where action = 'limit_set' and object = '{login}'") == (
        "messages/hour: none -> 2; messages/hour: 2 -> 3; messages/hour: 3 -> 1; messages/hour: 1 -> 0; messages/hour: 0 -> none")


def test_a_plans_limits_and_another_plan(stage):
    plan(stage, "narrow", ("messages", "1 hour", 1), ("recipients", "1 day", 100))
    plan(stage, "wide", ("messages", "1 hour", 3), ("messages", "1 day", 4))
    login, _ = stage.account("mover@example.org", "pw")
    client = Client(stage, login)
    assert client.send().startswith("250")
    # In mid-message: that one ends, the next one is judged by the new plan.
    client.begin()
    assert client.bare.ask("DATA").startswith("354")
    stage.cluster.sql(f"update postern.account set plan = 'narrow' where login = '{login}'")
    assert client.bare.ask(b"From: <mover@example.org>\r\n\r\nHello\r\n.").startswith("250")
    assert client.bare.reply().startswith("421 4.7.0")
    client = Client(stage, login)
    assert client.send().startswith("250")
    assert parse_refusal(client.send())[1][:2] == (1, 1)
    stage.cluster.sql("select postern.plan_limit_set('narrow', 'messages', '1 hour', 2)")
    assert [client.send()[:3] for _ in range(2)] == ["250", "450"]
    # The account's own takes the place of the plan's, and of no other.
    limit(stage, login, "messages", "1 hour", 3)
    assert [client.send()[:3] for _ in range(2)] == ["250", "450"]
    assert usage(stage, login).keys() == {("messages", "hour"), ("recipients", "day")}
    limit(stage, login, "messages", "1 hour", "null")
    assert "reached: 3 of 2," in client.send()
    stage.cluster.sql(f"update postern.account set plan = 'wide' where login = '{login}'")
    assert client.bare.reply().startswith("421 4.7.0")
    client = Client(stage, login)
    # What was used of messages/hour is kept, the day begins.
    assert parse_refusal(client.send()) == (("messages", "hour"), usage(stage, login)["messages", "hour"])
    stage.cluster.sql("select postern.plan_limit_set('wide', 'messages', '1 hour', null)")
    assert [client.send()[:3] for _ in range(5)] == ["250"] * 4 + ["450"]


def test_what_cannot_be_a_limit(stage):
    login, _ = stage.account("strict@example.org", "pw")
    for call, words in (
            (f"limit_set('{login}', 'mails', '1 hour', 1)", "new_recipients"),
            (f"limit_set('{login}', 'messages', '1 month', 1)", "without months"),
            (f"limit_set('{login}', 'messages', '1 second', 1)", "12 seconds"),
            (f"limit_set('{login}', 'messages', '1 hour', -1)", "0 or more"),
            (f"limit_set('{login}', 'messages', '1 hour', null)", "no limit messages/hour to remove"),
            ("limit_set('nobody@example.org', 'messages', '1 hour', 1)", "account_overview"),
            ("plan_limit_set('none', 'messages', '1 hour', 1)", "plan_set('none')")):
        said = fails(lambda: stage.cluster.sql(f"select postern.{call}"))
        assert words in said, said


def test_usage_says_what_refusals_say(stage):
    login, _ = stage.account("agreed@example.org", "pw")
    for measure, per, amount in (("messages", "1 minute", 5), ("messages", "1 hour", 3), ("messages", "1 day", 10),
                                 ("recipients", "1 hour", 9), ("recipients", "1 day", 4), ("bytes", "1 day", 100000)):
        limit(stage, login, measure, per, amount)
    client = Client(stage, login)
    assert client.send("a@example.net", "b@example.net").startswith("250")
    assert client.send().startswith("250")
    assert client.send().startswith("250")
    # Three limits are full or nearly so; the refusal names the one that ends last.
    window, told = parse_refusal(client.send())
    assert window == ("recipients", "day") and told == usage(stage, login)[window]
    limit(stage, login, "recipients", "1 day", 5)
    window, told = parse_refusal(client.send())
    assert window == ("messages", "hour") and told == usage(stage, login)[window]
    rows = stage.cluster.sql("select measure, per, used, amount, extract(epoch from next_at)::bigint from postern.usage_overview"
                             f" where login = '{login}'").splitlines()
    assert sorted(rows) == sorted(f"{m}|{p}|{u}|{a}|{n}" for (m, p), (u, a, n) in usage(stage, login).items())
    assert usage(stage, login)["messages", "minute"] == (3, 5, "")


def heard(session, channel):
    """What an admin who listens has been told since the last time."""
    lines = session.ask("select 1;") + session.ask("select 1;")
    return [json.loads(found[1]) for line in lines
            if (found := re.search(rf'notification "{channel}" with payload "(.*)" received', line))]


def test_a_warning_at_80_percent(stage):
    login, _ = stage.account("warned@example.org", "pw")
    limit(stage, login, "messages", "1 hour", 10)
    limit(stage, login, "recipients", "1 day", 11)
    account = int(stage.cluster.sql(f"select id from postern.account where login = '{login}'"))
    listener = Session(stage.cluster)
    listener.ask("listen postern_usage;")
    client, told = Client(stage, login), []
    for _ in range(11):
        client.send()
        told.append([(n["measure"], n["used"]) for n in heard(listener, "postern_usage")])
        assert len(stage.gateway.events("limit.warning", account=login)) == sum(map(len, told))
    assert told == [[]] * 7 + [[("messages", 8)], [("recipients", 9)], [], []], told
    # Once for every crossing.
    limit(stage, login, "messages", "1 hour", 20)
    for _ in range(10):
        client.send("bob@example.net")
    assert heard(listener, "postern_usage") == []
    limit(stage, login, "recipients", "1 day", "null")
    for _ in range(7):
        client.send()
    assert heard(listener, "postern_usage") == [{"account": account, "login": login, "measure": "messages", "per": "hour", "used": 16, "amount": 20}]
    warnings = stage.gateway.events("limit.warning", account=login)
    assert [(w["limit"], w["used"], w["amount"]) for w in warnings] == [
        ("messages/hour", "8", "10"), ("recipients/day", "9", "11"), ("messages/hour", "16", "20")], warnings
    listener.close()


def learn(stage, login, count):
    """What was sent last was delivered: waits until so many recipients are known."""
    eventually(lambda: int(stage.cluster.sql("select count(distinct recipient) from postern.recipient_seen"
                                             f" where account = postern.account_id('{login}')")) >= count)


def test_new_recipients(stage):
    login, _ = stage.account("stranger@example.org", "pw")
    client = Client(stage, login)
    assert client.send("z@example.net").startswith("250")
    # A session that does not know of the limit is sent away, and its next one does.
    limit(stage, login, "new_recipients", "1 day", 3)
    assert client.bare.reply().startswith("421 4.7.0")
    client = Client(stage, login)
    assert client.send("a@example.net", "b@example.net").startswith("250")
    assert used(stage, login, "new_recipients", "day") == 2
    learn(stage, login, 3)
    assert client.send("A@example.net", "b@Example.net", "a@example.net").startswith("250")
    assert used(stage, login, "new_recipients", "day") == 2
    assert parse_refusal(client.send("c@example.net", "d@example.net"))[1][:2] == (2, 3)
    assert client.send("a@example.net", "c@example.net").startswith("250")
    learn(stage, login, 4)
    assert parse_refusal(client.send("f@example.net")) == (("new_recipients", "day"), usage(stage, login)["new_recipients", "day"])
    assert client.send("a@example.net").startswith("250")
    many = [f"many{i}@example.net" for i in range(4)]
    assert client.send(*many) == "452 4.5.3 more recipients than limit new_recipients/day allows: 3"
    # An amount is no news to sessions. What is refused is given back.
    limit(stage, login, "new_recipients", "1 day", 10)
    assert client.send("g@example.net", header=b"From: <x@example.net>\r\n").startswith("550")
    eventually(lambda: used(stage, login, "new_recipients", "day") == 3)


def test_new_recipients_of_a_plan_while_a_session_lives(stage):
    """Nobody is sent away; from a moment later on the session says to whom it sends."""
    plan(stage, "watched")
    login = "watched@example.org"
    stage.cluster.sql(f"select postern.account_create('{login}', 'pw', 'watched')")
    client = Client(stage, login)
    assert client.send("a@example.net").startswith("250")
    stage.cluster.sql("select postern.plan_limit_set('watched', 'new_recipients', '1 day', 100)")
    until, counts = time.monotonic() + 10, [-1, 0]
    while counts[-1] != counts[-2]:
        assert time.monotonic() < until, counts
        assert client.send("y@example.net").startswith("250")
        learn(stage, login, 1 if counts[-1] < 1 else 2)
        counts.append(used(stage, login, "new_recipients", "day"))
    before = counts[-1]
    assert 1 <= before
    learn(stage, login, 2)
    assert client.send("y@example.net", "w@example.net").startswith("250")
    assert used(stage, login, "new_recipients", "day") == before + 1
    stage.cluster.sql("select postern.plan_limit_set('watched', 'new_recipients', '1 day', null)")
    assert client.send("v@example.net").startswith("250") and usage(stage, login) == {}


def test_a_charge_whose_answer_is_lost_is_not_made_twice(stage):
    login, _ = stage.account("doubt@example.org", "pw")
    limit(stage, login, "messages", "1 hour", 10)
    account = stage.cluster.sql(f"select id from postern.account where login = '{login}'")
    cutter = AnswerCutter(stage.cluster)
    gateway = Gateway(stage.folder / "gw-doubt", cutter, stage.certificate, stage.key, stage.upstream.port)
    try:
        gateway.start()
        client = Client(SimpleNamespace(gateway=gateway), login)
        assert client.send().startswith("250") and used(stage, login, "messages", "hour") == 1
        cutter.lose_answer(f"{{{account}}}".encode())
        assert client.send().startswith("451 4.3.0")
        assert cutter.cut.wait(10) and used(stage, login, "messages", "hour") == 2
        assert client.send().startswith("250")
        assert used(stage, login, "messages", "hour") == 3, usage(stage, login)
        stage.upstream.wait(2)
        gateway.wait_queue(0)
    finally:
        gateway.stop()
        cutter.close()

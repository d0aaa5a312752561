# SPDX-License-Identifier: ISC
"""What happens when a part is away, dies, or lies."""
import email
import json
import os
import select
import signal
import smtplib
import socket
import ssl
import threading
import time

from client import another_address, connect, message, trust_all
from environment import eventually, free_port
from test_refusals import plain, session
from upstream import Upstream

LOGIN = "alice@example.org"


def send(stage, subject="hello", recipients=("bob@example.net",)):
    client = connect(stage)
    client.sendmail(LOGIN, list(recipients), message(subject))
    client.quit()


def logs_in(stage):
    try:
        bare = session(stage, login=False)
        answer = bare.ask(plain())
        bare.close()
        return answer
    except (OSError, AssertionError):
        return ""


def test_each_process_killed_in_turn(stage):
    for role in ("auth", "submit", "relay"):
        before = stage.gateway.children()
        os.kill(before[role], signal.SIGKILL)
        eventually(lambda: stage.gateway.children().get(role, before[role]) != before[role])
        eventually(lambda: logs_in(stage).startswith("235"))
        send(stage, f"after {role}")
        stage.upstream.take()
        after = stage.gateway.children()
        assert all(after[other] == pid for other, pid in before.items() if other != role), (role, before, after)


def test_200_messages_survive_kill_9_of_everything(stage):
    stage.upstream.stop()
    acknowledged = []
    lock = threading.Lock()

    def sender(number):
        client = connect(stage)
        for i in range(50):
            subject = f"m-{number}-{i}"
            client.sendmail(LOGIN, ["bob@example.net"], message(subject))
            with lock:
                acknowledged.append(subject)
        client.quit()

    threads = [threading.Thread(target=sender, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(acknowledged) == 200

    # Killed while clients send: what was answered 250 until then must be there too.
    def until_dead():
        try:
            client = connect(stage)
            for i in range(10000):
                subject = f"late-{threading.get_ident()}-{i}"
                client.sendmail(LOGIN, ["bob@example.net"], message(subject))
                with lock:
                    acknowledged.append(subject)
        except (OSError, smtplib.SMTPException):
            pass

    threads = [threading.Thread(target=until_dead) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    stage.gateway.kill_all()
    for thread in threads:
        thread.join(60)
    assert len(acknowledged) > 200
    stage.gateway.start()
    stage.upstream.start()
    eventually(lambda: subjects(stage) >= set(acknowledged), 60)
    stage.gateway.wait_queue(0, 60)
    came = [m.subject for m in stage.upstream.messages]
    doubles = len(came) - len(set(came))
    unacknowledged = len(set(came) - set(acknowledged))
    print(f"# {len(acknowledged)} acknowledged, all came; {doubles} twice; {unacknowledged} were stored when the answer"
          " was lost")
    assert doubles == 0, "no final dot was in flight upstream"
    assert unacknowledged <= 4, "one for each client at most"


def subjects(stage):
    with stage.upstream.lock:
        return {m.subject for m in stage.upstream.messages}


def test_killed_while_delivering(stage):
    """What was answered is not sent again; duplicates only for what was in flight."""
    stage.upstream.stop()
    for i in range(60):
        send(stage, f"d-{i}")
    gate, lock, taken, in_flight = threading.Event(), threading.Lock(), [0], threading.Semaphore(0)

    def reply(verb, _line):
        if verb != "DOT" or gate.is_set():
            return None
        with lock:
            taken[0] += 1
            if taken[0] <= 30:
                return None
        in_flight.release()
        gate.wait(20)
        return None

    stage.upstream.reply = reply
    stage.upstream.start()
    stage.gateway.tool("queue", "retry", "all")
    for _ in range(5):
        in_flight.acquire(timeout=20)
    stage.gateway.wait_event("message.delivered", count=30)
    stage.gateway.wait_queue(30, 20)  # and their marks are written
    answered = {e["qid"] for e in stage.gateway.events("message.delivered")}
    stage.gateway.kill_all()
    gate.set()  # the upstream keeps what it had got
    stage.gateway.start()
    eventually(lambda: len(subjects(stage)) == 60, 60)
    stage.gateway.wait_queue(0, 60)
    came = [m.subject for m in stage.upstream.messages]
    doubles = len(came) - len(set(came))
    again = answered & {e["qid"] for e in stage.gateway.events("message.delivered")}
    print(f"# 60 messages, 30 answered before the kill, {doubles} twice")
    assert not again, f"sent again although the answer was recorded: {again}"
    assert doubles <= 20, "one for each connection at most"


def test_one_recipient_at_a_time_from_a_file(stage):
    """Each transaction gives back what it opened to read a large body."""
    taken = []

    def reply(verb, line):
        if verb == "MAIL":
            taken.clear()
        if verb == "RCPT":
            taken.append(line)
            return "452 4.5.3 one at a time" if len(taken) > 1 else None
        return None

    stage.upstream.reply = reply
    relay = f"/proc/{stage.gateway.children()['relay']}/fd"
    client = connect(stage)
    client.sendmail(LOGIN, [f"r{i}@example.net" for i in range(20)], message("large", body=b"0123456789abcde\r\n" * 20000))
    client.quit()
    assert sorted(r for m in stage.upstream.wait(20) for r in m.recipients) == sorted(f"r{i}@example.net" for i in range(20))
    stage.gateway.wait_queue(0)
    bodies = [link for fd in os.listdir(relay) if ".body" in (link := os.readlink(f"{relay}/{fd}"))]
    assert not bodies, bodies


def test_a_client_gone_after_the_final_dot(stage):
    """It gets its answer if it still listens; the message is taken and told of in any case."""
    for listens in (True, False):
        raw = socket.create_connection(("127.0.0.1", stage.gateway.tls_port), timeout=20)
        inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trust_all().wrap_bio(inside, outside)

        def flush():
            if octets := outside.read():
                raw.sendall(octets)

        def more():
            octets = raw.recv(65536)
            inside.write(octets) if octets else inside.write_eof()

        def until(work):
            while True:
                try:
                    return work()
                except ssl.SSLWantReadError:
                    flush()
                    more()

        def ask(line):
            tls.write(line)
            flush()
            return until(lambda: tls.read(4096))

        until(tls.do_handshake)
        flush()
        assert until(lambda: tls.read(4096)).startswith(b"220")
        ask(b"EHLO c\r\n")
        assert ask(plain().encode() + b"\r\n").startswith(b"235")
        for line, code in ((f"MAIL FROM:<{LOGIN}>", b"250"), ("RCPT TO:<bob@example.net>", b"250"), ("DATA", b"354")):
            assert ask(line.encode() + b"\r\n").startswith(code)
        tls.write(message(f"listens {listens}", body=b"0123456789abcde\r\n" * 30000) + b".\r\n")
        flush()
        if listens:
            raw.shutdown(socket.SHUT_WR)
            assert until(lambda: tls.read(4096)).startswith(b"250 2.0.0 queued as")
        raw.close()
        assert stage.upstream.take().subject == f"listens {listens}"
        qid = stage.gateway.events("message.delivered")[-1]["qid"]
        assert stage.gateway.events("message.accepted", qid=qid)


def test_upstream_says_later(stage):
    answers = iter(["451 4.3.0 later", "451 4.3.0 later"])
    stage.upstream.reply = lambda verb, line: next(answers, None) if verb == "DOT" else None
    send(stage)
    stage.upstream.take()
    stage.gateway.wait_queue(0)
    assert len([e for e in stage.gateway.events("message.deferred") if "451 4.3.0 later" in e.get("reply", "")]) == 2


def test_results_are_kept_for_each_recipient(stage):
    refused_once = []

    def reply(verb, line):
        if verb == "RCPT" and "never@" in line:
            return "550 5.1.1 no such user"
        if verb == "RCPT" and "later@" in line and not refused_once:
            refused_once.append(line)
            return "450 4.2.0 later"
        return None

    stage.upstream.reply = reply
    send(stage, "parts", ["now@example.net", "never@example.net", "later@example.net"])
    first, second, third = stage.upstream.wait(3)
    by_recipient = {m.recipients[0]: m for m in (first, second, third)}
    assert set(by_recipient) == {"now@example.net", "later@example.net", LOGIN}
    bounce = by_recipient[LOGIN]
    assert bounce.sender == ""
    parsed = email.message_from_bytes(bounce.octets)
    assert parsed.get_content_type() == "multipart/report"
    status = parsed.get_payload()[1].as_string()
    assert "never@example.net" in status and "Status: 5.1.1" in status and "550 5.1.1 no such user" in status, status
    assert "now@" not in status and "later@" not in status
    stage.gateway.wait_queue(0)


def with_clock(stage):
    stage.gateway.stop()
    stage.gateway.make_clock()
    stage.gateway.start()


DAY = 24 * 3600


def test_what_waited_too_long_goes_back(stage):
    with_clock(stage)
    stage.upstream.reply = lambda verb, line: "450 4.2.1 mailbox full" if verb == "RCPT" and "bob@" in line else None
    send(stage)
    stage.gateway.wait_event("message.deferred")
    stage.gateway.set_clock(5 * DAY - 600)
    stage.gateway.wait_event("message.deferred", attempt=2)
    assert not stage.gateway.events("message.bounced")
    assert stage.upstream.take().sender == ""  # a notice of delay
    stage.gateway.set_clock(5 * DAY)
    bounce = stage.upstream.take()
    assert bounce.sender == "" and bounce.recipients == [LOGIN]
    status = email.message_from_bytes(bounce.octets).get_payload()[1].as_string()
    assert "Action: failed" in status and "Status: 4.4.7" in status and "450 4.2.1 mailbox full" in status, status
    stage.gateway.wait_queue(0)


def test_a_sender_is_told_once_that_a_message_waits(stage):
    with_clock(stage)
    full = ["450 4.2.2 mailbox full"]
    stage.upstream.reply = lambda verb, line: full[0] if verb == "RCPT" and "bob@" in line else None
    send(stage, "slow")
    stage.gateway.wait_event("message.deferred", attempt=1)
    stage.gateway.set_clock(4 * 3600)
    notice = stage.upstream.take()
    assert notice.sender == "" and notice.recipients == [LOGIN]
    status = email.message_from_bytes(notice.octets).get_payload()[1].as_string()
    for line in ("Action: delayed", "Status: 4.2.2", "450 4.2.2 mailbox full", "Will-Retry-Until: "):
        assert line in status, status
    stage.gateway.set_clock(5 * 3600)
    stage.gateway.wait_event("message.deferred", attempt=3)
    stage.gateway.kill_all()
    stage.gateway.start()
    stage.gateway.set_clock(6 * 3600)
    stage.gateway.wait_event("message.deferred", attempt=4)
    full[0] = None
    stage.gateway.set_clock(7 * 3600)
    stage.gateway.wait_queue(0)
    assert [m.recipients for m in stage.upstream.messages] == [["bob@example.net"]]


def test_an_unknown_route_does_not_age_mail(stage):
    stage.gateway.retry = {"first": "1h", "max": "2h"}
    with_clock(stage)
    stage.account("routed@example.org", "pw")
    stage.cluster.sql("update postern.account set route = 'elsewhere' where login = 'routed@example.org'")
    client = connect(stage, "routed@example.org", "pw")
    client.sendmail("routed@example.org", ["bob@example.net"], message("routed", sender="routed@example.org"))
    client.quit()
    qid = stage.gateway.wait_event("route.unknown", route="elsewhere")["qid"]
    stage.gateway.wait_event("message.deferred", qid=qid)
    assert "state=route-unknown" in stage.gateway.tool("queue", "show", qid)
    stage.gateway.set_clock(6 * DAY)
    stage.gateway.wait_event("message.deferred", qid=qid, attempt=2)
    assert not stage.gateway.events("message.bounced")
    stage.gateway.upstreams["elsewhere"] = stage.gateway.upstreams["up"]
    stage.gateway.write_conf()
    stage.gateway.process.send_signal(signal.SIGHUP)
    assert stage.upstream.take().subject == "routed"
    stage.gateway.wait_queue(0)


def damage(stage, octets):
    """Changes the first of these octets where they stand in the journal."""
    for path in (stage.gateway.folder / "spool" / "in").glob("*.seg"):
        at = path.read_bytes().find(octets)
        if at >= 0:
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(bytes([octets[0] ^ 1]))
            return
    raise AssertionError(f"{octets} is not in the journal")


def test_a_message_that_cannot_be_read_is_kept(stage):
    """It costs nobody anything but an alarm: other mail leaves, and an operator decides."""
    with_clock(stage)
    stage.upstream.stop()
    client = connect(stage)
    client.sendmail(LOGIN, ["bob@example.net"], message("damaged", body=b"to be damaged\r\n"))
    client.quit()
    stage.gateway.wait_event("message.deferred")
    damage(stage, b"to be damaged")
    stage.upstream.start()
    stage.gateway.set_clock(6 * DAY)
    stage.gateway.wait_event("message.damaged")
    relay = stage.gateway.children()["relay"]
    stage.gateway.set_clock(12 * DAY)
    stage.gateway.wait_event("message.deferred", reply="the message is damaged in the spool")
    send(stage, "whole")
    assert stage.upstream.take().subject == "whole"
    assert stage.gateway.children()["relay"] == relay, "relay has died"
    assert not stage.gateway.events("message.bounced")
    qid = stage.gateway.events("message.damaged")[0]["qid"]
    eventually(lambda: stage.gateway.tool("queue", "delete", qid, check=False).returncode == 0)
    stage.gateway.wait_queue(0)


def test_a_bounce_that_bounces_ends(stage):
    stage.upstream.reply = lambda verb, line: "550 5.1.1 no" if verb == "RCPT" else None
    send(stage)
    stage.gateway.wait_event("message.dropped")
    stage.gateway.wait_queue(0)
    assert not stage.upstream.messages


def refuse(stage, login, count):
    """So many messages of this account that the upstream refuses for good."""
    client = connect(stage, login, "secret-1")
    for number in range(count):
        client.sendmail(login, ["never@example.net"], message(f"refused {number}", sender=login))
    client.quit()


def bounded(stage, **retry):
    """Clocks that can be set, and an upstream that refuses some recipients, now or for good."""
    stage.gateway.retry.update(retry)
    with_clock(stage)
    answers = {"never@": "550 5.1.1 no", "later@": "450 4.2.1 later"}
    stage.upstream.reply = lambda verb, line: next(
        (answer for who, answer in answers.items() if verb == "RCPT" and who in line), None)


def test_bounces_of_an_account_are_bounded(stage):
    """Of 50 refused messages 20 come back within an hour and 20 in the next; others get theirs at once."""
    stage.account("storm@example.org", "secret-1")
    bounded(stage, bounces_per_hour=20)
    refuse(stage, "storm@example.org", 50)
    stage.gateway.wait_event("message.bounced", count=50, seconds=60)
    bounces = stage.upstream.wait(20)
    assert all(b.sender == "" and b.recipients == ["storm@example.org"] for b in bounces)
    eventually(lambda: stage.gateway.queue_count("withheld") == 30 == stage.gateway.queue_count())
    assert all(e["notice"] == "sent" for e in stage.gateway.events("message.bounced"))
    assert len(stage.gateway.events("bounces.withheld", account="storm@example.org")) == 1
    assert json.loads(stage.gateway.tool("--json", "status"))["bounces_withheld"] == 30
    refuse(stage, LOGIN, 1)
    assert [b.recipients for b in stage.upstream.wait(21)][20] == [LOGIN]
    stage.gateway.tool("queue", "retry", "all")
    eventually(lambda: stage.gateway.queue_count("withheld") == 30 == stage.gateway.queue_count())
    for hour, left in ((1, 10), (2, 0)):
        stage.gateway.set_clock(3600 * hour + 1)
        eventually(lambda: stage.gateway.queue_count("withheld") == left == stage.gateway.queue_count())
    told = [b for b in stage.upstream.wait(51) if b.recipients == ["storm@example.org"]]
    assert len({b.body for b in told}) == 50, "each is told, once"
    assert len(stage.gateway.events("bounces.withheld", account="storm@example.org")) == 2
    assert json.loads(stage.gateway.tool("--json", "status"))["bounces_withheld"] == 30


def test_notices_of_delay_take_no_bounces(stage):
    """However much mail is late, and as many notices as may be are sent, what fails is told."""
    bounded(stage, bounces_per_hour=2, first="1s", max="2s", delay_notice="1m")
    client = connect(stage)
    for number in range(3):
        client.sendmail(LOGIN, ["later@example.net"], message(f"late {number}"))
    client.quit()
    stage.gateway.wait_event("message.deferred", count=3)
    stage.gateway.set_clock(120)
    notices = stage.upstream.wait(2)
    assert all(b"Action: delayed" in n.body for n in notices)
    stage.gateway.wait_event("message.deferred", count=9)
    assert len(stage.upstream.messages) == 2, "the third waits for the next hour"
    refuse(stage, LOGIN, 2)
    assert all(b"Action: failed" in b.body for b in stage.upstream.wait(4)[2:])
    assert not stage.gateway.events("bounces.withheld")
    stage.gateway.set_clock(120 + 3600)
    assert b"Action: delayed" in stage.upstream.wait(5)[4].body


def test_a_connection_lost_after_the_final_dot(stage):
    answers = iter(["KEEP-AND-DROP"])
    stage.upstream.reply = lambda verb, line: next(answers, None) if verb == "DOT" else None
    send(stage)
    assert len(stage.upstream.wait(2)) == 2, "in doubt it is sent again"
    stage.gateway.wait_queue(0)


def test_malformed_replies_are_no_answers(stage):
    answers = iter(["hello", "250-never\r\n550 ends", "250-" + "x" * 5000])
    stage.upstream.reply = lambda verb, line: next(answers, None) if verb == "MAIL" else None
    send(stage)
    stage.upstream.take(30)
    stage.gateway.wait_queue(0)


def configured(stage, **settings):
    stage.gateway.upstreams = {"up": settings}
    stage.gateway.stop()
    stage.gateway.start()


def test_upstream_with_tls_and_login(stage):
    certificate, key = stage.authority.issue("upstream", "DNS:localhost")
    for mode in ("starttls", "implicit"):
        upstream = Upstream(free_port(), certificate, key, implicit=mode == "implicit", logins={"us": "pw"}).start()
        secret = stage.folder / "upstream.password"
        secret.write_text("pw\n")
        configured(stage, hosts=[f"localhost:{upstream.port}"], tls="verify", tls_mode=mode,
                   ca_file=str(stage.authority.certificate), username="us", password_file=str(secret))
        send(stage)
        taken = upstream.take()
        assert taken.tls and taken.login == "us"
        upstream.stop()


def test_upstream_refuses_our_login(stage):
    certificate, key = stage.authority.issue("upstream", "DNS:localhost")
    upstream = Upstream(free_port(), certificate, key, logins={"us": "right"}).start()
    answer = threading.Event()
    upstream.reply = lambda verb, _line: answer.wait(20) and None if verb == "AUTH" else None
    secret = stage.folder / "upstream.password"
    secret.write_text("wrong\n")
    configured(stage, hosts=[f"localhost:{upstream.port}"], tls="verify", ca_file=str(stage.authority.certificate),
               username="us", password_file=str(secret))
    for i in range(3):
        send(stage, f"held {i}")
    answer.set()
    stage.gateway.wait_event("upstream.stopped")
    assert not stage.gateway.events("message.bounced")
    assert stage.gateway.queue_count() == 3
    assert sum(command.startswith("AUTH") for command in upstream.commands) == 1, "one message tries the login first"
    secret.write_text("right\n")
    stage.gateway.process.send_signal(signal.SIGHUP)
    upstream.wait(3)
    stage.gateway.wait_queue(0)
    upstream.stop()


def test_a_reload_sends_the_new_password_to_the_new_host_only(stage):
    """Also when a connection to the old one is half-way to its login."""
    asked, answer = threading.Event(), threading.Event()

    def reply(verb, _line):
        if verb == "EHLO":
            asked.set()
            answer.wait(20)
        return None

    old, new = Upstream(free_port(), logins={"us": "old"}).start(), Upstream(free_port(), logins={"us": "new"}).start()
    old.reply = reply
    secret = stage.folder / "upstream.password"
    secret.write_text("old\n")
    configured(stage, hosts=[f"127.0.0.1:{old.port}"], tls="none", username="us", password_file=str(secret))
    send(stage)
    assert asked.wait(20)
    secret.write_text("new\n")
    stage.gateway.upstreams["up"]["hosts"] = [f"127.0.0.1:{new.port}"]
    stage.gateway.write_conf()
    stage.gateway.process.send_signal(signal.SIGHUP)
    stage.gateway.wait_event("reloaded", child="relay")
    answer.set()
    new.take()
    stage.gateway.wait_queue(0)
    assert not any(c.startswith("AUTH") for c in old.commands), old.commands
    old.stop()
    new.stop()


def test_a_reload_leaves_no_connection_to_the_old_host(stage):
    """One that waited for work takes no more."""
    old, new = Upstream(free_port()).start(), Upstream(free_port()).start()
    configured(stage, hosts=[f"127.0.0.1:{old.port}"], tls="none")
    send(stage, "before it")
    old.take()
    stage.gateway.wait_queue(0)
    assert old.open, "the connection was not kept"
    stage.gateway.upstreams["up"]["hosts"] = [f"127.0.0.1:{new.port}"]
    stage.gateway.write_conf()
    stage.gateway.process.send_signal(signal.SIGHUP)
    stage.gateway.wait_event("reloaded", child="relay")
    send(stage, "after it")
    assert new.take().subject == "after it"
    stage.gateway.wait_queue(0)
    assert not old.messages
    old.stop()
    new.stop()


def test_a_host_that_was_removed_gets_no_new_connection(stage):
    """Not even for the message that its kept connection was about to take."""
    asked, answer = threading.Event(), threading.Event()

    def reply(verb, _line):
        if verb == "MAIL" and old.messages:
            asked.set()
            answer.wait(20)
            return "DROP"
        return None

    old = Upstream(free_port()).start()
    old.reply = reply
    configured(stage, hosts=[f"localhost:{stage.upstream.port}"], tls="none")
    stage.gateway.stop()
    stage.gateway.upstreams["old"] = {"hosts": [f"localhost:{old.port}"], "tls": "none"}
    stage.gateway.extra = 'domain_route = ({ domain = "old.example"  route = "old" })'
    stage.gateway.start()
    try:
        send(stage, "before it", ["bob@old.example"])
        old.wait(1)
        stage.gateway.wait_queue(0)
        send(stage, "after it", ["bob@old.example"])
        assert asked.wait(20)
        del stage.gateway.upstreams["old"]
        stage.gateway.extra = ""
        stage.gateway.write_conf()
        stage.gateway.process.send_signal(signal.SIGHUP)
        stage.gateway.wait_event("reloaded", child="relay")
        answer.set()
        assert stage.upstream.take().subject == "after it"
        stage.gateway.wait_queue(0)
        assert (old.connections, len(old.messages)) == (1, 1), (old.connections, old.commands)
    finally:
        answer.set()
        old.stop()


def test_each_answer_of_a_batch_has_its_time(stage):
    """All together take longer than one may."""
    slow = Upstream(free_port()).start()
    slow.reply = lambda verb, _line: time.sleep(0.7) if verb == "RCPT" else None
    configured(stage, hosts=[f"localhost:{slow.port}"], tls="none", command_timeout="2s")
    send(stage, "slowly", [f"bob{number}@example.net" for number in range(5)])
    taken = slow.take()
    assert len(taken.recipients) == 5 and slow.connections == 1
    stage.gateway.wait_queue(0)
    slow.reply = lambda verb, line: time.sleep(4) if line == "RCPT TO:<bob1@example.net>" else None
    send(stage, "too slowly", [f"bob{number}@example.net" for number in range(2)])
    assert "MAIL, RCPT or DATA" in stage.gateway.wait_event("message.deferred")["reply"]
    slow.stop()


def test_upstream_without_verified_tls_gets_nothing(stage):
    certificate, key = stage.authority.issue("other", "DNS:other.test")
    for upstream in (Upstream(free_port()).start(), Upstream(free_port(), certificate, key).start()):
        configured(stage, hosts=[f"localhost:{upstream.port}"], tls="verify",
                   ca_file=str(stage.authority.certificate))
        send(stage)
        stage.gateway.wait_event("upstream.failed")
        assert not any(c.startswith("MAIL") for c in upstream.commands), upstream.commands
        stage.gateway.tool("queue", "delete", stage.gateway.tool("queue", "list").split("qid=")[1].split()[0])
        upstream.stop()


def test_the_next_host_is_tried(stage):
    configured(stage, hosts=[f"localhost:{free_port()}", f"localhost:{stage.upstream.port}"], tls="none")
    began = time.monotonic()
    send(stage)
    stage.upstream.take()
    assert time.monotonic() - began < 10


def test_the_queue_by_the_tool(stage):
    stage.upstream.stop()
    for i in range(3):
        send(stage, f"q-{i}")
    stage.gateway.wait_queue(3)
    lines = stage.gateway.tool("queue", "list").splitlines()
    assert len(lines) == 3 and all("attempts=" in line for line in lines), lines
    first = lines[0].split("qid=")[1].split()[0]
    shown = stage.gateway.tool("queue", "show", first)
    assert "from=alice@example.org" in shown and "to=bob@example.net settled=no" in shown, shown
    assert '"qid":"' in stage.gateway.tool("--json", "queue", "list")
    stage.gateway.tool("queue", "delete", first)
    stage.gateway.wait_queue(2)
    assert stage.gateway.tool("queue", "show", first, check=False).returncode == 1
    assert stage.gateway.tool("queue", "shew", check=False).returncode == 2
    stage.upstream.start()
    stage.gateway.tool("queue", "retry", "all")
    stage.upstream.wait(2)
    stage.gateway.wait_queue(0)


def test_the_counters_by_the_tool(stage):
    before = json.loads(stage.gateway.tool("--json", "status"))
    send(stage, recipients=["bob@example.net", "carol@example.net"])
    stage.upstream.take()
    eventually(lambda: json.loads(stage.gateway.tool("--json", "status"))["recipients_delivered"]
               == before["recipients_delivered"] + 2)
    now = json.loads(stage.gateway.tool("--json", "status"))
    assert now["messages_accepted"] == before["messages_accepted"] + 1
    assert now["logins_accepted"] == before["logins_accepted"] + 1
    assert "messages_accepted" in stage.gateway.tool("status")
    assert stage.gateway.tool("status", "what", check=False).returncode == 2


def test_a_clean_stop_is_quick_and_loses_nothing(stage):
    stage.upstream.stop()
    send(stage, "kept")
    began = time.monotonic()
    assert stage.gateway.stop() == 0
    assert time.monotonic() - began < 10
    stage.gateway.start()
    stage.upstream.start()
    assert stage.upstream.take().subject == "kept"


def test_a_bad_file_changes_nothing_at_reload(stage):
    good = stage.gateway.conf.read_text()
    stage.gateway.conf.write_text(good + "nonsense = 1\n")
    stage.gateway.process.send_signal(signal.SIGHUP)
    stage.gateway.wait_event("reload.failed")
    send(stage)
    stage.upstream.take()
    # A good file that names bad ones: not even what other processes could take.
    bad = {"ca_file": stage.gateway.conf, "password_file": "/nonexistent"}
    for count, (option, path) in enumerate(bad.items(), 2):
        text = good.replace('tls = "none"', f'tls = "verify"  username = "u"  {option} = "{path}"')
        assert text != good
        stage.gateway.conf.write_text(text.replace("submission = {  }", 'submission = { message_size = "2M" }'))
        stage.gateway.process.send_signal(signal.SIGHUP)
        stage.gateway.wait_event("reload.failed", count=count)
        client = connect(stage)
        assert client.esmtp_features["size"] == str(50 << 20), option
        client.quit()
    assert not stage.gateway.events("reloaded")
    stage.gateway.conf.write_text(good)
    stage.gateway.process.send_signal(signal.SIGHUP)
    stage.gateway.wait_event("reloaded")
    send(stage)
    stage.upstream.take()


def test_a_flood_of_logins_does_not_hold_up_messages(stage):
    """Each guess costs a PBKDF2; who is logged in does not wait for them."""
    iterations = "select postern.account_create('slow@example.org', 'SCRAM-SHA-256$65536:' || repeat('A', 22) || '==$'"
    stage.cluster.sql(f"{iterations} || repeat('A', 43) || '=:' || repeat('A', 43) || '=')")
    here = session(stage)
    assert here.ask("MAIL FROM:<alice@example.org>").startswith("250")
    assert here.ask("RCPT TO:<bob@example.net>").startswith("250")
    guessers = [session(stage, login=False, source=another_address()) for _ in range(100)]
    for guesser in guessers:
        guesser.send(plain("slow@example.org", "guess") + "\r\n")
    stage.gateway.wait_event("login.refused", account="slow@example.org")
    assert here.ask("DATA").startswith("354")
    refused = len(stage.gateway.events("login.refused", account="slow@example.org"))
    for guesser in guessers:
        assert guesser.reply().startswith("535")
        guesser.close()
    assert refused < 50, f"the message waited for {refused} of 100 guesses"
    here.close()


def test_many_logins_in_one_turn(stage):
    """All of them are answered, although `submit` reads no answer before it has passed on the last."""
    stage.gateway.submission = {"threads": 1}
    stage.gateway.stop()
    stage.gateway.start()
    session(stage).close()
    clients = [session(stage, login=False) for _ in range(400)]
    submit = stage.gateway.children()["submit"]
    os.kill(submit, signal.SIGSTOP)
    for client in clients:
        client.send(plain() + "\r\n")
    os.kill(submit, signal.SIGCONT)
    for client in clients:
        client.socket.settimeout(5)
        assert client.reply().startswith("235")
        client.close()


def test_an_auth_that_hangs_is_as_one_that_is_away(stage):
    """It gets 20 s; then the client is told to come again, not that it had been slow, and stays."""
    stage.gateway.make_clock()
    stage.gateway.stop()
    stage.gateway.start()
    stranger, sender = session(stage, login=False), session(stage)
    assert sender.ask("MAIL FROM:<alice@example.org>").startswith("250")
    assert sender.ask("RCPT TO:<bob@example.net>").startswith("250")
    auth = stage.gateway.children()["auth"]
    os.kill(auth, signal.SIGSTOP)
    try:
        stranger.send(plain(password="other") + "\r\n")
        sender.send("DATA\r\n")
        assert select.select([stranger.socket, sender.socket], [], [], 0.5)[0] == [], "a reply although auth has said nothing"
        stage.gateway.set_clock(21)
        assert stranger.reply().startswith("454 4.7.0")
        assert sender.reply().startswith("451 4.3.0")
    finally:
        os.kill(auth, signal.SIGCONT)
    assert len(stage.gateway.events("auth.late")) <= 2  # a thread each
    assert stranger.ask(plain()).startswith("235")
    assert sender.ask("NOOP").startswith("250")
    for one in stranger, sender:
        one.close()


def test_a_database_that_refuses_is_told_with_its_words(stage):
    """A schema that was not migrated, a right that was taken: 454, once in the log, and why."""
    bare = session(stage, login=False)
    assert bare.ask(plain(password="wrong")).startswith("535")
    lines = len(stage.gateway.lines)
    stage.cluster.sql("revoke execute on function postern.auth_lookup from postern_auth")
    try:
        for _ in range(3):
            assert bare.ask(plain(password="never seen before")).startswith("454 4.7.0")
            assert bare.ask("AUTH LOGIN").startswith("334")
            assert bare.ask("*").startswith("501")
        told = [line for line in stage.gateway.lines[lines:] if "event=database." in line]
        assert len(told) == 1 and "database.away" in told[0] and "permission denied for function auth_lookup" in told[0], told
    finally:
        stage.cluster.sql("grant execute on function postern.auth_lookup to postern_auth")
    assert bare.ask(plain(password="wrong")).startswith("535")
    stage.gateway.wait_event("database.back")


def test_what_the_database_says_by_the_way_is_an_event(stage):
    """A connection that it ends while nothing was asked: libpq would write its words as they are."""
    bare = session(stage, login=False)
    assert bare.ask(plain(password="wrong")).startswith("535")
    stage.cluster.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'postern'")
    assert "terminating connection" in stage.gateway.wait_event("database.notice")["text"]
    assert all(line.startswith("event=") for line in stage.gateway.lines), stage.gateway.lines

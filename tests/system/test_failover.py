# SPDX-License-Identifier: ISC
"""Hosts that do not serve: how soon the next one gets the mail."""
import collections
import contextlib
import math
import signal
import socket
import threading
import time

from client import connect, message
from environment import eventually, free_port
from stage import alone
from upstream import Upstream

LOGIN = "alice@example.org"
FIRST_S, LATER_S = 10, 1
AUTHENTICATED = {"username": "us"}


class Deaf:
    """A server of a few words: says `greeting`, answers what it reads by `answers`, and keeps all octets."""

    def __init__(self, greeting=b"220 deaf\r\n", answers=(), pause=0.0):
        self.greeting, self.answers, self.pause = greeting, answers, pause
        self.heard, self.connections, self.open = b"", 0, []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                connection = self.listener.accept()[0]
                self.connections += 1
                self.open.append(connection)
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def say(self, connection, octets):
        if not self.pause:
            connection.sendall(octets)
            return
        for octet in octets:
            connection.sendall(bytes([octet]))
            time.sleep(self.pause)

    def serve(self, connection):
        with contextlib.suppress(OSError):
            self.say(connection, self.greeting)
            while octets := connection.recv(65536):
                self.heard += octets
                for word, answer in self.answers:
                    if octets.startswith(word):
                        self.say(connection, answer)

    def close(self):
        self.listener.close()
        for connection in self.open:
            connection.close()


class BlackHole:
    """Its backlog is full: the kernel drops who wants to connect."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.port, self.connections = self.listener.getsockname()[1], 0
        self.fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self.listener.getsockname())
            self.fillers.append(filler)

    def close(self):
        for each in (self.listener, *self.fillers):
            each.close()


STARTTLS = (b"EHLO", b"250-deaf\r\n250 STARTTLS\r\n")


def bad_hosts():
    return {"hole": BlackHole(), "silent": Deaf(b""), "slow": Deaf(b"220-one octet a second\r\n" * 100, pause=1),
            "ehlo": Deaf(), "lines": Deaf(answers=((b"EHLO", b"250-and so on\r\n" * 10 + b"250-"),)),
            "starttls": Deaf(answers=(STARTTLS,)), "tls": Deaf(answers=(STARTTLS, (b"STARTTLS", b"220 go\r\n")))}


def good_host(stage):
    certificate, key = stage.authority.issue("good", "DNS:localhost")
    return Upstream(free_port(), certificate, key, logins={"us": "pw"}).start()


def routes(stage, hosts, **settings):
    """An upstream and a domain of each name: mail for x@NAME.example goes to its hosts."""
    secret = stage.folder / "good.password"
    secret.write_text("pw\n")
    common = {"tls": "verify", "ca_file": str(stage.authority.certificate), **settings}
    if common.get("username"):
        common["password_file"] = str(secret)
    stage.gateway.upstreams = {"up": {"hosts": [f"localhost:{stage.upstream.port}"], "tls": "none"},
                               **{name: {"hosts": [f"localhost:{port}" for port in ports], **common}
                                  for name, ports in hosts.items()}}
    stage.gateway.extra = "domain_route = (" + ",".join(
        f'{{ domain = "{name}.example"  route = "{name}" }}' for name in hosts) + ")"
    stage.gateway.stop()
    stage.gateway.start()


def delivery_times(stage, good, names):
    """One message for each of them, all at once; how long each took to be taken by the good host."""
    with good.lock:
        good.messages.clear()
    client, began = connect(stage), {}
    for name in names:
        began[name] = time.monotonic()
        client.sendmail(LOGIN, [f"bob@{name}.example"], message(name))
    client.quit()
    return {m.subject: m.taken - began[m.subject] for m in good.wait(len(names), 2 * FIRST_S)}


def words(times):
    return ", ".join(f"{name} {took:.2f} s" for name, took in times.items())


@alone
def test_the_next_host_gets_the_mail_soon(stage):
    """Whatever the first one does; and at once as long as it does so, also when its rests are over."""
    good, bad = good_host(stage), bad_hosts()
    try:
        routes(stage, {name: [host.port, good.port] for name, host in bad.items()}, idle_timeout="1s", **AUTHENTICATED)
        first = delivery_times(stage, good, bad)
        print(f"# the first time: {words(first)}")
        assert max(first.values()) < FIRST_S, first
        worst = dict.fromkeys(bad, 0.0)
        for _ in range(4):  # over some rests: 1, 2 and 4 s
            eventually(lambda: not good.open)  # what was kept has ended
            later = delivery_times(stage, good, bad)
            worst = {name: max(worst[name], later[name]) for name in bad}
        print(f"# then at most: {words(worst)}")
        assert max(worst.values()) < LATER_S, worst
        assert not stage.gateway.events("message.deferred")
        for name, host in bad.items():
            assert host.connections <= 5, f"{name}: {host.connections} connections are more than the first and a few probes"
        stage.gateway.wait_queue(0)
    finally:
        good.stop()
        for host in bad.values():
            host.close()


NO_MAIL = {"drops": {"MAIL": "DROP"}, "leaves": {"MAIL": "421 4.3.2 not now"}, "babbles": {"MAIL": "hello"},
           "auth-500": {"AUTH": "500 5.5.2 too long"}, "auth-503": {"AUTH": "503 5.5.1 not here"},
           "auth-554": {"AUTH": "554 5.3.0 out of order"}, "lost": {"MAIL": "503 5.5.1 EHLO first"},
           "hangs": {"MAIL": "HANG"}, "later": {"DATA": "DROP"}}


def test_a_host_that_serves_no_mail_makes_way(stage):
    """It takes connections and breaks off, or its answer to our login says nothing of the password."""
    good, bad = good_host(stage), {name: good_host(stage) for name in NO_MAIL}
    over = threading.Event()

    def answer(verb, answers):
        return None if answers.get(verb) == "HANG" and over.wait(60) else answers.get(verb)

    try:
        for name, host in bad.items():
            host.reply = lambda verb, _line, answers=NO_MAIL[name]: answer(verb, answers)
        began = time.monotonic()
        routes(stage, {name: [host.port, good.port] for name, host in bad.items()}, idle_timeout="1s", **AUTHENTICATED)
        first = delivery_times(stage, good, bad)
        print(f"# the first time: {words(first)}")
        assert max(first.values()) < FIRST_S, first
        assert {event["to"] for event in stage.gateway.events("message.deferred")} <= {"bob@later.example"}
        while time.monotonic() < began + 8:
            delivery_times(stage, good, bad)
        assert not stage.gateway.events("upstream.stopped")
        failures = collections.Counter(event["port"] for event in stage.gateway.events("upstream.failed"))
        rests = 2 + math.log2(time.monotonic() - began)  # each twice as long as the last
        for name, host in bad.items():
            assert failures[str(host.port)] <= rests, f"{name} has failed {failures[str(host.port)]} times"
        stage.gateway.wait_queue(0)
    finally:
        over.set()
        good.stop()
        for host in bad.values():
            host.stop()


def test_a_host_is_tried_before_it_is_blamed(stage):
    """The first of three took all the time that there was; the second has its own."""
    silent, second, third = Deaf(b""), Upstream(free_port()).start(), Upstream(free_port()).start()
    try:
        routes(stage, {"three": [silent.port, second.port, third.port]}, tls="none")
        assert delivery_times(stage, second, ["three"])["three"] < FIRST_S
        assert not third.messages
    finally:
        silent.close()
        second.stop()
        third.stop()


def test_one_login_that_hangs_holds_up_no_others(stage):
    """A balancer with one server that hangs: the next connection gets another one."""
    over, upstream = threading.Event(), Upstream(free_port(), logins={"us": "pw"})
    upstream.reply = lambda verb, _line: \
        over.wait(60) and None if verb == "AUTH" and sum(c.startswith("AUTH") for c in upstream.commands) == 1 else None
    try:
        upstream.start()
        routes(stage, {"balanced": [upstream.port]}, tls="none", **AUTHENTICATED)
        client = connect(stage)
        for i in range(20):
            client.sendmail(LOGIN, ["bob@balanced.example"], message(f"{i}"))
        client.quit()
        upstream.wait(20, FIRST_S)
        assert not stage.gateway.events("message.deferred")
    finally:
        over.set()
        upstream.stop()
    stage.gateway.wait_queue(0)


def crowd_of_messages(stage, name, count):
    client = connect(stage)
    for i in range(count):
        client.sendmail(LOGIN, [f"bob@{name}.example"], message(f"{i}"))
    client.quit()


def test_connections_that_take_one_message(stage):
    """It closes at the second MAIL: that is tried again at once, and not put off."""
    taken, upstream = threading.local(), Upstream(free_port())

    def reply(verb, _line):
        taken.count = 0 if verb == "CONNECT" else getattr(taken, "count", 0) + (verb == "MAIL")
        return "421 4.7.0 one is enough" if verb == "MAIL" and taken.count > 1 else None

    upstream.reply = reply
    try:
        upstream.start()
        routes(stage, {"one": [upstream.port]}, tls="none")
        crowd_of_messages(stage, "one", 60)
        upstream.wait(60)
        stage.gateway.wait_queue(0)
        assert len(deferred(stage)) <= 3
    finally:
        upstream.stop()


def test_an_upstream_that_has_enough_is_left_alone(stage):
    """It says so to each MAIL, or to each connection but two: it is not asked for every message again."""
    closing, busy = Upstream(free_port()), Upstream(free_port())
    closing.reply = lambda verb, _line: "421 4.7.0 come back later" if verb == "MAIL" else None
    busy.reply = lambda verb, _line: "421 4.7.0 two are enough" if verb == "CONNECT" and len(busy.open) > 2 else None
    try:
        closing.start()
        busy.start()
        began = time.monotonic()
        routes(stage, {"closing": [closing.port], "busy": [busy.port]}, tls="none")
        crowd_of_messages(stage, "closing", 50)
        crowd_of_messages(stage, "busy", 5)
        time.sleep(1.5)  # those that set out at first have been refused, and one probe
        before = closing.connections, busy.connections
        while time.monotonic() < began + 8:
            crowd_of_messages(stage, "busy", 5)
        rests = 1 + math.log2(time.monotonic() - began)
        assert closing.connections - before[0] <= rests, f"{closing.connections} connections to one that closes"
        assert busy.connections - before[1] <= rests, f"{busy.connections} connections to one that serves two"
        closing.reply = busy.reply = None
        stage.gateway.tool("queue", "retry", "all")
        stage.gateway.wait_queue(0)
    finally:
        closing.stop()
        busy.stop()


def test_an_upstream_that_is_back_gets_what_waited_for_another(stage):
    """One recipient's is down, the other's takes its time: back meanwhile, the first gets its part."""
    answer, back, slow = threading.Event(), Upstream(free_port()), Upstream(free_port())
    slow.reply = lambda verb, _line: answer.wait(60) and None if verb == "DOT" else None
    try:
        slow.start()
        stage.gateway.retry = {"first": "1h", "max": "2h"}
        routes(stage, {"back": [back.port], "slow": [slow.port]}, tls="none")
        client = connect(stage)
        client.sendmail(LOGIN, ["bob@back.example", "bob@slow.example"], message("both"))
        client.quit()
        stage.gateway.wait_event("upstream.failed")
        back.start()
        time.sleep(1.5)  # its rest ends, and nothing is there that could go
        answer.set()
        back.wait(1, FIRST_S)
        stage.gateway.wait_queue(0)
    finally:
        answer.set()
        back.stop()
        slow.stop()


def test_a_login_that_one_host_refuses(stage):
    """Another has accepted it: the first is as one that does not serve, also while the other is away."""
    good, bad = Upstream(free_port(), logins={"us": "pw"}).start(), Upstream(free_port(), logins={"us": "other"})
    try:
        routes(stage, {"both": [bad.port, good.port]}, tls="none", idle_timeout="1s", **AUTHENTICATED)
        assert "both" in delivery_times(stage, good, ["both"])
        good.stop()
        bad.start()
        client = connect(stage)
        client.sendmail(LOGIN, ["bob@both.example"], message("later"))
        client.quit()
        eventually(lambda: any(c.startswith("AUTH") for c in bad.commands))
        good.start()
        assert good.wait(2, 30)[1].subject == "later"
        assert not stage.gateway.events("upstream.stopped")
    finally:
        good.stop()
        bad.stop()
    stage.gateway.wait_queue(0)


def test_a_login_that_every_host_refuses(stage):
    """Told once to each at most, also where probes find all of them back in one moment."""
    hosts = [Upstream(free_port(), logins={"us": "other"}) for _ in range(4)]
    for host in hosts:
        host.reply = lambda verb, _line: time.sleep(0.3) if verb == "AUTH" else None
    try:
        routes(stage, {"four": [host.port for host in hosts]}, tls="none", **AUTHENTICATED)
        client = connect(stage)
        client.sendmail(LOGIN, ["bob@four.example"], message("before"))
        stage.gateway.wait_event("message.deferred")
        for host in hosts:
            host.start()
        client.sendmail(LOGIN, ["bob@four.example"], message("after"))
        client.quit()
        stage.gateway.wait_event("upstream.stopped")
        assert sum(c.startswith("AUTH") for host in hosts for c in host.commands) == 1
        for host in hosts:
            host.logins["us"] = "pw"
        stage.gateway.tool("queue", "retry", "all")
        stage.gateway.wait_queue(0)
    finally:
        for host in hosts:
            host.stop()


def test_a_host_that_is_back_gets_mail_again(stage):
    """A probe finds it, without mail; and the other host had all of it meanwhile."""
    good, first = good_host(stage), good_host(stage)
    first.stop()
    try:
        routes(stage, {"both": [first.port, good.port]}, idle_timeout="1s", **AUTHENTICATED)
        delivery_times(stage, good, ["both"])
        first.start()
        until = time.monotonic() + 20
        while not first.messages:
            assert time.monotonic() < until, "nothing came to the first host"
            client = connect(stage)
            client.sendmail(LOGIN, ["bob@both.example"], message("again"))
            client.quit()
            time.sleep(0.3)
        assert not stage.gateway.events("message.deferred")
        stage.gateway.wait_queue(0)
    finally:
        good.stop()
        first.stop()


def test_an_upstream_that_hangs_keeps_mail_from_no_other(stage):
    """Each of its connections waits for the answer to a final dot, and more mail waits for those."""
    answer = threading.Event()
    hanging = Upstream(free_port())
    hanging.reply = lambda verb, line: answer.wait(2 * FIRST_S) and None if verb == "DOT" else None
    try:
        hanging.start()
        routes(stage, {"hangs": [hanging.port]}, tls="none", connections=20)
        stage.gateway.upstreams["up"]["connections"] = 1
        stage.gateway.stop()
        stage.gateway.start()
        client = connect(stage)
        for i in range(100):
            client.sendmail(LOGIN, ["bob@hangs.example"], message(f"{i}"))
        eventually(lambda: len(hanging.open) == 20)
        began = time.monotonic()
        client.sendmail(LOGIN, ["bob@example.net"], message("past them"))
        client.quit()
        stage.upstream.take(FIRST_S)
        print(f"# past them after {time.monotonic() - began:.2f} s")
        answer.set()
        hanging.wait(100)
        stage.gateway.wait_queue(0)
    finally:
        answer.set()
        hanging.stop()


def queued_for(stage, recipients):
    """The line of the tool about the message that has so many."""
    return next(line for line in stage.gateway.tool("queue", "list").splitlines() if f"/{recipients} attempts" in line)


def deferred(stage):
    return {event["qid"] for event in stage.gateway.events("message.deferred")}


def test_what_is_held_costs_nothing_while_the_upstream_comes_and_goes(stage):
    """It takes a few and goes; the others are not loaded each time for being told so, and leave when it stays."""
    comes = Upstream(free_port())
    try:
        stage.gateway.retry = {"first": "1h", "max": "2h"}
        routes(stage, {"comes": [comes.port]}, tls="none", connections=1)
        client = connect(stage)
        for i in range(100):
            client.sendmail(LOGIN, ["bob@comes.example"], message(f"{i}"))
        client.quit()
        eventually(lambda: stage.gateway.tool("queue", "list").count("state=waiting") == 100)
        for _ in range(3):
            before, taken = len(stage.gateway.events("message.deferred")), len(comes.messages)
            comes.reply = lambda verb, _line, end=taken + 3: \
                "421 4.3.2 not now" if len(comes.messages) >= end and verb in ("CONNECT", "MAIL") else None
            comes.start()
            eventually(lambda end=taken + 3: len(comes.messages) >= end, 90)
            stage.gateway.wait_event("upstream.failed", why="the upstream does not serve: 421 4.3.2 not now")
            comes.stop()
            assert len(stage.gateway.events("message.deferred")) - before <= 10
        comes.reply = None
        comes.start()
        comes.wait(100, 90)
        stage.gateway.wait_queue(0)
    finally:
        comes.stop()


def test_what_waits_for_two_upstreams_leaves_by_one(stage):
    """One is stopped, the other busy: the part for that one leaves when it is free."""
    answer = threading.Event()
    stopped, busy = Upstream(free_port()), Upstream(free_port())
    stopped.reply = lambda verb, _line: "530 5.7.0 log in first" if verb == "MAIL" else None
    busy.reply = lambda verb, _line: answer.wait(60) and None if verb == "DOT" else None
    try:
        stopped.start()
        busy.start()
        routes(stage, {"stopped": [stopped.port], "busy": [busy.port]}, tls="none", connections=1)
        client = connect(stage)
        client.sendmail(LOGIN, ["bob@stopped.example"], message("stops"))
        stage.gateway.wait_event("upstream.stopped")
        for i in range(4):  # one is being sent, two wait loaded, one is held
            client.sendmail(LOGIN, ["bob@busy.example"], message(f"{i}"))
        client.sendmail(LOGIN, ["bob@stopped.example", "bob@busy.example"], message("both"))
        client.quit()
        eventually(lambda: "state=waiting" in queued_for(stage, 2))
        answer.set()
        assert {m.subject for m in busy.wait(5)} == {"0", "1", "2", "3", "both"}
        eventually(lambda: "state=upstream-stopped" in queued_for(stage, 2))
        stopped.reply = None
        stage.gateway.tool("queue", "retry", "all")
        stopped.wait(2)
        stage.gateway.wait_queue(0)
    finally:
        answer.set()
        stopped.stop()
        busy.stop()


def test_who_waits_for_a_busy_upstream_is_told(stage):
    """Its only connection is busy for good: what waits for that is delayed, and given up, like other mail."""
    answer = threading.Event()
    hanging = Upstream(free_port())
    hanging.reply = lambda verb, line: answer.wait(60) and None if verb == "DOT" else None
    try:
        hanging.start()
        stage.gateway.make_clock()
        routes(stage, {"hangs": [hanging.port]}, tls="none", connections=1)
        client = connect(stage)
        for i in range(10):
            client.sendmail(LOGIN, ["bob@hangs.example"], message(f"{i}"))
        client.quit()
        eventually(lambda: len(deferred(stage)) == 7)  # one is being sent, two wait loaded
        stage.gateway.set_clock(5 * 3600)
        stage.gateway.wait_event("message.delayed", count=7)
        assert not stage.gateway.events("message.bounced")
        stage.gateway.set_clock(5 * 24 * 3600 + 60)
        stage.gateway.wait_event("message.bounced", count=7)
        answer.set()
        stage.gateway.wait_queue(0)
    finally:
        answer.set()
        hanging.stop()


def test_a_reload_waits_for_no_former_host(stage):
    """The only connection is in mid-message with a host that hangs; the next message goes to the new host."""
    answer = threading.Event()
    former, fresh = Upstream(free_port()), Upstream(free_port())
    former.reply = lambda verb, line: answer.wait(60) and None if verb == "DOT" else None
    try:
        former.start()
        fresh.start()
        routes(stage, {"moves": [former.port]}, tls="none", connections=1)
        client = connect(stage)
        client.sendmail(LOGIN, ["bob@moves.example"], message("before"))
        eventually(lambda: "DATA" in former.commands)
        stage.gateway.upstreams["moves"]["hosts"] = [f"localhost:{fresh.port}"]
        stage.gateway.write_conf()
        stage.gateway.process.send_signal(signal.SIGHUP)
        stage.gateway.wait_event("reloaded", child="relay")
        client.sendmail(LOGIN, ["bob@moves.example"], message("after"))
        client.quit()
        assert fresh.take(FIRST_S).subject == "after"
        answer.set()
        assert former.take(FIRST_S).subject == "before"
        stage.gateway.wait_queue(0)
    finally:
        answer.set()
        former.stop()
        fresh.stop()

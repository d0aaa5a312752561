# SPDX-License-Identifier: ISC
"""Two gateways with one database, 50 sessions of one account at the edge of a limit: exactly the amount passes."""
import random
import re
import threading
from types import SimpleNamespace

from client import Bare
from environment import eventually
from gateway import Gateway
from test_refusals import plain

RUNS = 20
SESSIONS = 50
MESSAGES = 10  # of each session
AMOUNT = 250
REFUSAL = re.compile(rf"450 4\.7\.1 limit messages/day reached: (\d+) of {AMOUNT}, next at \S+")


class Crowd:
    """The sessions of one run, and what they were told."""

    def __init__(self, gateways, login, refunds):
        self.login, self.refunds = login, refunds
        self.lock = threading.Lock()
        self.accepted = self.given_back = 0
        self.refusals, self.odd = [], []
        self.start = threading.Barrier(SESSIONS)
        threads = [threading.Thread(target=self.run, args=(gateways[n % 2], random.Random(f"{login} {n}")))
                   for n in range(SESSIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "a client hangs"

    def run(self, gateway, chance):
        try:
            bare = self.connect(gateway)
            self.start.wait(60)
            for _ in range(MESSAGES):
                end = chance.choice(("gone", "refused", "taken", "taken")) if self.refunds else "taken"
                bare = self.message(bare, gateway, end)
            bare.close()
        except Exception as error:
            self.start.abort()
            with self.lock:
                self.odd.append(repr(error))

    def connect(self, gateway):
        bare = Bare(SimpleNamespace(gateway=gateway), tls=True, timeout=60)
        bare.reply()
        bare.ask("EHLO client.test")
        assert bare.ask(plain(self.login, "pw")).startswith("235")
        return bare

    def message(self, bare, gateway, end):
        """The session to go on with."""
        bare.ask(f"MAIL FROM:<{self.login}>")
        bare.ask("RCPT TO:<bob@example.net>")
        reply = bare.ask("DATA")
        if not reply.startswith("354"):
            with self.lock:
                (self.refusals if REFUSAL.fullmatch(reply) else self.odd).append(reply)
            bare.ask("RSET")
            return bare
        if end == "gone":
            bare.send(f"From: <{self.login}>\r\n\r\nHel")
            bare.close()
            with self.lock:
                self.given_back += 1
            return self.connect(gateway)
        sender = self.login if end == "taken" else "mallory@example.net"
        reply = bare.ask(f"From: <{sender}>\r\n\r\nHello\r\n.")
        with self.lock:
            if reply.startswith("250 2.0.0 queued as"):
                self.accepted += 1
            elif end == "refused" and reply.startswith("550 5.7.1"):
                self.given_back += 1
            else:
                self.odd.append(reply)
        return bare


def used(cluster, login):
    return int(cluster.sql(f"select coalesce(sum(used), 0) from postern.usage('{login}')"))


def one_run(stage, gateways, number):
    login = f"edge-{number}@example.org"
    refunds = number % 4 == 3
    stage.account(login, "pw")
    stage.cluster.sql(f"select postern.limit_set('{login}', 'messages', '1 day', {AMOUNT})")
    crowd = Crowd(gateways, login, refunds)
    assert not crowd.odd, crowd.odd[:5]
    if refunds:
        # What was given back may have come too late for somebody: the rest passes now, and no more.
        assert crowd.given_back > 0 and crowd.accepted <= AMOUNT
        eventually(lambda: used(stage.cluster, login) == crowd.accepted)
        bare = crowd.connect(gateways[number % 8 // 4])
        for _ in range(AMOUNT - crowd.accepted + 1):
            crowd.message(bare, None, "taken")
        bare.close()
        assert not crowd.odd, crowd.odd[:5]
    else:
        assert len(crowd.refusals) == SESSIONS * MESSAGES - AMOUNT
    assert crowd.accepted == used(stage.cluster, login) == AMOUNT, (crowd.accepted, used(stage.cluster, login))
    assert {REFUSAL.fullmatch(crowd.refusals[-1])[1]} == {str(AMOUNT)}
    return crowd.accepted


def test_exactly_the_amount_passes_on_two_gateways(stage):
    other = Gateway(stage.folder / "gw2", stage.cluster, stage.certificate, stage.key, stage.upstream.port)
    other.start()
    try:
        accepted = sum(one_run(stage, (stage.gateway, other), number) for number in range(RUNS))
        stage.upstream.wait(accepted, 60)
        other.wait_queue(0)
    finally:
        other.stop()
    assert accepted == RUNS * AMOUNT == len(stage.upstream.messages)

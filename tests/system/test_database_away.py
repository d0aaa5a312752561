# SPDX-License-Identifier: ISC
"""The database stops, hangs, is restarted, while clients log in and send."""
import time

from client import another_address
from environment import eventually
from load import Load
from test_refusals import plain, session

LANES = 4  # of `auth`
NO_LOGIN = "454 4.7.0 Cannot check logins now, try again later"
NO_CHARGE = ("DATA", "451 4.3.0 Temporary failure, try again later")
REFUSALS = {("AUTH", NO_LOGIN), NO_CHARGE}
REPLY_IN = 3  # seconds


def make_slow_account(stage):
    """A PBKDF2 that keeps a lane busy, so that the next login takes another one."""
    stage.cluster.sql("select postern.account_create('busy@example.org', 'SCRAM-SHA-256$65536:' || repeat('A', 22)"
                      " || '==$' || repeat('A', 43) || '=:' || repeat('A', 43) || '=')"
                      " where not exists (select from postern.account where login = 'busy@example.org')")


def all_lanes_ask(stage, since):
    guessers = [session(stage, login=False, source=another_address()) for _ in range(12)]
    for guesser in guessers:
        guesser.send(plain("busy@example.org", "guess") + "\r\n")
    answers = [guesser.reply() for guesser in guessers]
    for guesser in guessers:
        guesser.close()
    asked = stage.cluster.sql("select count(*) from pg_stat_activity where usename = 'postern_auth'"
                              f" and query !~ '^LISTEN|credentials_used' and state_change > to_timestamp({since})")
    return asked == str(LANES) and all(answer.startswith("535") for answer in answers)


def passes(load, seconds=1.5):
    """Messages a second."""
    before = load.acknowledged
    time.sleep(seconds)
    return (load.acknowledged - before) / seconds


def pids(stage):
    return {"posternd": stage.gateway.process.pid, **stage.gateway.children()}


def judge(stage, load, before):
    """Nothing lost, nobody sent away but for now and soon, no process of ours the worse for it."""
    load.close_books()
    slowest = max(load.replies, key=lambda reply: reply.took)
    refusals = {(reply.verb, reply.text) for reply in load.not_successes()}
    print(f"# {load.acknowledged} messages, {len(load.not_successes())} refusals; slowest {slowest}", flush=True)
    # Who is not known any more for sure is told so at MAIL.
    assert refusals <= REFUSALS | {("MAIL", "451 4.3.0 Temporary failure, try again later")}, refusals
    assert slowest.took < REPLY_IN, slowest
    assert not load.lost_connections and not load.twice()
    assert pids(stage) == before


def while_it_is_away(stage, name, begin, end):
    make_slow_account(stage)
    running = pids(stage)
    with Load(stage, clients=12, kept=4, lines=100, name=name) as load:
        load.wait_acknowledged(20)
        before = passes(load)
        began = time.monotonic()
        begin()
        try:
            # For long enough that it was tried again.
            eventually(lambda: time.monotonic() > began + 5
                       and NO_CHARGE in {(reply.verb, reply.text) for reply in load.not_successes()}, 20)
            # The passwords of the load are remembered.
            bare = session(stage, login=False)
            assert bare.ask(plain(password="never seen")) == NO_LOGIN
            bare.close()
        finally:
            since = time.time()
            end()
        back = time.monotonic()
        load.wait_acknowledged(20, 10)
        took = time.monotonic() - back
        eventually(lambda: all_lanes_ask(stage, since), 20)
        after = passes(load)
    print(f"# {name} for {back - began:.1f} s: {before:.0f} messages a second before, {after:.0f} after; {took:.1f} s"
          " until it accepted")
    judge(stage, load, running)
    assert after > before / 3


def test_it_stops(stage):
    while_it_is_away(stage, "stopped", stage.cluster.stop, stage.cluster.start)


def test_it_hangs(stage):
    while_it_is_away(stage, "hung", lambda: stage.cluster.freeze(True), lambda: stage.cluster.freeze(False))


def test_it_is_restarted(stage):
    running = pids(stage)
    with Load(stage, clients=12, kept=4, lines=100, name="restarted") as load:
        for _ in range(3):
            load.wait_acknowledged(20, 10)
            stage.cluster.stop("immediate")
            stage.cluster.start()
        load.wait_acknowledged(20, 10)
    judge(stage, load, running)

# SPDX-License-Identifier: ISC
"""kill -9 of any process, and of all, at random moments while clients send and the upstream takes.

POSTERN_KILLS is how often (200), POSTERN_KILLS_SEED which victims and moments.
"""
import collections
import os
import random
import signal
import time

from environment import eventually
from load import Load

KILLS = int(os.environ.get("POSTERN_KILLS", "200"))
SEED = int(os.environ.get("POSTERN_KILLS_SEED", str(time.time_ns() % 1000000)))
CONNECTIONS = 4  # to the upstream: few, so that each carries one message after the other
RECORDED_IN = 1.0  # seconds; an answer that the gateway had for so long is written down


class Mood:
    """How the upstream is just now."""

    def __init__(self, chance):
        self.chance = chance
        self.now = "quick"

    def change(self):
        self.now = self.chance.choice(("quick", "slow", "slow", "away"))

    def reply(self, verb, _line):
        if self.now == "away" and verb in ("CONNECT", "MAIL"):
            return "421 4.3.2 not now"
        if self.now == "slow" and verb == "DOT":
            time.sleep(random.random() * 0.2)  # of many threads: not from the seed
        return None


def choose_moment(upstream, chance):
    """Any; every other time that at which the upstream has just got a message, and not yet answered."""
    if chance.random() < 0.5:
        time.sleep(chance.random() * 0.05)
    else:
        with upstream.lock:
            upstream.lock.wait(0.05)


def kill(gateway, victim, pid):
    """kill -9; returns when that was."""
    if victim == "all":
        gateway.kill_all()
    elif victim == "posternd":
        gateway.kill()
    else:
        os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def start_again(gateway, victim, before, wait):
    if victim in ("all", "posternd"):
        gateway.start(wait)
    else:
        eventually(lambda: gateway.children().get(victim, before) != before)


def excused(copy, last_of, relay_killed):
    """
    Whether the gateway may not know that the upstream has this copy: its final dot was the last on the
    connection, and the process that asks was killed before it had the answer for long.
    """
    killed = next((at for at in relay_killed if at > copy.opened), None)
    return copy is last_of[copy.connection] and killed is not None and (
        not copy.answered or killed < copy.answered + RECORDED_IN)


def judge_twice(load, relay_killed):
    """Duplicates; any that the gateway could have known of is an error."""
    last_of, twice = {}, 0
    for sent in load.sent.values():
        for copy in sent.copies:
            before = last_of.get(copy.connection)
            last_of[copy.connection] = copy if before is None or copy.taken > before.taken else before
    for subject, copies in load.twice().items():
        twice += len(copies) - 1
        earlier = sorted(copies, key=lambda copy: copy.taken)[:-1]
        known = [copy for copy in earlier if not excused(copy, last_of, relay_killed)]
        assert not known, f"{subject} came {len(copies)} times, known were {known}; relay killed at {relay_killed}"
    return twice


def test_nothing_is_lost(stage):
    print(f"# POSTERN_KILLS={KILLS} POSTERN_KILLS_SEED={SEED}", flush=True)
    gateway, chance = stage.gateway, random.Random(SEED)
    mood, relay_killed = Mood(chance), []
    killed, lately = collections.Counter(), collections.Counter()
    stage.upstream.reply = mood.reply
    gateway.upstreams["up"]["connections"] = CONNECTIONS
    gateway.stop()
    gateway.start()
    with Load(stage, name="kill", seed=SEED) as load:
        for number in range(KILLS):
            if number % 5 == 0:
                mood.change()
            # Mostly a gateway that works again; else one that is just starting.
            works = chance.random() < 0.8
            if works:
                load.wait_acknowledged(chance.randint(1, 5))
            choose_moment(stage.upstream, chance)
            running = gateway.children()
            victim = chance.choice([*sorted(running), "posternd", "all"])
            if lately[victim] == 3:
                victim = "posternd"  # a new one starts its children without a rest
            at = kill(gateway, victim, running.get(victim))
            killed[victim] += 1
            lately[victim] += 1
            if victim in ("posternd", "all"):
                lately.clear()
            if victim in ("relay", "all"):
                relay_killed.append(at)
            start_again(gateway, victim, running.get(victim), works)
            load.collect()
            # Now and then all must come: else the queue grows, and a `relay` only reads it until it is killed.
            if number % 50 == 49:
                mood.now = "quick"
                load.pause()
                gateway.wait_event("ready")
                gateway.tool("queue", "retry", "all")
                load.wait_all()
                load.pause(False)
    load.close_books()
    twice = judge_twice(load, relay_killed)
    came = sum(1 for sent in load.sent.values() if sent.copies)
    print(f"# {KILLS} kills ({', '.join(f'{n} of {v}' for v, n in sorted(killed.items()))}): {load.acknowledged} messages"
          f" acknowledged, 0 lost, {twice} twice; {came - load.acknowledged} came whose answer was lost")

# SPDX-License-Identifier: ISC
"""Rate limits: the windows against a model that counts one by one, and many clients at once."""
import contextlib
import random
import smtplib
import subprocess
import threading
import time

from client import connect, message
from environment import eventually

SECOND = 1000000
MEASURES = ("messages", "recipients", "bytes")


@contextlib.contextmanager
def schema(stage, name):
    """A database of its own with the schema; its windows go by the clock that `set t.now` sets."""
    with stage.database(name) as cluster:
        stage.gateway.tool("database", "migrate")
        cluster.sql("""
            create or replace function postern.now_us() returns bigint language sql volatile
                as $$ select current_setting('t.now')::bigint $$;
            select postern.account_create('a')""")
        yield cluster


def admit(now, charge):
    return (f"select set_config('t.now', '{now}', false) = ''; select 'A', verdict, charged_at, measure, per_text, used, amount,"
            " extract(epoch from next_at)::bigint from postern.admit((select array_agg(id) from postern.account),"
            f" array[{charge[0]}], array[{charge[1]}], array[{charge[2]}]::bigint[]);")


def settle(charged_at, refund):
    return (f"select 'S', postern.settle((select array_agg(id) from postern.account), array[{charged_at}],"
            f" array[{refund[0]}], array[{refund[1]}], array[{refund[2]}]::bigint[]);")


def usage(now):
    return (f"select set_config('t.now', '{now}', false) = ''; select 'U', measure, per, used, amount,"
            " extract(epoch from next_at)::bigint from postern.usage('a');")


def lines_of(cluster, script):
    lines = cluster.sql("\n".join(script)).splitlines()
    return [line.split("|") for line in lines if line.startswith(("A|", "S|", "U|"))]


def answers(cluster, script):
    return [fields for fields in lines_of(cluster, script) if fields[1] != "warning"]


class Model:
    """Every window as a dictionary from slot to count."""

    def __init__(self, limits):
        self.limits = limits  # (measure, per in microseconds) -> amount
        self.counts = {key: {} for key in limits}
        self.newest = {}

    def admit(self, now, charge):
        """("ok", {(measure, used, amount)} that came to 80 %), ("never",), or ("limit", {(measure, used, amount)}, when in seconds)."""
        never, ends = False, []
        for (measure, per), amount in self.limits.items():
            extra, slot, window = charge[MEASURES.index(measure)], 12 * now // per, self.window(measure, per, now)
            if extra > amount:
                never = True
            elif extra and sum(window) + extra > amount:
                left = next(k for k in range(13) if sum(window[k + 1:]) + extra <= amount)
                ends.append((-(-(slot + 1 + left) * per // (12 * SECOND)), (measure, str(sum(window)), str(amount))))
        if never:
            return ("never",)
        if ends:
            when = max(ends)[0]
            return "limit", {named for end, named in ends if end == when}, str(when)
        warnings = set()
        for (measure, per), amount in self.limits.items():
            extra, slot, counts = charge[MEASURES.index(measure)], 12 * now // per, self.counts[measure, per]
            before = sum(self.window(measure, per, now))
            if before < 0.8 * amount <= before + extra:
                warnings.add((measure, str(before + extra), str(amount)))
            counts[slot] = counts.get(slot, 0) + extra
            self.newest[measure, per] = slot
        return "ok", warnings

    def window(self, measure, per, now):
        """Its counters, the oldest first."""
        slot = 12 * now // per
        return [self.counts[measure, per].get(s, 0) for s in range(slot - 12, slot + 1)]

    def usage(self, now):
        """Used, amount, and when a full window has room for one more."""
        found = []
        for (measure, per), amount in self.limits.items():
            window, slot, next_at = self.window(measure, per, now), 12 * now // per, ""
            if sum(window) >= amount:
                left = next(k for k in range(13) if sum(window[k + 1:]) < amount)
                next_at = str(-(-(slot + 1 + left) * per // (12 * SECOND)))
            found.append((measure, str(sum(window)), str(amount), next_at))
        return found

    def settle(self, charged_at, refund):
        for (measure, per), newest in self.newest.items():
            slot, counts = 12 * charged_at // per, self.counts[measure, per]
            if newest - 12 <= slot <= newest:
                counts[slot] = max(counts.get(slot, 0) - refund[MEASURES.index(measure)], 0)


def one_story(cluster, chance):
    limits = {}
    for _ in range(chance.randint(1, 3)):
        per = chance.choice((12 * SECOND, 13 * SECOND, 12 * SECOND + 1, 97 * SECOND, 3600 * SECOND, 86400 * SECOND))
        limits[chance.choice(MEASURES), per] = chance.randint(1, 20)
    pers = [per for _, per in limits]
    script = ["delete from postern.rate_state; delete from postern.rate_limit;"]
    script += [f"select postern.limit_set('a', '{m}', '{p} microseconds', {amount});" for (m, p), amount in limits.items()]
    now, steps, charges = chance.randint(10**15, 2 * 10**15), [], []
    for _ in range(60):
        now += chance.choice((0, 1, min(pers) // 12, chance.randint(0, min(pers)), chance.randint(0, max(pers))))
        if charges and chance.random() < 0.2:
            charged_at, charge = charges.pop(chance.randrange(len(charges)))
            steps.append(("settle", charged_at, [chance.randint(0, c) for c in charge]))
            script.append(settle(*steps[-1][1:]))
        else:
            steps.append(("admit", now, (1, chance.randint(1, 5), chance.choice((0, chance.randint(1, 8), 25)))))
            charges.append(steps[-1][1:])
            script.append(admit(*steps[-1][1:]))
        steps.append(("usage", now, None))
        script.append(usage(now))
    model, got = Model(limits), lines_of(cluster, script)
    for kind, at, values in steps:
        if kind == "settle":
            model.settle(at, values)
            got.pop(0)
            continue
        if kind == "usage":
            told, got = got[:len(limits)], got[len(limits):]
            assert sorted((f[1], *f[3:]) for f in told) == sorted(model.usage(at)), (limits, at, told, model.usage(at))
            continue
        wanted = model.admit(at, values)
        warnings = set()
        while got[0][1] == "warning":
            warned = got.pop(0)
            warnings.add((warned[3], warned[5], warned[6]))
        fields = got.pop(0)
        assert fields[1] == wanted[0], (limits, at, values, wanted, fields)
        assert not warnings or wanted[0] == "ok"
        if wanted[0] == "ok":
            assert fields[2] == str(at) and warnings == wanted[1], (limits, at, values, wanted, warnings)
        elif wanted[0] == "limit":
            assert (fields[3], fields[5], fields[6]) in wanted[1] and fields[7] == wanted[2], (limits, at, wanted, fields)
    assert not got
    assert cluster.sql("select bool_and(until_us = 0 or sums = array(select sum(c)::bigint from unnest(counts) with ordinality u(c, n)"
                       " group by (n - 1) / 13 order by (n - 1) / 13)) is not false from postern.rate_state") == "t"


def test_the_windows_against_a_model(stage):
    with schema(stage, "model") as cluster:
        for seed in range(40):
            one_story(cluster, random.Random(seed))


def test_a_clock_that_was_set_back(stage):
    """What was used keeps its age; a short window does not wait for a long one's slot."""
    with schema(stage, "set_back") as cluster:
        cluster.sql("select postern.limit_set('a', 'bytes', '1 day', 1000), postern.limit_set('a', 'messages', '1 minute', 2)")
        now, verdicts = 1800000000 * SECOND, []
        back = now - 3600 * SECOND
        for at in (now, now, now + SECOND, back, back + 30 * SECOND, back + 66 * SECOND, back + 66 * SECOND,
                   back + 67 * SECOND):
            verdicts.append(admit(at, (1, 1, 1)))
        assert [fields[1] for fields in answers(cluster, verdicts)] == [
            "ok", "ok", "limit", "limit", "limit", "ok", "ok", "limit"]


def test_what_was_not_counted_is_not_given_back(stage):
    with schema(stage, "uncounted") as cluster:
        script = ["select postern.limit_set('a', 'messages', '1 hour', 2);"]
        now = 1800000000 * SECOND
        script += [admit(now, (1, 1, 0)), admit(now, (1, 1, 0)), "select postern.limit_set('a', 'messages', '1 hour', null);",
                   admit(now, (1, 1, 0))]
        uncounted = answers(cluster, script)[-1][2]
        got = answers(cluster, [settle(uncounted, (1, 1, 0)), "select postern.limit_set('a', 'messages', '1 hour', 2);",
                                admit(now, (1, 1, 0))])
        assert got[-1][1] == "limit", got


def test_many_at_once_get_exactly_what_is_allowed(stage):
    """Batches in the order of accounts and against it, from eight connections: no deadlock, no miscount."""
    cluster = stage.cluster
    logins = [f"crowd-{i}@example.org" for i in range(4)]
    for login in logins:
        cluster.sql(f"select postern.account_create('{login}'), postern.limit_set('{login}', 'messages', '1 day', 100)")
    ids = cluster.sql("select id from postern.account where login like 'crowd-%' order by id").split()
    processes = []
    for number in range(8):
        order = ids if number % 2 else ids[::-1]
        one = ("select verdict from postern.admit(array[" + ",".join(order) + "], array[1,1,1,1], array[1,1,1,1],"
               " array[0,0,0,0]::bigint[]);\n")
        processes.append(subprocess.Popen(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", cluster.database],
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=cluster.environment))
        processes[-1].stdin.write((one * 40).encode())
        processes[-1].stdin.close()
    verdicts = [line for process in processes for line in process.stdout.read().decode().split()]
    assert all(process.wait(60) == 0 for process in processes)
    assert verdicts.count("ok") == 400 and verdicts.count("limit") == 8 * 40 * 4 - 400, verdicts
    assert cluster.sql("select distinct used from postern.usage_overview where login like 'crowd-%'") == "100"


def test_many_sessions_of_one_account(stage):
    login, password = stage.account("parallel@example.org", "secret-5")
    stage.cluster.sql(f"select postern.limit_set('{login}', 'messages', '1 hour', 25)")
    results, lock = [], threading.Lock()

    def one():
        client = connect(stage, login, password)
        for _ in range(5):
            try:
                client.sendmail(login, ["bob@example.net"], message(sender=login))
                code = 250
            except smtplib.SMTPDataError as error:
                code = error.smtp_code
            with lock:
                results.append(code)
        client.quit()

    threads = [threading.Thread(target=one) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [250] * 25 + [450] * 25, results
    stage.upstream.wait(25)


def test_a_held_row_holds_up_nobody_else(stage):
    for name in ("held", "free"):
        stage.account(f"{name}@example.org", "pw")
        stage.cluster.sql(f"select postern.limit_set('{name}@example.org', 'messages', '1 hour', 1000)")

    def send(name):
        client = connect(stage, f"{name}@example.org", "pw")
        began = time.monotonic()
        try:
            client.sendmail(f"{name}@example.org", ["bob@example.net"], message(name, sender=f"{name}@example.org"))
            code = 250
        except smtplib.SMTPDataError as error:
            code = error.smtp_code
        client.close()
        return code, time.monotonic() - began

    assert send("held")[0] == send("free")[0] == 250
    holder = threading.Thread(target=stage.cluster.sql, args=("""
        begin; select 'locked' from postern.rate_state where account = postern.account_id('held@example.org') for update;
        select pg_sleep(4); commit""",))
    holder.start()
    eventually(lambda: int(stage.cluster.sql("select count(*) from pg_stat_activity where query like '%pg_sleep(4)%'")) > 1)
    answers = []
    waiting = [threading.Thread(target=lambda: answers.append(send("held"))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    for _ in range(10):
        code, seconds = send("free")
        assert code == 250 and seconds < 2, (code, seconds)
    for thread in [*waiting, holder]:
        thread.join(30)
    assert [code for code, _ in answers] == [451] * 3, answers
    assert send("held")[0] == 250

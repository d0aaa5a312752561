# SPDX-License-Identifier: ISC
"""Who guesses passwords: every form of AUTH, what guessing costs, and what it does not tell."""
import base64
import concurrent.futures
import contextlib
import itertools
import json
import math
import os
import signal
import statistics
import threading
import time
import warnings

from client import another_address, bare_session, scram_proof
from stage import alone
from test_refusals import LOGIN, PASSWORD, plain

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import crypt

REFUSED, MALFORMED = "535 5.7.8 Authentication failed", "501 5.5.2 Cannot decode that"
SLOWED, LAST = "454 4.7.0 Too many wrong passwords, try again later", "421 4.7.0 Too many failed logins"
CROWD = 60  # from as many addresses
PAIRS = int(os.environ.get("POSTERN_PAIRS", 40))


def b64(text):
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def session(stage, source=None):
    """From an address that nobody has guessed from."""
    return bare_session(stage, source or another_address())


def by_plain(stage, login, password, source=None):
    with session(stage, source) as bare:
        return bare.ask(plain(login, password))


# ---- every form ----

ALICE, LONGEST = LOGIN.encode(), b"x" * 254
FIRST = b"n,,n=alice@example.org,r=abc"

# A mechanism, its responses (None: none with AUTH), the last answer, the reason in the log.
FORMS = [
    ("PLAIN", [b"\0" + ALICE + b"\0secret-1"], "235", None),
    ("PLAIN", [None, b"\0" + ALICE + b"\0secret-1"], "235", None),
    ("PLAIN", [ALICE + b"\0" + ALICE + b"\0secret-1"], "235", None),
    ("PLAIN", [b"ALICE@example.org\0" + ALICE + b"\0secret-1"], "235", None),
    ("PLAIN", [b"\0" + ALICE + b"\0wrong"], REFUSED, "bad_password"),
    ("PLAIN", [b"bob@example.org\0" + ALICE + b"\0secret-1"], REFUSED, "authzid"),
    ("PLAIN", [b"root\0" + ALICE + b"\0secret-1"], REFUSED, "authzid"),
    ("PLAIN", [b"\0" + ALICE + b" \0secret-1"], REFUSED, "malformed_login"),
    ("PLAIN", [b"\0 " + ALICE + b"\0secret-1"], REFUSED, "malformed_login"),
    ("PLAIN", [b"\0*\0secret-1"], REFUSED, "unknown_user"),
    ("PLAIN", [b"\0alice%\0secret-1"], REFUSED, "unknown_user"),
    ("PLAIN", [b"\0" + LONGEST + b"\0secret-1"], REFUSED, "unknown_user"),
    ("PLAIN", [b"\0" + ALICE + b"\0" + b"x" * 1024], REFUSED, "bad_password"),
    ("PLAIN", [b"\0" + ALICE + b"\0secret-1\n"], REFUSED, "bad_password"),
    ("PLAIN", [b"\0" + LONGEST + b"x\0secret-1"], MALFORMED, "malformed"),
    ("PLAIN", [b"\0" + ALICE + b"\0" + b"x" * 1025], MALFORMED, "malformed"),
    ("PLAIN", [b""], MALFORMED, "malformed"),
    ("PLAIN", [None, b""], MALFORMED, "malformed"),
    ("PLAIN", [b"\0\0secret-1"], MALFORMED, "malformed"),
    ("PLAIN", [b"\0" + ALICE + b"\0"], MALFORMED, "malformed"),
    ("PLAIN", [b"\0" + ALICE + b"secret-1"], MALFORMED, "malformed"),
    ("PLAIN", [ALICE + b"secret-1"], MALFORMED, "malformed"),
    ("PLAIN", [b"\0" + ALICE + b"\0secret-1\0"], MALFORMED, "malformed"),
    ("PLAIN", [b"\0" + ALICE + b"\0sec\0ret-1"], MALFORMED, "malformed"),
    ("PLAIN", [b"\0\0" + ALICE + b"\0secret-1"], MALFORMED, "malformed"),
    ("PLAIN", [b"\0" + ALICE + b"\n\0secret-1"], MALFORMED, "malformed"),
    ("PLAIN", [b"\0" + ALICE + b"\x7f\0secret-1"], MALFORMED, "malformed"),
    ("PLAIN", [b"\0\xff" + ALICE + b"\0secret-1"], MALFORMED, "malformed"),
    ("PLAIN", [b"\0\xc1\xa1lice@example.org\0secret-1"], MALFORMED, "malformed"),  # an "a" of two octets
    ("PLAIN", [ALICE + b"\n\0" + ALICE + b"\0secret-1"], MALFORMED, "malformed"),
    ("LOGIN", [None, ALICE, b"secret-1"], "235", None),
    ("LOGIN", [ALICE, b"secret-1"], "235", None),
    ("LOGIN", [None, ALICE, b"wrong"], REFUSED, "bad_password"),
    ("LOGIN", [None, b"nobody-here@example.org", b"wrong"], REFUSED, "unknown_user"),
    ("LOGIN", [None, ALICE + b" ", b"secret-1"], REFUSED, "malformed_login"),
    ("LOGIN", [None, b""], MALFORMED, "malformed"),
    ("LOGIN", [None, LONGEST + b"x"], MALFORMED, "malformed"),
    ("LOGIN", [None, ALICE + b"\0"], MALFORMED, "malformed"),
    ("LOGIN", [ALICE + b"\0x"], MALFORMED, "malformed"),
    ("LOGIN", [None, ALICE + b"\r\n"], MALFORMED, "malformed"),
    ("LOGIN", [None, b"\xff"], MALFORMED, "malformed"),
    ("LOGIN", [None, ALICE, b""], MALFORMED, "malformed"),
    ("LOGIN", [None, ALICE, b"secret-1\0"], MALFORMED, "malformed"),
    ("LOGIN", [None, ALICE, b"x" * 1025], MALFORMED, "malformed"),
    ("LOGIN", [None, ALICE, b"x" * 1024], REFUSED, "bad_password"),
    ("SCRAM-SHA-256", [FIRST, "secret-1", b""], "235", None),
    ("SCRAM-SHA-256", [None, FIRST, "secret-1", b""], "235", None),
    ("SCRAM-SHA-256", [b"n,a=alice@example.org,n=alice@example.org,r=abc", "secret-1", b""], "235", None),
    ("SCRAM-SHA-256", [b"y,,n=alice@example.org,r=abc", "secret-1", b""], "235", None),
    ("SCRAM-SHA-256", [b"n,,n=ALICE@example.org,r=abc,x=an extension", "secret-1", b""], "235", None),
    ("SCRAM-SHA-256", [FIRST, "wrong"], REFUSED, "bad_password"),
    ("SCRAM-SHA-256", [b"n,,n=nobody-here@example.org,r=abc", "wrong"], REFUSED, "unknown_user"),
    ("SCRAM-SHA-256", [b"n,,n=a=2Cb=3Dc,r=abc", "wrong"], REFUSED, "unknown_user"),
    ("SCRAM-SHA-256", [b"n,,n=" + LONGEST + b",r=abc", "wrong"], REFUSED, "unknown_user"),
    ("SCRAM-SHA-256", [FIRST + b"x" * 1800, "wrong"], REFUSED, "bad_password"),
    ("SCRAM-SHA-256", [b"n,a=bob@example.org,n=alice@example.org,r=abc", "secret-1"], REFUSED, "authzid"),
    ("SCRAM-SHA-256", [b"n,,n=alice@example.org ,r=abc"], REFUSED, "malformed_login"),
    ("SCRAM-SHA-256", [FIRST, lambda final: final.replace(b"c=biws", b"c=eSws")], MALFORMED, "malformed"),  # not what was said first
    ("SCRAM-SHA-256", [FIRST, lambda final: final.replace(b"r=abc", b"r=abd")], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [FIRST, "secret-1", b"more"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [FIRST, b""], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [FIRST, lambda final: final[:-4]], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [FIRST, lambda final: final.split(b",p=")[0]], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [FIRST, lambda final: final + b"\0"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [FIRST, lambda final: final + b",x=y"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b""], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [None, b""], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n,,"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n,a=x,"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"p=tls-unique,,n=alice@example.org,r=abc"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n,,m=must,n=alice@example.org,r=abc"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n,,n=alice@example.org"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n,,n=alice@example.org,r="], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n,,n=,r=abc"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n,,n=ali=ce,r=abc"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n,,n=alice\0@example.org,r=abc"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n,,n=alice@example.org\n,r=abc"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n,,n=\xff,r=abc"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [b"n,,n=" + LONGEST + b"x,r=abc"], MALFORMED, "malformed"),
    ("SCRAM-SHA-256", [FIRST + b"x" * 2048], MALFORMED, "malformed"),
]


def converse(bare, mechanism, responses):
    """The last reply."""
    initial, *rest = responses
    answer = bare.ask(f"AUTH {mechanism}" + ("" if initial is None else f" {b64(initial) or '='}"))
    for response in rest:
        assert answer.startswith("334"), (mechanism, responses, answer)
        if isinstance(response, bytes):
            response = b64(response)
        else:
            first = b64(next(said for said in responses if said))
            response = scram_proof(response, first, answer[4:]) if isinstance(response, str) else \
                b64(response(base64.b64decode(scram_proof(PASSWORD, first, answer[4:]))))
        answer = bare.ask(response)
    return answer


def test_every_form_of_auth(stage):
    """The exact answer and the true reason; malformed ones are never told to try again."""
    for mechanism, responses, wanted, reason in FORMS:
        refused = len(stage.gateway.events("login.refused"))
        with session(stage) as bare:
            answer = converse(bare, mechanism, responses)
            assert answer.startswith(wanted), (mechanism, responses, answer)
            assert bare.ask("NOOP").startswith("250")
            assert bare.ask("MAIL FROM:<alice@example.org>").startswith("250" if wanted == "235" else "530")
        if reason is not None:
            event = stage.gateway.wait_event("login.refused", count=refused + 1)
            assert event["reason"] == reason, (mechanism, responses, event)


def test_base64_is_strict(stage):
    text = b64(b"\0" + ALICE + b"\0wrong1")  # ends with "=="
    assert text.endswith("==")
    for bad in (text[:-1], text[:-2], text + "=", text + "====", text[:10] + " " + text[10:], text[:10] + "\t" + text[10:],
                text[:-3] + chr(ord(text[-3]) + 1) + "==",  # bits behind the end
                text[:8] + "=" + text[8:], text[:-3] + "-==", "====", "A===", "!", "=" + text):
        for initial in (True, False):
            with session(stage) as bare:
                if not initial:
                    assert bare.ask("AUTH PLAIN") == "334 "
                answer = bare.ask(("AUTH PLAIN " if initial else "") + bad)
                assert answer == MALFORMED or answer.startswith("500 5.5.2") and "\t" in bad, (bad, answer)
                assert bare.ask(plain()).startswith("235")


def test_the_longest_response(stage):
    """12,288 octets of base64 are decoded, one more is refused; the session goes on, or was ended by the line."""
    fits = b64(b"\0" + ALICE + b"\0" + b"x" * (12288 // 4 * 3 - 19))
    assert len(fits) == 12288
    for response in (fits, fits + "AAAA", "A" * 20000):
        with session(stage) as bare:
            assert bare.ask("AUTH PLAIN") == "334 "
            answer = bare.ask(response)
            assert answer == MALFORMED if len(response) <= 12288 else answer.startswith("500 5.5.6"), (len(response), answer)
            assert bare.ask(plain()).startswith("235")
        with session(stage) as bare:
            answer = bare.ask("AUTH PLAIN " + response)
            assert answer.startswith(("501 5.5.2", "500 5.5.2")), (len(response), answer)
            assert bare.ask(plain()).startswith("235")


# ---- on one connection ----


def test_failures_of_any_kind_end_the_connection(stage):
    nothing = (["AUTH LOGIN", "*"], "501 5.7.0")
    kinds = [([plain(password="wrong")], "535"), nothing, (["AUTH PLAIN !"], "501"), ([f"AUTH PLAIN {b64('x')}"], "501"),
             (["AUTH LOGIN", b64("alice"), b64("wrong")], "535"), (["AUTH SCRAM-SHA-256", b64(FIRST), "*"], "501 5.7.0"),
             ([f"AUTH SCRAM-SHA-256 {b64('n,,')}"], "501"), (["AUTH PLAIN", "*"], "501 5.7.0"),
             (["AUTH PLAIN", "\x01"], "501 5.5.2"),
             (["AUTH PLAIN", "A" * 12292], "500 5.5.6")]
    mixtures = [[kind] * 5 for kind in kinds] + [kinds[:5], kinds[5:]]
    for mixture in mixtures:
        with session(stage) as bare:
            for lines, wanted in mixture:
                for line in lines:
                    answer = bare.ask(line)
                assert answer.startswith(wanted), (lines, answer)
            assert bare.reply() == LAST and bare.reply() == "", mixture
    # What is not the client's doing does not count, and neither does what is no login.
    malformed = len(stage.gateway.events("login.refused", reason="malformed"))
    before = json.loads(stage.gateway.tool("--json", "status"))["logins_refused"]
    with session(stage) as bare:
        assert bare.ask(f"AUTH PLAIN {b64('x')}") == MALFORMED
    stage.gateway.wait_event("login.refused", reason="malformed", count=malformed + 1)
    assert json.loads(stage.gateway.tool("--json", "status"))["logins_refused"] == before + 1, "is seen by who looks"
    with session(stage) as bare:
        for _ in range(20):
            assert bare.ask("AUTH NTLM").startswith("504")
        assert bare.ask(plain()).startswith("235")


# ---- what it costs ----


def restarted(stage, **submission):
    """With clocks that can be moved, and no memory of failures."""
    stage.gateway.stop()
    stage.gateway.submission = submission
    stage.gateway.make_clock()
    stage.gateway.start()


def timed(stage, login, password, source):
    began = time.monotonic()
    answer = by_plain(stage, login, password, source)
    return answer, time.monotonic() - began


def fail_freely(stage, login, source):
    """As often as it costs nothing."""
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: timed(stage, login, "wrong", source), range(5)))
    assert all(answer == REFUSED and took < 1 for answer, took in answers), answers


def test_a_guesser_is_slowed_and_nobody_else(stage):
    restarted(stage)
    victim, _ = stage.account("victim@example.org", "secret-9")
    here, elsewhere = another_address(), another_address()

    def guess(login):
        fail_freely(stage, login, here)
        for least in (1, 2):
            answer, took = timed(stage, login, "wrong", here)
            assert answer == REFUSED and least - 0.3 < took < least + 2, (login, least, took)
        stage.gateway.wait_event("login.slowed", account=login, ip=here)
        assert len(stage.gateway.events("login.slowed", account=login)) == 1, "told once"

    # Whether there is such a login or not.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(guess, (victim, "made-up@example.org")))
    before = stage.gateway.tool("--json", "status")
    # The owner elsewhere, and others here, get in at once.
    answer, took = timed(stage, victim, "secret-9", elsewhere)
    assert answer.startswith("235") and took < 0.7, took
    answer, took = timed(stage, LOGIN, PASSWORD, here)
    assert answer.startswith("235") and took < 0.7, took
    # Remembered now, it gets in from here too, at once, and that clears what was counted here.
    answer, took = timed(stage, victim, "secret-9", here)
    assert answer.startswith("235") and took < 0.7, took
    answer, took = timed(stage, victim, "wrong", here)
    assert answer == REFUSED and took < 1
    now = json.loads(before)
    assert now["logins_delayed"] == 4 and now["logins_turned_away"] == 0 and now["logins_refused"] == 14, now


def test_whoever_would_wait_too_long_is_turned_away(stage):
    restarted(stage)
    here = another_address()
    fail_freely(stage, "made-up@example.org", here)
    for advance in (1, 3, 7, 15):
        stage.gateway.set_clock(advance)
        assert by_plain(stage, "made-up@example.org", "wrong", here) == REFUSED
    answers = {}
    for name, lines in {"PLAIN": [plain("made-up@example.org", "wrong")],
                        "LOGIN": ["AUTH LOGIN", b64("made-up@example.org"), b64("wrong")],
                        "SCRAM": [f"AUTH SCRAM-SHA-256 {b64('n,,n=made-up@example.org,r=abc')}"]}.items():
        began = time.monotonic()
        with session(stage, here) as bare:
            for line in lines:
                answers[name] = bare.ask(line)
            assert bare.ask("NOOP").startswith("250")
        assert time.monotonic() - began < 1
    assert set(answers.values()) == {SLOWED}, answers
    told = {"reason": "too_many_failures", "account": "made-up@example.org", "ip": here}
    stage.gateway.wait_event("login.refused", count=3, **told)
    events = stage.gateway.events("login.refused", **told)
    assert [event["mechanism"] for event in events] == ["PLAIN", "LOGIN", "SCRAM-SHA-256"], events
    assert json.loads(stage.gateway.tool("--json", "status"))["logins_turned_away"] == 3
    with session(stage, here) as bare:
        assert [bare.ask(plain("made-up@example.org", "wrong")) for _ in range(5)] == [SLOWED] * 5
        assert bare.reply() == LAST
    # Asking in vain has made nothing worse: its turn comes when it would have come.
    stage.gateway.set_clock(15 + 17)
    assert by_plain(stage, "made-up@example.org", "wrong", here) == REFUSED


def test_each_way_to_try_waits_for_its_turn(stage):
    restarted(stage)
    login, _ = stage.account("each-way@example.org", "secret-9")
    here = another_address()
    ways = {"PLAIN": [b"\0each-way@example.org\0secret-9"], "LOGIN": [None, b"each-way@example.org", b"secret-9"],
            "SCRAM-SHA-256": [b"n,,n=each-way@example.org,r=abc", "secret-9", b""]}
    for mechanism, responses in ways.items():
        # A new password, which nobody remembers.
        stage.cluster.sql("select postern.account_set_password(:'login', 'secret-9')", login=login)
        fail_freely(stage, login, here)
        with session(stage, here) as bare:
            began = time.monotonic()
            assert converse(bare, mechanism, responses).startswith("235"), mechanism
            assert 0.5 < time.monotonic() - began < 4, (mechanism, time.monotonic() - began)


def test_what_is_remembered_never_waits(stage):
    """By none of the ways that show a password, though wrong ones from there have to."""
    restarted(stage)
    login, _ = stage.account("remembered@example.org", "secret-9")
    here = another_address()
    password = f"\0{login}\0secret-9".encode()
    for responses in ([password], [None, password], [None, login.encode(), b"secret-9"]):
        assert by_plain(stage, login, "secret-9", here).startswith("235")
        fail_freely(stage, login, here)
        with session(stage, here) as bare:
            mechanism = "LOGIN" if len(responses) == 3 else "PLAIN"
            assert converse(bare, mechanism, responses).startswith("235"), responses
    stage.gateway.wait_event("login.accepted", account=login, remembered="yes", count=5)
    assert json.loads(stage.gateway.tool("--json", "status"))["logins_delayed"] == 0


def test_many_at_once_are_no_way_around(stage):
    """A hundred guesses at a time from one network: few are tried, and who has gone is not."""
    restarted(stage)
    login, _ = stage.account("crowded@example.org", "secret-9")
    here = another_address()
    with contextlib.ExitStack() as stack:
        guessers = [stack.enter_context(session(stage, here)) for _ in range(100)]
        for number, guesser in enumerate(guessers):
            guesser.send(plain(login, f"guess-{number}") + "\r\n")
        for guesser in guessers[50:]:
            guesser.close()
        # Nobody else waits for them, and they hold no lane: there are four.
        answer, took = timed(stage, LOGIN, PASSWORD, another_address())
        assert answer.startswith("235") and took < 1, took
        answer, took = timed(stage, login, "secret-9", another_address())
        assert answer.startswith("235") and took < 1, took
        # Five, one whose turn it is, and one after a second or two.
        stage.gateway.wait_event("login.refused", account=login, reason="bad_password", count=7)
        stage.gateway.set_clock(15)
        answers = [guesser.reply() for guesser in guessers[:50]]
    assert set(answers) == {REFUSED, SLOWED}, set(answers)
    tried = len(stage.gateway.events("login.refused", account=login, reason="bad_password"))
    assert tried <= 9, tried


def test_strangers_do_not_shut_out_who_has_a_slow_hash(stage):
    """A crowd guesses at logins with imported hashes, also at his: the owner elsewhere gets in."""
    restarted(stage)
    owners = [f"slow-{number}@example.org" for number in range(4)]
    for login in owners:
        stage.cluster.sql("select postern.account_import(:'login', :'hash')", login=login,
                          hash=crypt.crypt("secret-1", "$2b$10$" + "C" * 21 + "."))
    ending = threading.Event()

    def guess(number):
        here = another_address()
        while not ending.is_set():
            with contextlib.suppress(OSError), session(stage, here) as bare:
                for _ in range(4):
                    bare.ask(plain(owners[number % 4], "wrong"))

    with concurrent.futures.ThreadPoolExecutor(CROWD) as pool:
        for number in range(CROWD):
            pool.submit(guess, number)
        try:
            stage.gateway.wait_event("login.refused", reason="bad_password", count=8)
            for login in owners[:2]:
                here, answers = another_address(), []
                while len(answers) < 6 and not (answers and answers[-1].startswith("235")):
                    answers.append(by_plain(stage, login, "secret-1", here)[:40])
                print(f"# {login}: {answers}", flush=True)
                assert answers[-1].startswith("235"), answers
                assert not stage.gateway.events("login.slowed", account=login, ip=here)
        finally:
            ending.set()


def change_a_plan(stage):
    """Of the one who has logged in once. When `auth` remembers nothing it has told every session, which asks before its next message."""
    stage.gateway.wait_event("login.accepted", account=LOGIN)
    stage.cluster.sql("select postern.plan_set('default')")
    for logins in itertools.count(2):
        assert by_plain(stage, LOGIN, PASSWORD).startswith("235")
        if not stage.gateway.wait_event("login.accepted", account=LOGIN, count=logins).get("remembered"):
            break


def test_a_crowd_holds_up_nobody_who_is_known_or_has_not_guessed(stage):
    """All guess at one moment, and customers come last: all are through before half of the guesses are tried."""
    stage.gateway.listener = {"networks": True}
    restarted(stage, threads=1)
    here, server, networks = another_address(), another_address(), [another_address() for _ in range(20)]
    known, newcomer, by_network = (stage.account(f"{name}@example.org", "secret-9")[0] for name in ("known", "newcomer", "by-network"))
    stage.cluster.sql("select postern.network_grant(:'login', :'network')", login=by_network, network=server + "/32")
    scram = [f"n,,n={known},r=abc".encode(), "secret-9", b""]
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        with session(stage, here) as bare:
            assert converse(bare, "SCRAM-SHA-256", scram).startswith("235")
        crowd = [enter(session(stage, networks[number % len(networks)])) for number in range(len(networks) * 15)]
        clients = [enter(session(stage, source)) for source in (None, server, here, None)]
        first = b64(scram[0])
        live = clients[0]
        assert live.ask(plain()).startswith("235")
        change_a_plan(stage)
        probe = enter(session(stage))
        auth = stage.gateway.children()["auth"]
        os.kill(auth, signal.SIGSTOP)
        try:
            for number, guesser in enumerate(crowd):
                guesser.send(plain(f"made-up-{number}@example.org", "wrong") + "\r\n")
            assert [probe.ask("NOOP")[:3] for _ in range(2)] == ["250"] * 2, "after all of them, as there is one thread"
            for client, line in zip(clients, (f"MAIL FROM:<{LOGIN}>", f"MAIL FROM:<{by_network}>", f"AUTH SCRAM-SHA-256 {first}",
                                              plain(newcomer, "secret-9"))):
                client.send(line + "\r\n")
            assert [probe.ask("NOOP")[:3] for _ in range(2)] == ["250"] * 2
        finally:
            os.kill(auth, signal.SIGCONT)
        tried = {}
        for name, client, code in zip(("session", "network", "SCRAM", "newcomer"), clients, ("250", "250", "334", "235")):
            answer = client.reply()
            assert answer.startswith(code), (name, answer)
            if code == "334":
                answer = client.ask(scram_proof("secret-9", first, answer[4:]))
                assert client.ask("").startswith("235"), answer
            tried[name] = len(stage.gateway.events("login.refused"))
        print(f"# of {len(crowd)} guesses these were tried before: {tried}", flush=True)
        assert max(tried.values()) < len(crowd) / 2, tried
        stage.gateway.wait_event("login.refused", count=len(crowd))


def test_a_network_is_slowed_but_not_who_has_logged_in_there(stage):
    restarted(stage)
    here = another_address()
    known, _ = stage.account("known-there@example.org", "secret-9")
    assert by_plain(stage, known, "secret-9", here).startswith("235")

    def guess(number):
        return by_plain(stage, f"made-up-{number}@example.org", "wrong", here)

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        assert set(pool.map(guess, range(50))) == {REFUSED}
    stage.gateway.wait_event("network.slowed", ip=here)
    began = time.monotonic()
    assert guess(51) == REFUSED and time.monotonic() - began > 0.5
    began = time.monotonic()
    with session(stage, here) as bare:
        assert converse(bare, "SCRAM-SHA-256", [f"n,,n={known},r=abc".encode(), "secret-9", b""]).startswith("235")
    assert time.monotonic() - began < 1
    assert len(stage.gateway.events("network.slowed")) == 1


# ---- what it does not tell ----


def welch(one, other):
    """Welch's t: how far two means are apart, in the noise of both."""
    noise = statistics.variance(one) / len(one) + statistics.variance(other) / len(other)
    return (statistics.mean(one) - statistics.mean(other)) / math.sqrt(noise)


def compare(stage, name, measure, side_by_side):
    """`measure(login)`: ms. Pairs of a known and an unknown login, in turn first."""
    def pair(number):
        logins = [LOGIN, f"unknown-{number}@example.org"]
        order = logins if number % 2 else logins[::-1]
        took = {login: measure(login) for login in order}
        return took[logins[0]], took[logins[1]]

    with concurrent.futures.ThreadPoolExecutor(side_by_side) as pool:
        known, unknown = zip(*pool.map(pair, range(PAIRS)))
    medians = statistics.median(known), statistics.median(unknown)
    print(f"# {name}, {PAIRS} pairs: medians {medians[0]:.3f} ms known, {medians[1]:.3f} ms unknown,"
          f" t {welch(known, unknown):.2f}", flush=True)
    assert abs(medians[0] - medians[1]) < 2, (name, medians)
    # With few pairs the noise of a machine decides; with so many it is beyond doubt.
    assert PAIRS < 1000 or abs(welch(known, unknown)) < 4.5, (name, welch(known, unknown))
    return min(known + unknown)


@alone
def test_no_time_tells_who_exists(stage):
    """From addresses all over 127/8, so that no penalty hides anything."""
    def ask(lines):
        with session(stage) as bare:
            for line in lines[:-1]:
                assert bare.ask(line).startswith("334")
            began = time.perf_counter()
            answer = bare.ask(lines[-1])
            took = (time.perf_counter() - began) * 1000
            return answer, took

    def by_plain_refused(login):
        answer, took = ask([plain(login, "wrong")])
        assert answer == REFUSED
        return took

    def by_scram_refused(login):
        first = b64(f"n,,n={login},r=abc")
        with session(stage) as bare:
            proof = scram_proof("wrong", first, bare.ask(f"AUTH SCRAM-SHA-256 {first}")[4:])
            began = time.perf_counter()
            assert bare.ask(proof) == REFUSED
            return (time.perf_counter() - began) * 1000

    def by_scram_challenged(login):
        answer, took = ask([f"AUTH SCRAM-SHA-256 {b64(f'n,,n={login},r=abc')}"])
        assert answer.startswith("334 ")
        return took

    compare(stage, "PLAIN refused", by_plain_refused, 8)
    compare(stage, "SCRAM refused", by_scram_refused, 8)
    # A look-up alone takes 0.4 ms, and 0.6 when it finds somebody: none of it may show. 10, of which a clock may lose one.
    assert compare(stage, "SCRAM challenged", by_scram_challenged, 1) > 8.9

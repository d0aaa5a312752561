# SPDX-License-Identifier: ISC
"""What accounts log in with: each kind, what it is tied to, what is told of a refusal."""
import base64
import collections
import concurrent.futures
import hashlib
import os
import pathlib
import secrets
import threading
import time
import warnings

from client import another_address, bare_session, connect, message, scram
from environment import eventually
from stage import alone
from test_database import fails
from test_refusals import plain

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import crypt

REFUSED = "535 5.7.8 Authentication failed"
IMPORTS = int(os.environ.get("POSTERN_IMPORTS", 2000))


def session(stage, source="127.0.0.1"):
    return bare_session(stage, source)


def by_plain(stage, login, password, source="127.0.0.1"):
    with session(stage, source) as bare:
        return bare.ask(plain(login, password))


def by_login(stage, login, password):
    with session(stage) as bare:
        assert bare.ask("AUTH LOGIN").startswith("334 ")
        assert bare.ask(base64.b64encode(login.encode())).startswith("334 ")
        return bare.ask(base64.b64encode(password.encode()))


def by_scram(stage, login, password):
    with session(stage) as bare:
        return scram(bare, login, password)


def reason(stage):
    """The true one of the last refusal."""
    return stage.gateway.events("login.refused")[-1]["reason"]


def app_password(stage, login, label, more=""):
    return stage.cluster.sql(f"select postern.app_password_create(:'login', :'label'{more})", login=login, label=label)


def cpu_ms(pid):
    """What all threads of a process have used."""
    return sum(int((task / "schedstat").read_text().split()[0])
               for task in pathlib.Path(f"/proc/{pid}/task").iterdir()) / 1e6


def test_an_app_password_is_easy_to_type_and_costs_nothing(stage):
    login, password = stage.account("apps@example.org", "secret-1")
    token = app_password(stage, login, "phone")
    assert len(token) == 34 and token.count("-") == 6, token
    assert not set(token) & set("01lo") and token == token.lower(), token
    # Passwords of the first schema, which go on working: verifiers, and costly ones.
    stage.cluster.sql("update postern.setting set value = 65536 where name = 'scram_iterations';"
                      " insert into postern.credential (account, label, verifier) select postern.account_id(:'login'),"
                      "  'old ' || i, postern.make_verifier('old-' || i) from generate_series(1, 5) i;"
                      " update postern.setting set value = 15000 where name = 'scram_iterations'", login=login)
    auth = stage.gateway.children()["auth"]
    by_plain(stage, login, "wrong")
    before = cpu_ms(auth)
    assert by_plain(stage, login, token).startswith("235")
    cheap = cpu_ms(auth) - before
    assert by_plain(stage, login, token.upper().replace("-", " ")).startswith("235")
    assert by_login(stage, login, token.replace("-", "")).startswith("235")
    before = cpu_ms(auth)
    assert by_plain(stage, login, app_password(stage, "alice@example.org", "another's")) == REFUSED
    dear = cpu_ms(auth) - before
    assert cheap < 2 < 15 < dear, (cheap, dear)
    assert reason(stage) == "bad_password"
    for answer in (by_plain(stage, login, "old-5"), by_plain(stage, login, password), by_scram(stage, login, password)):
        assert answer.startswith("235"), answer
    # SCRAM knows the main one only.
    assert by_scram(stage, login, token) == by_scram(stage, login, "old-5") == REFUSED
    stage.cluster.sql("select postern.credential_revoke(:'login', 'phone')", login=login)
    eventually(lambda: by_plain(stage, login, token) == REFUSED)


def test_a_wrong_password_costs_the_same_whoever_it_is(stage):
    """An unknown user, and accounts whose own credentials cost next to nothing, where all verifiers cost the same."""
    def cost(login):
        auth = stage.gateway.children()["auth"]
        before = cpu_ms(auth)
        for _ in range(5):
            assert by_plain(stage, login, "wrong") == REFUSED
        return cpu_ms(auth) - before

    with stage.database("costs") as cluster:
        stage.gateway.tool("database", "migrate")
        stage.account("with-password@example.org", "secret-1")
        cluster.sql("select postern.account_create('apps-only@example.org')")
        app_password(stage, "apps-only@example.org", "phone")
        cluster.sql("select postern.account_import('ssha@example.org', :'hash')", hash=ssha("SSHA", "sha1", "secret-1"))
        stage.gateway.stop()
        stage.gateway.start()
        known = cost("with-password@example.org")
        for login in ("nobody-here@example.org", "apps-only@example.org", "ssha@example.org"):
            assert 0.6 < cost(login) / known < 1.7, (login, known)
        stage.gateway.stop()


def test_who_exists_cannot_be_told_by_scram(stage):
    """Not by what only verifiers of some origin have: their iterations, the length of their salt."""
    keys = "A" * 43 + "="

    def make_accounts(count, name):
        # Three of four come from elsewhere, with app passwords between them.
        stage.cluster.sql("select postern.account_create(:'name' || i, 'SCRAM-SHA-256$' || case when i % 4 > 0 then '4096' else '15000' end"
                          " || ':' || case when i % 2 = 1 then :'salt12' else :'salt16' end || '$' || :'keys' || ':' || :'keys'),"
                          " postern.app_password_create(:'name' || i, 'phone') from generate_series(1, :'count'::integer) i",
                          name=name, count=str(count), salt12="A" * 16, salt16="A" * 22 + "==", keys=keys)

    def challenges(logins):
        """What each says: iterations and salt, of which somebody that exists has them for good."""
        stage.gateway.stop()
        stage.gateway.start()
        logins = list(logins)
        for at in range(0, len(logins), 4):  # the fifth failure would end the connection
            with session(stage) as bare:
                yield from (challenge(bare, login) for login in logins[at:at + 4])

    def challenge(bare, login):
        answer = bare.ask("AUTH SCRAM-SHA-256 " + base64.b64encode(f"n,,n={login},r=abcdefabcdef".encode()).decode())
        fields = dict(field.split("=", 1) for field in base64.b64decode(answer.removeprefix("334 ")).decode().split(","))
        assert bare.ask("*").startswith("501")
        return int(fields["i"]), base64.b64decode(fields["s"])

    def shapes(said):
        return collections.Counter((iterations, len(salt)) for iterations, salt in said)

    unknown = [f"nobody{n}" for n in range(200)]
    with stage.database("shapes"):
        stage.gateway.tool("database", "migrate")
        assert shapes(challenges(unknown)) == {(15000, 16): 200}, "nobody is there"
        make_accounts(400, "somebody")
        first = list(challenges(unknown))
        theirs = shapes(challenges(f"somebody{n}" for n in range(1, 201)))

        def look_alike(said):
            # Each takes after somebody at random: some 50 of 200, give or take a few times 6.
            return all(0.3 < shapes(said)[shape] / count < 2 for shape, count in theirs.items())

        assert look_alike(first), (shapes(first), theirs)
        assert shapes(first).keys() == theirs.keys() == {(4096, 12), (4096, 16), (15000, 16)}
        assert len({salt for _, salt in first}) == 200
        # Who asks again hears the same, also when there are some more accounts.
        assert list(challenges(unknown)) == first
        make_accounts(30, "another")
        again = list(challenges(unknown))
        assert sum(before == now for before, now in zip(first, again)) > 180
        assert all(before[1][:12] != now[1][:12] for before, now in zip(first, again) if before[0] != now[0]), "an old salt"
        # A long part of the table where nobody has a verifier.
        stage.cluster.sql("select postern.app_password_create(login, 'device ' || i) from postern.account, generate_series(1, 5) i")
        late = list(challenges(unknown))
        assert look_alike(late), (shapes(late), theirs)
        stage.gateway.stop()


def test_a_credential_keeps_to_its_mechanism(stage):
    login, _ = stage.account("mechanism@example.org", "secret-1")
    token = app_password(stage, login, "old printer", ", mechanisms => array['login']")
    assert by_plain(stage, login, token) == REFUSED and reason(stage) == "mechanism_not_allowed"
    assert by_login(stage, login, token).startswith("235")
    # It is remembered now, and no less tied.
    assert by_plain(stage, login, token) == REFUSED and reason(stage) == "mechanism_not_allowed"
    stage.cluster.sql("update postern.credential set mechanisms = '{PLAIN}'"
                      " where account = postern.account_id(:'login') and label = 'password'", login=login)
    assert by_scram(stage, login, "secret-1") == REFUSED and reason(stage) == "mechanism_not_allowed"
    assert by_scram(stage, login, "wrong") == REFUSED and reason(stage) == "bad_password"
    assert by_plain(stage, login, "secret-1").startswith("235")


def test_names_are_ascii_in_every_language(stage):
    """In Turkish the capital of i is another letter."""
    with stage.database("turkish", "template template0 locale_provider icu icu_locale 'tr-TR' encoding 'utf8'") as cluster:
        stage.gateway.tool("database", "migrate")
        assert cluster.sql("select upper('i')") == "İ"
        login, _ = stage.account("info@example.org", "secret-1")
        token = app_password(stage, login, "phone", ", mechanisms => array['plain', 'login'], sender => 'INFO@example.org'")
        assert len(token) == 34
        for hash in (ssha("ssha", "sha1", "secret-1"), "{sha512-crypt}" + hashed(0, "secret-1"), "{blf-crypt}$2y$04$" + "C" * 53):
            cluster.sql("select postern.account_import(:'hash', :'hash')", hash=hash)
        cluster.sql("select postern.certificate_grant(:'login', :'fingerprint', 'server')", login=login, fingerprint="AB" * 32)
        said = fails(lambda: cluster.sql("select postern.account_create('INFO@EXAMPLE.ORG')"))
        assert "there is an account" in said, said


def test_a_credential_keeps_to_its_networks(stage):
    login, _ = stage.account("network@example.org", "secret-1")
    token = app_password(stage, login, "server", ", networks => array['10.0.0.0/8', '127.0.0.2/32']::cidr[]")
    assert by_plain(stage, login, token) == REFUSED and reason(stage) == "network_not_allowed"
    assert by_plain(stage, login, token, "127.0.0.2").startswith("235")
    assert by_plain(stage, login, token, "127.0.0.2").startswith("235")
    stage.gateway.wait_event("login.accepted", account=login, remembered="yes")
    assert by_plain(stage, login, token) == REFUSED and reason(stage) == "network_not_allowed"
    # The same password twice: one that may be used is found behind one that may not.
    stage.cluster.sql("update postern.credential set networks = '{10.0.0.0/8}'"
                      " where account = postern.account_id(:'login') and label = 'password'", login=login)
    assert by_plain(stage, login, "secret-1") == REFUSED and reason(stage) == "network_not_allowed"
    assert by_scram(stage, login, "secret-1") == REFUSED and reason(stage) == "network_not_allowed"
    stage.cluster.sql("insert into postern.credential (account, label, verifier)"
                      " values (postern.account_id(:'login'), 'second', postern.make_verifier('secret-1'))", login=login)
    assert by_plain(stage, login, "secret-1").startswith("235")
    assert by_scram(stage, login, "secret-1").startswith("235")


def test_a_credential_keeps_to_its_sender(stage):
    login, password = stage.account("senders@example.org", "secret-1", "@shop.example")
    token = app_password(stage, login, "web shop", ", sender => 'Info@shop.example'")
    said = fails(lambda: app_password(stage, login, "x", ", sender => 'info@elsewhere.example'"))
    assert "may not send as" in said and "sender_grant" in said, said
    for attempt in range(2):
        with session(stage) as bare:
            assert bare.ask(plain(login, token)).startswith("235")
            assert bare.ask(f"MAIL FROM:<{login}>").startswith("550 5.7.1"), attempt
            assert bare.ask("MAIL FROM:<other@shop.example>").startswith("550 5.7.1")
            assert bare.ask("MAIL FROM:<info@shop.example>").startswith("250")
    client = connect(stage, login, password)
    client.sendmail(login, ["bob@example.net"], message(sender=login))
    client.quit()
    stage.cluster.sql("select postern.sender_revoke(:'login', '@shop.example')", login=login)

    def has_lost_it():
        with session(stage) as bare:
            assert bare.ask(plain(login, token)).startswith("235")
            return bare.ask("MAIL FROM:<info@shop.example>").startswith("550 5.7.1")

    # It is remembered until the notice is there.
    eventually(has_lost_it)


def test_an_app_password_without_an_end(stage):
    """However that is written, also by hand."""
    login, password = stage.account("endless@example.org", "secret-1")
    token = app_password(stage, login, "phone", ", expires_at => 'infinity'")
    credential = "postern.credential where account = postern.account_id(:'login') and label = 'phone'"
    assert stage.cluster.sql(f"select expires_at is null from {credential}", login=login) == "t"
    assert "until" not in stage.cluster.sql("select detail from postern.audit where object = :'login' order by at desc limit 1",
                                            login=login)
    assert by_plain(stage, login, token).startswith("235")
    said = fails(lambda: app_password(stage, login, "x", ", expires_at => '-infinity'"))
    assert "A time to come" in said, said
    # Another app password has an end that is soon: it is no less remembered until then, and no longer.
    ending = app_password(stage, login, "soon", ", expires_at => now() + interval '6 seconds'")
    for written, answer in (("infinity", "235"), ("-infinity", "535"), ("290000-01-01", "235")):
        stage.cluster.sql("update postern.credential set expires_at = :'at' where account = postern.account_id(:'login') and label = 'phone'",
                          login=login, at=written)
        eventually(lambda: by_plain(stage, login, token).startswith(answer))
        assert by_plain(stage, login, password).startswith("235"), written
        if written == "infinity":
            assert by_plain(stage, login, ending).startswith("235")
            eventually(lambda: by_plain(stage, login, ending) == REFUSED)


def test_thirty_two_also_for_many_at_once(stage):
    login, _ = stage.account("many-apps@example.org", "secret-1")

    stage.cluster.sql("select postern.app_password_create(:'login', 'device ' || i) from generate_series(1, 30) i", login=login)

    def one(label):
        try:
            stage.cluster.sql("begin; select postern.app_password_create(:'login', :'label'); select pg_sleep(1); commit",
                              login=login, label=label)
            return "made"
        except RuntimeError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(one, ("phone", "tablet")))
    assert answers[0] == "made" and "has 32 passwords already" in answers[1], answers
    # The password may still be changed, but not be one more.
    stage.cluster.sql("select postern.account_set_password(:'login', 'secret-2')", login=login)
    stage.cluster.sql("select postern.credential_revoke(:'login', 'password')", login=login)
    one("more")
    said = fails(lambda: stage.cluster.sql("select postern.account_set_password(:'login', 'x')", login=login))
    assert "has 32 passwords already" in said, said


def test_two_set_a_password_at_once(stage):
    login, _ = stage.account("twice@example.org", "secret-1")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: stage.cluster.sql("select postern.account_set_password(:'login', :'p')", login=login, p=f"pw-{n}"),
                      range(8)))
    count = "select count(*) from postern.credential where account = postern.account_id(:'login') and revoked_at is null"
    assert stage.cluster.sql(count, login=login) == "1"


def test_what_admins_get_wrong_with_credentials_is_told(stage):
    login, _ = stage.account("wrong@example.org", "secret-1")
    sha512 = crypt.crypt("x", "$6$rounds=1000$saltsalt")
    for statement, words in (
            ("app_password_create(:'login', 'x', mechanisms => array['SCRAM-SHA-256'])", "array['LOGIN']"),
            ("app_password_create(:'login', 'x', mechanisms => '{}')", "array['LOGIN']"),
            ("app_password_create(:'login', 'x', networks => '{}')", "1 to 64"),
            ("app_password_create(:'login', 'x', sender => '@example.org')", "One address"),
            ("app_password_create(:'login', 'x', expires_at => now())", "A time to come"),
            ("app_password_create(:'login', 'password')", "has a password"),
            ("app_password_create(:'login', '')", "cannot be a label"),
            ("app_password_create(:'login', null)", "cannot be a label"),
            ("app_password_create('nobody', 'x')", 'there is no account "nobody"'),
            ("certificate_grant(:'login', 'AB:CD', 'x')", "openssl x509"),
            ("certificate_grant(:'login', null, 'x')", "openssl x509"),
            ("credential_revoke(:'login', 'tablet')", "credential_overview"),
            ("account_set_password(:'login', '" + sha512 + "')", "account_import"),
            ("account_set_password(:'login', '{SSHA}" + "A" * 32 + "')", "account_import"),
            ("account_import('new@example.org', '$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/')", "cannot be imported ($1$)"),
            ("account_import('new@example.org', 'my clear password')", "cannot be imported (no scheme)"),
            ("account_import('new@example.org', null)", "cannot be imported"),
            ("account_import('new@example.org', '" + sha512[:-1] + "')", "cannot be imported"),
            ("account_import('new@example.org', '{SSHA}" + "A" * 24 + "')", "cannot be imported ({SSHA})"),
            ("account_import('new@example.org', '" + sha512.replace("=1000", "=656000") + "')", "rounds=100000 (passlib"),
            ("account_import('new@example.org', '" + sha512.replace("=1000", "=999999999") + "')", "costs too much"),
            ("account_import('new@example.org', '$2b$13$" + "C" * 53 + "')", "costs too much"),
            ("account_import('new@example.org', '$y$jFT$abc$" + "C" * 43 + "')", "costs too much"),
            ("account_import(:'login', '" + sha512 + "')", "there is an account"),
            ("account_import('new@example.org', '" + sha512 + "', 'no plan')", "there is no plan")):
        said = fails(lambda: stage.cluster.sql("select postern." + statement, login=login))
        assert words in said and "HINT" in said, (statement, said)
        assert "my clear" not in said.split("LINE")[0].split(": ERROR")[-1], said
    assert stage.cluster.sql("select count(*) from postern.account where login = 'new@example.org'") == "0"


def test_a_certificate_is_one_accounts(stage):
    first, _ = stage.account("cert-1@example.org", "secret-1")
    second, _ = stage.account("cert-2@example.org", "secret-1")
    digits = hashlib.sha256(b"a certificate").hexdigest()
    colons = ":".join(digits[i:i + 2] for i in range(0, 64, 2)).upper()
    grant = "select postern.certificate_grant(:'login', :'fingerprint', 'server')"
    stage.cluster.sql(grant, login=first, fingerprint=colons)
    assert stage.cluster.sql("select login from postern.credential c join postern.account a on a.id = c.account"
                             f" where kind = 'certificate' and verifier = '{digits}'") == first
    said = fails(lambda: stage.cluster.sql(grant, login=second, fingerprint=digits))
    assert f'"{first}" has this certificate' in said and "credential_revoke" in said, said
    stage.cluster.sql("select postern.credential_revoke(:'login', 'server')", login=first)
    stage.cluster.sql(grant, login=second, fingerprint=digits)
    # It is no password.
    assert by_plain(stage, second, digits) == REFUSED


def ssha(name, algorithm, password):
    salt = secrets.token_bytes(8)
    return f"{{{name}}}" + base64.b64encode(hashlib.new(algorithm, password.encode() + salt).digest() + salt).decode()


def hashed(number, password):
    """A hash of another system: half of them sha512-crypt, half SSHA, and a few of each other kind."""
    kinds = [lambda: crypt.crypt(password, "$6$" + secrets.token_hex(4)),
             lambda: "{SHA512-CRYPT}" + crypt.crypt(password, "$6$rounds=5000$" + secrets.token_hex(8)),
             lambda: crypt.crypt(password, "$5$rounds=1000$" + secrets.token_hex(8)),
             lambda: crypt.crypt(password, "$y$j9T$" + secrets.token_hex(8)),
             lambda: "{CRYPT}" + crypt.crypt(password, "$2b$05$" + secrets.token_hex(11)[:21] + "."),
             lambda: "{BLF-CRYPT}" + crypt.crypt(password, "$2y$04$" + secrets.token_hex(11)[:21] + "."),
             lambda: ssha("SSHA256", "sha256", password),
             lambda: ssha("ssha512", "sha512", password)]
    if number < 5 * len(kinds):
        return kinds[number % len(kinds)]()
    if number % 2:
        return ssha("SSHA", "sha1", password)
    return crypt.crypt(password, "$6$rounds=1000$" + secrets.token_hex(8))


def test_an_imported_hash_becomes_a_verifier(stage):
    login, password = "imported@example.org", "gründlich"
    # Read anew: what a session of the account was told stays true.
    stage.cluster.sql("select postern.account_import(:'login', :'hash')", login=login, hash=hashed(0, password))
    token = app_password(stage, login, "phone")
    with session(stage) as live:
        assert live.ask(plain(login, token)).startswith("235")
        assert by_scram(stage, login, password) == REFUSED and reason(stage) == "no_scram_verifier"
        assert by_plain(stage, login, "wrong") == REFUSED and reason(stage) == "bad_password"
        kind = "select kind from postern.credential where account = postern.account_id(:'login') and label = 'password'"
        assert stage.cluster.sql(kind, login=login) == "crypt"
        assert by_login(stage, login, password).startswith("235")
        stage.gateway.wait_event("login.accepted", account=login, upgraded="yes")
        assert stage.cluster.sql(kind, login=login) == "scram-sha-256"
        assert by_plain(stage, login, password).startswith("235")
        assert by_scram(stage, login, password).startswith("235")
        assert by_scram(stage, login, "wrong") == REFUSED and reason(stage) == "bad_password"
        assert live.ask("NOOP").startswith("250"), "nothing has changed for who is logged in"
    stage.cluster.sql("select postern.account_set_password(:'login', 'another')", login=login)
    eventually(lambda: by_plain(stage, login, password) == REFUSED)


@alone
def test_wrong_passwords_to_an_expensive_hash_hold_up_nobody_else(stage):
    victim = "expensive@example.org"
    stage.cluster.sql("select postern.account_import(:'login', :'hash')", login=victim,
                      hash=crypt.crypt("secret-1", "$2b$11$" + "C" * 21 + "."))
    others = [stage.account(f"held-up-{n}@example.org", "secret-2") for n in range(6)]
    answers, ending = collections.Counter(), threading.Event()

    def attack():
        while not ending.is_set():
            # Guesses from one network would be slowed.
            with session(stage, another_address()) as bare:
                for _ in range(4):
                    answer = bare.ask(plain(victim, "wrong"))
                    answers[answer[:3]] += 1
                    ending.wait(0.05 if answer.startswith("454") else 0)

    def seconds(login, password):
        began = time.monotonic()
        assert by_plain(stage, login, password).startswith("235")
        return time.monotonic() - began

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        attackers = [pool.submit(attack) for _ in range(16)]
        try:
            eventually(lambda: answers["535"] >= 20)
            worst = max(seconds(*other) for other in others)
        finally:
            ending.set()
        for attacker in attackers:
            attacker.result()
    print(f"# slowest other login {worst:.2f} s; attackers got {dict(answers)}")
    assert worst < 1, worst
    assert set(answers) <= {"454", "535"}, answers
    # Nobody sends wrong ones any more.
    assert by_plain(stage, victim, "secret-1").startswith("235")
    assert not stage.gateway.events("database.away"), "nothing is wrong with the database"


def test_a_hash_of_a_part_of_the_password_stays(stage):
    """bcrypt looks at 72 octets. What fits must not become a verifier: it may not be the password."""
    login, password, salt = "part@example.org", "a" * 80, "$2b$04$" + "C" * 21 + "."
    stage.cluster.sql("select postern.account_import(:'login', :'hash')", login=login, hash=crypt.crypt(password, salt))
    kind = "select kind from postern.credential where account = postern.account_id(:'login') and label = 'password'"
    # As the other system did.
    for typed in ("a" * 72 + "WRONG!!!", password, "a" * 72):
        assert by_plain(stage, login, typed).startswith("235"), typed
        assert stage.cluster.sql(kind, login=login) == "crypt", typed
    assert by_plain(stage, login, "a" * 71 + "b") == REFUSED
    assert by_scram(stage, login, password) == REFUSED and reason(stage) == "no_scram_verifier"
    stage.cluster.sql("select postern.account_import('whole@example.org', :'hash')", hash=crypt.crypt("a" * 71, salt))
    assert by_plain(stage, "whole@example.org", "a" * 71).startswith("235")
    assert stage.cluster.sql(kind, login="whole@example.org") == "scram-sha-256"


def test_auth_can_swap_an_imported_hash_and_nothing_else(stage):
    login, _ = stage.account("swapped@example.org", "secret-1")
    stage.cluster.sql("select postern.account_import('swap@example.org', :'hash')", hash=hashed(0, "secret-2"))
    new = stage.cluster.sql("select postern.make_verifier('mine')")
    row = "select c.id, c.verifier from postern.credential c where account = postern.account_id(:'login')"
    swap = "set role postern_auth; select postern.credential_upgrade(:'id'::bigint, :'old', :'new')"
    for who, right in ((login, False), ("swap@example.org", True)):
        number, old = stage.cluster.sql(row, login=who).split("|")
        assert stage.cluster.sql(swap, id=number, old="$6$guessed", new=new) == "f"
        assert stage.cluster.sql(swap, id=number, old=old, new="no verifier") == "f"
        assert stage.cluster.sql(swap, id=number, old=old, new=new) == ("t" if right else "f")
        assert stage.cluster.sql(swap, id=number, old=old, new=new) == "f", "it is a verifier now"
    for statement in ("update postern.credential set verifier = 'x'", "delete from postern.credential",
                      "select verifier from postern.credential", "insert into postern.credential (account, verifier) values (1, 'x')",
                      "select postern.account_set_password('alice@example.org', 'x')",
                      "select postern.account_import('x', 'x')", "select postern.credential_insert('x', 'token', 'x', 'x')"):
        assert "permission denied" in fails(lambda: stage.cluster.sql("set role postern_auth; " + statement)), statement
    for role in ("postern_relay", "postern_admin"):
        assert "permission denied" in fails(lambda: stage.cluster.sql(
            f"set role {role}; select postern.credential_upgrade(1, 'x', 'y')")), role
        assert "permission denied" in fails(lambda: stage.cluster.sql(f"set role {role}; select verifier from postern.credential"))


def test_a_dump_of_another_system(stage):
    accounts = [(f"user{n}@dump.example", f"pässword {n}" if n % 10 == 0 else f"password-{n}") for n in range(IMPORTS)]
    dump = "".join(f"{login}\t{hashed(n, password)}\n" for n, (login, password) in enumerate(accounts))
    began = time.monotonic()
    stage.cluster.sql("create temp table dump (login text, hash text);\ncopy dump from stdin;\n" + dump + "\\.\n"
                      "select count(postern.account_import(login, hash)) from dump;")
    imported = time.monotonic()
    kinds = "select kind, count(*) from postern.credential c join postern.account a on a.id = c.account" \
            " where login like '%@dump.example' group by kind"
    assert stage.cluster.sql(kinds) == f"crypt|{IMPORTS}"

    def patiently(account):
        # Of slow hashes few are checked at a time.
        answer = by_plain(stage, *account)
        until = time.monotonic() + 20
        while answer.startswith("454 4.7.0") and time.monotonic() < until:
            time.sleep(0.05)
            answer = by_plain(stage, *account)
        return answer

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(patiently, accounts))
        assert all(answer.startswith("235") for answer in answers), set(answers)
        first = time.monotonic()
        assert stage.cluster.sql(kinds) == f"scram-sha-256|{IMPORTS}"
        answers = list(pool.map(lambda account: by_scram(stage, *account), accounts))
        assert all(answer.startswith("235") for answer in answers), set(answers)
    print(f"# {IMPORTS} accounts: imported in {imported - began:.1f} s, logged in by PLAIN in {first - imported:.1f} s,"
          f" by SCRAM in {time.monotonic() - first:.1f} s")


def test_a_password_is_the_same_however_it_is_typed(stage):
    cluster = stage.cluster
    for number, (stored, typed) in enumerate((
            ("grün", "gru\u0308n"), ("gru\u0308n", "grün"), ("a\u00a0b", "a b"), ("ﬁｎ", "fin"), ("a\u00adb", "ab"), ("😀", "😀\ufe0f"))):
        login, _ = stage.account(f"typed{number}@example.org", stored)
        for password in (stored, typed):
            assert by_plain(stage, login, password).startswith("235"), (stored, password)
            assert by_login(stage, login, password).startswith("235"), (stored, password)
        # What its client made of it (RFC 4013).
        assert by_scram(stage, login, cluster.sql("select postern.prepared(:'p')", p=stored)).startswith("235")
        assert by_plain(stage, login, typed + "x") == REFUSED
    for password in ("a\tb", "a\x7fb", "a\u0085b", "a\u200eb", "a\ue000b", "\ufffd", "\u00ad", "x" * 257, "ᴬ"):
        said = fails(lambda: cluster.sql("select postern.account_set_password('typed0@example.org', :'p')", p=password))
        assert "1 to 256 printable characters" in said, (password, said)
        assert by_plain(stage, "typed0@example.org", password, another_address()) in (REFUSED, "501 5.5.2 Cannot decode that")


def test_who_is_suspended_is_told_why(stage):
    login, password = stage.account("told-why@example.org", "secret-1")
    token = app_password(stage, login, "phone")
    assert by_plain(stage, login, password).startswith("235")
    stage.cluster.sql("select postern.account_suspend(:'login', 'sends spam, ticket 4711')", login=login)
    told = "525 5.7.13 account suspended: sends spam, ticket 4711"
    # The password was right a moment ago: it is remembered until the notice is there.
    eventually(lambda: by_plain(stage, login, password) == told)
    for attempt, ways in enumerate(((by_plain, password), (by_plain, token), (by_plain, password), (by_login, password), (by_scram, password))):
        began = time.monotonic()
        assert ways[0](stage, login, ways[1]) == told, attempt
        assert time.monotonic() - began > 0.299, "sooner than a wrong password"
        assert reason(stage) == "suspended"
    for way in (by_plain, by_login, by_scram):
        assert way(stage, login, "wrong") == REFUSED and reason(stage) == "bad_password"
    # As long as a reason may be, and as often as a wrong password may be tried.
    stage.cluster.sql("select postern.account_suspend(:'login', repeat('x', 300))", login=login)
    with session(stage) as bare:
        answers = [bare.ask(plain(login, password)) for _ in range(5)]
        assert answers == ["525 5.7.13 account suspended: " + "x" * 300] * 5 and bare.reply().startswith("421 4.7.0"), answers
    # Whatever was written, the client gets one line of it.
    stage.cluster.sql("update postern.account set state_reason = E'gr\\u00fcn\\r\\n235 2.0.0 ok ' || repeat('x', 5000) where login = :'login'",
                      login=login)
    eventually(lambda: " gr" in by_plain(stage, login, password))
    answer = by_plain(stage, login, password)
    assert answer.startswith("525 5.7.13 account suspended: gr??n??235 2.0.0 ok xxx") and len(answer) < 500, answer
    stage.cluster.sql("update postern.account set state_reason = null where login = :'login'", login=login)
    assert by_plain(stage, login, password) == "525 5.7.13 account suspended"
    stage.cluster.sql("select postern.account_resume(:'login')", login=login)
    assert by_plain(stage, login, password).startswith("235")
    stage.cluster.sql("select postern.account_close(:'login')", login=login)
    eventually(lambda: by_plain(stage, login, password) == REFUSED)
    assert reason(stage) == "unknown_user"


def test_logins_are_noted_without_waiting(stage):
    login, password = stage.account("noted-twice@example.org", "secret-1")
    token = app_password(stage, login, "phone")
    noted = ("select string_agg(label, ' ' order by label) from postern.credential"
             " where account = postern.account_id(:'login') and last_used_at > now() - interval '2 minutes'")
    assert by_plain(stage, login, password).startswith("235")
    assert by_plain(stage, login, token).startswith("235")
    stage.gateway.stop()
    assert stage.cluster.sql(noted, login=login) == "password phone", "at the end"
    stage.gateway.start()
    # What it remembers at first it forgets when it hears the database.
    eventually(lambda: by_plain(stage, login, token).startswith("235")
               and stage.gateway.events("login.accepted", account=login, remembered="yes"))
    stage.cluster.sql("update postern.credential set last_used_at = null where account = postern.account_id(:'login')", login=login)
    remembered = len(stage.gateway.events("login.accepted", account=login, remembered="yes"))
    assert by_plain(stage, login, token).startswith("235")
    stage.gateway.wait_event("login.accepted", account=login, remembered="yes", count=remembered + 1)
    eventually(lambda: stage.cluster.sql(noted, login=login) == "phone", seconds=20)
    # Somebody's open transaction on the row holds up neither logins nor the others' notes.
    other, _ = stage.account("noted-too@example.org", "secret-2")
    stage.cluster.sql("update postern.credential set last_used_at = null where account = postern.account_id(:'login')", login=login)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(stage.cluster.sql, "begin; select from postern.credential where account = postern.account_id(:'login')"
                           " for update; select pg_sleep(14); commit", login=login)
        assert by_scram(stage, login, password).startswith("235")
        assert by_plain(stage, other, "secret-2").startswith("235")
        eventually(lambda: stage.cluster.sql(noted, login=other) == "password", seconds=13)
        assert not held.done()
        held.result()

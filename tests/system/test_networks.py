# SPDX-License-Identifier: ISC
"""Customers' servers that are known by their network: whose they are, and that nobody else relays."""
import contextlib
import signal
import smtplib
import socket
import subprocess
import time

from client import MESSAGE, message, trust_all
from environment import eventually
from postfix import Postfix
from test_database import fails
from test_refusals import LOGIN, plain


class Server:
    """A customer's mail server: octets from an address of its own, in the clear."""

    def __init__(self, stage, source, ehlo=True):
        host = "::1" if ":" in source else "127.0.0.1"
        self.socket = socket.create_connection((host, stage.gateway.port), 20, (source, 0))
        self.file = self.socket.makefile("rb")
        assert self.reply().startswith("220 ")
        if ehlo:
            assert self.ask("EHLO server.customer.example").startswith("250")

    def reply(self):
        lines = []
        while True:
            line = self.file.readline().decode()
            lines.append(line)
            if len(line) < 4 or line[3] != "-":
                return "".join(lines).rstrip("\r\n")

    def send(self, octets):
        self.socket.sendall(octets)

    def ask(self, *lines):
        """All at once; the last reply, or all of several."""
        self.send("".join(line + "\r\n" for line in lines).encode())
        replies = [self.reply() for _ in lines]
        return replies if len(lines) > 1 else replies[0]

    def close(self):
        self.file.close()
        self.socket.close()


@contextlib.contextmanager
def server(stage, source, ehlo=True):
    one = Server(stage, source, ehlo)
    try:
        yield one
    finally:
        one.close()


def listening(stage, networks=True, hosts=("127.0.0.1", "[::1]")):
    """Starts the gateway anew with such listeners; stage.prepare() undoes it."""
    stage.gateway.stop()
    stage.gateway.listener, stage.gateway.hosts = {"networks": networks}, list(hosts)
    stage.gateway.start()


def grant(stage, network, login=LOGIN):
    stage.cluster.sql("select postern.network_grant(:'login', :'network')", login=login, network=network)


def revoke(stage, network, login=LOGIN):
    stage.cluster.sql("select postern.network_revoke(:'login', :'network')", login=login, network=network)


@contextlib.contextmanager
def granted(stage, *networks, login=LOGIN):
    for network in networks:
        grant(stage, network, login)
    try:
        yield
    finally:
        for network in networks:
            revoke(stage, network, login)


def mail(sender=LOGIN):
    return f"MAIL FROM:<{sender}>"


# ---- SQL ----

def test_what_a_grant_refuses_and_says(stage):
    login, _ = stage.account("granted@example.org", "secret-2")
    other, _ = stage.account("nets-other@example.org", "secret-2")
    sql = stage.cluster.sql
    for network, words in (("10.1.2.3/8", "For the network: 10.0.0.0/8; for the one address: 10.1.2.3."),
                           ("2001:db8::1/32", "For the network: 2001:db8::/32;"),
                           ("0.0.0.0/0", "At most a /8"), ("10.0.0.0/7", "At most a /8"), ("::/0", "a /19 of IPv6"),
                           ("2001:c000::/18", "a /19 of IPv6"), ("nonsense", "invalid input syntax")):
        said = fails(lambda: grant(stage, network, login))
        assert words in said, (network, said)
    for network in ("10.0.0.0/8", "2001:e000::/19", "192.0.2.1", "10.1.0.0/16"):
        grant(stage, network, login)
        grant(stage, network, login)  # once more changes nothing
    said = fails(lambda: grant(stage, "10.1.0.0/16", other))
    assert "is another account's" in said and login not in said and "network_overview" in said, said
    assert "no network 10.2.0.0/16" in fails(lambda: revoke(stage, "10.2.0.0/16", login))
    assert "no network 10.1.0.0/16" in fails(lambda: revoke(stage, "10.1.0.0/16", other))
    assert sql(f"select cidr from postern.network_overview where login = '{login}' order by 1").split() == \
        ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32", "2001:e000::/19"]
    for network in ("10.0.0.0/8", "2001:e000::/19", "192.0.2.1", "10.1.0.0/16"):
        revoke(stage, network, login)
    lines = sql(f"select action, object, detail from postern.audit where action like 'network%' and object = '{login}' order by at").split("\n")
    assert len(lines) == 8 and lines[0] == f"network_grant|{login}|network: none -> 10.0.0.0/8", lines
    assert lines[-1] == f"network_revoke|{login}|network: 10.1.0.0/16 -> none", lines


def test_five_hundred_networks(stage):
    login, _ = stage.account("nets@example.org", "secret-3")
    stage.cluster.sql(f"select postern.network_grant('{login}', '10.9.0.0'::inet + i * 2) from generate_series(1, 500) i")
    assert "500 networks already" in fails(lambda: grant(stage, "10.8.0.0/16", login))
    stage.cluster.sql(f"delete from postern.network where account = postern.account_id('{login}')")


def test_the_smallest_network_counts(stage):
    """Against a search of all of them: nested ones, neighbours, both families."""
    with stage.database("networks") as cluster:
        stage.gateway.tool("database", "migrate")
        cluster.sql("""
            select postern.account_create('a' || i) from generate_series(1, 300) i;
            select setseed(0.4);
            insert into postern.network
                select distinct on (c) network(set_masklen(a, bits)) c, 1 + i % 300 from (
                    select i, case i % 3 when 0 then '2001:db8::'::inet else '10.0.0.0'::inet end + (random() * 4000)::bigint as a,
                        case i % 3 when 0 then 115 + i % 14 else 18 + i % 15 end as bits
                    from generate_series(1, 2000) i) x
                on conflict do nothing;
            insert into postern.network values ('10.0.0.0/8', 1), ('2001:c000::/19', 2)""")
        wrong = cluster.sql("""
            select a, got, wanted from (
                select a, postern.network_lookup(a) as got, (select o.login from postern.network n join postern.account o on o.id = n.account
                    where n.cidr >>= a order by masklen(n.cidr) desc limit 1) as wanted
                from (select '10.0.0.0'::inet - 10 + i * 3 as a from generate_series(1, 2000) i
                    union all select '2001:db8::'::inet - 10 + i * 3 from generate_series(1, 2000) i
                    union all select '9.0.0.0' union all select '::' union all select '255.255.255.255' union all select 'ff::') x) y
            where got is distinct from wanted""")
        assert wrong == "", wrong
        assert int(cluster.sql("select count(distinct postern.network_lookup('10.0.0.0'::inet + i)) from generate_series(1, 4000) i")) > 100


def test_two_hundred_thousand_networks_and_certificates_are_found_by_an_index(stage):
    with stage.database("manynets") as cluster:
        stage.gateway.tool("database", "migrate")
        cluster.sql("""
            insert into postern.account (login) select 'u' || i from generate_series(1, 200000) i;
            alter table postern.network disable trigger tell;
            insert into postern.network select ('11.0.0.0'::inet + i * 64)::cidr, i from generate_series(1, 200000) i;
            alter table postern.credential disable trigger tell;
            insert into postern.credential (account, kind, label, verifier)
                select i, 'certificate', 'server', encode(sha256(i::text::bytea), 'hex') from generate_series(1, 200000) i;
            analyze postern.account, postern.network, postern.credential""")
        plans = cluster.sql("""
            load 'auto_explain';
            set auto_explain.log_min_duration = 0;
            set auto_explain.log_nested_statements = on;
            set client_min_messages = log;
            do $$ begin for i in 1 .. 8 loop
                perform postern.network_lookup('11.0.16.0'), * from postern.certificate_lookup(encode(sha256('7'), 'hex'));
            end loop; end $$""", stderr=True)
        assert "Index Scan Backward using network_pkey" in plans and "account_pkey" in plans
        assert "credential_certificate" in plans and "Seq Scan" not in plans, plans


def test_what_the_processes_may(stage):
    for role, statement in (("postern_auth", "select * from postern.network"),
                            ("postern_auth", "insert into postern.network values ('10.0.0.0/8', 1)"),
                            ("postern_auth", f"select postern.network_grant('{LOGIN}', '10.0.0.0/8')"),
                            ("postern_relay", "select postern.network_lookup('10.0.0.1')"),
                            ("postern_admin", "insert into postern.network values ('10.0.0.0/8', 1)")):
        said = fails(lambda: stage.cluster.sql(f"set role {role}; {statement}"))
        assert "permission denied" in said, (role, statement, said)


# ---- never an open relay ----

RECIPIENTS = ("bob%example.com@example.net", "\"bob@example.com\"@example.net", "a!b@example.net", "bob@example.net",
              "@relay.example:bob@example.net", "postmaster", "Postmaster@example.org")


def everything_in_the_clear(stage, source):
    """What an open relay would take from somebody without a grant: 530, each time."""
    for recipient in RECIPIENTS:
        with server(stage, source) as stranger:
            answers = stranger.ask(mail(), f"RCPT TO:<{recipient}>", "RSET", mail(""), f"RCPT TO:<{recipient}>", "DATA")
            assert [a[:3] for a in answers] == ["530", "530", "250", "530", "530", "530"], (source, recipient, answers)
    with server(stage, source, ehlo=False) as stranger:
        assert stranger.ask(mail()).startswith("530")
        assert stranger.ask("HELO c").startswith("250")
        assert stranger.ask(mail()).startswith("530")
        assert stranger.ask("VRFY bob@example.net").startswith("530")


def everything(stage, source):
    """And under TLS."""
    everything_in_the_clear(stage, source)
    for tls in (False, True):
        client = connect_from(stage, source, tls)
        assert client.docmd(mail())[0] == 530
        assert client.docmd("RCPT TO:<bob@example.net>")[0] == 530
        client.close()


def connect_from(stage, source, implicit=False):
    """smtplib past EHLO under TLS, not logged in."""
    host = "::1" if ":" in source else "127.0.0.1"
    if implicit:
        client = smtplib.SMTP_SSL(host, stage.gateway.tls_port, context=trust_all(), timeout=20, source_address=(source, 0))
    else:
        client = smtplib.SMTP(host, stage.gateway.port, timeout=20, source_address=(source, 0))
        client.starttls(context=trust_all())
    client.ehlo("server.customer.example")
    return client


def test_nobody_relays_without_a_grant(stage):
    stage.account("net6@example.org", "secret-6")
    with granted(stage, "127.0.0.2", "2001:db8::/32"), granted(stage, "127.0.0.4/30", login="net6@example.org"):
        # The listener does not allow it.
        listening(stage, networks=False)
        everything(stage, "127.0.0.2")
        listening(stage)
        for source in ("127.0.0.1", "127.0.0.3", "127.0.0.8", "::1"):
            everything(stage, source)
    # Taken back.
    everything(stage, "127.0.0.2")
    assert not stage.upstream.messages


def taken_from(stage, source, *recipients):
    """Sends through a granted address; what the upstream got."""
    with server(stage, source) as customer:
        answers = customer.ask(mail(), *(f"RCPT TO:<{r}>" for r in recipients), "DATA")
        assert [a[:3] for a in answers] == ["250", *("250" for _ in recipients), "354"], answers
        customer.send(MESSAGE + b".\r\n")
        assert customer.reply().startswith("250 2.0.0 queued as ")
    return stage.upstream.take()


def test_a_granted_network_has_the_accounts_rights_and_no_more(stage):
    listening(stage)
    with granted(stage, "127.0.0.2", "::1"):
        for source in ("127.0.0.2", "::1"):
            taken = taken_from(stage, source, "bob%example.com@example.net", "\"bob@example.com\"@example.net")
            # Nothing is rewritten: they go where the upstream sends them.
            assert taken.recipients == ["bob%example.com@example.net", "\"bob@example.com\"@example.net"]
            assert b"with ESMTP id" in taken.header and source.encode() not in taken.header, taken.header
            with server(stage, source) as customer:
                assert customer.ask(mail("eve@example.com")).startswith("550 5.7.1")
                assert customer.ask("MAIL FROM:<@relay.example:alice@example.org>").startswith("501")
                assert customer.ask(mail("")).startswith("250")
                assert customer.ask("RCPT TO:<postmaster>").startswith("501")
                assert customer.ask("RCPT TO:<@relay.example:bob@example.net>").startswith("501")
                assert customer.ask("RCPT TO:<bob@example.net>", "DATA")[1].startswith("354")
                customer.send(message(sender="eve@example.com") + b".\r\n")
                assert customer.reply().startswith("550 5.7.1")
            with server(stage, source, ehlo=False) as customer:
                assert customer.ask(mail())[0] == "5"
            for implicit in (False, True):
                client = connect_from(stage, source, implicit)
                client.sendmail(LOGIN, ["bob@example.net"], MESSAGE)
                client.quit()
                assert b"with ESMTPS id" in stage.upstream.take().header
    assert not stage.upstream.messages


def test_a_login_goes_before_the_network(stage):
    stage.account("own@example.org", "secret-7")
    listening(stage)
    with granted(stage, "127.0.0.2"):
        client = connect_from(stage, "127.0.0.2")
        client.login("own@example.org", "secret-7")
        assert client.docmd(mail("own@example.org"))[0] == 250
        client.close()
        client = connect_from(stage, "127.0.0.2")
        assert client.docmd(*plain("own@example.org", "wrong").split(" ", 1))[0] == 535
        assert client.docmd(mail())[0] == 250
        assert client.docmd(*plain("own@example.org", "secret-7").split(" ", 1))[0] == 503
        client.close()


def test_each_listener_says_for_itself(stage):
    stage.gateway.tls_listener = {}
    listening(stage)
    with granted(stage, "127.0.0.2", "::1"):
        for source in ("127.0.0.2", "::1"):
            for implicit in (False, True):
                client = connect_from(stage, source, implicit)
                assert client.docmd(mail())[0] == (530 if implicit else 250), (source, implicit)
                client.close()
        # And may be told otherwise while it runs; who is there stays who it is.
        with server(stage, "127.0.0.2") as before:
            assert before.ask(mail()).startswith("250")
            stage.gateway.listener, stage.gateway.tls_listener = {}, {"networks": True}
            stage.gateway.write_conf()
            stage.gateway.process.send_signal(signal.SIGHUP)
            stage.gateway.wait_event("reloaded")
            eventually(lambda: connect_from(stage, "::1", True).docmd(mail())[0] == 250)
            everything_in_the_clear(stage, "127.0.0.2")
            assert before.ask("RSET", mail())[1].startswith("250")


# ---- changes ----

def test_changes_are_felt(stage):
    listening(stage)
    login = "moved@example.org"
    stage.cluster.sql(f"select postern.account_create('{login}')")  # no password: it needs none
    with server(stage, "127.0.0.2") as customer:
        assert customer.ask(mail()).startswith("530")
        with granted(stage, "127.0.0.0/24"):
            eventually(lambda: customer.ask(mail()).startswith("250"))
            customer.ask("RSET")
            # A part of it is another's: the session does not stay what it was.
            began = time.monotonic()
            with granted(stage, "127.0.0.0/30", login=login):
                assert customer.reply().startswith("421 4.7.0") and customer.reply() == ""
                assert time.monotonic() - began < 1
                with server(stage, "127.0.0.2") as second:
                    assert second.ask(mail()).startswith("550 5.7.1")
                    assert second.ask(mail(login)).startswith("250")
                    second.ask("RSET")
                    began = time.monotonic()
                    revoke(stage, "127.0.0.0/30", login)
                    assert second.reply().startswith("421 4.7.0") and second.reply() == ""
                    assert time.monotonic() - began < 1
                    grant(stage, "127.0.0.0/30", login)


@contextlib.contextmanager
def plans_locked(stage):
    """Nobody reads a plan meanwhile: a look-up stops behind the network, before the account."""
    psql = subprocess.Popen(["psql", "-XAtq", "-d", stage.cluster.database], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            env=stage.cluster.environment)
    psql.stdin.write(b"begin; lock table postern.plan in access exclusive mode; select 'locked';\n")
    psql.stdin.flush()
    assert psql.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        psql.communicate(b"commit;\n", timeout=20)


def test_what_changes_during_the_look_up_is_looked_up_again(stage):
    stage.gateway.submission = {"threads": 1}
    listening(stage)
    with granted(stage, "127.0.0.3"):
        grant(stage, "127.0.0.2")
        with server(stage, "127.0.0.3") as witness, server(stage, "127.0.0.2") as customer:
            assert witness.ask(mail()).startswith("250")
            witness.ask("RSET")
            with plans_locked(stage):
                customer.send(f"{mail()}\r\n".encode())
                eventually(lambda: stage.cluster.sql(
                    "select count(*) from pg_locks where not granted and relation = 'postern.plan'::regclass") == "1")
                revoke(stage, "127.0.0.2")
                assert witness.reply().startswith("421 4.7.0")
            assert customer.reply().startswith("530")


def test_the_plans_connections_and_limits_hold(stage):
    stage.cluster.sql("select postern.plan_set('two', connections => 2); update postern.account set plan = 'two' where login = 'alice@example.org'")
    stage.cluster.sql(f"select postern.limit_set('{LOGIN}', 'messages', '1 hour', 1)")
    listening(stage)
    try:
        with granted(stage, "127.0.0.2"):
            taken_from(stage, "127.0.0.2", "bob@example.net")
            with server(stage, "127.0.0.2") as first, server(stage, "127.0.0.2") as second:
                assert first.ask(mail(), "RCPT TO:<bob@example.net>", "DATA")[2].startswith("450 4.7.1 limit messages/hour")
                assert second.ask(mail()).startswith("250")
                with server(stage, "127.0.0.2") as third:
                    assert third.ask(mail()).startswith("421 4.7.0 Too many connections") and third.reply() == ""
    finally:
        stage.cluster.sql(f"select postern.limit_set('{LOGIN}', 'messages', '1 hour', null)")
        stage.cluster.sql("update postern.account set plan = 'default' where login = 'alice@example.org'")


def test_the_database_away_is_temporary(stage):
    listening(stage)
    with granted(stage, "127.0.0.2"):
        with server(stage, "127.0.0.2") as customer:
            stage.cluster.stop()
            try:
                assert customer.ask(mail(), "RCPT TO:<bob@example.net>") == \
                    ["451 4.3.0 Temporary failure, try again later", "530 5.7.0 Must issue a STARTTLS command first"]
            finally:
                stage.cluster.start()
            eventually(lambda: customer.ask(mail()).startswith("250"))


def test_postfix_as_a_customers_relay_without_a_login(stage):
    listening(stage, hosts=("127.0.0.1",))
    with granted(stage, "127.0.0.5"):
        postfix = Postfix(stage.folder / "pfn", stage.gateway.port, stage.authority.certificate, source="127.0.0.5").start()
        try:
            inside = smtplib.SMTP("127.0.0.1", postfix.port, timeout=30)
            for i in range(10):
                inside.sendmail(LOGIN, ["bob@example.net", "carol@example.net"], message(f"relayed {i}"))
            inside.sendmail(LOGIN, ["bob@example.net"], message("not ours", sender="eve@example.com"))
            inside.quit()
            taken = stage.upstream.wait(10)
            eventually(lambda: "550 5.7.1" in postfix.log(), 20)
            assert sorted(m.subject for m in taken) == sorted(f"relayed {i}" for i in range(10)), postfix.log()
            assert all(b"with ESMTP id" in m.header for m in taken)
            stage.gateway.wait_queue(0)
            assert len(stage.upstream.messages) == 10
        finally:
            postfix.stop()

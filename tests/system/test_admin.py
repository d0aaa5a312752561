# SPDX-License-Identifier: ISC
"""What admins do from psql and with `postern account`: what is told, what is noted, what stays secret."""
import base64
import contextlib
import hashlib
import json
import os
import pty
import select
import signal
import termios
import time

from environment import BUILD, TOP, eventually, run
from postgres import ADMIN
from test_database import fails
from test_refusals import plain, session

SCRIPTS = TOP / "scripts" / "admin"
VERIFIER = "SCRAM-SHA-256$4096:" + "A" * 22 + "==$" + "A" * 43 + "=:" + "A" * 43 + "="


def logs_in(stage, login, password):
    bare = session(stage, login=False)
    said = bare.ask(plain(login, password))
    bare.close()
    return said.startswith("235")


def audit(stage, login):
    """action: detail, in order."""
    rows = stage.cluster.script(SCRIPTS / "audit.sql", object=login).splitlines()
    return [": ".join(row.split("|")[i] for i in (2, 4)) for row in reversed(rows)]


# ---- the audit ----

def test_the_audit_tells_who_what_from_and_to(stage):
    script = stage.cluster.script
    script(SCRIPTS / "plan_set.sql", plan="gold", recipients="100", add_sender="true")
    script(SCRIPTS / "plan_set.sql", plan="gold", connections="7", sign_required="true")
    script(SCRIPTS / "plan_set.sql", plan="gold", connections="7", sign_required="true")
    assert audit(stage, "gold") == [
        "plan_set: new; recipients_per_message: none -> 100; sign_required: none -> false; add_sender: none -> true",
        "plan_set: recipients_per_message: 100 -> none; connections: none -> 7; sign_required: false -> true; "
        "add_sender: true -> false", "plan_set: "]
    script(SCRIPTS / "account_create.sql", login="Frank@example.org", environment={"POSTERN_PASSWORD": VERIFIER})
    script(SCRIPTS / "account_plan.sql", login="frank@EXAMPLE.org", plan="gold")
    script(SCRIPTS / "account_route.sql", login="FRANK@example.org", route="isp")
    script(SCRIPTS / "account_route.sql", login="frank@example.org")
    script(SCRIPTS / "account_suspend.sql", login="fRANK@example.org", reason="ticket 9")
    script(SCRIPTS / "account_close.sql", login="FRANK@EXAMPLE.ORG")
    told = audit(stage, "fraNK@example.org")
    assert told[:4] == ["account_create: state: none -> active; plan: none -> default; password: none -> set",
                        "account_set_plan: plan: default -> gold", "account_set_route: route: none -> isp",
                        "account_set_route: route: isp -> none"], told
    assert told[-2:] == ["account_suspend: state: active -> suspended; reason: none -> ticket 9",
                         "account_close: state: suspended -> closed"], told
    rows = stage.cluster.sql("select distinct actor, object from postern.audit where lower(object) = 'frank@example.org'")
    assert rows == f"{ADMIN}|Frank@example.org", rows
    assert stage.cluster.script(SCRIPTS / "audit.sql", count="1").startswith("20") and VERIFIER not in str(told)
    # A plan is no account, though it is called like one.
    script(SCRIPTS / "plan_set.sql", plan="FRANK")
    assert stage.cluster.sql("select object from postern.audit where action = 'plan_set' order by at desc limit 1") == "FRANK"


def test_what_admins_get_wrong_says_what_to_do(stage):
    stage.cluster.sql("select postern.account_create('shut@example.org')")
    stage.cluster.script(SCRIPTS / "account_close.sql", login="shut@example.org")
    for statement, words in (
            ("select postern.account_close('shut@example.org')", "closed already"),
            ("select postern.account_close('nobody@example.org')", "login ilike '%nobody%'"),
            ("select postern.account_close(null)", "there is no account"),
            ("select postern.account_create('SHUT@example.org')", "closed account stays taken"),
            ("select postern.account_set_plan('alice@example.org', 'nowhere')", "select postern.plan_set('nowhere')"),
            ("select postern.account_set_plan('alice@example.org', null)", "select name from postern.plan"),
            ("select postern.account_set_route('alice@example.org', '7up')", "null: the default route"),
            ("select postern.account_set_route('alice@example.org', '')", "null: the default route"),
            ("select postern.plan_set('p', add_sender => null)", "add_sender true or false"),
            ("select postern.plan_set(null)", "A name of letters"),
            ("select postern.dkim_key_add('bücher.example', 's', 'rsa-sha256', 'k', 'r')", "xn-- form"),
            ("select postern.dkim_key_add('a.example', 's', 'rsa-md5', 'k', 'r')", "rsa-sha256 or ed25519-sha256"),
            ("select postern.dkim_key_add('a.example', 's', 'rsa-sha256', null, 'r')", "postern dkim create")):
        said = fails(lambda: stage.cluster.sql(statement))
        assert words in said and "HINT:" in said, (statement, said)


def test_an_account_of_many_is_found_by_an_index(stage):
    cluster = stage.cluster
    cluster.sql(f"select postern.account_create('n' || n || '@many.example', '{VERIFIER}') from generate_series(1, 3000) n;"
                " select postern.sender_grant('n' || n || '@many.example', '@shop.example') from generate_series(1, 3000) n;"
                " analyze postern.account, postern.credential, postern.sender, postern.audit")
    one = "select * from postern.account_overview where lower(login collate \"C\") = lower('N77@many.example' collate \"C\")"
    for statement in (one, "select * from postern.audit where object = 'n77@many.example' order by at desc limit 50",
                      "select * from postern.audit order by at desc limit 50"):
        plan = cluster.sql("explain " + statement)
        assert "Index" in plan and "Seq Scan" not in plan, (statement, plan)
    assert cluster.sql(one).startswith("n77@many.example|active|")


# ---- many at a time ----

def test_accounts_from_a_csv_file(stage):
    def create(*lines):
        return stage.cluster.script(SCRIPTS / "accounts_create.sql", answers="\n".join(lines) + "\n").strip()

    stage.cluster.script(SCRIPTS / "plan_set.sql", plan="gold")
    assert create("login,password,plan", "csv1@example.org,pass-1,gold", f"csv2@example.org,{VERIFIER},",
                  "csv3@example.org,,", 'csv4@example.org,"a ""b"", \\c",default') == "4"
    assert logs_in(stage, "csv1@example.org", "pass-1") and logs_in(stage, "csv4@example.org", 'a "b", \\c')
    assert stage.cluster.sql("select plan, passwords from postern.account_overview where login like 'csv_@%' order by login"
                             ).splitlines() == ["gold|1", "default|1", "default|0", "default|1"]
    said = fails(lambda: create("login,password,plan", "csv5@example.org,pass-5,", "CSV1@example.org,pass-1,", "two words,pass,",
                                f"csv6@example.org,{VERIFIER[:-2]},", "csv7@example.org,pass-7,silver", ",,"))
    for words in ('line 3: there is an account "CSV1@example.org" already', 'line 4: "two words" cannot be a login',
                  "line 5: this verifier cannot be used", 'line 6: there is no plan "silver"', 'line 7: "',
                  "5 of 6 lines are bad: no account was made", "HINT:"):
        assert words in said, (words, said)
    # Without its first line it would lose an account.
    assert 'expected "login"' in fails(lambda: create("csv5@example.org,pass-5,gold", "csv6@example.org,pass-6,gold"))
    assert "line 3" in fails(lambda: create("login,password,plan", "csv5@example.org,pass-5,", "csv6@example.org,pass-6"))
    assert stage.cluster.sql("select count(*) from postern.account_overview where login ~ '^csv[5-7]'") == "0"


def test_hashes_of_another_system_from_a_csv_file(stage):
    def take(*lines):
        return stage.cluster.script(SCRIPTS / "accounts_import.sql", answers="\n".join(("login,hash,plan", *lines)) + "\n").strip()

    salt = b"saltsalt"
    ssha = base64.b64encode(hashlib.sha1(b"right-1" + salt).digest() + salt).decode()
    sha512 = run("openssl", "passwd", "-6", "-salt", "saltsalt", "right-2").stdout.decode().strip()
    assert take(f"hash1@example.org,{{SSHA}}{ssha},", f"hash2@example.org,{sha512},default") == "2"
    assert logs_in(stage, "hash1@example.org", "right-1") and logs_in(stage, "hash2@example.org", "right-2")
    assert not logs_in(stage, "hash1@example.org", "right-2")
    said = fails(lambda: take(f"hash3@example.org,{sha512},", "hash4@example.org,right-4,", "hash5@example.org,,"))
    assert "line 3: " in said and "line 4: " in said and "2 of 3 lines are bad: no account was made" in said, said
    assert stage.cluster.sql("select count(*) from postern.account_overview where login ~ '^hash[3-5]'") == "0"
    assert "hash" in str(audit(stage, "hash1@example.org")) and sha512 not in stage.cluster.sql("select detail from postern.audit")


def test_app_passwords_that_are_tied(stage):
    login, _ = stage.account("tied@example.org", "secret-1", "info@example.org")

    def make(label, **more):
        return stage.cluster.script(SCRIPTS / "app_password_create.sql", login=login, label=label, **more).strip()

    near, far = make("near", networks="127.0.0.0/8,::1/128"), make("far", networks="192.0.2.0/24")
    assert logs_in(stage, login, near) and not logs_in(stage, login, far)
    other = make("other", mechanisms="LOGIN")
    assert not logs_in(stage, login, other) and logs_in(stage, login, make("plain", mechanisms="PLAIN,LOGIN"))
    bare = session(stage, login=False)
    assert bare.ask(plain(login, make("one", sender="info@example.org", expires="2100-01-01"))).startswith("235")
    assert bare.ask(f"MAIL FROM:<{login}>").startswith("550 5.7.1")
    assert bare.ask("MAIL FROM:<info@example.org>").startswith("250")
    bare.close()
    assert "over already" in fails(lambda: make("old", expires="2001-01-01"))
    with stage.cluster.as_user(ADMIN):
        said = stage.gateway.tool("account", "app-password", "--networks", "127.0.0.0/8", login, "tool").strip()
        assert logs_in(stage, login, said.removeprefix("password="))
        said = json.loads(stage.gateway.tool("--json", "account", "app-password", "--mechanisms", "PLAIN", "--expires",
                                             "2100-01-01", "--sender", "info@example.org", login, "tool 2"))
        assert list(said) == ["password"] and logs_in(stage, login, said["password"])


def test_networks_and_certificates(stage):
    login, _ = stage.account("server@example.org", "secret-1")
    fingerprint = ":".join(["3A"] * 32)
    script, tool = stage.cluster.script, stage.gateway.tool
    script(SCRIPTS / "network_grant.sql", login=login, network="192.0.2.0/24")
    assert "HINT" in fails(lambda: script(SCRIPTS / "network_grant.sql", login=login, network="192.0.2.1/24"))
    script(SCRIPTS / "certificate_grant.sql", login=login, fingerprint=fingerprint, label="server")
    with stage.cluster.as_user(ADMIN):
        tool("account", "network", "grant", login, "198.51.100.0/24")
        assert "network_overview" in tool("account", "network", "revoke", login, "203.0.113.0/24", check=False).stderr
        tool("account", "network", "revoke", login, "192.0.2.0/24")
        tool("account", "revoke", login, "server")
        tool("account", "certificate", login, fingerprint.replace(":", ""), "server 2")
    script(SCRIPTS / "network_revoke.sql", login=login, network="198.51.100.0/24")
    script(SCRIPTS / "credential_revoke.sql", login=login, label="server 2")
    told = [line.split(":")[0] for line in audit(stage, login)]
    assert told == ["account_create", "network_grant", "certificate_grant", "network_grant", "network_revoke", "credential_revoke",
                    "certificate_grant", "network_revoke", "credential_revoke"], told


def test_the_tool_imports_a_hash(stage):
    sha512 = run("openssl", "passwd", "-6", "-salt", "saltsalt", "right-3").stdout.decode().strip()
    with server_log(stage) as written, stage.cluster.as_user(ADMIN):
        stage.cluster.environment_more["POSTERN_PASSWORD"] = sha512
        stage.gateway.tool("account", "import", "--plan", "default", "tooled@example.org")
        assert "account_import" in written() and sha512 not in written()
    assert logs_in(stage, "tooled@example.org", "right-3")


# ---- secrets ----

@contextlib.contextmanager
def server_log(stage):
    """What the server writes down with everything on; a function that returns it."""
    path = stage.cluster.folder / "log"
    start = path.stat().st_size
    stage.cluster.sql("alter system set log_statement = 'all'")
    stage.cluster.sql("select pg_reload_conf()")
    eventually(lambda: stage.cluster.sql("show log_statement") == "all")
    try:
        yield lambda: path.read_bytes()[start:].decode("utf-8", "replace")
    finally:
        stage.cluster.sql("alter system reset log_statement")
        stage.cluster.sql("select pg_reload_conf()")


def test_the_servers_log_has_no_password(stage):
    """Nor a private key, with every statement and every parameter written down."""
    secrets = [f"Sesam-{n}" for n in range(6)]
    cluster, tool = stage.cluster, stage.gateway.tool
    with server_log(stage) as written:
        cluster.script(SCRIPTS / "account_create.sql", login="quiet@example.org", environment={"POSTERN_PASSWORD": secrets[0]})
        cluster.script(SCRIPTS / "account_password.sql", login="quiet@example.org", answers=secrets[1] + "\n")
        cluster.script(SCRIPTS / "accounts_create.sql", answers=f"login,password,plan\nquiet2@example.org,{secrets[2]},\n")
        fails(lambda: cluster.script(SCRIPTS / "account_create.sql", login="quiet@example.org", answers=secrets[3] + "\n"))
        cluster.environment_more = {"POSTERN_PASSWORD": secrets[4]}
        try:
            tool("account", "create", "quiet3@example.org")
            tool("account", "password", "quiet3@example.org")
        finally:
            cluster.environment_more = {}
        tool("dkim", "create", "quiet.example")
        log = written()
    for words in ("postern.account_create(", "postern.account_set_password(", "postern.dkim_key_add(", "COPY "):
        assert words.lower() in log.lower(), words
    for secret in (*secrets, "PRIVATE KEY"):
        for form in (secret, secret.encode().hex()):
            assert form not in log, (form, [line for line in log.splitlines() if form in line])
    assert logs_in(stage, "quiet@example.org", secrets[1]) and logs_in(stage, "quiet2@example.org", secrets[2])
    assert logs_in(stage, "quiet3@example.org", secrets[4])


class Terminal:
    """A program with a terminal of its own."""

    def __init__(self, command, environment):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, environment)
        self.seen = b""

    def read(self, until=None, seconds=20):
        """Up to these words, or to its end."""
        end = time.monotonic() + seconds
        while until is None or until not in self.seen:
            assert select.select([self.fd], [], [], max(end - time.monotonic(), 0))[0], self.seen
            try:
                octets = os.read(self.fd, 4096)
            except OSError:  # the other side is closed
                octets = b""
            if not octets:
                assert until is None, self.seen
                break
            self.seen += octets
        return self.seen

    def echoes(self):
        return bool(termios.tcgetattr(self.fd)[3] & termios.ECHO)

    def end(self):
        """Its exit status; what goes on after its terminal is gone is killed."""
        os.close(self.fd)
        until = time.monotonic() + 5
        while (done := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.05)
        return os.waitstatus_to_exitcode(done[1])


def test_a_password_is_not_shown_while_it_is_typed(stage):
    cluster = stage.cluster
    stage.account("shy@example.org", "before")
    environment = {**cluster.environment, "PGUSER": ADMIN, "LC_ALL": "C.UTF-8", "PSQL_PAGER": "cat"}
    psql = ["psql", "-Xq", "-d", cluster.database, "-v", "login=shy@example.org", "-f", str(SCRIPTS / "account_password.sql")]
    tool = [str(BUILD / "postern"), "-c", str(stage.gateway.conf), "account", "password", "shy@example.org"]
    for number, command in enumerate((psql, tool)):
        password = f"pässwörd \\ '{number}"
        terminal = Terminal(command, environment)
        try:
            terminal.read(b"Password: ")
            eventually(lambda: not terminal.echoes())
            os.write(terminal.fd, password.encode() + b"\n")
            seen = terminal.read()
        finally:
            status = terminal.end()
        assert status == 0 and "wörd".encode() not in seen, (status, seen)
        assert logs_in(stage, "shy@example.org", password), command
    # Who thinks better of it has his terminal back.
    terminal = Terminal(["sh", "-c", "trap : INT; " + " ".join(f"'{word}'" for word in psql) + "; stty -a; echo over"], environment)
    try:
        terminal.read(b"Password: ")
        eventually(lambda: not terminal.echoes())
        os.write(terminal.fd, b"\x03")
        seen = terminal.read(b"over\r\n")
    finally:
        terminal.end()
    assert b" echo " in seen.partition(b"Password: ")[2].replace(b";", b" "), seen
    assert logs_in(stage, "shy@example.org", "pässwörd \\ '1")


# ---- the tool ----

def test_the_tools_verbs(stage):
    gateway = stage.gateway

    def tool(*words):
        with stage.cluster.as_user(ADMIN):
            done = gateway.tool(*words, check=False)
        return done.returncode, done.stdout, done.stderr

    stage.cluster.script(SCRIPTS / "plan_set.sql", plan="gold")
    stage.cluster.environment_more = {"POSTERN_PASSWORD": "pass-1"}
    try:
        assert tool("account", "create", "--plan", "gold", "Tina@example.org") == (0, "", "")
    finally:
        stage.cluster.environment_more = {}
    tina = "tina@example.org"
    assert tool("account", "sender", "grant", tina, "@shop.example")[0] == 0
    assert tool("account", "sender", "grant", tina, "a@shop.example")[0] == 0
    assert tool("account", "sender", "revoke", tina, "a@shop.example")[0] == 0
    assert tool("account", "route", tina, "isp")[0] == 0
    assert tool("account", "limit", tina, "messages", "1 hour", "5")[0] == 0
    assert tool("account", "usage", tina) == (0, "measure=messages per=hour used=0 amount=5\n", "")
    assert tool("account", "suspend", tina, 'sends "spam"')[0] == 0
    status, said, _ = tool("account", "show", tina)
    assert status == 0 and 'login=Tina@example.org state=suspended state_reason="sends \\"spam\\"" plan=gold route=isp ' in said, said
    status, said, _ = tool("--json", "account", "show", tina)
    shown = json.loads(said)
    assert (shown["state_reason"], shown["passwords"], shown["last_login"], shown["senders"]) == (
        'sends "spam"', 1, None, ["@shop.example"]), said
    assert tool("account", "resume", tina)[0] == 0
    assert tool("account", "plan", tina, "default")[0] == 0
    assert tool("account", "route", tina)[0] == 0
    assert tool("account", "limit", tina, "messages", "1 hour")[0] == 0
    assert tool("account", "usage", tina) == (0, "", "")
    logins = [json.loads(line)["login"] for line in tool("--json", "account", "list")[1].splitlines()]
    assert logins == sorted(logins) and "Tina@example.org" in logins
    assert tool("account", "revoke", tina, "password")[0] == 0
    eventually(lambda: not logs_in(stage, tina, "pass-1"))
    assert tool("account", "close", tina)[0] == 0
    status, _, said = tool("account", "close", tina)
    assert status == 1 and "closed already" in said and "Nothing is to be done" in said, said
    assert tool("account", "show", "nobody@example.org") == (1, "", "postern: no such account\n")
    assert json.loads(tool("--json", "database", "status")[1])["pending"] == []
    # Every verb that there is stands in the help.
    usage = tool("account", "nonsense")
    assert usage[0] == 2 and usage[1] == "" and tool("account", "create")[2] == usage[2]
    source = (TOP / "gateway/ctl/account.c").read_text()
    names = set()
    for row in source.split("verbs[] = {")[1].split("};")[0].split("{.name = ")[1:]:
        words = [part.split('"')[1] for part in ("= " + row).split(",") if part.strip().startswith(("= ", ".second"))]
        names.add(words[0])
        assert words[0] in usage[2], words
    assert len(names) > 12
    for wrong in (("sender", "grant", tina), ("sender", "give", tina, "x"), ("plan", tina), ("list", "x"), ("show", tina, "x"),
                  ("create", "--colour", "red", tina), ("limit", tina, "messages"), ("create", "--plan")):
        assert tool("account", *wrong) == usage, wrong

# SPDX-License-Identifier: ISC
"""The SQL interface as admins use it: the scripts, the roles, odd databases."""
from client import connect, message
from environment import TOP
from test_refusals import plain, session

ADMIN = TOP / "scripts" / "admin"


def fails(call):
    try:
        call()
    except RuntimeError as error:
        return str(error)
    raise AssertionError("it was allowed")


def test_an_admins_scripts(stage):
    run = stage.cluster.script
    run(ADMIN / "account_create.sql", login="carol@example.org", environment={"POSTERN_PASSWORD": "pass-1"})
    bare = session(stage, login=False)
    assert bare.ask(plain("carol@example.org", "pass-1")).startswith("235")
    run(ADMIN / "account_password.sql", login="carol@example.org", answers="pass-2\n")
    bare = session(stage, login=False)
    assert bare.ask(plain("carol@example.org", "pass-2")).startswith("235")
    run(ADMIN / "sender_grant.sql", login="carol@example.org", sender="info@example.org")
    run(ADMIN / "limit_set.sql", login="carol@example.org", measure="messages", per="1 hour", amount="10")
    client = connect(stage, "carol@example.org", "pass-2")
    client.sendmail("info@example.org", ["bob@example.net"], message(sender="info@example.org"))
    client.quit()
    assert run(ADMIN / "usage.sql", login="carol@example.org").strip() == "messages|hour|1|10"
    run(ADMIN / "account_suspend.sql", login="carol@example.org", reason="ticket 7")
    bare = session(stage, login=False)
    assert bare.ask(plain("carol@example.org", "pass-2")).startswith("535")
    run(ADMIN / "account_resume.sql", login="carol@example.org")
    bare = session(stage, login=False)
    assert bare.ask(plain("carol@example.org", "pass-2")).startswith("235")
    assert "no account" in fails(lambda: run(ADMIN / "account_resume.sql", login="nobody@example.org"))


def test_the_tool_makes_accounts(stage):
    gateway = stage.gateway
    gateway.cluster.environment_more = {"POSTERN_PASSWORD": "pass-9"}
    try:
        gateway.tool("account", "create", "dave@example.org")
    finally:
        gateway.cluster.environment_more = {}
    assert "login=dave@example.org" in gateway.tool("account", "list")
    assert gateway.tool("account", "show", "nobody@example.org", check=False).returncode == 1
    bare = session(stage, login=False)
    assert bare.ask(plain("dave@example.org", "pass-9")).startswith("235")
    assert "0002" in gateway.tool("database", "status")


def test_nobody_sees_more_than_it_needs(stage):
    def as_role(role, statement):
        return stage.cluster.sql(f"set role {role}; {statement}")

    for role, statement in (
            ("postern_relay", "select * from postern.credential"),
            ("postern_relay", "select * from postern.auth_lookup('alice@example.org')"),
            ("postern_auth", "select * from postern.dkim_keys('example.org')"),
            ("postern_auth", "select private_key from postern.dkim_key"),
            ("postern_auth", "update postern.account set state = 'active'"),
            ("postern_relay", "select postern.account_create('x@example.org', 'pw')"),
            ("postern_auth", "select postern.account_create('x@example.org', 'pw')"),
            ("postern_admin", "select private_key from postern.dkim_key")):
        assert "permission denied" in fails(lambda: as_role(role, statement)), (role, statement)


def test_a_database_that_is_not_utf8(stage):
    stage.cluster.sql("create database latin encoding 'SQL_ASCII' template template0 locale 'C'", database="postgres")
    before, stage.cluster.database = stage.cluster.database, "latin"
    try:
        stage.gateway.write_conf()
        stage.gateway.tool("database", "migrate")
        stage.cluster.sql("select postern.account_create('alice@example.org', 'secret-1')")
    finally:
        stage.cluster.database = before
        stage.gateway.write_conf()

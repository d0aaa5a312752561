# SPDX-License-Identifier: ISC
"""The SQL interface as admins use it: the scripts, the roles, odd databases."""
import contextlib
import subprocess

from client import connect, message
from environment import BUILD, TOP
from postgres import Session
from test_faults import eventually
from test_refusals import plain, session

ADMIN = TOP / "scripts" / "admin"
MIGRATIONS = len(list((TOP / "db" / "schema").glob("*.sql")))


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
    assert run(ADMIN / "usage.sql", login="carol@example.org").strip() == "messages|hour|1|10|"
    run(ADMIN / "account_suspend.sql", login="carol@example.org", reason="ticket 7")
    eventually(lambda: session(stage, login=False).ask(plain("carol@example.org", "pass-2"))
               == "525 5.7.13 account suspended: ticket 7")
    run(ADMIN / "account_resume.sql", login="carol@example.org")
    bare = session(stage, login=False)
    assert bare.ask(plain("carol@example.org", "pass-2")).startswith("235")
    assert "no account" in fails(lambda: run(ADMIN / "account_resume.sql", login="nobody@example.org"))
    password = run(ADMIN / "app_password_create.sql", login="carol@example.org", label="phone").strip()
    bare = session(stage, login=False)
    assert bare.ask(plain("carol@example.org", password)).startswith("235")
    run(ADMIN / "credential_revoke.sql", login="carol@example.org", label="phone")
    eventually(lambda: session(stage, login=False).ask(plain("carol@example.org", password)).startswith("535"))
    run(ADMIN / "sender_revoke.sql", login="carol@example.org", sender="info@example.org")
    run(ADMIN / "limit_set.sql", login="carol@example.org", measure="messages", per="1 hour", amount="")
    assert run(ADMIN / "usage.sql", login="carol@example.org") == ""
    run(ADMIN / "plan_set.sql", plan="small", recipients="100")
    run(ADMIN / "plan_limit_set.sql", plan="small", measure="bytes", per="1 day", amount="1000")
    run(ADMIN / "account_create.sql", login="erin@example.org", plan="small", environment={"POSTERN_PASSWORD": "pass-3"})
    assert run(ADMIN / "usage.sql", login="erin@example.org").strip() == "bytes|day|0|1000|"
    run(ADMIN / "account_close.sql", login="carol@example.org")
    bare = session(stage, login=False)
    assert bare.ask(plain("carol@example.org", "pass-2")).startswith("535")


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
    assert f"at {MIGRATIONS:04}" in gateway.tool("database", "status")


# What each role may, in whatever way it has come by it: nothing else. "public" is everybody.
TABLES = {
    "public": set(),
    "postern_admin": {
        "account_overview", "audit", "credential_overview", "delivery", "history_gap", "message", "migration", "network_overview",
        "plan", "queue_history", "rate_limit", "recipient_seen", "usage_overview"},
    "postern_auth": set(),
    "postern_relay": set(),
}
FUNCTIONS = {
    "public": set(),
    "postern_admin": {
        "account_close", "account_create", "account_id", "account_import", "account_resume", "account_set_password",
        "account_set_plan", "account_set_route", "account_suspend", "app_password_create", "certificate_grant",
        "credential_revoke", "dkim_key_add", "limit_set", "network_grant", "network_revoke", "plan_limit_set", "plan_set",
        "sender_grant", "sender_revoke", "setting_set", "trace", "usage", "usage_of"},
    "postern_auth": {
        "admit", "auth_lookup", "certificate_lookup", "credential_upgrade", "credentials_used", "network_lookup",
        "recipients_new", "scram_iterations", "scram_shapes", "server_secret", "settle"},
    "postern_relay": {"dkim_keys", "held_accounts", "held_among", "history_write"},
}


def test_each_role_may_what_it_needs_and_nothing_else(stage):
    for role, tables in TABLES.items():
        # A right to one column is one, too.
        found = stage.cluster.sql("""
            select distinct c.relname || ' ' || p from pg_class c, unnest(array['select', 'insert', 'update', 'delete',
                    'truncate', 'references', 'trigger']) p
                where c.relnamespace = 'postern'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
                    and (has_table_privilege(:'role', c.oid, p)
                        or (p in ('select', 'insert', 'update', 'references') and has_any_column_privilege(:'role', c.oid, p)))
            union all
            select c.relname || ' ' || p from pg_class c, unnest(array['usage', 'select', 'update']) p
                where c.relnamespace = 'postern'::regnamespace and c.relkind = 'S' and has_sequence_privilege(:'role', c.oid, p)""",
                                  role=role).splitlines()
        assert set(found) == {f"{table} select" for table in tables}, (role, found)
    for role, functions in FUNCTIONS.items():
        found = stage.cluster.sql("""select proname from pg_proc where pronamespace = 'postern'::regnamespace
            and has_function_privilege(:'role', oid, 'execute')""", role=role).splitlines()
        assert set(found) == functions, (role, set(found) ^ functions)
    assert stage.cluster.sql("""
        select rolname from pg_roles r where rolname ~ '^postern_' and (rolsuper or rolcreaterole or rolcreatedb or rolreplication
            or rolbypassrls or (rolname <> 'postern_owner' and (has_schema_privilege(oid, 'postern', 'create')
            or exists (select from pg_auth_members m where m.member = r.oid))))""") == ""


def test_nobody_sees_more_than_it_needs(stage):
    """By connecting, as they do."""
    cluster = stage.cluster
    for role, statement in (
            ("postern_relay", "select verifier from postern.credential"),
            ("postern_relay", "select * from postern.auth_lookup('alice@example.org')"),
            ("postern_relay", "update postern.account set state = 'active'"),
            ("postern_relay", "select postern.account_create('x@example.org', 'pw')"),
            ("postern_relay", "insert into postern.sender values (1, '@example.org')"),
            ("postern_auth", "select private_key from postern.dkim_key"),
            ("postern_auth", "select * from postern.dkim_keys('example.org')"),
            ("postern_auth", "update postern.account set state = 'active'"),
            ("postern_auth", "update postern.credential set verifier = ''"),
            ("postern_auth", "select postern.account_create('x@example.org', 'pw')"),
            ("postern_auth", "delete from postern.audit"),
            ("ops", "select verifier from postern.credential"),
            ("ops", "select private_key from postern.dkim_key"),
            ("ops", "select value from postern.setting"),
            ("ops", "select postern.server_secret()"),
            ("ops", "update postern.account set state = 'active'"),
            ("ops", "delete from postern.audit"),
            ("ops", "insert into postern.audit (action, object) values ('account_create', 'x')"),
            ("ops", "select postern.note('account_create', 'x')"),
            ("ops", "set role postern_owner")):
        with cluster.as_user(role):
            assert "permission denied" in fails(lambda: cluster.sql(statement)), (role, statement)
    with cluster.as_user("postern_relay"):
        assert cluster.sql("select count(*) from postern.dkim_keys('example.org')") == "2"
    with cluster.as_user("postern_auth"):
        assert cluster.sql("select bool_or(v like 'SCRAM-SHA-256$%') from postern.auth_lookup('alice@example.org') l, unnest(l.verifiers) v") == "t"


# Names of objects in the schema that have no comment; members of the extension have their own documentation.
WITHOUT_COMMENT = """
    with theirs as (
        select classid, objid from pg_depend where deptype = 'e'
    ), relation as (
        select c.oid, c.relname, c.relkind from pg_class c where c.relnamespace = 'postern'::regnamespace and not c.relispartition
            and c.relkind in ('r', 'p', 'v', 'm', 'f', 'c')
    )
    select 'schema' where obj_description('postern'::regnamespace, 'pg_namespace') is null
    union all
    select relname from relation where relkind <> 'c' and obj_description(oid, 'pg_class') is null
    union all
    select relname || '.' || attname from relation r join pg_attribute a on a.attrelid = r.oid and attnum > 0 and not attisdropped
        where relkind <> 'c' and col_description(r.oid, attnum) is null
    union all
    select oid::regprocedure::text from pg_proc where pronamespace = 'postern'::regnamespace and obj_description(oid, 'pg_proc') is null
        and not exists (select from theirs where classid = 'pg_proc'::regclass and objid = oid)
    union all
    select 'trigger ' || tgname || ' of ' || relname from pg_trigger t join relation r on r.oid = t.tgrelid
        where not tgisinternal and obj_description(t.oid, 'pg_trigger') is null
    union all
    select 'type ' || typname from pg_type t left join relation r on r.oid = t.typrelid where typnamespace = 'postern'::regnamespace
        and (typtype in ('e', 'd', 'r') or r.relkind = 'c') and obj_description(t.oid, 'pg_type') is null
    union all
    select 'sequence ' || relname from pg_class c where relnamespace = 'postern'::regnamespace and relkind = 'S'
        and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'i') and obj_description(oid, 'pg_class') is null
    order by 1"""


def test_everything_has_a_comment(stage):
    found = stage.cluster.sql(WITHOUT_COMMENT).splitlines()
    assert found == [], found
    found = stage.cluster.sql("""begin;
        create table postern.t (c integer);
        create view postern.v as select c from postern.t;
        create function postern.f(integer) returns integer language sql as 'select 1';
        create function postern.g() returns trigger language plpgsql as 'begin return null; end';
        comment on function postern.g is 'x';
        create trigger r after insert on postern.t execute function postern.g();
        create type postern.e as enum ('x');
        create sequence postern.s;
        """ + WITHOUT_COMMENT + "; rollback").splitlines()
    assert found == ["postern.f(integer)", "sequence s", "t", "t.c", "trigger r of t", "type e", "v", "v.c"], found


def test_functions_with_the_owners_rights_see_the_owners_objects(stage):
    """Whoever calls one cannot put an object of his own in the place of one of the schema."""
    assert stage.cluster.sql("""select oid::regprocedure from pg_proc where pronamespace = 'postern'::regnamespace and prosecdef
        and not coalesce('search_path=postern, pg_temp' = any(proconfig), false)""") == ""


def test_a_database_of_another_encoding(stage):
    """It is refused before anything is made, and a gateway that has one says why nobody gets in."""
    gateway = stage.gateway
    with stage.database("latin", "encoding 'LATIN1' template template0 locale 'C'") as cluster:
        for verb in ("migrate", "status"):
            done = gateway.tool("database", verb, check=False)
            assert done.returncode == 1 and "encoding is LATIN1 and must be UTF8" in done.stderr, done
            assert "createdb -E UTF8 -T template0" in done.stderr, done
        assert cluster.sql("select to_regnamespace('postern')") == ""
        gateway.stop()
        gateway.start()
        try:
            bare = session(stage, login=False)
            assert bare.ask(plain("alice@example.org", "secret-1")).startswith("454 4.7.0")
            bare.close()
            assert "must be UTF8" in gateway.wait_event("database.away")["why"], gateway.lines
        finally:
            gateway.stop()


def test_a_database_without_an_encoding(stage):
    """It keeps octets as they come: all is as in UTF-8, but for passwords."""
    gateway = stage.gateway
    with stage.database("octets", "encoding 'SQL_ASCII' template template0 locale 'C'") as cluster:
        gateway.tool("database", "migrate")
        cluster.sql("select postern.account_create('alice@example.org', 'secret-1')")
        assert "cannot be used" in fails(lambda: cluster.sql("select postern.account_create('b', 'gr\u00fcn-1234')"))
        gateway.stop()
        gateway.start()
        try:
            client = connect(stage)
            client.sendmail("alice@example.org", ["bob@example.net"],
                            message("odd").replace(b"Message-ID: <", "Message-ID: <\u65e5".encode()),
                            mail_options=["SMTPUTF8"])
            client.quit()
            gateway.wait_queue(0)
            eventually(lambda: "\u65e5" in cluster.sql("select message_id from postern.message"))
        finally:
            gateway.stop()


def test_logins_and_patterns_that_would_say_more_than_meant(stage):
    """A login is no pattern, however it is written; a pattern that means nothing is refused."""
    stage.account("@example.org", "secret-7")
    stage.account("mallory+*@example.org", "secret-7")
    for login in ("@example.org", "mallory+*@example.org"):
        bare = session(stage, login=False)
        assert bare.ask(plain(login, "secret-7")).startswith("235")
        for sender in ("alice@example.org", "mallory+x@example.org"):
            assert bare.ask(f"MAIL FROM:<{sender}>").startswith("550 5.7.1"), (login, sender)
    for pattern in ("*@example.org", "al*ce@example.org", "+*@example.org", "alice@", "@.", "@..example.org", "alice",
                    "a@b@example.org", "x" * 310 + "@example.org"):
        said = fails(lambda: stage.cluster.sql("select postern.sender_grant('alice@example.org', :'p')", p=pattern))
        assert "is no sender pattern" in said and "user+*@domain" in said, said
    for pattern in ("@shop.example", "@.shop.example", "alice+*@shop.example", "alice@shop.example"):
        stage.cluster.sql("select postern.sender_grant('alice@example.org', :'p')", p=pattern)
        stage.cluster.sql("select postern.sender_revoke('alice@example.org', :'p')", p=pattern)


def test_five_hundred_senders(stage):
    login, password = stage.account("many@example.org", "secret-8")
    stage.cluster.sql(f"select postern.sender_grant('{login}', 'sender-' || i || '@' || repeat('x', 50) || '.example')"
                      " from generate_series(1, 500) i")
    assert "500 sender rights" in fails(lambda: stage.cluster.sql(f"select postern.sender_grant('{login}', '@more.example')"))
    bare = session(stage, login=False)
    assert bare.ask(plain(login, password)).startswith("235")
    assert bare.ask(f"MAIL FROM:<sender-500@{'x' * 50}.example>").startswith("250")
    bare.close()


def test_what_admins_get_wrong_is_told(stage):
    verifier = "SCRAM-SHA-256$4096:" + "A" * 22 + "==$" + "A" * 43 + "=:" + "A" * 43 + "="
    stage.cluster.sql("select postern.account_create('verified@example.org', :'v')", v=verifier)
    for statement, words in (
            ("select postern.account_create('x', null, null)", "there is no plan"),
            ("select postern.account_create(null)", "cannot be a login"),
            ("select postern.account_create(repeat('é', 200))", "cannot be a login"),
            ("select postern.account_create('x y')", "cannot be a login"),
            ("select postern.account_create('ALICE@example.org')", "already"),
            ("select postern.account_create('x', '')", "1 to 256"),
            ("select postern.account_create('x', '%s')" % verifier.replace("4096", "999"), "this verifier cannot be used"),
            ("select postern.account_create('x', '%s')" % verifier.replace("4096", "99999"), "this verifier cannot be used"),
            ("select postern.account_create('x', '%s')" % verifier.replace("==$", "=$"), "this verifier cannot be used"),
            ("select postern.account_set_password('nobody', 'pw')", 'there is no account "nobody"'),
            ("select postern.plan_set('two words')", "this is no plan"),
            ("select postern.plan_set('p', 0)", "limits above 0"),
            ("select postern.plan_limit_set('nowhere', 'messages', '1 hour', 1)", "there is no plan"),
            ("select postern.limit_set('alice@example.org', 'messages', '1 month', 1)", "without months"),
            ("select postern.limit_set('alice@example.org', 'letters', '1 hour', 1)", "messages, recipients, bytes or new_recipients"),
            ("select postern.limit_set('alice@example.org', null, '1 hour', 1)", "messages, recipients, bytes or new_recipients"),
            ("select postern.limit_set('alice@example.org', 'messages', '1 second', 1)", "12 seconds to 366 days"),
            ("update postern.account set route = 'no name'", "account_route_check")):
        said = fails(lambda: stage.cluster.sql(statement))
        assert words in said, (statement, said)


def test_an_extension_in_another_schema_is_told(stage):
    with stage.database("shared") as cluster:
        cluster.sql("create extension pgcrypto")
        done = stage.gateway.tool("database", "migrate", check=False)
        assert done.returncode == 1 and "alter extension pgcrypto set schema" in done.stderr, done.stderr
        cluster.sql("create schema if not exists postern; alter extension pgcrypto set schema postern")
        stage.gateway.tool("database", "migrate")


PLANT = """
    create schema postern;
    create table postern.migration (number integer primary key, name text not null, checksum text not null,
        applied_at timestamptz not null default now());
    create function postern.rise() returns trigger language plpgsql as
        $$ begin alter role planter superuser; return new; end $$;
    create trigger rise before insert on postern.migration for each row execute function postern.rise();"""


@contextlib.contextmanager
def planter(stage, name):
    """A database in which the role `planter` may create."""
    with stage.database(name) as cluster:
        cluster.sql("create role planter login createdb createrole")
        cluster.sql(f"grant create on database {name} to planter")
        try:
            yield cluster
        finally:
            cluster.sql(f"drop database {name} with (force); drop role planter", database="postgres")


def migrates_not(stage, words, verbs=("migrate",)):
    for verb in verbs:
        done = stage.gateway.tool("database", verb, check=False)
        assert done.returncode == 1 and words in done.stderr and not done.stdout, (verb, done)
    assert stage.cluster.sql("select count(*) from pg_roles where rolname = 'planter' and rolsuper", database="postgres") == "0"


def test_migrations_trust_nothing_that_somebody_has_planted(stage):
    with planter(stage, "planted") as cluster:
        with cluster.as_user("planter"):
            cluster.sql(PLANT)
        migrates_not(stage, 'the schema postern belongs to "planter"', ("migrate", "status"))
        for what in ("schema postern", "table postern.migration"):
            cluster.sql(f"alter {what} owner to postgres")
            migrates_not(stage, 'belongs to "planter"', ("migrate", "status"))
        cluster.sql("drop schema postern cascade")
        # A view runs as whoever reads it.
        cluster.sql("create schema postern; grant create, usage on schema postern to planter")
        with cluster.as_user("planter"):
            cluster.sql("create function postern.rise() returns integer language plpgsql as"
                        " $$ begin alter role planter superuser; return 1; end $$;"
                        "create view postern.migration as select postern.rise() as number, 'x' as checksum")
        migrates_not(stage, 'belongs to "planter"', ("migrate", "status"))
        cluster.sql("drop schema postern cascade")
        with cluster.as_user("planter"):
            cluster.sql("create schema theirs; create extension pgcrypto schema theirs")
        migrates_not(stage, 'the extension pgcrypto belongs to "planter"')
        assert cluster.sql("select to_regnamespace('postern')") == ""
        cluster.sql("drop extension pgcrypto")
        # Nor does the database lead names astray.
        cluster.sql("alter database planted owner to planter")
        with cluster.as_user("planter"):
            cluster.sql("create function theirs.now() returns timestamptz language plpgsql as"
                        " $$ begin alter role planter superuser; return pg_catalog.now(); end $$;"
                        "alter database planted set search_path = theirs, pg_catalog")
        stage.gateway.tool("database", "migrate")
        assert cluster.sql("select rolsuper from pg_catalog.pg_roles where rolname = 'planter'") == "f"
        assert cluster.sql("""select pg_catalog.count(*) from pg_catalog.pg_class c where relnamespace = 'postern'::regnamespace
            and relowner <> 'postern_owner'::regrole""") == "0"
        assert cluster.sql("select nspowner::regrole from pg_catalog.pg_namespace where nspname = 'postern'") == "postern_owner"


def test_nobody_plants_while_somebody_migrates(stage):
    """What is planted is committed while the migrator waits: for its lock, or for the name of the schema."""
    for isolation in ("read committed", "serializable"):
        for lock in ("", "select pg_advisory_lock(5773619)"):
            with planter(stage, "racing") as cluster:
                cluster.sql(f"alter database racing set default_transaction_isolation = '{isolation}'")
                with cluster.as_user("planter"):
                    other = Session(cluster)
                try:
                    if lock:
                        other.ask(lock + ";")
                    else:
                        other.ask("begin;" + PLANT)
                    migrating = subprocess.Popen([BUILD / "postern", "-c", stage.gateway.conf, "database", "migrate"],
                                                 env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                    eventually(lambda: cluster.sql("select count(*) from pg_locks where not granted") != "0")
                    other.ask(PLANT + "select pg_advisory_unlock(5773619);" if lock else "commit;")
                    said = migrating.communicate(timeout=60)
                finally:
                    other.close()
                assert migrating.returncode == 1 and said[1] and not said[0], said
                migrates_not(stage, 'the schema postern belongs to "planter"')


def test_only_a_superuser_migrates(stage):
    with planter(stage, "humble") as cluster:
        with cluster.as_user("planter"):
            migrates_not(stage, '"planter" is no superuser; Migrations make roles')
        assert cluster.sql("select to_regnamespace('postern')") == ""
        stage.gateway.tool("database", "migrate")


def test_a_migration_that_loses_its_connection_is_not_recorded(stage):
    """Not even when that happens between its last statement and its record."""
    with stage.database("cut") as cluster:
        cluster.sql("""
            create schema postern;
            create table postern.migration (number integer primary key, name text not null, checksum text not null,
                applied_at timestamptz not null default now());
            create function cut() returns trigger language plpgsql as $$
                begin
                    if to_regclass('postern.account') is not null and not exists (select from postern.migration) then
                        perform pg_terminate_backend(pg_backend_pid());
                    end if;
                    return new;
                end $$;
            create trigger cut before insert on postern.migration for each row execute function cut()""")
        done = stage.gateway.tool("database", "migrate", check=False)
        assert done.returncode == 1 and "closed the connection" in done.stderr, done
        assert cluster.sql("select count(*), to_regclass('postern.account') from postern.migration") == "0|"
        cluster.sql("drop trigger cut on postern.migration")
        stage.gateway.tool("database", "migrate")
        assert cluster.sql("select count(*) from postern.migration") == str(MIGRATIONS)


def test_two_migrate_at_once_and_a_newer_schema_is_refused(stage):
    with stage.database("twice") as cluster:
        command = [BUILD / "postern", "-c", stage.gateway.conf, "database", "migrate"]
        both = [subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE) for _ in range(3)]
        said = [process.communicate(timeout=60)[0].decode() for process in both]
        assert [process.returncode for process in both] == [0, 0, 0], said
        assert "".join(said).count("applied 0001") == 1, said
        cluster.sql("update postern.migration set checksum = reverse(checksum) where number = 2")
        for verb in ("migrate", "status"):
            done = stage.gateway.tool("database", verb, check=False)
            assert done.returncode == 1 and "not the one of this program" in done.stderr, done
        cluster.sql("update postern.migration set checksum = reverse(checksum) where number = 2")
        cluster.sql(f"insert into postern.migration values ({MIGRATIONS + 1}, 'later', 'x')")
        done = stage.gateway.tool("database", "migrate", check=False)
        assert done.returncode == 1 and "use the newer program" in done.stderr, done


def test_the_last_login_is_noted(stage):
    login, password = stage.account("noted@example.org", "secret-6")
    bare = session(stage, login=False)
    assert bare.ask(plain(login, password)).startswith("235")
    eventually(lambda: stage.cluster.sql(
        f"select last_login > now() - interval '2 minutes' from postern.account_overview where login = '{login}'") == "t", seconds=20)


def test_passwords_of_the_roles_come_from_files(stage):
    cluster, gateway = stage.cluster, stage.gateway
    rules = cluster.folder / "data/pg_hba.conf"
    before = rules.read_text()
    files = {}
    for role in ("auth", "relay"):
        cluster.sql(f"alter role postern_{role} password 'of-{role}'")
        files[role] = stage.folder / f"{role}.password"
        files[role].write_text(f"of-{role}\n")
    rules.write_text("local all postern_auth,postern_relay scram-sha-256\n" + before)
    cluster.sql("select pg_reload_conf()")
    gateway.extra = "".join(f'database_{role}_password_file = "{path}"\n' for role, path in files.items())
    try:
        gateway.stop()
        gateway.start()
        client = connect(stage)
        client.sendmail("alice@example.org", ["bob@example.net"], message("by password"))
        client.quit()
        assert b"DKIM-Signature:" in stage.upstream.take().octets
        for role, path in files.items():
            for pid in gateway.children().values():
                assert f"of-{role}" not in open(f"/proc/{pid}/cmdline").read()
        files["auth"].write_text("wrong\n")
        gateway.stop()
        gateway.start()
        bare = session(stage, login=False)
        assert bare.ask(plain()).startswith("454 4.7.0")
        bare.close()
        assert "password authentication failed" in gateway.wait_event("database.away")["why"]
    finally:
        gateway.extra = ""
        rules.write_text(before)
        cluster.sql("select pg_reload_conf()")
        gateway.stop()
        gateway.start()

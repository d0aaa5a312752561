# SPDX-License-Identifier: ISC
"""Migrations: from every earlier schema, with data in every table, to the newest; and the ways that fail."""
import collections
import json
import pathlib

from client import connect, message
from environment import TOP, eventually, run
from test_refusals import plain, session

MIGRATIONS = sorted((TOP / "db" / "schema").glob("*.sql"))
DATA = pathlib.Path(__file__).resolve().parent / "data" / "upgrade"
NEWEST = len(MIGRATIONS)
LOGIN, PASSWORD = "old@example.org", "secret-old"
KEEPING = """
    create schema postern;
    create table postern.migration (number integer primary key, name text not null, checksum text not null,
        applied_at timestamptz not null default now());
    comment on table postern.migration is 'Migrations that were applied to this schema.';
    comment on column postern.migration.number is 'Order.';
    comment on column postern.migration.name is 'Name.';
    comment on column postern.migration.checksum is 'Of its text.';
    comment on column postern.migration.applied_at is 'When.';"""


def checksums(stage):
    rows = stage.cluster.sql("select number, checksum from postern.migration", database="postern").splitlines()
    return {int(number): checksum for number, checksum in (row.split("|") for row in rows)}


def come_to(stage, cluster, count):
    """An empty database brought to an earlier schema as the programs of that time did, used at every step."""
    known = checksums(stage)
    if count > 0:
        cluster.sql(KEEPING)
    for number, path in enumerate(MIGRATIONS[:count], 1):
        name = path.stem.split("_", 1)[1]
        cluster.sql(f"begin;\n{path.read_text()};\ninsert into postern.migration (number, name, checksum)"
                    f" values ({number}, '{name}', '{known[number]}'); commit")
        if (DATA / f"{name}.sql").exists():
            cluster.sql((DATA / f"{name}.sql").read_text())


def add_someone(cluster):
    """With the functions of the newest schema; the data of earlier ones are made with theirs."""
    cluster.sql("select postern.account_create(:'login', :'password')", login=LOGIN, password=PASSWORD)
    cluster.sql("select postern.sender_grant(:'login', 'info@example.org')", login=LOGIN)


def tables(cluster):
    return cluster.sql("""select relname from pg_class where relnamespace = to_regnamespace('postern') and relkind in ('r', 'p')
        and not relispartition and relname <> 'migration' order by 1""").splitlines()


def rows_of(cluster):
    return {table: [json.loads(row) for row in cluster.sql(f"select to_jsonb(t) from postern.{table} t").splitlines()]
            for table in tables(cluster)}


def missing(before, after):
    """The rows of before, in the columns that are left, that after has not."""
    for table, rows in before.items():
        if not rows or table not in after or not after[table]:
            yield from ((table, row) for row in rows)
            continue
        columns = sorted(rows[0].keys() & after[table][0].keys())
        there = collections.Counter(json.dumps([row[c] for c in columns]) for row in after[table])
        wanted = collections.Counter(json.dumps([row[c] for c in columns]) for row in rows)
        yield from ((table, row) for row in wanted - there)


def schema_of(cluster):
    # Parts of a table come and go with its rows.
    parts = cluster.sql("select '--exclude-table=' || oid::regclass from pg_class where relispartition and relkind = 'r'").split()
    said = run(cluster.bin / "pg_dump", "--schema-only", *parts, "-d", cluster.database, env=cluster.environment).stdout.decode()
    # A password of psql's own, another one in each dump.
    return [line for line in said.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


def passes_a_message(stage, login, password):
    """With a gateway on the database of now."""
    stage.gateway.stop()
    stage.gateway.start()
    try:
        client = connect(stage, login, password)
        client.sendmail("info@example.org", ["bob@example.net"], message("after the upgrade", sender="info@example.org"))
        client.quit()
        assert stage.upstream.take().sender == "info@example.org"
    finally:
        stage.gateway.stop()


def test_from_every_earlier_schema_with_data_in_it(stage):
    with stage.database("fresh") as cluster:
        stage.gateway.tool("database", "migrate")
        fresh = schema_of(cluster)
    for count in range(NEWEST):
        with stage.database(f"from_{count}") as cluster:
            come_to(stage, cluster, count)
            before = rows_of(cluster)
            empty = [table for table, rows in before.items() if not rows]
            assert not empty, f"{MIGRATIONS[count - 1].name}: no data in {empty}; see {DATA}"
            stage.gateway.tool("database", "migrate")
            lost = list(missing(before, rows_of(cluster)))
            assert not lost, (count, lost[:3])
            assert schema_of(cluster) == fresh, count
            if count == 0:
                add_someone(cluster)
            passes_a_message(stage, LOGIN, PASSWORD)


def reaches(stage):
    """The reply that stops somebody on the way to DATA, or that to DATA."""
    bare = session(stage, login=False)
    try:
        said = bare.ask(plain(LOGIN, PASSWORD))
        if said.startswith("235"):
            bare.ask("MAIL FROM:<info@example.org>")
            bare.ask("RCPT TO:<bob@example.net>")
            said = bare.ask("DATA")
        return said
    finally:
        bare.close()


def test_a_gateway_on_an_older_schema_says_what_to_do(stage):
    """And goes on by itself when that is done."""
    gateway = stage.gateway
    for count in range(2):
        with stage.database(f"older_{count}") as cluster:
            come_to(stage, cluster, count)
            gateway.stop()
            gateway.start()
            try:
                said = reaches(stage)
                assert said.startswith(("454 4.7.0", "451 4.3.0")), (count, said)
                assert "run postern database migrate" in gateway.wait_event("database.away")["why"], gateway.lines
                gateway.tool("database", "migrate")
                if count == 0:
                    add_someone(cluster)
                eventually(lambda: reaches(stage).startswith("354"))
                gateway.wait_event("database.back")
            finally:
                gateway.stop()


def test_a_migration_that_fails_leaves_nothing(stage):
    with stage.database("failing") as cluster:
        come_to(stage, cluster, NEWEST - 1)
        before, rows = schema_of(cluster), rows_of(cluster)
        cluster.sql("create function public.no() returns trigger language plpgsql as $$ begin raise exception 'not today'; end $$;"
                    " create trigger no before insert on postern.migration for each row execute function public.no()")
        done = stage.gateway.tool("database", "migrate", check=False)
        assert done.returncode == 1 and "not today" in done.stderr, done
        cluster.sql("drop trigger no on postern.migration; drop function public.no()")
        assert schema_of(cluster) == before and rows_of(cluster) == rows
        stage.gateway.tool("database", "migrate")
        assert rows_of(cluster) != rows or NEWEST > 2


def test_status_says_what_is_pending(stage):
    tool = stage.gateway.tool
    with stage.database("pending") as cluster:
        come_to(stage, cluster, 1)
        done = tool("database", "status", check=False)
        said = done.stdout.splitlines()
        assert done.returncode == 1 and said[0] == f"the schema is at 0001; this program knows {NEWEST:04}; run postern database migrate"
        names = [path.stem.replace("_", " ", 1) for path in MIGRATIONS[1:]]
        assert said[1:] == [f"pending {name}" for name in names], said
        done = tool("--json", "database", "status", check=False)
        assert json.loads(done.stdout) == {"applied": 1, "newest": NEWEST, "pending": names}, done
        tool("database", "migrate")
        done = tool("--json", "database", "status", check=False)
        assert done.returncode == 0 and json.loads(done.stdout) == {"applied": NEWEST, "newest": NEWEST, "pending": []}
        cluster.sql("delete from postern.migration where number = 1")
        done = tool("database", "status", check=False)
        assert done.returncode == 1 and "has migration 2 but not 1" in done.stderr, done

/* SPDX-License-Identifier: ISC */
/* Applying migrations; see migrate.h. */
#include "db/migrate.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define SCRIPT_MAX (4U << 20)
#define LOCK_KEY   "5773619" /* any number that nobody else uses for pg_advisory_lock */

static void checksum_of(const struct migration *migration, char ret_text[24])
{
	snprintf(ret_text, 24, "%016llx",
	        (unsigned long long)XXH3_64bits(migration->sql, strlen(migration->sql)));
}

/* What a database has set for its sessions must not lead a superuser's statements astray. */
#define BEGIN                                                                                      \
	"begin isolation level read committed;"                                                    \
	"set client_min_messages = warning;"                                                       \
	"set search_path = pg_catalog, pg_temp;"

/*
 * What a superuser runs must be nobody else's: whoever may create a schema in the database could
 * have planted a trigger or a view. What passes stays so: only its owners could let others in.
 */
#define CHECK_OWNERS                                                                               \
	"do $$"                                                                                    \
	" declare stranger text := ("                                                              \
	"  select format('%s belongs to \"%s\"', what, r.rolname) from ("                          \
	"   select 'the schema postern' as what, nspowner as owner from pg_namespace"              \
	"    where nspname = 'postern'"                                                            \
	"   union all select 'the extension pgcrypto', extowner from pg_extension"                 \
	"    where extname = 'pgcrypto'"                                                           \
	"   union all select format('postern.%I', relname), relowner from pg_class"                \
	"    where relnamespace = to_regnamespace('postern')"                                      \
	"   union all select format('postern.%I', proname), proowner from pg_proc"                 \
	"    where pronamespace = to_regnamespace('postern')"                                      \
	"   union all select format('postern.%I', typname), typowner from pg_type"                 \
	"    where typnamespace = to_regnamespace('postern')"                                      \
	"   union all select format('postern.%s', oprname), oprowner from pg_operator"             \
	"    where oprnamespace = to_regnamespace('postern')"                                      \
	"  ) o join pg_roles r on r.oid = o.owner"                                                 \
	"  where not r.rolsuper and r.rolname <> 'postern_owner' limit 1);"                        \
	" begin"                                                                                   \
	"  if stranger is not null then"                                                           \
	"   raise exception '%, and neither to a superuser nor to postern_owner', stranger"        \
	"    using hint = 'Somebody may have planted it: drop it, or take a new database.';"       \
	"  end if;"                                                                                \
	" end $$;"

static int run_transaction(struct db *db, const char *script, struct why *why)
{
	int r = db_run_script(db, script, why);

	if (r < 0)
		(void)!db_run_script(db, "rollback", NULL);
	return r;
}

/* The owners are judged behind what is created, so that nobody can be quicker. */
static int prepare(struct db *db, struct why *why)
{
	return run_transaction(db,
	        BEGIN
	        "do $$ begin"
	        " if current_setting('is_superuser') <> 'on' then"
	        "  raise exception '\"%\" is no superuser', current_user using hint ="
	        "   'Migrations make roles and an extension; run them as one, such as postgres.';"
	        " end if;"
	        "end $$;"
	        "select pg_advisory_lock(" LOCK_KEY ");"
	        "create schema if not exists postern;"
	        "create table if not exists postern.migration ("
	        " number integer primary key, name text not null, checksum text not null,"
	        " applied_at timestamptz not null default now());" CHECK_OWNERS
	        "comment on table postern.migration is 'Migrations that were applied to this "
	        "schema.';"
	        "comment on column postern.migration.number is 'Order.';"
	        "comment on column postern.migration.name is 'Name.';"
	        "comment on column postern.migration.checksum is 'Of its text.';"
	        "comment on column postern.migration.applied_at is 'When.';"
	        "commit",
	        why);
}

/* Whether a row of postern.migration is what this program would have written there. */
static int check(const PGresult *rows, int row, struct why *why)
{
	char checksum[24];
	unsigned number = (unsigned)db_int(rows, row, 0), due = (unsigned)row + 1;

	if (number > migration_count) {
		why_set(why,
		        "the database has migration %u, this program knows %u; use the newer "
		        "program",
		        number, migration_count);
		return -EPROTO;
	}
	if (number != due) {
		why_set(why, "the database has migration %u but not %u", number, due);
		return -EPROTO;
	}
	checksum_of(&migrations[row], checksum);
	if (!slice_equal(db_text(rows, row, 1), slice_str(checksum))) {
		why_set(why, "migration %u of the database is not the one of this program", number);
		return -EPROTO;
	}
	return 0;
}

/* Compares what was applied with what this program has; *ret_applied is the highest. */
static int compare(struct db *db, unsigned *ret_applied, struct why *why)
{
	PGresult *result;
	int r = db_exec(db, "select number, checksum from postern.migration order by number", 0,
	        NULL, &result, why);

	if (r < 0)
		return r;
	int rows = PQntuples(result);
	for (int row = 0; r == 0 && row < rows; row++)
		r = check(result, row, why);
	PQclear(result);
	if (r == 0)
		*ret_applied = (unsigned)rows;
	return r;
}

/*
 * One script, so that no part of it can come to stand on a new connection, outside of the
 * transaction. Name and checksum are from the program, and need no quoting.
 */
static int apply(struct db *db, const struct migration *migration, struct why *why)
{
	char checksum[24];
	struct buf script;

	checksum_of(migration, checksum);
	buf_init(&script, SCRIPT_MAX);
	int r = buf_printf(&script, BEGIN "\n%s;\n", migration->sql);
	if (r == 0)
		r = buf_printf(&script,
		        "insert into postern.migration (number, name, checksum) "
		        "values (%u, '%s', '%s'); commit",
		        migration->number, migration->name, checksum);
	const char *text = r == 0 ? buf_str(&script) : NULL;
	r = text != NULL ? run_transaction(db, text, why)
	                 : why_errno(why, ENOMEM, "migration %u", migration->number);
	buf_done(&script);
	return r;
}

int migrate(struct db *db, migrate_report_fn report, void *arg, struct why *why)
{
	unsigned applied;

	int r = prepare(db, why);
	if (r == 0)
		r = compare(db, &applied, why);
	for (unsigned i = r == 0 ? applied : migration_count; r == 0 && i < migration_count; i++) {
		r = apply(db, &migrations[i], why);
		if (r == 0)
			report(arg, &migrations[i]);
	}
	(void)!db_run_script(db, "select pg_advisory_unlock(" LOCK_KEY ")", NULL);
	return r;
}

int migrate_status(struct db *db, struct migration_status *ret_status, struct why *why)
{
	PGresult *result;
	unsigned applied = 0;

	int r = db_exec(db, "select pg_catalog.to_regclass('postern.migration') is not null", 0,
	        NULL, &result, why);
	if (r < 0)
		return r;
	bool exists = slice_equal(db_text(result, 0, 0), SLICE("t"));
	PQclear(result);
	if (exists)
		r = run_transaction(db, BEGIN CHECK_OWNERS "commit", why);
	if (exists && r == 0)
		r = compare(db, &applied, why);
	if (r == 0)
		ret_status->applied = applied;
	return r;
}

/* SPDX-License-Identifier: ISC */
/* postern database: the schema. Also the tool's connection to the database. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "db/migrate.h"
#include "gateway/base/encode.h"
#include "gateway/ctl/ctl.h"

struct db *ctl_database_open(struct ctl *ctl)
{
	const struct db_settings settings = {.conninfo = ctl->conf->database, .deadline_ms = 30000};
	struct db *db;
	struct why why;

	if (db_new(&settings, &db, &why) == 0)
		return db;
	fprintf(stderr, "postern: %s: database: %s\n", ctl->conf_path, why.text);
	return NULL;
}

int ctl_database_failed(const struct why *why)
{
	fprintf(stderr, "postern: %s\n", why->text);
	return CTL_REFUSED;
}

int ctl_database_secret(struct db *db, struct slice secret, struct why *why)
{
	char hex[2 * CTL_SECRET_MAX + 2];

	if (secret.len > CTL_SECRET_MAX)
		return why_errno(why, E2BIG, "a secret");
	hex_encode(secret.ptr, secret.len, hex);
	hex[2 * secret.len] = '\n';
	int r = db_run_script(db,
	        "set client_min_messages = warning;"
	        "create temporary table if not exists secret (hex text not null);"
	        "truncate pg_temp.secret",
	        why);
	if (r == 0)
		r = db_copy(db, "copy pg_temp.secret from stdin", slice_of(hex, 2 * secret.len + 1),
		        why);
	explicit_bzero(hex, sizeof(hex));
	return r;
}

static void report(void *arg, const struct migration *migration)
{
	const struct ctl *ctl = arg;

	if (ctl->json)
		printf("{\"migrated\":%u,\"name\":\"%s\"}\n", migration->number, migration->name);
	else
		printf("applied %04u %s\n", migration->number, migration->name);
}

static int do_migrate(struct ctl *ctl, struct db *db)
{
	struct why why;

	if (migrate(db, report, ctl, &why) < 0)
		return ctl_database_failed(&why);
	if (!ctl->json)
		printf("the schema is at %04u\n", migration_count);
	return CTL_DONE;
}

static int do_status(struct ctl *ctl, struct db *db)
{
	struct migration_status status;
	struct why why;

	if (migrate_status(db, &status, &why) < 0)
		return ctl_database_failed(&why);
	bool current = status.applied == migration_count;
	if (ctl->json)
		printf("{\"applied\":%u,\"newest\":%u,\"pending\":[", status.applied,
		        migration_count);
	else
		printf("the schema is at %04u; this program knows %04u%s\n", status.applied,
		        migration_count, current ? "" : "; run postern database migrate");
	for (unsigned i = status.applied; i < migration_count; i++) {
		const struct migration *pending = &migrations[i];
		if (ctl->json)
			printf("%s\"%04u %s\"", i > status.applied ? "," : "", pending->number,
			        pending->name);
		else
			printf("pending %04u %s\n", pending->number, pending->name);
	}
	if (ctl->json)
		puts("]}");
	return current ? CTL_DONE : CTL_REFUSED;
}

int ctl_database(struct ctl *ctl, int argc, char **argv)
{
	bool migrating = strcmp(argv[0], "migrate") == 0;

	if (argc != 1 || (!migrating && strcmp(argv[0], "status") != 0))
		return ctl_usage("database");
	struct db *db = ctl_database_open(ctl);
	if (db == NULL)
		return CTL_REFUSED;
	int status = migrating ? do_migrate(ctl, db) : do_status(ctl, db);
	db_free(db);
	return status;
}

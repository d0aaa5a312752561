/* SPDX-License-Identifier: ISC */
/* The schema's migrations, built into the program, and how they are applied. One thread. */
#pragma once

#include "db/db.h"

struct migration {
	unsigned number;
	const char *name, *sql;
};

/* From db/schema, in order. */
extern const struct migration migrations[];
extern const unsigned migration_count;

/* How far a database is. */
struct migration_status {
	unsigned applied; /* the highest number, 0: none */
};

typedef void (*migrate_report_fn)(void *arg, const struct migration *migration);

/*
 * Applies what is missing, each in one transaction, one migrator at a time; `report`
 * is told of each. Only as a superuser. 0, or -errno with the reason: -EPROTO also for a
 * schema that is newer than the program, whose migrations were others, or of which something
 * belongs to neither a superuser nor postern_owner.
 */
int migrate(struct db *db, migrate_report_fn report, void *arg, struct why *why) must_check;

/* As anybody; errors as migrate(). */
int migrate_status(struct db *db, struct migration_status *ret_status, struct why *why) must_check;

/* SPDX-License-Identifier: ISC */
/*
 * A connection to PostgreSQL for one thread: deadlines on everything (but the
 * look-up of its host's name, which libpq waits for), reconnection by itself, no
 * waiting while the server is known to be away. Values only ever travel as
 * parameters.
 */
#pragma once

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"

struct db;

struct db_settings {
	const char *conninfo;  /* of the configuration */
	const char *user;      /* overrides conninfo and environment; NULL: as the caller's psql */
	struct slice password; /* "": none */
	unsigned deadline_ms;  /* of each statement, with connecting; 0: 2 s */
};

/* Does not connect yet. Copies. 0, -EINVAL for a malformed conninfo with the reason, -ENOMEM. */
int db_new(const struct db_settings *settings, struct db **ret_db, struct why *why) must_check;
void db_free(struct db *db);

#define DB_PARAMS_MAX 8

/*
 * Runs a statement with text parameters (NULL for SQL null), connecting first if
 * need be. 0 and a result that the caller clears (PQclear); -ENOTCONN or -ETIMEDOUT
 * when the database is away (at once while it was away a moment ago) or not in UTF-8: it may have
 * run all the same, but never twice; -EPROTO when it refused the statement, with its
 * words; -ENOSYS when its schema lacks what the statement names, so that it is not
 * that of this program.
 */
int db_exec(struct db *db, const char *sql, unsigned param_count, const char *const params[],
        PGresult **ret_result, struct why *why) must_check;

/*
 * The same for a statement that comes often: parsed once a connection. `sql` is
 * compared by its address, so it must be static.
 */
int db_exec_often(struct db *db, const char *sql, unsigned param_count, const char *const params[],
        PGresult **ret_result, struct why *why) must_check;

/*
 * Runs a COPY ... FROM STDIN with this as its input (small: it is sent at once). What travels so
 * is in no log of the server, whereas log_statement writes parameters down. Errors as db_exec.
 */
int db_copy(struct db *db, const char *sql, struct slice data, struct why *why) must_check;

/* As db_exec for several statements without parameters, without a deadline: migrations. */
int db_run_script(struct db *db, const char *sql, struct why *why) must_check;

/*
 * Waits for a notice on the channel, up to `timeout_ms` or until `wake_fd` can be read. 1 with its
 * payload, 0 when the wait is over, -ENOTCONN (wait and call again). On a new connection LISTEN is
 * sent first, and 0 comes with *ret_anew set: what changed meanwhile is unknown.
 */
int db_wait_notice(struct db *db, const char *channel, unsigned timeout_ms, int wake_fd,
        struct buf *ret_payload, bool *ret_anew) must_check;

/* Whether the last call found the server. */
bool db_is_there(const struct db *db);

/* Column values of a result; empty or 0 for SQL null. */
struct slice db_text(const PGresult *result, int row, int column);
int64_t db_int(const PGresult *result, int row, int column);

/* Splits a one-dimensional array of texts ("{a,\"b c\"}"); `each` gets every element. 0 or
 * -EBADMSG. */
int db_each_element(
        struct slice array, void (*each)(void *arg, struct slice element), void *arg) must_check;

/* An array of numbers as a parameter: "{1,2,3}". */
struct db_numbers {
	struct buf text; /* private */
	int error;       /* private */
};

/* For at most `count_max` of them; more, or a lack of memory, shows at the end. */
void db_numbers_init(struct db_numbers *numbers, size_t count_max);
void db_numbers_add(struct db_numbers *numbers, uint64_t number);
/* Once, when all are there; NULL if they are not. */
const char *db_numbers_text(struct db_numbers *numbers);
void db_numbers_done(struct db_numbers *numbers);

/* SPDX-License-Identifier: ISC */
/*
 * libpq behind deadlines; see db.h. Non-blocking calls and poll(), because a hung
 * server must cost seconds and not the thread.
 */
#include "db/db.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/base/log.h"
#include "gateway/base/random.h"

#define DEADLINE_MS       2000 /* clients are answered within 3 s */
#define BACK_OFF_FIRST_MS 100
#define BACK_OFF_MAX_MS   5000
#define OPTIONS_MAX       64
#define STATEMENTS_MAX    8
#define STATEMENT_NAME    16

struct db {
	PQconninfoOption *options;
	char *user, *password;
	unsigned deadline_ms;
	PGconn *conn;
	uint64_t retry_at_ms; /* not before */
	uint64_t back_off_ms;
	bool listening;
	bool in_doubt;                        /* the last statement may have run */
	const char *prepared[STATEMENTS_MAX]; /* on this connection */
	size_t prepared_count;
};

int db_new(const struct db_settings *settings, struct db **ret_db, struct why *why)
{
	struct db *db = calloc(1, sizeof(*db));
	char *error = NULL;

	if (db == NULL)
		return why_errno(why, ENOMEM, "database");
	db->deadline_ms = settings->deadline_ms != 0 ? settings->deadline_ms : DEADLINE_MS;
	db->options = PQconninfoParse(settings->conninfo, &error);
	if (settings->user != NULL)
		db->user = strdup(settings->user);
	bool has_password = settings->password.len > 0;
	if (has_password)
		db->password = slice_dup(settings->password);
	if (db->options == NULL || (settings->user != NULL && db->user == NULL) ||
	        (has_password && db->password == NULL)) {
		int r = error != NULL ? -EINVAL : -ENOMEM;
		why_set(why, "database: %s", error != NULL ? error : "out of memory");
		PQfreemem(error);
		db_free(db);
		return r;
	}
	*ret_db = db;
	return 0;
}

static void drop(struct db *db)
{
	PQfinish(db->conn);
	db->conn = NULL;
	db->listening = false;
	db->prepared_count = 0;
}

void db_free(struct db *db)
{
	if (db == NULL)
		return;
	drop(db);
	PQconninfoFree(db->options);
	if (db->password != NULL)
		explicit_bzero(db->password, strlen(db->password));
	free(db->password);
	free(db->user);
	free(db);
}

bool db_is_there(const struct db *db)
{
	return db->conn != NULL;
}

/* Waits for the socket: 0, -ETIMEDOUT after the deadline, -ECANCELED once `wake_fd` can be read. */
static int wait_sockets(const struct db *db, short events, uint64_t deadline, int wake_fd)
{
	struct pollfd fds[] = {
	        {.fd = PQsocket(db->conn), .events = events}, {.fd = wake_fd, .events = POLLIN}};

	for (;;) {
		uint64_t now = clock_mono_ms();
		uint64_t left = now >= deadline ? 0 : deadline - now;
		int r = poll(fds, ARRAY_LEN(fds), (int)MIN_OF(left, (uint64_t)INT_MAX));
		if (r > 0)
			return fds[1].revents != 0 ? -ECANCELED : 0;
		if (r == 0 && left <= INT_MAX)
			return -ETIMEDOUT;
		if (r < 0 && errno != EINTR)
			return -errno;
	}
}

static int wait_socket(const struct db *db, short events, uint64_t deadline)
{
	return wait_sockets(db, events, deadline, -1);
}

static void add_option(
        const char **keys, const char **values, size_t *count, const char *key, const char *value)
{
	if (value == NULL || *count + 1 >= OPTIONS_MAX)
		return;
	keys[*count] = key;
	values[(*count)++] = value;
}

/* libpq's own way is a bare line on standard error, which would stand among the events. */
static void on_notice(void *arg, const char *text)
{
	struct slice notice = slice_trim(slice_str(text));

	(void)arg;
	if (slice_ends_with_nocase(notice, SLICE("\n")))
		notice.len--;
	LOG(NULL, EV_DATABASE_NOTICE, "text=%s", LOG_VALUE(notice));
}

static PGconn *start_connect(const struct db *db)
{
	const char *keys[OPTIONS_MAX] = {NULL}, *values[OPTIONS_MAX] = {NULL};
	size_t count = 0;

	/* Ours first: of two values of a key the last one counts. */
	add_option(keys, values, &count, "application_name", "postern");
	add_option(keys, values, &count, "target_session_attrs", "read-write");
	/* Or whoever only listens would not hear for hours that a server has gone without a word.
	 */
	add_option(keys, values, &count, "keepalives_idle", "10");
	add_option(keys, values, &count, "keepalives_interval", "5");
	add_option(keys, values, &count, "keepalives_count", "3");
	for (PQconninfoOption *o = db->options; o->keyword != NULL; o++)
		add_option(keys, values, &count, o->keyword, o->val);
	add_option(keys, values, &count, "user", db->user);
	add_option(keys, values, &count, "password", db->password);
	add_option(keys, values, &count, "client_encoding", "UTF8");
	PGconn *conn = PQconnectStartParams(keys, values, 0);
	if (conn != NULL)
		PQsetNoticeProcessor(conn, on_notice, NULL);
	return conn;
}

static int finish_connect(struct db *db, uint64_t deadline)
{
	PostgresPollingStatusType state = PGRES_POLLING_WRITING;

	while (state != PGRES_POLLING_OK) {
		if (state == PGRES_POLLING_FAILED || PQstatus(db->conn) == CONNECTION_BAD)
			return -ENOTCONN;
		int r = wait_socket(
		        db, state == PGRES_POLLING_READING ? POLLIN : POLLOUT, deadline);
		if (r < 0)
			return r;
		state = PQconnectPoll(db->conn);
	}
	return PQsetnonblocking(db->conn, 1) == 0 ? 0 : -ENOTCONN;
}

/*
 * Others lack characters that strangers may use: what they say would be errors. (SQL_ASCII is none
 * at all: it keeps octets as they come, and knows no passwords but those of ASCII.)
 */
static int check_encoding(struct db *db, struct why *why)
{
	const char *encoding = PQparameterStatus(db->conn, "server_encoding");

	if (encoding != NULL &&
	        (strcmp(encoding, "UTF8") == 0 || strcmp(encoding, "SQL_ASCII") == 0))
		return 0;
	why_set(why,
	        "the database's encoding is %s and must be UTF8; make a new one with createdb -E "
	        "UTF8 -T template0",
	        encoding != NULL ? encoding : "unknown");
	return -ENOTCONN;
}

/* After a failure: let it rest, longer each time, with jitter so that threads spread. */
static void back_off(struct db *db)
{
	drop(db);
	db->back_off_ms = db->back_off_ms == 0
	                          ? BACK_OFF_FIRST_MS
	                          : MIN_OF(db->back_off_ms * 2, (uint64_t)BACK_OFF_MAX_MS);
	db->retry_at_ms =
	        clock_mono_ms() + db->back_off_ms / 2 + random_below(db->back_off_ms / 2 + 1);
}

/* Whether the server has not hung up since the last statement, as it does when it is restarted. */
static bool is_connected(struct db *db)
{
	if (db->conn == NULL)
		return false;
	struct pollfd fd = {.fd = PQsocket(db->conn), .events = POLLIN};
	while (PQstatus(db->conn) == CONNECTION_OK && poll(&fd, 1, 0) > 0) {
		if (PQconsumeInput(db->conn) == 0)
			return false;
		(void)PQisBusy(db->conn); /* takes in what has come: notices, or why it hangs up */
	}
	return PQstatus(db->conn) == CONNECTION_OK;
}

static int ensure_connected(struct db *db, uint64_t deadline, struct why *why)
{
	if (is_connected(db))
		return 0;
	if (clock_mono_ms() < db->retry_at_ms) {
		why_set(why, "the database is away");
		return -ENOTCONN;
	}
	drop(db);
	db->conn = start_connect(db);
	if (db->conn == NULL)
		return why_errno(why, ENOMEM, "database");
	int r = finish_connect(db, deadline);
	if (r < 0) {
		why_set(why, "%s",
		        r == -ETIMEDOUT ? "the database does not answer"
		                        : PQerrorMessage(db->conn));
	} else {
		r = check_encoding(db, why);
	}
	if (r < 0) {
		back_off(db);
		return r;
	}
	db->back_off_ms = 0;
	return 0;
}

/* Waits for all results of what was sent; keeps the last one. */
static int collect(struct db *db, uint64_t deadline, PGresult **ret_result)
{
	PGresult *last = NULL, *result;
	int pending, r = 0;

	while (r == 0 && (pending = PQflush(db->conn)) != 0) {
		if (pending < 0)
			r = -ENOTCONN;
		else
			r = wait_socket(db, POLLIN | POLLOUT, deadline);
		if (r == 0 && PQconsumeInput(db->conn) == 0)
			r = -ENOTCONN;
	}
	while (r == 0) {
		while (r == 0 && PQisBusy(db->conn)) {
			r = wait_socket(db, POLLIN, deadline);
			if (r == 0 && PQconsumeInput(db->conn) == 0)
				r = -ENOTCONN;
		}
		if (r < 0 || (result = PQgetResult(db->conn)) == NULL)
			break;
		/* An error of the server first: nothing was committed. */
		if (last == NULL)
			db->in_doubt = PQresultErrorField(result, PG_DIAG_SQLSTATE) == NULL;
		/* The first error is the one to tell. */
		if (last != NULL && PQresultStatus(last) == PGRES_FATAL_ERROR) {
			PQclear(result);
			continue;
		}
		PQclear(last);
		last = result;
		/* Not the end, but the server's turn is over. */
		if (PQresultStatus(last) == PGRES_COPY_IN)
			break;
	}
	if (r == 0 && last == NULL)
		r = -ENOTCONN;
	if (r < 0) {
		PQclear(last);
		return r;
	}
	*ret_result = last;
	return 0;
}

/* A function, table, column or schema that is not there: our statements are right but for the
 * migrations. */
static bool lacks_migration(const char *state)
{
	static const char *const states[] = {"42883", "42P01", "42703", "3F000"};

	for (size_t i = 0; i < ARRAY_LEN(states); i++)
		if (strcmp(state, states[i]) == 0)
			return true;
	return false;
}

/* Judges a result: 0 keeps it, anything else has cleared it. */
static int judge(struct db *db, PGresult *result, struct why *why)
{
	ExecStatusType status = PQresultStatus(result);
	const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK || status == PGRES_COPY_IN)
		return 0;
	const char *hint = PQresultErrorField(result, PG_DIAG_MESSAGE_HINT);
	const char *primary = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	bool another_schema = state != NULL && lacks_migration(state);
	if (another_schema)
		hint = "the schema is not that of this program: run postern database migrate";
	why_set(why, "%s%s%s", primary != NULL ? primary : PQresultErrorMessage(result),
	        hint != NULL ? "; " : "", hint != NULL ? hint : "");
	/* Class 57: shut down or cancelled; 08: the connection; 53: out of resources; 25006: a
	 * primary that became a standby, where another connection finds the new one; 0A000 and
	 * 26000: what was prepared does not fit any more, as after a migration. */
	bool away = state == NULL || strncmp(state, "57", 2) == 0 || strncmp(state, "08", 2) == 0 ||
	            strncmp(state, "53", 2) == 0 || strcmp(state, "25006") == 0 ||
	            strcmp(state, "0A000") == 0 || strcmp(state, "26000") == 0 ||
	            PQstatus(db->conn) != CONNECTION_OK;
	PQclear(result);
	if (away)
		back_off(db);
	return away ? -ENOTCONN : another_schema ? -ENOSYS : -EPROTO;
}

/* What was sent (or not), up to its result. */
static int receive(
        struct db *db, bool sent, uint64_t deadline, PGresult **ret_result, struct why *why)
{
	PGresult *result;

	db->in_doubt = sent;
	int r = sent ? collect(db, deadline, &result) : -ENOTCONN;
	if (r < 0) {
		why_set(why, "the database %s",
		        r == -ETIMEDOUT ? "did not answer in time" : "closed the connection");
		back_off(db);
		return r;
	}
	r = judge(db, result, why);
	if (r == 0)
		*ret_result = result;
	return r;
}

struct statement {
	const char *sql;
	unsigned param_count;
	const char *const *params;
	uint64_t deadline; /* of all that it takes: connecting, preparing, asking again */
};

static int exec_once(
        struct db *db, const struct statement *statement, PGresult **ret_result, struct why *why)
{
	int r = ensure_connected(db, statement->deadline, why);

	if (r < 0)
		return r;
	int sent = PQsendQueryParams(db->conn, statement->sql, (int)statement->param_count, NULL,
	        statement->params, NULL, NULL, 0);
	return receive(db, sent != 0, statement->deadline, ret_result, why);
}

/* The name of a statement on this connection: its place in `prepared`. */
static const char *statement_name(size_t place, char name[STATEMENT_NAME])
{
	snprintf(name, STATEMENT_NAME, "often%zu", place);
	return name;
}

static int exec_prepared_once(
        struct db *db, const struct statement *statement, PGresult **ret_result, struct why *why)
{
	char name[STATEMENT_NAME];
	PGresult *result;
	size_t place = 0;

	int r = ensure_connected(db, statement->deadline, why);
	while (r == 0 && place < db->prepared_count && db->prepared[place] != statement->sql)
		place++;
	if (r == 0 && place == db->prepared_count) {
		assert_bug(place < STATEMENTS_MAX);
		int sent = PQsendPrepare(
		        db->conn, statement_name(place, name), statement->sql, 0, NULL);
		r = receive(db, sent != 0, statement->deadline, &result, why);
		if (r == 0) {
			PQclear(result);
			db->prepared[db->prepared_count++] = statement->sql;
		}
	}
	if (r < 0)
		return r;
	int sent = PQsendQueryPrepared(db->conn, statement_name(place, name),
	        (int)statement->param_count, statement->params, NULL, NULL, 0);
	return receive(db, sent != 0, statement->deadline, ret_result, why);
}

typedef int (*exec_fn)(
        struct db *db, const struct statement *statement, PGresult **ret_result, struct why *why);

static int exec(struct db *db, exec_fn once, const struct statement *statement,
        PGresult **ret_result, struct why *why)
{
	bool was_connected = db->conn != NULL;

	assert_bug(statement->param_count <= DB_PARAMS_MAX);
	db->in_doubt = false;
	int r = once(db, statement, ret_result, why);
	if (r == -ENOTCONN && was_connected) {
		/* A fresh connection is worth a try at once; what may have run is not run again. */
		db->retry_at_ms = 0;
		if (!db->in_doubt)
			r = once(db, statement, ret_result, why);
	}
	return r;
}

static struct statement statement_of(
        const struct db *db, const char *sql, unsigned param_count, const char *const params[])
{
	return (struct statement){sql, param_count, params, clock_mono_ms() + db->deadline_ms};
}

int db_exec(struct db *db, const char *sql, unsigned param_count, const char *const params[],
        PGresult **ret_result, struct why *why)
{
	const struct statement statement = statement_of(db, sql, param_count, params);

	return exec(db, exec_once, &statement, ret_result, why);
}

int db_exec_often(struct db *db, const char *sql, unsigned param_count, const char *const params[],
        PGresult **ret_result, struct why *why)
{
	const struct statement statement = statement_of(db, sql, param_count, params);

	return exec(db, exec_prepared_once, &statement, ret_result, why);
}

int db_copy(struct db *db, const char *sql, struct slice data, struct why *why)
{
	const struct statement statement = statement_of(db, sql, 0, NULL);
	PGresult *result;

	int r = exec_once(db, &statement, &result, why);
	if (r != 0)
		return r;
	PQclear(result);
	bool sent = PQputCopyData(db->conn, data.ptr, (int)data.len) > 0 &&
	            PQputCopyEnd(db->conn, NULL) > 0;
	r = receive(db, sent, statement.deadline, &result, why);
	if (r == 0)
		PQclear(result);
	return r;
}

int db_run_script(struct db *db, const char *sql, struct why *why)
{
	PGresult *result;

	int r = ensure_connected(db, clock_mono_ms() + db->deadline_ms, why);
	if (r < 0)
		return r;
	if (PQsendQuery(db->conn, sql) == 0)
		return why_errno(why, ENOTCONN, "%s", PQerrorMessage(db->conn));
	r = collect(db, UINT64_MAX / 2, &result);
	if (r < 0)
		return why_errno(why, r, "the database closed the connection");
	r = judge(db, result, why);
	if (r == 0)
		PQclear(result);
	return r;
}

int db_wait_notice(struct db *db, const char *channel, unsigned timeout_ms, int wake_fd,
        struct buf *ret_payload, bool *ret_anew)
{
	uint64_t deadline = clock_mono_ms() + timeout_ms;
	PGnotify *notice;
	PGresult *result;
	char sql[128];
	int r = 0;

	*ret_anew = false;
	if (!db->listening || db->conn == NULL) {
		snprintf(sql, sizeof(sql), "LISTEN %s", channel);
		r = db_exec(db, sql, 0, NULL, &result, NULL);
		if (r < 0)
			return -ENOTCONN;
		PQclear(result);
		db->listening = true;
		*ret_anew = true;
		return 0;
	}
	while ((notice = PQnotifies(db->conn)) == NULL) {
		r = wait_sockets(db, POLLIN, deadline, wake_fd);
		if (r == -ETIMEDOUT || r == -ECANCELED)
			return 0;
		if (r < 0 || PQconsumeInput(db->conn) == 0) {
			back_off(db);
			return -ENOTCONN;
		}
	}
	buf_clear(ret_payload);
	r = buf_append_str(ret_payload, notice->extra);
	PQfreemem(notice);
	return r < 0 ? r : 1;
}

struct slice db_text(const PGresult *result, int row, int column)
{
	return slice_of(PQgetvalue(result, row, column), (size_t)PQgetlength(result, row, column));
}

int64_t db_int(const PGresult *result, int row, int column)
{
	const char *text = PQgetvalue(result, row, column);

	return strtoll(text, NULL, 10);
}

int db_each_element(struct slice array, void (*each)(void *arg, struct slice element), void *arg)
{
	struct buf element;
	int r = 0;

	if (array.len == 0)
		return 0;
	if (array.len < 2 || array.ptr[0] != '{' || array.ptr[array.len - 1] != '}')
		return -EBADMSG;
	array = slice_of(array.ptr + 1, array.len - 2);
	buf_init(&element, 65536);
	for (size_t at = 0; r == 0 && at < array.len; at++) {
		bool quoted = array.ptr[at] == '"';
		at += quoted;
		while (r == 0 && at < array.len && array.ptr[at] != (quoted ? '"' : ',')) {
			at += array.ptr[at] == '\\' && at + 1 < array.len;
			r = buf_append(&element, array.ptr + at++, 1);
		}
		if (r == 0)
			each(arg, buf_slice(&element));
		buf_clear(&element);
		at += quoted;
	}
	buf_done(&element);
	return r;
}

#define DIGITS_MAX 20

void db_numbers_init(struct db_numbers *numbers, size_t count_max)
{
	buf_init(&numbers->text, (DIGITS_MAX + 1) * count_max + 2);
	numbers->error = buf_append(&numbers->text, "{", 1);
}

void db_numbers_add(struct db_numbers *numbers, uint64_t number)
{
	const char *before = buf_len(&numbers->text) > 1 ? "," : "";

	if (numbers->error == 0)
		numbers->error = buf_printf(&numbers->text, "%s%" PRIu64, before, number);
}

const char *db_numbers_text(struct db_numbers *numbers)
{
	if (numbers->error == 0)
		numbers->error = buf_append(&numbers->text, "}", 1);
	return numbers->error == 0 ? buf_str(&numbers->text) : NULL;
}

void db_numbers_done(struct db_numbers *numbers)
{
	buf_done(&numbers->text);
}

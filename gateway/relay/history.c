/* SPDX-License-Identifier: ISC */
/*
 * The queue of rows and the thread that writes them; see history.h.
 *
 * Rows gather in chunks, in the form in which the database takes them; a chunk is a
 * batch. Each batch has a number, so that one whose connection was lost can be sent
 * again without being written twice. The first one tells the database that this run of
 * the process begins and the last one that it ends: a run that never ended has lost
 * what it had in memory, and the next one leaves a gap for it.
 */
#include "gateway/relay/history.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/utsname.h>
#include <time.h>

#include "db/db.h"
#include "gateway/base/board.h"
#include "gateway/base/clock.h"
#include "gateway/base/list.h"
#include "gateway/base/log.h"
#include "gateway/base/random.h"

#define WAITING_MAX  (32U << 20)
#define ROWS_MAX     131072 /* octets of each kind in a chunk: some 400 rows */
#define CHUNK_OCTETS (2UL * ROWS_MAX)
#define GATHER_MS    500
#define AGAIN_MS     1000
#define REFUSED_MS   60000 /* a batch that the database does not take is lost then */
#define FLUSH_MS     2000
#define GATEWAY_TEXT 600
#define NUMBERS_MAX  80

/* So many rows, and when they were told. */
struct span {
	uint64_t count;
	int64_t from_us, to_us;
};

struct chunk {
	struct list link;
	struct buf messages, deliveries; /* "{row,row," */
	struct span told;                /* its rows */
	struct span gap;                 /* that the database learns of with it */
};

struct history {
	struct db *db; /* the thread's */
	char gateway[GATEWAY_TEXT];
	int64_t run;      /* a random number */
	uint64_t batches; /* written */
	bool failing;
	pthread_t thread;
	bool runs;
	size_t chunks_max;
	_Atomic bool ending;
	uint64_t flush_until_ms; /* once that is set */
	_Atomic uint64_t lost;
	pthread_mutex_t lock; /* of all below; nobody keeps it for long */
	pthread_cond_t news;
	struct list chunks; /* the last one takes rows */
	size_t chunk_count;
	struct span gap; /* that no chunk tells of yet */
};

/* ---- the queue ---- */

static void chunk_free(struct chunk *chunk)
{
	buf_done(&chunk->messages);
	buf_done(&chunk->deliveries);
	free(chunk);
}

/* With all its memory, so that a row that fits cannot fail; NULL without. */
static struct chunk *chunk_new(void)
{
	struct chunk *chunk = calloc(1, sizeof(*chunk));
	char *room;

	if (chunk == NULL)
		return NULL;
	buf_init(&chunk->messages, ROWS_MAX);
	buf_init(&chunk->deliveries, ROWS_MAX);
	if (buf_reserve(&chunk->messages, ROWS_MAX, &room) < 0 ||
	        buf_reserve(&chunk->deliveries, ROWS_MAX, &room) < 0 ||
	        buf_append(&chunk->messages, "{", 1) < 0 ||
	        buf_append(&chunk->deliveries, "{", 1) < 0) {
		chunk_free(chunk);
		return NULL;
	}
	return chunk;
}

static bool has_room(const struct chunk *chunk)
{
	return buf_room(&chunk->messages) > HISTORY_ROW_MAX &&
	       buf_room(&chunk->deliveries) > HISTORY_ROW_MAX;
}

static struct chunk *last_chunk(struct history *history)
{
	return list_is_empty(&history->chunks)
	               ? NULL
	               : list_entry(history->chunks.prev, struct chunk, link);
}

/* Where the next row goes, or NULL. */
static struct chunk *open_chunk(struct history *history)
{
	struct chunk *chunk = last_chunk(history);

	if (chunk != NULL && has_room(chunk))
		return chunk;
	chunk = history->chunk_count < history->chunks_max ? chunk_new() : NULL;
	if (chunk == NULL)
		return NULL;
	/* The thread waits for the first one, and then no longer than until it is full. */
	pthread_cond_signal(&history->news);
	list_append(&history->chunks, &chunk->link);
	history->chunk_count++;
	return chunk;
}

static void widen(struct span *span, const struct span *more)
{
	if (more->count == 0)
		return;
	span->from_us = span->count == 0 ? more->from_us : MIN_OF(span->from_us, more->from_us);
	span->to_us = span->count == 0 ? more->to_us : MAX_OF(span->to_us, more->to_us);
	span->count += more->count;
}

static void lose(struct history *history, const struct span *rows)
{
	widen(&history->gap, rows);
	atomic_fetch_add(&history->lost, rows->count);
	counter_add(CT_HISTORY_LOST, rows->count);
}

static void count_row(struct history *history, struct chunk *chunk, int result)
{
	int64_t now = clock_wall_us();
	const struct span row = {1, now, now};

	if (result < 0)
		lose(history, &row);
	else
		widen(&chunk->told, &row);
}

void history_tell_message(struct history *history, const struct history_message *message)
{
	if (history == NULL)
		return;
	pthread_mutex_lock(&history->lock);
	struct chunk *chunk = open_chunk(history);
	count_row(history, chunk,
	        chunk != NULL ? history_row_message(&chunk->messages, message) : -ENOMEM);
	pthread_mutex_unlock(&history->lock);
}

void history_tell_delivery(struct history *history, const struct history_delivery *delivery)
{
	if (history == NULL)
		return;
	pthread_mutex_lock(&history->lock);
	struct chunk *chunk = open_chunk(history);
	count_row(history, chunk,
	        chunk != NULL ? history_row_delivery(&chunk->deliveries, delivery) : -ENOMEM);
	pthread_mutex_unlock(&history->lock);
}

uint64_t history_lost(struct history *history)
{
	return atomic_load(&history->lost);
}

/* ---- the thread ---- */

/* With the lock: waits for news, at most so long. */
static void wait_for(struct history *history, unsigned ms)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ms / 1000;
	until.tv_nsec += (long)(ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_cond_timedwait(&history->news, &history->lock, &until);
}

static struct span take_gap(struct history *history)
{
	struct span gap = history->gap;

	history->gap = (struct span){0};
	return gap;
}

/* The next batch, once enough has gathered; NULL when there is nothing and the end has come. */
static struct chunk *take_chunk(struct history *history)
{
	struct chunk *chunk = NULL;

	pthread_mutex_lock(&history->lock);
	while (list_is_empty(&history->chunks) && !history->ending)
		pthread_cond_wait(&history->news, &history->lock);
	if (history->chunk_count == 1 && !history->ending)
		wait_for(history, GATHER_MS);
	struct list *link = list_pop(&history->chunks);
	if (link != NULL) {
		chunk = list_entry(link, struct chunk, link);
		history->chunk_count--;
		chunk->gap = take_gap(history);
	}
	pthread_mutex_unlock(&history->lock);
	return chunk;
}

/* "{row,row," becomes an array. */
static const char *array_of(struct buf *rows)
{
	if (buf_len(rows) > 1)
		buf_truncate(rows, buf_len(rows) - 1);
	return buf_append(rows, "}", 1) < 0 ? NULL : buf_str(rows);
}

struct batch {
	uint64_t number;
	int64_t until_us; /* all that was told before is in it, or in those before it */
	bool ends;
	const char *messages, *deliveries;
	struct span gap;
};

static int write_once(struct history *history, const struct batch *batch, struct why *why)
{
	char run[NUMBERS_MAX], number[NUMBERS_MAX], until[NUMBERS_MAX], gap[NUMBERS_MAX];
	const char *params[] = {history->gateway, run, number, until, batch->ends ? "t" : "f",
	        batch->messages, batch->deliveries, batch->gap.count > 0 ? gap : NULL};
	PGresult *result;

	snprintf(run, sizeof(run), "%" PRId64, history->run);
	snprintf(number, sizeof(number), "%" PRIu64, batch->number);
	snprintf(until, sizeof(until), "%" PRId64, batch->until_us);
	snprintf(gap, sizeof(gap), "{%" PRId64 ",%" PRId64 ",%" PRIu64 "}", batch->gap.from_us,
	        batch->gap.to_us, batch->gap.count);
	int r = db_exec_often(history->db,
	        "select postern.history_write($1, $2, $3, $4, $5, $6, $7, $8)", ARRAY_LEN(params),
	        params, &result, why);
	if (r == 0)
		PQclear(result);
	return r;
}

static void tell_lost(const struct span *gap)
{
	char from[CLOCK_TEXT_SIZE], to[CLOCK_TEXT_SIZE];

	if (gap->count > 0)
		LOG(NULL, EV_HISTORY_LOST, "count=%" PRIu64 " from=%s to=%s", gap->count,
		        clock_iso(gap->from_us / 1000000, from),
		        clock_iso(gap->to_us / 1000000, to));
}

static void tell_failing(struct history *history, const struct why *why)
{
	if (!history->failing)
		LOG(NULL, EV_HISTORY_FAILING, "why=%s", LOG_VALUE(slice_str(why->text)));
	history->failing = true;
}

/*
 * Writes a batch, however long the database is away. False when it does not take this one, or
 * when the process ends first.
 */
static bool write_batch(struct history *history, struct batch *batch)
{
	uint64_t refused_ms = 0;
	struct why why;

	batch->number = history->batches + 1;
	for (;;) {
		int r = write_once(history, batch, &why);
		if (r == 0) {
			history->batches++;
			if (history->failing)
				LOG(NULL, EV_HISTORY_BACK, "");
			history->failing = false;
			tell_lost(&batch->gap);
			return true;
		}
		tell_failing(history, &why);
		uint64_t now = clock_mono_ms();
		if (r != -EPROTO)
			refused_ms = 0;
		else if (refused_ms == 0)
			refused_ms = now;
		if (history->ending || (refused_ms != 0 && now - refused_ms > REFUSED_MS))
			return false;
		pthread_mutex_lock(&history->lock);
		if (!history->ending)
			wait_for(history, AGAIN_MS);
		pthread_mutex_unlock(&history->lock);
	}
}

/* Whether it was written; else its rows are lost. */
static bool write_chunk(struct history *history, struct chunk *chunk)
{
	struct batch batch = {
	        .until_us = chunk->told.to_us,
	        .messages = array_of(&chunk->messages),
	        .deliveries = array_of(&chunk->deliveries),
	        .gap = chunk->gap,
	};

	bool written = write_batch(history, &batch);
	if (!written) {
		pthread_mutex_lock(&history->lock);
		widen(&history->gap, &chunk->gap);
		lose(history, &chunk->told);
		pthread_mutex_unlock(&history->lock);
	}
	chunk_free(chunk);
	return written;
}

/* The first batch of a run and the last one have no rows. */
static bool write_mark(struct history *history, bool ends)
{
	struct batch batch = {.until_us = clock_wall_us(), .ends = ends};

	pthread_mutex_lock(&history->lock);
	batch.gap = take_gap(history);
	pthread_mutex_unlock(&history->lock);
	bool written = write_batch(history, &batch);
	if (!written) {
		pthread_mutex_lock(&history->lock);
		widen(&history->gap, &batch.gap);
		pthread_mutex_unlock(&history->lock);
	}
	return written;
}

static void *write_all(void *arg)
{
	struct history *history = arg;
	struct chunk *chunk;
	bool in_time = true;

	while (!write_mark(history, false))
		if (history->ending)
			return NULL;
	while (in_time && (chunk = take_chunk(history)) != NULL) {
		bool written = write_chunk(history, chunk);
		in_time =
		        !history->ending || (written && clock_mono_ms() < history->flush_until_ms);
	}
	/* Without that the next run leaves a gap. */
	if (in_time)
		(void)!write_mark(history, true);
	return NULL;
}

/* ---- life ---- */

static int start(struct history *history, const struct history_settings *settings, struct why *why)
{
	const struct db_settings db = {
	        .conninfo = settings->database,
	        .user = "postern_relay",
	        .password = settings->password,
	};

	int r = db_new(&db, &history->db, why);
	if (r == 0)
		r = -pthread_create(&history->thread, NULL, write_all, history);
	history->runs = r == 0;
	return r;
}

int history_new(
        const struct history_settings *settings, struct history **ret_history, struct why *why)
{
	struct history *history = calloc(1, sizeof(*history));
	pthread_condattr_t monotonic;
	struct utsname machine;

	why_set(why, "no memory or no thread for history");
	if (history == NULL)
		return -ENOMEM;
	pthread_mutex_init(&history->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&history->news, &monotonic);
	pthread_condattr_destroy(&monotonic);
	list_init(&history->chunks);
	size_t octets = settings->octets_max != 0 ? settings->octets_max : WAITING_MAX;
	history->chunks_max = MAX_OF(octets / CHUNK_OCTETS, (size_t)1);
	random_bytes(&history->run, sizeof(history->run));
	snprintf(history->gateway, sizeof(history->gateway), "%s:%s",
	        uname(&machine) == 0 ? machine.nodename : "?", settings->spool);
	int r = start(history, settings, why);
	if (r < 0) {
		history_free(history);
		return r;
	}
	*ret_history = history;
	return 0;
}

void history_free(struct history *history)
{
	struct list *link;

	if (history == NULL)
		return;
	pthread_mutex_lock(&history->lock);
	history->flush_until_ms = clock_mono_ms() + FLUSH_MS;
	history->ending = true;
	pthread_cond_signal(&history->news);
	pthread_mutex_unlock(&history->lock);
	if (history->runs)
		pthread_join(history->thread, NULL);
	while ((link = list_pop(&history->chunks)) != NULL) {
		struct chunk *chunk = list_entry(link, struct chunk, link);
		lose(history, &chunk->told);
		chunk_free(chunk);
	}
	tell_lost(&history->gap);
	db_free(history->db);
	pthread_cond_destroy(&history->news);
	pthread_mutex_destroy(&history->lock);
	free(history);
}

/* SPDX-License-Identifier: ISC */
/* Writing down when credentials were used; see last_use.h. */
#include "auth/last_use.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "gateway/base/clock.h"
#include "gateway/base/map.h"

#define EVERY_S   10
#define BATCH_MAX 1000   /* in one statement */
#define USES_MAX  100000 /* while the database is away; what comes then is not noted */

struct use {
	uint64_t credential; /* key of the map */
	uint64_t at_ms;
};

struct last_use {
	struct db *db; /* owner: the thread */
	pthread_t thread;
	pthread_mutex_t lock; /* of all that follows */
	pthread_cond_t wakeup;
	struct map uses;
	bool ending;
};

static struct slice use_key(const struct use *use)
{
	return slice_of(&use->credential, sizeof(use->credential));
}

void last_use_note(struct last_use *last_use, uint64_t credential)
{
	struct use wanted = {.credential = credential, .at_ms = clock_mono_ms()};

	pthread_mutex_lock(&last_use->lock);
	struct use *use = map_get(&last_use->uses, use_key(&wanted));
	if (use == NULL && last_use->uses.count < USES_MAX &&
	        (use = malloc(sizeof(*use))) != NULL) {
		*use = wanted;
		if (map_put(&last_use->uses, use_key(use), use) < 0) {
			free(use);
			use = NULL;
		}
	}
	if (use != NULL)
		use->at_ms = wanted.at_ms;
	pthread_mutex_unlock(&last_use->lock);
}

/* The first of them, as they are now; they stay. */
static unsigned gather(struct last_use *last_use, struct use ret_uses[BATCH_MAX])
{
	const struct use *use;
	size_t position = 0;
	unsigned count = 0;

	pthread_mutex_lock(&last_use->lock);
	while (count < BATCH_MAX && (use = map_next(&last_use->uses, &position)) != NULL)
		ret_uses[count++] = *use;
	pthread_mutex_unlock(&last_use->lock);
	return count;
}

/* One that was used again meanwhile was used in the same minute. */
static void drop(struct last_use *last_use, const struct use uses[], unsigned count)
{
	pthread_mutex_lock(&last_use->lock);
	for (unsigned i = 0; i < count; i++) {
		free(map_remove(&last_use->uses, use_key(&uses[i])));
	}
	pthread_mutex_unlock(&last_use->lock);
}

static int write_batch(struct db *db, const struct use uses[], unsigned count)
{
	uint64_t now = clock_mono_ms();
	struct db_numbers credentials, ages;
	PGresult *result;
	int r = -ENOMEM;

	db_numbers_init(&credentials, count);
	db_numbers_init(&ages, count);
	for (unsigned i = 0; i < count; i++) {
		db_numbers_add(&credentials, uses[i].credential);
		db_numbers_add(&ages, now > uses[i].at_ms ? (now - uses[i].at_ms) / 1000 : 0);
	}
	const char *const params[] = {db_numbers_text(&credentials), db_numbers_text(&ages)};
	if (params[0] != NULL && params[1] != NULL)
		r = db_exec_often(
		        db, "select postern.credentials_used($1, $2)", 2, params, &result, NULL);
	if (r == 0)
		PQclear(result);
	db_numbers_done(&credentials);
	db_numbers_done(&ages);
	return r;
}

static void write_all(struct last_use *last_use)
{
	struct use uses[BATCH_MAX];
	unsigned count = BATCH_MAX;
	int r = 0;

	while (r == 0 && count == BATCH_MAX && (count = gather(last_use, uses)) > 0) {
		r = write_batch(last_use->db, uses, count);
		/* What the database refuses it will not take later; when it is away it waits. */
		if (r == 0 || r == -EPROTO)
			drop(last_use, uses, count);
	}
}

/* Whether it goes on. */
static bool rest(struct last_use *last_use)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += EVERY_S;
	pthread_mutex_lock(&last_use->lock);
	int r = 0;
	while (!last_use->ending && r != ETIMEDOUT)
		r = pthread_cond_clockwait(
		        &last_use->wakeup, &last_use->lock, CLOCK_MONOTONIC, &until);
	bool goes_on = !last_use->ending;
	pthread_mutex_unlock(&last_use->lock);
	return goes_on;
}

static void *run(void *arg)
{
	struct last_use *last_use = arg;

	while (rest(last_use))
		write_all(last_use);
	write_all(last_use);
	return NULL;
}

static void last_use_free(struct last_use *last_use)
{
	size_t position = 0;
	struct use *use;

	while ((use = map_next(&last_use->uses, &position)) != NULL)
		free(use);
	map_done(&last_use->uses);
	pthread_cond_destroy(&last_use->wakeup);
	pthread_mutex_destroy(&last_use->lock);
	db_free(last_use->db);
	free(last_use);
}

int last_use_start(const struct db_settings *settings, struct last_use **ret_last_use)
{
	struct last_use *last_use = calloc(1, sizeof(*last_use));

	if (last_use == NULL)
		return -ENOMEM;
	pthread_mutex_init(&last_use->lock, NULL);
	pthread_cond_init(&last_use->wakeup, NULL);
	map_init(&last_use->uses);
	int r = db_new(settings, &last_use->db, NULL);
	if (r == 0)
		r = -pthread_create(&last_use->thread, NULL, run, last_use);
	if (r < 0) {
		last_use_free(last_use);
		return r;
	}
	*ret_last_use = last_use;
	return 0;
}

void last_use_stop(struct last_use *last_use)
{
	if (last_use == NULL)
		return;
	pthread_mutex_lock(&last_use->lock);
	last_use->ending = true;
	pthread_cond_signal(&last_use->wakeup);
	pthread_mutex_unlock(&last_use->lock);
	pthread_join(last_use->thread, NULL);
	last_use_free(last_use);
}

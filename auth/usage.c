/* SPDX-License-Identifier: ISC */
/* Writing down when credentials were used; see usage.h. */
#include "auth/usage.h"

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

struct usage {
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

void usage_note(struct usage *usage, uint64_t credential)
{
	struct use wanted = {.credential = credential, .at_ms = clock_mono_ms()};

	pthread_mutex_lock(&usage->lock);
	struct use *use = map_get(&usage->uses, use_key(&wanted));
	if (use == NULL && usage->uses.count < USES_MAX && (use = malloc(sizeof(*use))) != NULL) {
		*use = wanted;
		if (map_put(&usage->uses, use_key(use), use) < 0) {
			free(use);
			use = NULL;
		}
	}
	if (use != NULL)
		use->at_ms = wanted.at_ms;
	pthread_mutex_unlock(&usage->lock);
}

/* The first of them, as they are now; they stay. */
static unsigned gather(struct usage *usage, struct use ret_uses[BATCH_MAX])
{
	const struct use *use;
	size_t position = 0;
	unsigned count = 0;

	pthread_mutex_lock(&usage->lock);
	while (count < BATCH_MAX && (use = map_next(&usage->uses, &position)) != NULL)
		ret_uses[count++] = *use;
	pthread_mutex_unlock(&usage->lock);
	return count;
}

/* One that was used again meanwhile was used in the same minute. */
static void drop(struct usage *usage, const struct use uses[], unsigned count)
{
	pthread_mutex_lock(&usage->lock);
	for (unsigned i = 0; i < count; i++) {
		free(map_remove(&usage->uses, use_key(&uses[i])));
	}
	pthread_mutex_unlock(&usage->lock);
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

static void write_all(struct usage *usage)
{
	struct use uses[BATCH_MAX];
	unsigned count = BATCH_MAX;
	int r = 0;

	while (r == 0 && count == BATCH_MAX && (count = gather(usage, uses)) > 0) {
		r = write_batch(usage->db, uses, count);
		/* What the database refuses it will not take later; when it is away it waits. */
		if (r == 0 || r == -EPROTO)
			drop(usage, uses, count);
	}
}

/* Whether it goes on. */
static bool rest(struct usage *usage)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += EVERY_S;
	pthread_mutex_lock(&usage->lock);
	int r = 0;
	while (!usage->ending && r != ETIMEDOUT)
		r = pthread_cond_clockwait(&usage->wakeup, &usage->lock, CLOCK_MONOTONIC, &until);
	bool goes_on = !usage->ending;
	pthread_mutex_unlock(&usage->lock);
	return goes_on;
}

static void *run(void *arg)
{
	struct usage *usage = arg;

	while (rest(usage))
		write_all(usage);
	write_all(usage);
	return NULL;
}

static void usage_free(struct usage *usage)
{
	size_t position = 0;
	struct use *use;

	while ((use = map_next(&usage->uses, &position)) != NULL)
		free(use);
	map_done(&usage->uses);
	pthread_cond_destroy(&usage->wakeup);
	pthread_mutex_destroy(&usage->lock);
	db_free(usage->db);
	free(usage);
}

int usage_start(const struct db_settings *settings, struct usage **ret_usage)
{
	struct usage *usage = calloc(1, sizeof(*usage));

	if (usage == NULL)
		return -ENOMEM;
	pthread_mutex_init(&usage->lock, NULL);
	pthread_cond_init(&usage->wakeup, NULL);
	map_init(&usage->uses);
	int r = db_new(settings, &usage->db, NULL);
	if (r == 0)
		r = -pthread_create(&usage->thread, NULL, run, usage);
	if (r < 0) {
		usage_free(usage);
		return r;
	}
	*ret_usage = usage;
	return 0;
}

void usage_stop(struct usage *usage)
{
	if (usage == NULL)
		return;
	pthread_mutex_lock(&usage->lock);
	usage->ending = true;
	pthread_cond_signal(&usage->wakeup);
	pthread_mutex_unlock(&usage->lock);
	pthread_join(usage->thread, NULL);
	usage_free(usage);
}

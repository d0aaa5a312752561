/* SPDX-License-Identifier: ISC */
/* DKIM keys from the database; see keys.h. */
#include "gateway/relay/keys.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "db/db.h"
#include "gateway/base/log.h"
#include "gateway/base/map.h"

#define DOMAINS_MAX   50000
#define QUESTIONS_MAX 4096

struct domain_keys {
	char domain[256];
	struct keyset *keyset;
	bool stale; /* to be asked again, but better than nothing */
};

struct keys {
	struct loop *loop;
	struct db *db;     /* of the one worker */
	struct jobs *jobs; /* one thread */
	bool away;
	pthread_mutex_t lock;
	struct map domains;
	uint64_t era; /* grows with each notice: answers from before are not kept */
};

/* ---- key sets ---- */

static struct keyset *keyset_ref(struct keyset *keyset)
{
	atomic_fetch_add_explicit(&keyset->refs, 1, memory_order_relaxed);
	return keyset;
}

void keyset_unref(struct keyset *keyset)
{
	if (keyset == NULL || atomic_fetch_sub_explicit(&keyset->refs, 1, memory_order_acq_rel) > 1)
		return;
	for (size_t i = 0; i < keyset->count; i++)
		dkim_key_unref(keyset->keys[i].key);
	free(keyset);
}

/* A key that cannot be used is an error: its domain promises signatures. */
static int add_key(struct keyset *keyset, const PGresult *row, int at, struct why *why)
{
	struct slice selector = db_text(row, at, 0);
	struct signing_key *key = &keyset->keys[keyset->count];
	enum dkim_algorithm algorithm;

	if (selector.len >= sizeof(key->selector) ||
	        dkim_algorithm_parse(db_text(row, at, 1), &algorithm) < 0) {
		why_set(why, "an algorithm or selector that is not known");
		return -EINVAL;
	}
	int r = dkim_key_load(algorithm, db_text(row, at, 2), &key->key, why);
	if (r < 0)
		return r;
	memcpy(key->selector, selector.ptr, selector.len);
	keyset->count++;
	return 0;
}

static int read_keys(const PGresult *rows, struct keyset **ret_keyset, struct why *why)
{
	struct keyset *keyset = calloc(1, sizeof(*keyset));
	int r = keyset != NULL ? 0 : -ENOMEM;

	if (keyset != NULL)
		keyset->refs = 1;
	for (int i = 0; r == 0 && i < PQntuples(rows) && i < KEYSET_MAX; i++)
		r = add_key(keyset, rows, i, why);
	if (r < 0) {
		keyset_unref(keyset);
		return r;
	}
	*ret_keyset = keyset;
	return 0;
}

/* ---- the cache ---- */

static void drop(struct domain_keys *known)
{
	keyset_unref(known->keyset);
	free(known);
}

static void drop_all(struct keys *keys)
{
	struct domain_keys *known;
	size_t position = 0;

	while ((known = map_next(&keys->domains, &position)) != NULL)
		drop(known);
	map_done(&keys->domains);
	map_init(&keys->domains);
}

struct keyset *keys_find(struct keys *keys, struct slice domain)
{
	struct keyset *keyset = NULL;

	pthread_mutex_lock(&keys->lock);
	struct domain_keys *known = map_get(&keys->domains, domain);
	if (known != NULL && !known->stale)
		keyset = keyset_ref(known->keyset);
	pthread_mutex_unlock(&keys->lock);
	return keyset;
}

static void remember(struct keys *keys, const char *domain, struct keyset *keyset, uint64_t era)
{
	struct domain_keys *known;

	pthread_mutex_lock(&keys->lock);
	if (era == keys->era) {
		if (keys->domains.count >= DOMAINS_MAX)
			drop_all(keys);
		known = map_remove(&keys->domains, slice_str(domain));
		if (known != NULL)
			drop(known);
		known = calloc(1, sizeof(*known));
		if (known != NULL) {
			memcpy(known->domain, domain, strlen(domain));
			known->keyset = keyset_ref(keyset);
			if (map_put(&keys->domains, slice_str(known->domain), known) < 0)
				drop(known);
		}
	}
	pthread_mutex_unlock(&keys->lock);
}

/* What was known before the database went away, if anything. */
static struct keyset *find_stale(struct keys *keys, const char *domain)
{
	pthread_mutex_lock(&keys->lock);
	struct domain_keys *known = map_get(&keys->domains, slice_str(domain));
	struct keyset *keyset = known != NULL ? keyset_ref(known->keyset) : NULL;
	pthread_mutex_unlock(&keys->lock);
	return keyset;
}

void keys_changed(struct keys *keys, struct slice domain)
{
	struct domain_keys *known;
	size_t position = 0;

	pthread_mutex_lock(&keys->lock);
	keys->era++;
	while ((known = map_next(&keys->domains, &position)) != NULL)
		if (domain.len == 0 || slice_equal(domain, slice_str(known->domain)))
			known->stale = true;
	pthread_mutex_unlock(&keys->lock);
}

/* ---- questions: on the worker ---- */

static void tell_database(struct keys *keys, bool away, const struct why *why)
{
	if (away == keys->away)
		return;
	keys->away = away;
	if (away)
		LOG(NULL, EV_DATABASE_AWAY, "why=%s", LOG_VALUE(slice_str(why->text)));
	else
		LOG(NULL, EV_DATABASE_BACK, "");
}

static void ask(struct job *job)
{
	struct key_wait *wait = container_of(job, struct key_wait, job);
	struct keys *keys = wait->keys;
	const char *params[] = {wait->domain};
	PGresult *rows;

	/* Somebody else may have asked meanwhile. */
	wait->keyset = keys_find(keys, slice_str(wait->domain));
	if (wait->keyset != NULL)
		return;
	pthread_mutex_lock(&keys->lock);
	uint64_t era = keys->era;
	pthread_mutex_unlock(&keys->lock);
	wait->result = db_exec_often(keys->db,
	        "select selector, algorithm, private_key from postern.dkim_keys($1)", 1, params,
	        &rows, &wait->why);
	tell_database(keys, !db_is_there(keys->db) || wait->result == -ENOSYS, &wait->why);
	if (wait->result == 0) {
		wait->result = read_keys(rows, &wait->keyset, &wait->why);
		PQclear(rows);
		if (wait->result == 0)
			remember(keys, wait->domain, wait->keyset, era);
	} else {
		wait->keyset = find_stale(keys, wait->domain);
	}
}

static void asked(struct job *job)
{
	struct key_wait *wait = container_of(job, struct key_wait, job);

	wait->done(wait);
}

int keys_ask(struct keys *keys, struct slice domain, struct key_wait *wait)
{
	if (domain.len >= sizeof(wait->domain))
		return -EAGAIN;
	for (size_t i = 0; i < domain.len; i++)
		wait->domain[i] = ascii_lower(domain.ptr[i]);
	wait->domain[domain.len] = '\0';
	wait->keys = keys;
	wait->result = 0;
	wait->keyset = NULL;
	wait->job = (struct job){.loop = keys->loop, .run = ask, .done = asked};
	return jobs_submit(keys->jobs, &wait->job);
}

/* ---- life ---- */

int keys_new(const struct keys_settings *settings, struct keys **ret_keys, struct why *why)
{
	struct keys *keys = calloc(1, sizeof(*keys));

	why_set(why, "no memory or no thread to ask for keys");
	if (keys == NULL)
		return -ENOMEM;
	keys->loop = settings->loop;
	pthread_mutex_init(&keys->lock, NULL);
	map_init(&keys->domains);
	const struct db_settings db = {
	        .conninfo = settings->database,
	        .user = "postern_relay",
	        .password = settings->password,
	};
	int r = db_new(&db, &keys->db, why);
	if (r == 0)
		r = jobs_new(1, QUESTIONS_MAX, &keys->jobs);
	if (r < 0) {
		keys_free(keys);
		return r;
	}
	*ret_keys = keys;
	return 0;
}

void keys_free(struct keys *keys)
{
	if (keys == NULL)
		return;
	jobs_free(keys->jobs);
	db_free(keys->db);
	drop_all(keys);
	map_done(&keys->domains);
	pthread_mutex_destroy(&keys->lock);
	free(keys);
}

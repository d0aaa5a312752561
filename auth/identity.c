/* SPDX-License-Identifier: ISC */
/* Identities and the memory of right passwords; see identity.h. */
#include "auth/identity.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "auth/verifier.h"
#include "gateway/base/clock.h"
#include "gateway/base/list.h"
#include "gateway/base/map.h"
#include "gateway/base/random.h"

#define ARENA_MAX      (256U << 10)
#define REMEMBER_MS    (10UL * 60 * 1000)
#define REMEMBERED_MAX 100000
#define SWEEP_MS       60000      /* between two looks for what is over, when it is full */
#define NOBODY         UINT64_MAX /* no account's number */
#define PROOF_SIZE     32
#define ITERATIONS     15000

struct remembered {
	uint8_t proof[PROOF_SIZE]; /* HMAC over login and password: the key of the map */
	struct list link_in_entries;
	struct identity *identity;
	uint64_t account; /* here too, so that a search touches one thing of each */
	uint64_t until_ms;
};

struct identity_store {
	pthread_mutex_t lock; /* of all that follows but the key */
	struct map remembered;
	struct list entries; /* of the map */
	uint64_t era, sweep_at_ms;
	bool has_secret;
	char secret[80]; /* of the fake verifiers, from the database */
	size_t secret_len;
	unsigned iterations;
	uint8_t key[32]; /* of the proofs; made at the start, never leaves the process */
};

int identity_store_new(struct identity_store **ret_store)
{
	struct identity_store *store = calloc(1, sizeof(*store));

	if (store == NULL)
		return -ENOMEM;
	pthread_mutex_init(&store->lock, NULL);
	map_init(&store->remembered);
	list_init(&store->entries);
	random_bytes(store->key, sizeof(store->key));
	*ret_store = store;
	return 0;
}

static void remembered_free(struct remembered *entry)
{
	identity_unref(entry->identity);
	gnutls_memset(entry->proof, 0, sizeof(entry->proof));
	free(entry);
}

void identity_store_free(struct identity_store *store)
{
	if (store == NULL)
		return;
	identity_forget(store, 0);
	map_done(&store->remembered);
	pthread_mutex_destroy(&store->lock);
	gnutls_memset(store, 0, sizeof(*store));
	free(store);
}

struct identity *identity_ref(struct identity *identity)
{
	atomic_fetch_add_explicit(&identity->refs, 1, memory_order_relaxed);
	return identity;
}

void identity_unref(struct identity *identity)
{
	if (identity == NULL ||
	        atomic_fetch_sub_explicit(&identity->refs, 1, memory_order_acq_rel) > 1)
		return;
	arena_reset(&identity->arena);
	free(identity);
}

/* Most accounts have a few senders, some have hundreds: gathered here, then kept as many. */
struct gathering {
	struct arena *arena;
	struct slice senders[PROTOCOL_SENDERS_MAX];
	uint32_t count;
};

static void add_sender(void *arg, struct slice pattern)
{
	struct gathering *gathering = arg;

	if (gathering->count < PROTOCOL_SENDERS_MAX)
		gathering->senders[gathering->count++] = arena_slice(gathering->arena, pattern);
}

static int read_senders(struct identity *identity, struct slice array)
{
	struct gathering gathering = {.arena = &identity->arena};
	struct slice *senders;

	int r = db_each_element(array, add_sender, &gathering);
	if (r < 0)
		return r;
	senders = arena_alloc(&identity->arena, gathering.count * sizeof(*senders));
	if (senders == NULL)
		return -ENOMEM;
	memcpy(senders, gathering.senders, gathering.count * sizeof(*senders));
	identity->account.senders = senders;
	identity->account.sender_count = gathering.count;
	return 0;
}

static void add_verifier(void *arg, struct slice verifier)
{
	struct identity *identity = arg;

	if (identity->verifier_count < IDENTITY_VERIFIERS_MAX)
		identity->verifiers[identity->verifier_count++] =
		        arena_slice(&identity->arena, verifier);
}

static void add_credential(void *arg, struct slice number)
{
	struct identity *identity = arg;

	if (identity->credential_count < IDENTITY_VERIFIERS_MAX &&
	        slice_to_u64(number, &identity->credentials[identity->credential_count]) == 0)
		identity->credential_count++;
}

static int read_account(struct identity *identity, const PGresult *result)
{
	struct auth_account *account = &identity->account;

	identity->known = true;
	account->id = (uint64_t)db_int(result, 0, 0);
	account->login = arena_slice(&identity->arena, db_text(result, 0, 1));
	identity->suspended = !slice_equal(db_text(result, 0, 2), SLICE("active"));
	account->route = arena_slice(&identity->arena, db_text(result, 0, 3));
	account->message_bytes = (uint64_t)db_int(result, 0, 4);
	account->recipients = (uint32_t)db_int(result, 0, 5);
	account->connections = (uint32_t)db_int(result, 0, 6);
	account->sign_required = slice_equal(db_text(result, 0, 7), SLICE("t"));
	int r = read_senders(identity, db_text(result, 0, 8));
	if (r == 0)
		r = db_each_element(db_text(result, 0, 9), add_verifier, identity);
	if (r == 0)
		r = db_each_element(db_text(result, 0, 10), add_credential, identity);
	if (!PQgetisnull(result, 0, 11))
		identity->valid_until_ms = clock_mono_ms() + (uint64_t)db_int(result, 0, 11);
	return r;
}

/* The secret behind the fake verifiers, once. */
static int ensure_secret(struct identity_store *store, struct db *db, struct why *why)
{
	PGresult *result;

	pthread_mutex_lock(&store->lock);
	bool has_secret = store->has_secret;
	pthread_mutex_unlock(&store->lock);
	if (has_secret)
		return 0;
	int r = db_exec(db, "select postern.server_secret(), postern.scram_iterations()", 0, NULL,
	        &result, why);
	if (r < 0)
		return r;
	struct slice secret = db_text(result, 0, 0);
	pthread_mutex_lock(&store->lock);
	/* Another lane may have it already, and read it without the lock. */
	if (!store->has_secret) {
		store->secret_len = MIN_OF(secret.len, sizeof(store->secret));
		memcpy(store->secret, secret.ptr, store->secret_len);
		store->iterations = (unsigned)db_int(result, 0, 1);
		store->has_secret = true;
	}
	pthread_mutex_unlock(&store->lock);
	PQclear(result);
	return 0;
}

/* So that guessing tells nothing: the same work, the same challenge, another end. */
static int add_fake_verifier(
        struct identity_store *store, struct identity *identity, struct slice login)
{
	struct buf text;

	buf_init(&text, 1024);
	int r = verifier_fake(slice_of(store->secret, store->secret_len), login,
	        store->iterations != 0 ? store->iterations : ITERATIONS, &text);
	if (r == 0)
		add_verifier(identity, buf_slice(&text));
	buf_done(&text);
	return r;
}

static int fill(struct identity_store *store, struct db *db, struct slice login,
        struct identity *identity, struct why *why)
{
	PGresult *result;
	char *text = arena_str(&identity->arena, login);
	const char *const params[] = {text};

	if (text == NULL)
		return -ENOMEM;
	int r = ensure_secret(store, db, why);
	if (r == 0)
		r = db_exec_often(db,
		        "select account, login, state, route, message_bytes, recipients, "
		        "connections, sign_required, "
		        "senders, verifiers, credentials, expires_ms from postern.auth_lookup($1)",
		        1, params, &result, why);
	/* A statement that is refused is not the client's fault: it may try again. */
	if (r < 0)
		return r == -EPROTO ? -ENOTCONN : r;
	if (PQntuples(result) > 0)
		r = read_account(identity, result);
	PQclear(result);
	if (r == 0 && identity->verifier_count == 0)
		r = add_fake_verifier(store, identity, login);
	return r;
}

int identity_fetch(struct identity_store *store, struct db *db, struct slice login,
        struct identity **ret_identity, struct why *why)
{
	struct identity *identity = calloc(1, sizeof(*identity));

	if (identity == NULL)
		return -ENOMEM;
	atomic_init(&identity->refs, 1);
	identity->valid_until_ms = UINT64_MAX;
	arena_init(&identity->arena, ARENA_MAX);
	int r = fill(store, db, login, identity, why);
	if (r < 0) {
		identity_unref(identity);
		return r;
	}
	*ret_identity = identity;
	return 0;
}

/* HMAC over both with the length of the first, so that no two pairs share one. */
static int make_proof(struct identity_store *store, struct slice login, struct slice password,
        uint8_t ret_proof[PROOF_SIZE])
{
	gnutls_hmac_hd_t mac;
	const uint64_t len = login.len;

	if (gnutls_hmac_init(&mac, GNUTLS_MAC_SHA256, store->key, sizeof(store->key)) < 0)
		return -ENOMEM;
	gnutls_hmac(mac, &len, sizeof(len));
	gnutls_hmac(mac, login.ptr, login.len);
	gnutls_hmac(mac, password.ptr, password.len);
	gnutls_hmac_deinit(mac, ret_proof);
	return 0;
}

struct identity *identity_recall(
        struct identity_store *store, struct slice login, struct slice password)
{
	uint8_t proof[PROOF_SIZE];
	struct identity *identity = NULL;

	if (make_proof(store, login, password, proof) < 0)
		return NULL;
	pthread_mutex_lock(&store->lock);
	struct remembered *entry = map_get(&store->remembered, slice_of(proof, sizeof(proof)));
	if (entry != NULL && clock_mono_ms() < entry->until_ms)
		identity = identity_ref(entry->identity);
	pthread_mutex_unlock(&store->lock);
	return identity;
}

/* The lock is held. */
static void drop_entry(struct identity_store *store, struct remembered *entry)
{
	(void)map_remove(&store->remembered, slice_of(entry->proof, sizeof(entry->proof)));
	list_remove(&entry->link_in_entries);
	remembered_free(entry);
}

/* What is over goes, and what is of this account (0: all). The lock is held. */
static void drop_remembered(struct identity_store *store, uint64_t account)
{
	uint64_t now = clock_mono_ms();

	list_for_each_safe (at, &store->entries) {
		struct remembered *entry = list_entry(at, struct remembered, link_in_entries);
		if (account == 0 || entry->account == account || now >= entry->until_ms)
			drop_entry(store, entry);
	}
}

void identity_remember(struct identity_store *store, struct slice login, struct slice password,
        struct identity *identity, uint64_t era)
{
	struct remembered *entry = calloc(1, sizeof(*entry));

	if (entry == NULL || make_proof(store, login, password, entry->proof) < 0) {
		free(entry);
		return;
	}
	entry->identity = identity_ref(identity);
	entry->account = identity->account.id;
	uint64_t now = clock_mono_ms();
	entry->until_ms = MIN_OF(now + REMEMBER_MS, identity->valid_until_ms);
	struct slice key = slice_of(entry->proof, sizeof(entry->proof));

	pthread_mutex_lock(&store->lock);
	struct remembered *old = map_get(&store->remembered, key);
	if (old != NULL)
		drop_entry(store, old);
	if (store->remembered.count >= REMEMBERED_MAX && now >= store->sweep_at_ms) {
		drop_remembered(store, NOBODY);
		store->sweep_at_ms = now + SWEEP_MS;
	}
	bool kept = store->era == era && store->remembered.count < REMEMBERED_MAX &&
	            map_put(&store->remembered, key, entry) == 0;
	if (kept)
		list_append(&store->entries, &entry->link_in_entries);
	pthread_mutex_unlock(&store->lock);
	if (!kept)
		remembered_free(entry);
}

uint64_t identity_era(struct identity_store *store)
{
	pthread_mutex_lock(&store->lock);
	uint64_t era = store->era;
	pthread_mutex_unlock(&store->lock);
	return era;
}

void identity_forget(struct identity_store *store, uint64_t account)
{
	pthread_mutex_lock(&store->lock);
	store->era++;
	drop_remembered(store, account);
	pthread_mutex_unlock(&store->lock);
}

void identity_note_used(struct db *db, uint64_t credential)
{
	char number[24];
	const char *const params[] = {number};
	PGresult *result;

	if (credential == 0)
		return;
	snprintf(number, sizeof(number), "%" PRIu64, credential);
	if (db_exec_often(db, "select postern.credential_used($1)", 1, params, &result, NULL) == 0)
		PQclear(result);
}

/* SPDX-License-Identifier: ISC */
/* Identities and the memory of right passwords; see identity.h. */
#include "auth/identity.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "auth/verifier.h"
#include "gateway/base/clock.h"
#include "gateway/base/list.h"
#include "gateway/base/map.h"
#include "gateway/base/random.h"
#include "gateway/base/recent.h"
#include "gateway/mail/sender_right.h"

#define ARENA_MAX      (256U << 10)
#define REMEMBER_MS    (10UL * 60 * 1000)
#define REMEMBERED_MAX 100000
#define SWEEP_MS       60000      /* between two looks for what is over, when it is full */
#define NOBODY         UINT64_MAX /* no account's number */
#define PROOF_SIZE     32
#define ITERATIONS     15000
#define REASON_MAX     400 /* of a suspension, as far as it is told */
#define CONFIRM_TRIES  3
#define DISGUISE_MS    (10UL * 60 * 1000)
#define SHAPES_MAX     128

struct remembered {
	uint8_t proof[PROOF_SIZE]; /* HMAC over login and password: the key of the map */
	struct list link_in_entries;
	struct identity *identity;
	const struct credential *credential; /* of the identity: the one that the password is */
	uint64_t account; /* here too, so that a search touches one thing of each */
	uint64_t until_ms;
};

/* How those without a verifier look like those who have one; from the database. */
struct disguise {
	char secret[80];
	size_t secret_len;
	struct verifier_shape shapes[SHAPES_MAX];
	size_t shape_count;
	unsigned iterations; /* of new verifiers */
	uint64_t until_ms;   /* then it is read anew; 0: it never was */
};

struct identity_store {
	pthread_mutex_t lock; /* of all that follows but the key */
	struct map remembered;
	struct list entries; /* of the map */
	uint64_t era, sweep_at_ms;
	struct recent changed; /* accounts, by era; 0: maybe all */
	struct disguise disguise;
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
	store->era = clock_mono_us();
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
	(void)identity_forget(store, 0);
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

/* One array of the result, an element for each credential. */
struct column {
	struct identity *identity;
	void (*read)(struct identity *identity, struct credential *credential, struct slice value);
	size_t count;
};

static void read_id(struct identity *identity, struct credential *credential, struct slice value)
{
	(void)identity;
	if (slice_to_u64(value, &credential->id) < 0)
		credential->id = 0;
}

static void read_kind(struct identity *identity, struct credential *credential, struct slice value)
{
	(void)identity;
	credential->kind = credential_kind_of(value);
}

static void read_verifier(
        struct identity *identity, struct credential *credential, struct slice value)
{
	credential->verifier = arena_slice(&identity->arena, value);
}

static void read_mechanisms(
        struct identity *identity, struct credential *credential, struct slice value)
{
	credential->mechanisms = arena_slice(&identity->arena, value);
}

static void read_networks(
        struct identity *identity, struct credential *credential, struct slice value)
{
	credential->networks = arena_slice(&identity->arena, value);
}

/* Tied to an address that the account may not send as any more, it may send as none. */
static void read_sender(
        struct identity *identity, struct credential *credential, struct slice value)
{
	const struct auth_account *account = &identity->account;
	struct mailbox mailbox;

	credential->sender = arena_slice(&identity->arena, value);
	credential->may_not_send = value.len > 0;
	if (value.len == 0 || mailbox_parse(value, &mailbox) < 0)
		return;
	for (uint32_t i = 0; i < account->sender_count; i++)
		credential->may_not_send &= !sender_right_covers(account->senders[i], &mailbox);
}

static void read_element(void *arg, struct slice value)
{
	struct column *column = arg;

	if (column->count < column->identity->credential_count)
		column->read(
		        column->identity, &column->identity->credentials[column->count++], value);
}

static void count_element(void *arg, struct slice value)
{
	size_t *count = arg;

	(void)value;
	(*count)++;
}

/* The columns from `first` on; the senders of the account are known. */
static int read_credentials(struct identity *identity, const PGresult *result, int first)
{
	static void (*const reads[])(struct identity *, struct credential *, struct slice) = {
	        read_id, read_kind, read_verifier, read_mechanisms, read_networks, read_sender};
	size_t count = 0;

	int r = db_each_element(db_text(result, 0, first), count_element, &count);
	if (r < 0)
		return r;
	identity->credential_count = MIN_OF(count, (size_t)IDENTITY_CREDENTIALS_MAX);
	identity->credentials = arena_alloc(
	        &identity->arena, identity->credential_count * sizeof(struct credential));
	if (identity->credentials == NULL)
		return -ENOMEM;
	for (size_t i = 0; r == 0 && i < ARRAY_LEN(reads); i++) {
		struct column column = {.identity = identity, .read = reads[i]};
		r = db_each_element(db_text(result, 0, first + (int)i), read_element, &column);
		if (r == 0 && column.count != identity->credential_count)
			r = -EBADMSG;
	}
	/* A restriction that was lost for lack of memory must not be none. */
	for (size_t i = 0; r == 0 && i < identity->credential_count; i++) {
		const struct credential *credential = &identity->credentials[i];
		if (credential->verifier.ptr == NULL || credential->mechanisms.ptr == NULL ||
		        credential->networks.ptr == NULL || credential->sender.ptr == NULL)
			r = -ENOMEM;
	}
	return r;
}

/* A reason may be long, and travels in one datagram with its answer: cut between characters. */
static struct slice cut_reason(struct slice reason)
{
	size_t len = MIN_OF(reason.len, (size_t)REASON_MAX);

	while (len > 0 && len < reason.len && ((unsigned char)reason.ptr[len] & 0xc0) == 0x80)
		len--;
	return slice_part(reason, 0, len);
}

/* `asked_ms`: nothing of it is kept for longer because the answer came late. */
static int read_account(struct identity *identity, const PGresult *result, uint64_t asked_ms)
{
	struct auth_account *account = &identity->account;

	identity->known = true;
	account->id = (uint64_t)db_int(result, 0, 0);
	account->login = arena_slice(&identity->arena, db_text(result, 0, 1));
	identity->suspended = !slice_equal(db_text(result, 0, 2), SLICE("active"));
	identity->suspended_reason =
	        arena_slice(&identity->arena, cut_reason(db_text(result, 0, 3)));
	account->route = arena_slice(&identity->arena, db_text(result, 0, 4));
	account->message_bytes = (uint64_t)db_int(result, 0, 5);
	account->recipients = (uint32_t)db_int(result, 0, 6);
	account->connections = (uint32_t)db_int(result, 0, 7);
	account->sign_required = slice_equal(db_text(result, 0, 8), SLICE("t"));
	if (!PQgetisnull(result, 0, 9))
		identity->valid_until_ms = asked_ms + (uint64_t)db_int(result, 0, 9);
	account->add_sender = slice_equal(db_text(result, 0, 10), SLICE("t"));
	account->counts_new_recipients = slice_equal(db_text(result, 0, 11), SLICE("t"));
	int r = read_senders(identity, db_text(result, 0, 12));
	return r == 0 ? read_credentials(identity, result, 13) : r;
}

static int read_secret(struct db *db, struct disguise *disguise, struct why *why)
{
	PGresult *result;

	int r = db_exec(db, "select postern.server_secret(), postern.scram_iterations()", 0, NULL,
	        &result, why);
	if (r < 0)
		return r;
	struct slice secret = db_text(result, 0, 0);
	disguise->secret_len = MIN_OF(secret.len, sizeof(disguise->secret));
	memcpy(disguise->secret, secret.ptr, disguise->secret_len);
	disguise->iterations =
	        PQgetisnull(result, 0, 1) ? ITERATIONS : (unsigned)db_int(result, 0, 1);
	PQclear(result);
	return 0;
}

static int read_shapes(struct db *db, struct disguise *disguise, struct why *why)
{
	PGresult *result;

	int r = db_exec(db, "select iterations, salt_octets from postern.scram_shapes()", 0, NULL,
	        &result, why);
	if (r < 0)
		return r;
	size_t count = MIN_OF((size_t)PQntuples(result), (size_t)SHAPES_MAX);
	/* Where there is none it is as before it; twice, because before the first one is the last.
	 */
	struct verifier_shape shape = {disguise->iterations, VERIFIER_SALT_NEW};
	for (size_t i = 0; i < 2 * count; i++) {
		int row = (int)(i % count);
		if (!PQgetisnull(result, row, 0)) {
			shape.iterations = (unsigned)db_int(result, row, 0);
			shape.salt_len =
			        MIN_OF((unsigned)db_int(result, row, 1), VERIFIER_SALT_MAX);
		}
		disguise->shapes[row] = shape;
	}
	disguise->shape_count = count;
	PQclear(result);
	return disguise->shape_count > 0 ? 0 : -EBADMSG;
}

/* By every look-up, so that none takes longer because nobody was found. */
static int get_disguise(
        struct identity_store *store, struct db *db, struct disguise *ret_disguise, struct why *why)
{
	uint64_t now = clock_mono_ms();

	pthread_mutex_lock(&store->lock);
	*ret_disguise = store->disguise;
	pthread_mutex_unlock(&store->lock);
	if (now < ret_disguise->until_ms)
		return 0;
	int r = read_secret(db, ret_disguise, why);
	if (r == 0)
		r = read_shapes(db, ret_disguise, why);
	if (r < 0)
		return r;
	ret_disguise->until_ms = now + DISGUISE_MS;
	pthread_mutex_lock(&store->lock);
	store->disguise = *ret_disguise;
	pthread_mutex_unlock(&store->lock);
	return 0;
}

/* So that guessing tells nothing: the same work, the same challenge, another end. */
static int make_fake(const struct disguise *disguise, struct identity *identity, struct slice login)
{
	struct buf text;

	buf_init(&text, 1024);
	int r = verifier_fake(slice_of(disguise->secret, disguise->secret_len), login,
	        disguise->shapes, disguise->shape_count, &text);
	if (r == 0) {
		identity->fake = arena_slice(&identity->arena, buf_slice(&text));
		r = identity->fake.ptr != NULL ? 0 : -ENOMEM;
	}
	buf_done(&text);
	return r;
}

static bool has_scram(const struct identity *identity)
{
	for (size_t i = 0; i < identity->credential_count; i++) {
		if (identity->credentials[i].kind == CREDENTIAL_SCRAM)
			return true;
	}
	return false;
}

static int fill(struct identity_store *store, struct db *db, struct slice login,
        struct identity *identity, struct why *why)
{
	struct disguise disguise;
	PGresult *result;
	char *text = arena_str(&identity->arena, login);
	const char *const params[] = {text};

	if (text == NULL)
		return -ENOMEM;
	int r = get_disguise(store, db, &disguise, why);
	uint64_t asked_ms = clock_mono_ms();
	if (r == 0)
		r = db_exec_often(db,
		        "select account, login, state, state_reason, route, message_bytes, "
		        "recipients, connections, sign_required, expires_ms, add_sender, "
		        "counts_new_recipients, senders, "
		        "credentials, kinds, verifiers, mechanisms, networks, sender "
		        "from postern.auth_lookup($1)",
		        1, params, &result, why);
	/* A statement that is refused is not the client's fault: it may try again. */
	if (r < 0)
		return r == -EPROTO ? -ENOTCONN : r;
	if (PQntuples(result) > 0)
		r = read_account(identity, result, asked_ms);
	PQclear(result);
	if (r == 0 && !has_scram(identity))
		r = make_fake(&disguise, identity, login);
	return r;
}

uint64_t identity_era(struct identity_store *store)
{
	pthread_mutex_lock(&store->lock);
	uint64_t era = store->era;
	pthread_mutex_unlock(&store->lock);
	return era;
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
	identity->era = identity_era(store);
	int r = fill(store, db, login, identity, why);
	if (r < 0) {
		identity_unref(identity);
		return r;
	}
	*ret_identity = identity;
	return 0;
}

/* A question that has the login and a credential as its answer, about a value; or both are known.
 */
struct quest {
	const char *sql; /* NULL: `value` is the login */
	struct slice value;
	uint64_t credential;
};

/* The login and the credential: whether there are such. */
static int find_login(struct db *db, const struct quest *quest, char ret_login[256],
        uint64_t *ret_credential, struct why *why)
{
	char text[128];
	const char *const params[] = {text};
	PGresult *result;

	snprintf(ret_login, 256, "%.*s", SLICE_ARGS(quest->value));
	*ret_credential = quest->credential;
	if (quest->sql == NULL)
		return 1;
	snprintf(text, sizeof(text), "%.*s", SLICE_ARGS(quest->value));
	int r = db_exec_often(db, quest->sql, 1, params, &result, why);
	if (r < 0)
		return r == -EPROTO ? -ENOTCONN : r;
	bool found = PQntuples(result) > 0 && !PQgetisnull(result, 0, 0);
	if (found) {
		snprintf(ret_login, 256, "%.*s", SLICE_ARGS(db_text(result, 0, 0)));
		*ret_credential = (uint64_t)db_int(result, 0, 1);
	}
	PQclear(result);
	return found;
}

static int find_once(struct identity_store *store, struct db *db, const struct quest *quest,
        struct found *ret_found, struct why *why)
{
	char login[256];
	struct identity *identity;
	uint64_t credential;

	ret_found->identity = NULL;
	int r = find_login(db, quest, login, &credential, why);
	if (r <= 0)
		return r;
	r = identity_fetch(store, db, slice_str(login), &identity, why);
	if (r < 0)
		return r;
	/* Closed, or gone a moment ago; or the credential is. */
	if (!identity->known ||
	        (credential != 0 && identity_credential(identity, credential) == NULL)) {
		identity_unref(identity);
		return 0;
	}
	ret_found->identity = identity;
	ret_found->credential = credential != 0 ? identity_credential(identity, credential) : NULL;
	return 0;
}

/* Until nothing of it changes meanwhile. */
static int find(struct identity_store *store, struct db *db, const struct quest *quest,
        struct found *ret_found, struct why *why)
{
	for (unsigned tries = 0; tries < CONFIRM_TRIES; tries++) {
		uint64_t before = identity_era(store);
		int r = find_once(store, db, quest, ret_found, why);
		if (r < 0 || ret_found->identity == NULL)
			return r;
		ret_found->identity->era = before;
		if (identity_is_current(store, ret_found->identity, &ret_found->era))
			return 0;
		identity_unref(TAKE(ret_found->identity));
	}
	return -ESTALE;
}

int identity_fetch_by_network(struct identity_store *store, struct db *db, struct slice address,
        struct found *ret_found, struct why *why)
{
	const struct quest quest = {"select postern.network_lookup($1), 0", address, 0};

	return find(store, db, &quest, ret_found, why);
}

int identity_fetch_by_certificate(struct identity_store *store, struct db *db,
        struct slice fingerprint, struct found *ret_found, struct why *why)
{
	const struct quest quest = {
	        "select login, credential from postern.certificate_lookup($1)", fingerprint, 0};

	return find(store, db, &quest, ret_found, why);
}

int identity_fetch_again(struct identity_store *store, struct db *db, struct slice login,
        uint64_t credential, struct found *ret_found, struct why *why)
{
	const struct quest quest = {NULL, login, credential};

	return find(store, db, &quest, ret_found, why);
}

/* HMAC over both with the length of the first, so that no two pairs share one; for app passwords
 * another, because they are the same in more ways than one. */
static int make_proof(struct identity_store *store, struct slice login, struct slice password,
        bool is_token, uint8_t ret_proof[PROOF_SIZE])
{
	gnutls_hmac_hd_t mac;
	const uint64_t head[] = {login.len, is_token};

	if (gnutls_hmac_init(&mac, GNUTLS_MAC_SHA256, store->key, sizeof(store->key)) < 0)
		return -ENOMEM;
	gnutls_hmac(mac, head, sizeof(head));
	gnutls_hmac(mac, login.ptr, login.len);
	gnutls_hmac(mac, password.ptr, password.len);
	gnutls_hmac_deinit(mac, ret_proof);
	return 0;
}

static struct identity *recall(struct identity_store *store, struct slice login,
        struct slice password, bool is_token, const struct credential **ret_credential,
        uint64_t *ret_era)
{
	uint8_t proof[PROOF_SIZE];
	struct identity *identity = NULL;

	if (make_proof(store, login, password, is_token, proof) < 0)
		return NULL;
	pthread_mutex_lock(&store->lock);
	struct remembered *entry = map_get(&store->remembered, slice_of(proof, sizeof(proof)));
	if (entry != NULL && clock_mono_ms() < entry->until_ms) {
		identity = identity_ref(entry->identity);
		*ret_credential = entry->credential;
		*ret_era = store->era; /* or it would have been forgotten */
	}
	pthread_mutex_unlock(&store->lock);
	return identity;
}

struct identity *identity_recall(struct identity_store *store, struct slice login,
        struct slice password, const struct credential **ret_credential, uint64_t *ret_era)
{
	char token[CREDENTIAL_TOKEN_LEN];

	struct identity *identity = recall(store, login, password, false, ret_credential, ret_era);
	if (identity == NULL && credential_read_token(password, token))
		identity = recall(store, login, slice_of(token, sizeof(token)), true,
		        ret_credential, ret_era);
	gnutls_memset(token, 0, sizeof(token));
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

/* The lock is held. */
static bool has_changed(const struct identity_store *store, const struct identity *identity)
{
	return recent_since(&store->changed, identity->account.id, identity->era) ||
	       recent_since(&store->changed, 0, identity->era);
}

void identity_remember(struct identity_store *store, struct slice login, struct slice password,
        struct identity *identity, const struct credential *credential)
{
	struct remembered *entry = calloc(1, sizeof(*entry));
	char token[CREDENTIAL_TOKEN_LEN];

	/* In one form: of the others there are millions, and they cost nothing. */
	bool is_token =
	        credential->kind == CREDENTIAL_TOKEN && credential_read_token(password, token);
	if (is_token)
		password = slice_of(token, sizeof(token));
	int r = entry == NULL ? -ENOMEM
	                      : make_proof(store, login, password, is_token, entry->proof);
	gnutls_memset(token, 0, sizeof(token));
	if (r < 0) {
		free(entry);
		return;
	}
	entry->identity = identity_ref(identity);
	entry->credential = credential;
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
	bool kept = !has_changed(store, identity) && store->remembered.count < REMEMBERED_MAX &&
	            map_put(&store->remembered, key, entry) == 0;
	if (kept)
		list_append(&store->entries, &entry->link_in_entries);
	pthread_mutex_unlock(&store->lock);
	if (!kept)
		remembered_free(entry);
}

bool identity_is_current(
        struct identity_store *store, const struct identity *identity, uint64_t *ret_era)
{
	pthread_mutex_lock(&store->lock);
	bool current = !has_changed(store, identity);
	*ret_era = store->era;
	pthread_mutex_unlock(&store->lock);
	return current;
}

static const struct credential *find_same(
        const struct identity *identity, const struct credential *credential)
{
	const struct credential *other = identity_credential(identity, credential->id);

	return other != NULL && other->kind == credential->kind &&
	                       slice_equal(other->verifier, credential->verifier)
	               ? other
	               : NULL;
}

int identity_confirm(struct identity_store *store, struct db *db, struct slice login,
        struct identity **identity, const struct credential **credential, uint64_t *ret_era,
        struct why *why)
{
	struct identity *fresh;

	for (unsigned tries = 0; tries < CONFIRM_TRIES; tries++) {
		if (identity_is_current(store, *identity, ret_era))
			return 0;
		int r = identity_fetch(store, db, login, &fresh, why);
		if (r < 0)
			return r;
		const struct credential *same = find_same(fresh, *credential);
		if (same == NULL) {
			identity_unref(fresh);
			return -ESTALE;
		}
		identity_unref(*identity);
		*identity = fresh;
		*credential = same;
	}
	return -ESTALE;
}

uint64_t identity_forget(struct identity_store *store, uint64_t account)
{
	pthread_mutex_lock(&store->lock);
	uint64_t era = ++store->era;
	recent_note(&store->changed, account, era);
	drop_remembered(store, account);
	pthread_mutex_unlock(&store->lock);
	return era;
}

const struct credential *identity_credential(const struct identity *identity, uint64_t id)
{
	for (size_t i = 0; i < identity->credential_count; i++) {
		if (identity->credentials[i].id == id)
			return &identity->credentials[i];
	}
	return NULL;
}

void identity_account(const struct identity *identity, const struct credential *credential,
        uint64_t era, struct auth_account *ret_account)
{
	*ret_account = identity->account;
	ret_account->era = era;
	ret_account->valid_until_ms = identity->valid_until_ms;
	ret_account->credential = credential != NULL ? credential->id : 0;
	if (credential == NULL || credential->sender.len == 0)
		return;
	ret_account->senders = &credential->sender;
	ret_account->sender_count = credential->may_not_send ? 0 : 1;
}

int identity_upgrade(struct identity_store *store, struct db *db,
        const struct credential *credential, struct slice password)
{
	char number[24];
	PGresult *result;
	struct buf old, new;

	buf_init(&old, 1024);
	buf_init(&new, 1024);
	pthread_mutex_lock(&store->lock);
	unsigned iterations = store->disguise.iterations;
	pthread_mutex_unlock(&store->lock);
	int r = buf_append_slice(&old, credential->verifier);
	if (r == 0)
		r = verifier_make(password, iterations, &new);
	snprintf(number, sizeof(number), "%" PRIu64, credential->id);
	const char *const params[] = {
	        number, r == 0 ? buf_str(&old) : NULL, r == 0 ? buf_str(&new) : NULL};
	if (r == 0)
		r = db_exec_often(db, "select postern.credential_upgrade($1, $2, $3)", 3, params,
		        &result, NULL);
	if (r == 0) {
		/* Another login was faster, or the password was changed. */
		if (!slice_equal(db_text(result, 0, 0), SLICE("t")))
			r = -ESTALE;
		PQclear(result);
	}
	buf_wipe(&old);
	buf_wipe(&new);
	return r;
}

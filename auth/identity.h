/* SPDX-License-Identifier: ISC */
/*
 * Who somebody is: what the database says of a login, and which passwords were
 * right lately, so that the next login of a mail program costs neither a query
 * nor PBKDF2. Every change in the database empties what it concerns.
 */
#pragma once

#include <stdatomic.h>

#include "auth/credential.h"
#include "auth/protocol.h"
#include "db/db.h"
#include "gateway/base/arena.h"

#define IDENTITY_CREDENTIALS_MAX 32 /* the schema lets an account have no more */

/* Shared by reference between threads; never changes. */
struct identity {
	_Atomic unsigned refs;
	struct arena arena;
	bool known; /* false: no such login */
	bool suspended;
	struct slice suspended_reason;
	struct auth_account account;
	struct credential *credentials; /* app passwords, then the main password, then others */
	size_t credential_count;
	struct slice fake;       /* a made-up verifier, for who has none of SCRAM */
	uint64_t valid_until_ms; /* when the first of the credentials expires */
	uint64_t era;            /* the store's when it was looked up */
};

struct identity_store;

int identity_store_new(struct identity_store **ret_store) must_check;
void identity_store_free(struct identity_store *store);

/*
 * What the database has on a login (lower-case), by the calling thread's connection,
 * which blocks. A reference also for unknown ones. -ENOTCONN, -ETIMEDOUT, -ENOSYS with the
 * reason when it cannot tell now; -ENOMEM, -EBADMSG.
 */
int identity_fetch(struct identity_store *store, struct db *db, struct slice login,
        struct identity **ret_identity, struct why *why) must_check;

/* Who was found without a password. */
struct found {
	struct identity *identity;           /* the caller's reference; NULL: nobody */
	const struct credential *credential; /* of the identity; NULL: none */
	uint64_t era; /* until when that is right; see identity_is_current() */
};

/*
 * The same by what needs no password: whose server has that address, or who showed the certificate
 * with that SHA-256 (hex). Also -ESTALE: it changes all the time.
 */
int identity_fetch_by_network(struct identity_store *store, struct db *db, struct slice address,
        struct found *ret_found, struct why *why) must_check;
int identity_fetch_by_certificate(struct identity_store *store, struct db *db,
        struct slice fingerprint, struct found *ret_found, struct why *why) must_check;
/* Likewise somebody who has logged in before with that credential. */
int identity_fetch_again(struct identity_store *store, struct db *db, struct slice login,
        uint64_t credential, struct found *ret_found, struct why *why) must_check;

struct identity *identity_ref(struct identity *identity);
void identity_unref(struct identity *identity);

/*
 * The identity if this password was right lately, with the credential that it is, or NULL. Whether
 * that may be used now is the caller's question. `*ret_era` as of identity_is_current(). Any
 * thread; microseconds.
 */
struct identity *identity_recall(struct identity_store *store, struct slice login,
        struct slice password, const struct credential **ret_credential, uint64_t *ret_era);
/*
 * Remembers a right password, `credential` of the identity, not beyond its end, and not if the
 * account has changed since the look-up.
 */
void identity_remember(struct identity_store *store, struct slice login, struct slice password,
        struct identity *identity, const struct credential *credential);

/*
 * Whether no change of the account has been heard of since the look-up; until when that is so.
 * Any thread.
 */
bool identity_is_current(
        struct identity_store *store, const struct identity *identity, uint64_t *ret_era);

/*
 * At the end of a login: if the account has changed meanwhile it is looked up again, and the
 * credential (of the identity) must be there as it was. Both are replaced. 0 and until when that
 * is so; -ESTALE: it is not; -errno as of identity_fetch().
 */
int identity_confirm(struct identity_store *store, struct db *db, struct slice login,
        struct identity **identity, const struct credential **credential, uint64_t *ret_era,
        struct why *why) must_check;

/* One of its credentials, or NULL. */
const struct credential *identity_credential(const struct identity *identity, uint64_t id);

/*
 * The account as a login with that credential (NULL: without one) brings it; `era` is until when
 * that is right. `ret_account` points into both.
 */
void identity_account(const struct identity *identity, const struct credential *credential,
        uint64_t era, struct auth_account *ret_account);

/*
 * Puts a verifier of the right password in the place of an imported hash, if that is still there.
 * Blocks. 0 or -errno: then the hash stays.
 */
int identity_upgrade(struct identity_store *store, struct db *db,
        const struct credential *credential, struct slice password) must_check;

/*
 * One account has changed, or maybe all with 0: forgets them. The era that begins with it; those
 * of a later process are later. Any thread.
 */
uint64_t identity_forget(struct identity_store *store, uint64_t account);
/* The era of now. Any thread. */
uint64_t identity_era(struct identity_store *store);

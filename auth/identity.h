/* SPDX-License-Identifier: ISC */
/*
 * Who somebody is: what the database says of a login, and which passwords were
 * right lately, so that the next login of a mail program costs neither a query
 * nor PBKDF2. Every change in the database empties what it concerns.
 */
#pragma once

#include <stdatomic.h>

#include "auth/protocol.h"
#include "db/db.h"
#include "gateway/base/arena.h"

#define IDENTITY_VERIFIERS_MAX 32 /* the schema lets an account have no more */

/* Shared by reference between threads; never changes. */
struct identity {
	_Atomic unsigned refs;
	struct arena arena;
	bool known; /* false: no such login; it has the fake verifier */
	bool suspended;
	struct auth_account account;
	struct slice verifiers[IDENTITY_VERIFIERS_MAX];
	uint64_t credentials[IDENTITY_VERIFIERS_MAX]; /* their numbers; 0 for the fake one */
	size_t verifier_count, credential_count;
	uint64_t valid_until_ms; /* when the first of them expires */
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
struct identity *identity_ref(struct identity *identity);
void identity_unref(struct identity *identity);

/* The identity if this password was right lately, or NULL. Any thread; microseconds. */
struct identity *identity_recall(
        struct identity_store *store, struct slice login, struct slice password);
/*
 * Remembers a right password, not beyond the end of its credential. `era` is what identity_era()
 * said before the lookup: if anything was forgotten since, nothing is remembered.
 */
void identity_remember(struct identity_store *store, struct slice login, struct slice password,
        struct identity *identity, uint64_t era);
uint64_t identity_era(struct identity_store *store);

/* Notes in the database that a credential was used; 0: nothing to note. */
void identity_note_used(struct db *db, uint64_t credential);

/* Forgets one account, or all with 0. Any thread. */
void identity_forget(struct identity_store *store, uint64_t account);

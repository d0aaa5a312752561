/* SPDX-License-Identifier: ISC */
/*
 * Password hashes of other systems, as account_import() takes them: $6$, $5$, $y$, $2a$, $2b$
 * and $2y$ of crypt(3); {SSHA}, {SSHA256} and {SSHA512} of LDAP. Pure, any thread.
 */
#pragma once

#include <stdbool.h>

#include "gateway/base/slice.h"

/*
 * Whether the password is that of the hash, in constant time after work that the hash sets:
 * up to some 250 ms (sha-crypt with a very long password: 300) and 64 MiB. A hash that
 * sets more is not tried, and fits nothing.
 */
bool foreign_hash_fits(struct slice hash, struct slice password);

/* Whether no other password fits because the hash looks at a part of them only: bcrypt at 72
 * octets. */
bool foreign_hash_is_whole(struct slice hash, struct slice password);

/* Whether that costs far more than a verifier does. */
bool foreign_hash_is_slow(struct slice hash);

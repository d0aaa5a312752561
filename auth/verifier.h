/* SPDX-License-Identifier: ISC */
/* SCRAM-SHA-256 verifiers (RFC 5803): the form in which passwords exist. Pure. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

#define VERIFIER_KEY_SIZE 32
#define VERIFIER_SALT_MAX 64U
#define VERIFIER_SALT_NEW 16U /* of new ones */

struct verifier {
	unsigned iterations;
	uint8_t salt[VERIFIER_SALT_MAX];
	size_t salt_len;
	uint8_t stored_key[VERIFIER_KEY_SIZE];
};

/* "SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey"; 0 or -EBADMSG. */
int verifier_parse(struct slice text, struct verifier *ret_verifier) must_check;

/* Whether the password fits, in constant time after PBKDF2, which takes milliseconds. */
bool verifier_check(const struct verifier *verifier, struct slice password);

/* The verifier of a password, with a new salt; PBKDF2 as well. Appends its text. */
int verifier_make(struct slice password, unsigned iterations, struct buf *out) must_check;

/* What a client sees of a verifier before it has proven anything, but for the salt itself. */
struct verifier_shape {
	unsigned iterations, salt_len; /* at most VERIFIER_SALT_MAX */
};

/*
 * The verifier that an unknown user seems to have: of one of these shapes, with a salt that is the
 * same as long as the shape is, both from a secret, and keys that fit no password. Appends its
 * text.
 */
int verifier_fake(struct slice secret, struct slice login, const struct verifier_shape shapes[],
        size_t shape_count, struct buf *out) must_check;

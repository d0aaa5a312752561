/* SPDX-License-Identifier: ISC */
/* SCRAM-SHA-256 verifiers (RFC 5803): the form in which passwords exist. Pure. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

#define VERIFIER_KEY_SIZE 32
#define VERIFIER_SALT_MAX 64

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

/*
 * The verifier that an unknown user seems to have: the same salt each time, from a
 * secret, and keys that fit no password. Appends its text.
 */
int verifier_fake(
        struct slice secret, struct slice login, unsigned iterations, struct buf *out) must_check;

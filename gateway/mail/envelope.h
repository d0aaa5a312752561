/* SPDX-License-Identifier: ISC */
/*
 * The envelope of an accepted message, as `submit` stores it and `relay` reads it.
 * Texts are those of the client, never decoded. Pure.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/arena.h"
#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

#define ENVELOPE_RECIPIENTS_MAX 100000
#define BODY_HASH_SIZE          32 /* SHA-256 */

struct envelope {
	uint64_t account;
	struct slice login, session;
	struct slice sender; /* without brackets; empty: the null sender */
	struct slice *recipients;
	uint32_t recipient_count;
	bool body_8bit; /* BODY=8BITMIME was declared */
	bool smtputf8;
	bool sign_required;       /* of the account's plan: without a DKIM key it waits */
	uint64_t size;            /* of header and body as stored */
	struct slice from_domain; /* of the header From: whose keys sign */
	struct slice route;       /* of the account, "" when it has none */
	uint8_t body_hash[BODY_HASH_SIZE];
};

int envelope_encode(const struct envelope *envelope, struct buf *out) must_check;

/* Slices point into the octets, the array into the arena. 0, -EBADMSG, -ENOMEM. */
int envelope_decode(
        struct slice octets, struct arena *arena, struct envelope *ret_envelope) must_check;

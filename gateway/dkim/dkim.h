/* SPDX-License-Identifier: ISC */
/*
 * DKIM signatures (RFC 6376, RFC 8463): relaxed/relaxed, SHA-256, RSA and Ed25519.
 * The body hash is computed while the body streams in; it serves both algorithms.
 * The signature itself needs only the final header block and that hash.
 */
#pragma once

#include <gnutls/crypto.h>
#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"

#define DKIM_HASH_SIZE 32

/* ---- the body hash: one thread ---- */

struct dkim_body {
	gnutls_hash_hd_t hash; /* all private */
	uint64_t line_ends;    /* seen and not yet hashed: those at the very end do not count */
	bool blank, any;
	size_t used;
	char window[1024];
};

int dkim_body_init(struct dkim_body *body) must_check;
/* Octets of the body in order; lines end with CRLF. */
void dkim_body_update(struct dkim_body *body, struct slice octets);
/* Writes the hash and frees; without a place for the hash it only frees. */
void dkim_body_done(struct dkim_body *body, uint8_t ret_hash[DKIM_HASH_SIZE]);

/* ---- keys: shared between threads by reference ---- */

enum dkim_algorithm { DKIM_RSA_SHA256, DKIM_ED25519_SHA256 };

struct dkim_key;

/* From a PEM private key. 0, or -EINVAL with the reason (an RSA key below 2048 bits too). */
int dkim_key_load(enum dkim_algorithm algorithm, struct slice pem, struct dkim_key **ret_key,
        struct why *why) must_check;
void dkim_key_unref(struct dkim_key *key);

/* A new private key as PEM (wipe it). 0 or -errno with the reason. Slow for RSA. */
int dkim_key_generate(
        enum dkim_algorithm algorithm, struct buf *ret_pem, struct why *why) must_check;

/* The record's value: "v=DKIM1; k=rsa; p=…". */
int dkim_key_record(struct dkim_key *key, struct buf *ret_text) must_check;

const char *dkim_algorithm_name(enum dkim_algorithm algorithm);
int dkim_algorithm_parse(struct slice name, enum dkim_algorithm *ret_algorithm) must_check;

/* ---- signing: any thread ---- */

struct dkim_signing {
	struct slice domain, selector;
	struct dkim_key *key;
	int64_t now_s, expires_s;
};

/*
 * Appends the whole DKIM-Signature field, with CRLF, for a final header block (with
 * its empty line) and the hash of the body. 0, -ENOBUFS, -ENOMEM, or -EIO with the
 * reason when the key does not sign.
 */
int dkim_sign(const struct dkim_signing *signing, struct slice header,
        const uint8_t body_hash[DKIM_HASH_SIZE], struct buf *out, struct why *why) must_check;

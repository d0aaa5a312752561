/* SPDX-License-Identifier: ISC */
/*
 * Cyrus SASL without its configuration files: one conversation is one attempt of
 * a client to log in, with a fresh sasl_conn_t (the library keeps state on it that
 * must not live on). A conversation is used by one thread at a time.
 *
 * Facts of libsasl2 2.1.28 that shape this file are in README.md.
 */
#pragma once

#include "auth/identity.h"
#include "auth/response.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"

struct sasl;
struct conversation;

/* Once in the process, before its threads. */
int sasl_start(const char *hostname, struct identity_store *store, struct sasl **ret_sasl,
        struct why *why) must_check;
void sasl_stop(struct sasl *sasl);

/* What a step has come to. */
enum sasl_verdict {
	SASL_VERDICT_MORE, /* the challenge is in the buffer */
	SASL_VERDICT_DONE, /* conversation_identity() has logged in */
	SASL_VERDICT_REFUSED,
	SASL_VERDICT_SUSPENDED, /* it would have, but the account may not now */
	SASL_VERDICT_MALFORMED,
	SASL_VERDICT_UNAVAILABLE, /* the database is away */
};

/* By that mechanism from that address, of less than ADDR_TEXT octets. 0 or -ENOMEM. */
int conversation_new(struct sasl *sasl, enum response_mechanism mechanism,
        struct slice client_address, struct conversation **ret_conversation) must_check;
void conversation_free(struct conversation *conversation);

/*
 * Before a step with a password: whether it will be checked against a slow hash, of which few are
 * checked at a time. Looks up who it is, as the step would; false also if that fails. Blocks.
 */
bool conversation_is_slow(
        struct conversation *conversation, struct db *db, const struct response_reader *reader);

/*
 * Responses that response_read() finds good, and of nobody's login none that guesses: the
 * library's LOGIN leaks the password with a name that it refuses. `db` is the calling thread's,
 * for the look-up. May take milliseconds.
 */
enum sasl_verdict conversation_start(struct conversation *conversation, struct db *db,
        bool has_initial, struct slice initial, struct buf *ret_challenge);
enum sasl_verdict conversation_step(struct conversation *conversation, struct db *db,
        struct slice response, struct buf *ret_challenge);

/* After UNAVAILABLE: what the database said, or NULL when it is not the reason. */
const struct why *conversation_away(const struct conversation *conversation);

/* Who it is, once that was looked up, or NULL; the conversation's reference. */
struct identity *conversation_identity(const struct conversation *conversation);

/* After SUSPENDED: why, as the admin wrote it. */
struct slice conversation_suspension(const struct conversation *conversation);

/* After DONE: until when what the identity says is right; see identity_is_current(). */
uint64_t conversation_era(const struct conversation *conversation);

/* After DONE: what was right, of the identity. */
const struct credential *conversation_credential(const struct conversation *conversation);

/* After DONE: whether an imported hash was to become a verifier, and did. */
enum upgrade { UPGRADE_NONE, UPGRADE_DONE, UPGRADE_FAILED };
enum upgrade conversation_upgrade(const struct conversation *conversation);

/* For the log: "bad_password", "unknown_user", "network_not_allowed", "authzid", … */
const char *conversation_reason(const struct conversation *conversation);

/* SPDX-License-Identifier: ISC */
/*
 * A mail transaction: everything between MAIL and the reply to the final dot, in
 * one struct that one function takes down. The session's loop only.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "auth/protocol.h"
#include "gateway/base/arena.h"
#include "gateway/base/id.h"
#include "gateway/dkim/dkim.h"
#include "gateway/mail/dot.h"
#include "gateway/mail/envelope.h"
#include "gateway/mail/header.h"
#include "gateway/mail/newline.h"
#include "gateway/mail/reply.h"
#include "gateway/mail/trace.h"
#include "gateway/spool/spool.h"
#include "gateway/submit/shares.h"

/* What it must know of its session; made anew for each call. */
struct transaction_context {
	struct loop *loop;
	struct spool_in *spool;
	struct shares *shares;
	const struct auth_account *account;
	const struct spool_tx_events *events; /* with this argument: */
	void *arg;
	const char *hostname, *session;
	struct slice helo;
	bool esmtp, logged_in;
	const char *tls_version, *tls_cipher; /* NULL: in the clear */
	uint64_t size_limit;
	bool normalize; /* a bare CR or LF is the end of a line */
};

struct transaction {
	struct arena arena; /* the envelope's texts */
	struct message_id id;
	char id_text[ID_TEXT + 1];
	struct envelope envelope;
	uint32_t recipient_room, recipient_octets;
	uint64_t declared_size;     /* SIZE=, 0 without */
	struct auth_charge charged; /* by ADMIT, and not given back */
	struct holding *held;       /* envelope and header, until it is taken down */
	struct holding *body_held;  /* the spool's, while `spool` is there */

	/* from DATA or the first BDAT on */
	bool chunked;
	struct dot dot;
	struct newline newline;
	struct buf header; /* as it comes; then the final block */
	bool header_done;
	struct dkim_body body_hash;
	bool hashing;
	struct spool_tx *spool; /* NULL before the body, and after its commit */
	bool must_wait;         /* the spool asked to stop reading */
	bool committing;        /* the journal has it, and may accept it whatever happens */
	uint64_t size;          /* octets as received, dots removed */
	uint64_t body_size;     /* those that the spool was given */
	enum reply refusal;     /* REPLY_COUNT: none so far */
	const char *refusal_text;
};

/* Whether one of the account's senders covers it. */
bool account_may_send_as(const struct auth_account *account, const struct mailbox *mailbox);

/* One of that account, which has a connection. 0 or -ENOMEM. */
int transaction_new(
        struct shares *shares, uint64_t account, struct transaction **ret_transaction) must_check;

/* Takes it down in any state; a committed message stays. NULL is fine. */
void transaction_free(struct transaction *transaction);

/* 0, -E2BIG when there is no room for its text in what the spool keeps of a message, or -ENOMEM. */
int transaction_add_recipient(struct transaction *transaction, struct slice path) must_check;

/*
 * Takes input after DATA: returns how much was used; *ret_end at the final dot. Sets
 * must_wait when the session should stop reading for a while.
 */
size_t transaction_take(struct transaction *transaction, const struct transaction_context *context,
        struct slice input, bool *ret_end);

/* The same of a chunk, which has no end in it. */
void transaction_take_chunk(struct transaction *transaction,
        const struct transaction_context *context, struct slice input);

/* Counts what it holds by now; whether all that its account holds is within its share. */
enum holding_answer transaction_hold(
        struct transaction *transaction, struct disk_room disk) must_check;

/* Drops what has come and what comes; the reply is the reason unless there was one before. */
void transaction_refuse(struct transaction *transaction, enum reply reply);

/* REPLY_COUNT as long as nothing is wrong with what has come. */
enum reply transaction_judge(
        struct transaction *transaction, const struct transaction_context *context);

/* After the final dot or the last chunk: REPLY_COUNT if the message is fine, else why not. */
enum reply transaction_finish(
        struct transaction *transaction, const struct transaction_context *context);

/* Gives it to the journal; the context's on_done tells. 0 or -ENOMEM. */
int transaction_commit(
        struct transaction *transaction, const struct transaction_context *context) must_check;

/* What the %s of the refusal is. */
const char *transaction_refusal_text(const struct transaction *transaction,
        const struct transaction_context *context, char room[32]);

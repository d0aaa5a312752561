/* SPDX-License-Identifier: ISC */
/*
 * One attempt to deliver a message, its deliveries to upstreams, and what becomes of its
 * recipients. The loop's thread only; while its job runs the attempt is the worker's.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/arena.h"
#include "gateway/base/buf.h"
#include "gateway/base/list.h"
#include "gateway/base/log.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"
#include "gateway/mail/envelope.h"
#include "gateway/net/jobs.h"
#include "gateway/relay/keys.h"
#include "gateway/spool/spool.h"

struct message_id;
struct task;
struct upstream;

/* What became of a recipient. */
enum fate {
	FATE_OPEN,      /* not tried in this attempt, or to be tried again at once */
	FATE_ACCEPTED,  /* RCPT was accepted: what the final dot says holds for it */
	FATE_DELIVERED, /* settled */
	FATE_FAILED,
	FATE_DEFERRED,
};

struct result {
	enum fate fate;
	bool expired;              /* failed, because it was tried for too long */
	char status[12];           /* "5.1.1" */
	struct upstream *upstream; /* that it goes to, or NULL */
	const char *host;          /* in the attempt's arena, or NULL */
	const char *diagnostic;    /* printable; in the arena */
};

/* The recipients of a message that go to one upstream. */
struct delivery {
	struct list link; /* in upstream.waiting */
	struct attempt *attempt;
	struct upstream *upstream;
	uint32_t *recipients; /* numbers */
	uint32_t count;
	unsigned repeats;  /* before MAIL was answered the connection died: how often so far */
	bool held, frozen; /* came back untried: waits for the upstream */
	bool stopped_it;   /* the answer to it stopped the upstream */
};

struct attempt {
	struct job job;
	struct task *task;
	struct log_ctx log;
	struct spool_message message;
	bool loaded, handed_over;
	struct arena arena;
	struct envelope envelope;
	struct slice
	        message_id;    /* of the header; read when history does not know the message yet */
	struct buf signatures; /* DKIM-Signature fields */
	struct keyset *keyset; /* or NULL: not asked yet */
	struct key_wait key_wait;
	struct result *results; /* one a recipient of the message */
	struct delivery *deliveries;
	uint32_t delivery_count, open;
	bool route_unknown;    /* of some recipients */
	uint64_t hour_left_ms; /* a bounce, and its account has got enough for so long; or 0 */
	int error;
	struct why why;
};

/* Whether its envelope was read: each recipient of the entry is in it. */
static inline bool attempt_is_readable(const struct attempt *attempt)
{
	return attempt->envelope.recipient_count > 0;
}

/* Begins with a task that was taken from the scheduler. */
void attempt_start(struct task *task);

/* A delivery has come back: every recipient of it has a fate. */
void attempt_delivery_done(struct delivery *delivery);

/* The upstream cannot take it now: the message waits for it, unloaded; frozen: without ageing. */
void attempt_delivery_held(struct delivery *delivery, bool frozen);

/* Sets the fate of one recipient; texts are copied. */
void attempt_set_fate(struct attempt *attempt, uint32_t recipient, enum fate fate,
        const char *status, const char *host, const char *diagnostic);

/* The same for all recipients of the delivery that are still open. */
void delivery_set_fate(struct delivery *delivery, enum fate fate, const char *status,
        const char *host, const char *diagnostic);

/* History gets the result of a recipient under this name (see table delivery), with the id of the
 * bounce or notice that tells the sender, or NULL. */
void attempt_tell_history(struct attempt *attempt, uint32_t recipient, const char *outcome,
        const struct message_id *notice);

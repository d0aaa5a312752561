/* SPDX-License-Identifier: ISC */
/*
 * What became of messages, for the tables `message` and `delivery`. The loop tells, a
 * thread with a connection of its own writes, half a second later or when there is much.
 *
 * Never in the way of mail: telling neither waits nor fails. While the database is away
 * what was told waits in memory; beyond a maximum, or without memory, the newest is
 * lost and counted, and the database learns of which time when it is back.
 */
#pragma once

#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/id.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"

struct history;

struct history_settings {
	const char *database;
	struct slice password;
	const char *spool; /* path: with the machine's name it names the gateway */
	size_t octets_max; /* that wait, 0: 32 MiB */
};

/* Starts the thread; it connects by and by. 0 or -errno with the reason. Copies. */
int history_new(const struct history_settings *settings, struct history **ret_history,
        struct why *why) must_check;

/* Writes what waits, for 2 s (a server that hangs: 4) at most. NULL is fine. */
void history_free(struct history *history);

/* A message that is delivered for the first time by this process. Texts of any octets. */
struct history_message {
	const struct message_id *id;
	uint64_t account, size;
	int64_t accepted_us;
	uint32_t recipients;
	struct slice login, session, sender, from_domain, message_id;
};

/* An outcome of an attempt for a recipient. */
struct history_delivery {
	const struct message_id *message;
	int64_t at_us;
	uint32_t attempt;
	int64_t number; /* of the recipient; -1: all that were left */
	const char *outcome;
	struct slice recipient, upstream, host, reply;
	struct slice selectors; /* that it was signed with */
	struct slice notice;    /* id of the bounce or notice that tells the sender */
	uint64_t seen_by;       /* account to which the recipient is no new one from now on; or 0 */
	uint64_t recipient_hash;
};

/* One thread (the loop's). `history` may be NULL: nothing is kept. */
void history_tell_message(struct history *history, const struct history_message *message);
void history_tell_delivery(struct history *history, const struct history_delivery *delivery);

/* How many rows have been lost since the start. Any thread. */
uint64_t history_lost(struct history *history);

/* history_row.c: rows as elements of an array of the types postern.history_message and
 * postern.history_delivery, a comma behind each. */
#define HISTORY_ROW_MAX 16384
int history_row_message(struct buf *out, const struct history_message *message) must_check;
int history_row_delivery(struct buf *out, const struct history_delivery *delivery) must_check;

/* SPDX-License-Identifier: ISC */
/*
 * Who may connect: counts of connections in all and of each network (an address of IPv4, a /56 of
 * IPv6, as in auth/penalty.h), and which networks are remembered.
 *
 * A network is remembered for seven days after a login from there, SLOTS_REMEMBERED_MAX of them at
 * most; networks_file.h keeps them beyond the end of the process. A connection that has not logged
 * in, from any other network, is a stranger's.
 *
 * - There are at most `connections`, and `connections_per_address` of a network.
 * - Strangers have at most half of `connections`, and get none of the last quarter. Once they have
 *   a quarter, a network of theirs with 16 gets no more.
 * - Once half of `connections` are taken, a remembered network gets no more while 16 of it have not
 *   logged in, or a 32nd of `connections` if that is less. Of the last quarter it gets none while
 *   any has not, if those of all remembered networks who have not are a quarter too.
 *
 * So silent strangers cannot take what the others need, nor one network what all strangers have;
 * and who has logged in once cannot take everything without doing so again.
 *
 * Any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gateway/base/addr.h"
#include "gateway/base/compiler.h"

#define SLOTS_REMEMBERED_MAX 32768 /* networks */

struct slots;

struct slot_limits {
	uint64_t connections, connections_per_address;
};

enum slot_answer {
	SLOT_TAKEN,
	SLOT_ADDRESS_FULL,   /* its network has as many as it may */
	SLOT_STRANGERS_FULL, /* too many who have not logged in; others still get in */
	SLOT_ALL_FULL,
	SLOT_NO_MEMORY,
};

int slots_new(struct slots **ret_slots) must_check;
void slots_free(struct slots *slots); /* NULL is fine */

/* Counts a connection, which is a stranger's until slots_log_in(). */
enum slot_answer slots_take(
        struct slots *slots, const struct slot_limits *limits, const struct addr *peer) must_check;

/* Whether somebody of its network has logged in lately. */
bool slots_remember(struct slots *slots, const struct addr *peer);

/* It has logged in, for the first time: its network is remembered. */
void slots_log_in(struct slots *slots, const struct addr *peer);

/* It is gone; `logged_in`: slots_log_in() was called for it. */
void slots_give_back(struct slots *slots, const struct addr *peer, bool logged_in);

/* At the start, before anybody logs in, the oldest first: a network and how long ago its last login
 * was. */
void slots_recall(struct slots *slots, const struct addr *peer, uint64_t age_s);

/* One that is remembered. */
struct slots_network {
	struct addr addr; /* its first */
	uint64_t age_s;   /* of the last login */
};

/* All of them, the one with the oldest login first; the caller frees them. 0 or -ENOMEM. */
int slots_list(
        struct slots *slots, struct slots_network **ret_networks, size_t *ret_count) must_check;

/* How many logins there were so far. */
uint64_t slots_logins(struct slots *slots);

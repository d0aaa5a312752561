/* SPDX-License-Identifier: ISC */
/*
 * Who may connect: counts of connections in all and of each network (an address of IPv4, a /56 of
 * IPv6, as in auth/penalty.h), and which networks have logged in lately.
 *
 * A stranger is a connection without a login from a network that has not logged in lately.
 * Strangers have half of all connections at most, and none of the last quarter: silent ones cannot
 * take what the others need, nor do others take of that half. When strangers hold half of their
 * half, a network of them that has many already gets no more, so that a newcomer still gets in.
 * When half of all connections are taken, a network that has logged in lately gets no more either
 * while many of it have not: 16, or with few connections in all a 32nd of these.
 *
 * Any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/addr.h"
#include "gateway/base/compiler.h"

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

/* It has logged in, for the first time: its network is remembered. */
void slots_log_in(struct slots *slots, const struct addr *peer);

/* It is gone; `logged_in`: slots_log_in() was called for it. */
void slots_give_back(struct slots *slots, const struct addr *peer, bool logged_in);

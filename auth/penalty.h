/* SPDX-License-Identifier: ISC */
/*
 * What wrong passwords cost who sends them: time, before the next one is tried. Counted for each
 * network, and for each login from that network, whether there is such a login or not; never for
 * a login alone, which would lock its owner out.
 *
 * A network is one address of IPv4, a /56 of IPv6. A few failures are free, then each attempt
 * waits for its turn: a second, two, four, … a minute. Failures are forgotten one by one with
 * time, and those of a login at its right password. Attempts that have not ended yet count as
 * failures, so that a thousand at once are not a way around it. Who has logged in from a network
 * does not wait for what others do there.
 *
 * Memory is bounded: three tables of fixed size, of logins, of networks and of who has logged in,
 * their places chosen by a secret key. In a full one who has failed least makes room, of those who
 * have logged in the one from longest ago. Any thread; a microsecond or two.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

#define PENALTY_WAIT_MAX_MS 10000 /* longer nobody is kept waiting: he is turned away */

struct penalty;

/* 0 or -ENOMEM. */
int penalty_new(struct penalty **ret_penalty) must_check;
/* NULL is fine. */
void penalty_free(struct penalty *penalty);

struct penalty_key {
	uint64_t place, tag;
};

/* An attempt that has begun; zeroed it is none. */
struct penalty_ticket {
	struct penalty_key login, network;
	unsigned failures;     /* that counted when it was to begin, of both */
	bool open, takes_turn; /* of the network */
};

/*
 * An attempt at a login (as response_normal_login(), or anything that stands for it) from an
 * address as text. 0: it may begin, and penalty_leave() must follow; else so many ms are to
 * pass before it is asked again.
 */
uint64_t penalty_enter(struct penalty *penalty, struct slice login, struct slice address,
        struct penalty_ticket *ret_ticket) must_check;

/* The keys of an attempt that has not begun. */
struct penalty_ticket penalty_ticket_of(
        const struct penalty *penalty, struct slice login, struct slice address);

/*
 * The same with how it would stand: `failures` as in an attempt, and those that run; `takes_turn`
 * unless that login has logged in from there. Whether there is such a login makes no difference.
 */
struct penalty_ticket penalty_look(
        struct penalty *penalty, struct slice login, struct slice address);

enum penalty_outcome {
	PENALTY_RIGHT, /* the login's failures are forgotten; the network's are not */
	PENALTY_WRONG, /* one more of both */
	PENALTY_BUSY,  /* not tried, for others were: one more of the network, none of the login */
	PENALTY_UNTRIED, /* it tells nothing: the client went away, the database was away */
};

/* What begins to be slowed with an attempt: told once, until it has been forgotten. */
enum penalty_news { PENALTY_NO_NEWS = 0, PENALTY_LOGIN_SLOWED = 1, PENALTY_NETWORK_SLOWED = 2 };

/* The attempt has ended. A set of penalty_news. A ticket that is not open does nothing. */
unsigned penalty_leave(
        struct penalty *penalty, struct penalty_ticket *ticket, enum penalty_outcome outcome);

/* A password was right that needed no attempt, because it is remembered. */
void penalty_right(struct penalty *penalty, struct slice login, struct slice address);

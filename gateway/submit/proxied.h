/* SPDX-License-Identifier: ISC */
/*
 * Newcomers on a listener for load balancers: each is one of these proxies and says, before
 * anything else and before TLS, whom it speaks for. Until it has it is nobody's connection and no
 * session; it is closed when it is no proxy, says something else, or nothing for some seconds. The
 * log tells of each of these reasons once a minute, a counter (proxies_refused) of all.
 *
 * The main loop's thread only.
 */
#pragma once

#include "gateway/base/addr.h"
#include "gateway/base/list.h"
#include "gateway/conf/conf.h"
#include "gateway/net/loop.h"

/* Takes the descriptor over; what the client itself has said is still to be read from it. */
typedef void (*proxied_fn)(void *arg, int fd, const struct addr *client);

enum proxied_answer {
	PROXIED_TAKEN,
	PROXIED_NO_PROXY, /* it is none of the listener's */
	PROXIED_TOO_MANY,
	PROXIED_MEMORY,
	PROXIED_NO_HEADER, /* it says something else */
	PROXIED_CLOSED,
	PROXIED_LATE,
	PROXIED_UNREADABLE,
	PROXIED_ANSWERS
};

/* Those that have not said it yet; embedded. */
struct proxied_waiting {
	struct loop *loop;
	struct list list;
	uint64_t count, most; /* `most` is the owner's to set */
	uint64_t told_ms[PROXIED_ANSWERS];
};

void proxied_init(struct proxied_waiting *waiting, struct loop *loop);

/* Closes them all. */
void proxied_done(struct proxied_waiting *waiting);

/* Takes the descriptor over; calls `fn` later, or never. */
void proxied_take(struct proxied_waiting *waiting, const struct conf_listener *listener, int fd,
        const struct addr *peer, proxied_fn fn, void *arg);

/* SPDX-License-Identifier: ISC */
/*
 * From the name of a host to its addresses. The loop's thread only: the threads that look up are
 * seen by nobody.
 */
#pragma once

#include <stddef.h>

#include "gateway/base/addr.h"
#include "gateway/base/compiler.h"

#define HOST_ADDRS_MAX 8

struct host;
struct relay;

/* What the name of a host was found to be. */
struct addresses {
	struct addr at[HOST_ADDRS_MAX];
	size_t count;
};

/*
 * Looks up a host's name unless that is being done, for whichever upstream and settings; all
 * sessions that wait for it go on by session_resolved(). 0, -ENOMEM, or -EAGAIN when there can be
 * no more threads.
 */
int lookup_start(struct relay *relay, const struct host *host) must_check;

/* Nobody waits for those in flight any more. The loop does not run again. */
void lookups_abandon(struct relay *relay);

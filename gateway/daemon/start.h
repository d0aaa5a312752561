/* SPDX-License-Identifier: ISC */
/*
 * What a child is given at its start and at a reload: its configuration, its own
 * secrets, and descriptors. Packed by the supervisor, unpacked by the child; one
 * thread on either side.
 */
#pragma once

#include "gateway/base/board.h"
#include "gateway/conf/conf.h"
#include "gateway/daemon/link.h"

/* Of `relay`, which has most: the database's password and the upstreams'. */
#define START_SECRETS_MAX  (1 + CONF_UPSTREAMS_MAX)
#define START_SECRETS_SIZE (1U << 20) /* octets of them, packed */

/* The secrets of one process, in an order that its glue knows; wiped when done. */
struct secrets {
	struct slice items[START_SECRETS_MAX];
	size_t count;
	struct buf room; /* what the items point into */
};

void secrets_init(struct secrets *secrets);
void secrets_done(struct secrets *secrets);

/* Secret `index`, or an empty slice when there are fewer. */
struct slice secrets_get(const struct secrets *secrets, size_t index);

struct start {
	const struct conf *conf;
	struct secrets secrets;
	int board; /* -1 in a reload, as the following */
	int wake;  /* eventfd by which `submit` wakes `relay`; -1 for `auth` */
	int own[LINK_FDS_MAX];
	size_t own_count; /* `submit`: listening sockets in the order of the configuration; `relay`:
	                     the control socket */
	int siblings[LINK_FDS_MAX];
	size_t sibling_count; /* `submit`, `auth`: one socket a loop */
};

/*
 * Sends START or RELOAD; everything stays the caller's. `packed_secrets` is a
 * sequence of pack_bytes(). 0 or -errno.
 */
int start_send(int link, enum link_type type, const struct start *start,
        struct slice packed_secrets) must_check;

/*
 * Takes START or RELOAD apart; the descriptors pass from the message to `ret_start`
 * (in a reload: none). 0, or -errno with the reason; then too the caller frees what is
 * in `ret_start`.
 */
int start_take(struct link_message *message, struct start *ret_start, struct why *why) must_check;

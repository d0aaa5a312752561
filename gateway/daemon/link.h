/* SPDX-License-Identifier: ISC */
/*
 * The link between the supervisor and a child: a SOCK_SEQPACKET pair whose
 * datagrams are a type octet, packed fields, and descriptors (SCM_RIGHTS). Large
 * things (configuration, secrets) travel as memory files. Whoever sees the end of
 * a link knows that the other side is gone.
 *
 * A child finds its end at LINK_FD. Blocking calls; one thread a side.
 */
#pragma once

#include <stddef.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"

#define LINK_FD      3
#define LINK_FDS_MAX 200 /* the kernel takes 253 (SCM_MAX_FD) */

enum link_type {
	/* supervisor to child */
	LINK_START = 1, /* what link_start packs; descriptors in the order given there */
	LINK_SIBLINGS,  /* new pairs to the sibling, replacing the old ones */
	LINK_RELOAD,    /* as LINK_START, with configuration and secrets alone */
	LINK_STOP,      /* finish and exit */
	/* child to supervisor */
	LINK_READY,    /* the child serves */
	LINK_RELOADED, /* the reload is in force; with text: it failed, nothing changed */
};

struct link_message {
	enum link_type type;
	struct slice body; /* in the reader's buffer */
	int fds[LINK_FDS_MAX];
	size_t fd_count; /* the receiver owns them */
};

/*
 * A pair: the first end for the supervisor (close-on-exec), the second for the
 * child. 0 or -errno.
 */
int link_pair(int ret_fds[2]) must_check;

/* Sends one datagram; the descriptors stay the caller's. 0 or -errno (-EPIPE: gone). */
int link_send(int link, enum link_type type, struct slice body, const int *fds,
        size_t fd_count) must_check;

/*
 * Receives one into `room` (its body lives there). 1, 0 at the end of the link,
 * -errno; -EMSGSIZE for a truncated one, whose descriptors are closed.
 */
int link_receive(int link, struct buf *room, struct link_message *ret_message) must_check;

void link_close_fds(struct link_message *message);

/* A sealed memory file with these octets, position 0, or -errno. */
int link_memory_file(const char *name, struct slice content) must_check;

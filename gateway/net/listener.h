/* SPDX-License-Identifier: ISC */
/* Accepting connections on a listening descriptor. The loop's thread only. */
#pragma once

#include "gateway/base/addr.h"
#include "gateway/base/compiler.h"
#include "gateway/net/loop.h"

struct listener;

/* The descriptor (non-blocking, close-on-exec) passes to the callee, which frees no listener. */
typedef void (*listener_fn)(void *arg, int fd, const struct addr *peer);

/*
 * Takes the listening descriptor over. When the process is out of descriptors or
 * memory it stops accepting for a while instead of spinning; those who wait stay
 * in the kernel's queue. 0 or -errno, and then the descriptor is still the caller's.
 */
int listener_new(struct loop *loop, int fd, listener_fn fn, void *arg,
        struct listener **ret_listener) must_check;

/* Closes the descriptor. NULL is fine. */
void listener_free(struct listener *listener);

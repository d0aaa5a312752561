/* SPDX-License-Identifier: ISC */
/* Binding the sockets that the configuration names. The supervisor's one thread. */
#pragma once

#include "gateway/base/compiler.h"
#include "gateway/base/why.h"
#include "gateway/conf/conf.h"

#define LISTEN_MAX 64

/*
 * Opens every address of every listener, in the order of the configuration. An
 * address that is in use (the predecessor is still ending) is tried again for
 * 15 s. 0, or -errno with the reason; then nothing stays open.
 */
int listen_all(const struct conf *conf, int ret_fds[LISTEN_MAX], size_t *ret_count,
        struct why *why) must_check;

/* The control socket at `path`, replacing a stale one; mode 0660. A descriptor or -errno. */
int listen_control(const char *path, struct why *why) must_check;

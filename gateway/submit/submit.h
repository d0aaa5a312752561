/* SPDX-License-Identifier: ISC */
/*
 * The process `submit`: the server side of SMTP. One event loop a core; a session
 * belongs to one of them for life. It sees clients and its journal, and nothing
 * else worth stealing.
 *
 * All functions are called on the thread of the main loop, which also serves.
 */
#pragma once

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"
#include "gateway/conf/conf.h"
#include "gateway/net/loop.h"

struct submit;

struct submit_settings {
	const struct conf *conf;
	struct loop *main_loop;
	const int *listeners; /* one for each address of each listener, in order; taken over */
	size_t listener_count;
	int wake_fd; /* eventfd of `relay`; taken over */
	unsigned loops;
	struct slice certificate, key; /* PEM; copied */
};

/* Opens the spool and serves. 0 or -errno with the reason. */
int submit_new(const struct submit_settings *settings, struct submit **ret_submit,
        struct why *why) must_check;

/* Links to `auth`, one for each loop; the earlier ones are closed. Taken over. */
void submit_auth_links(struct submit *submit, const int *fds, size_t count);

/* New settings and certificate for new sessions. 0, or -errno and nothing has changed. */
int submit_reload(struct submit *submit, const struct conf *conf, struct slice certificate,
        struct slice key, struct why *why) must_check;

/* Accepts no more; sessions end at their next command, within seconds. Then `on_stopped`. */
void submit_stop(struct submit *submit, void (*on_stopped)(void *arg), void *arg);

/* After on_stopped. */
void submit_free(struct submit *submit);

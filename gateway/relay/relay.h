/* SPDX-License-Identifier: ISC */
/*
 * The process `relay`: follows the spool, signs, hands messages to upstreams and
 * records what became of every recipient. One event loop and a pool of workers.
 *
 * All functions are called on the loop's thread.
 */
#pragma once

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"
#include "gateway/conf/conf.h"
#include "gateway/net/loop.h"

struct relay;

struct relay_settings {
	const struct conf *conf;
	struct loop *main_loop;
	int wake_fd;    /* eventfd that `submit` pokes; taken over */
	int control_fd; /* listening control socket, or -1; taken over */
	struct slice database_password;
	const struct slice *passwords; /* one for each upstream, "" for none; copied */
	size_t password_count;
};

/* Opens the spool and begins to deliver. 0 or -errno with the reason. */
int relay_new(const struct relay_settings *settings, struct relay **ret_relay,
        struct why *why) must_check;

/* New upstreams and settings; resumes stopped upstreams. 0 or -errno, nothing changed. */
int relay_reload(struct relay *relay, const struct conf *conf, const struct slice *passwords,
        size_t password_count, struct why *why) must_check;

/*
 * Sends no new final dot, waits at most 10 s for replies that are due, writes all
 * marks. Then `on_stopped`.
 */
void relay_stop(struct relay *relay, void (*on_stopped)(void *arg), void *arg);
void relay_free(struct relay *relay);

/* SPDX-License-Identifier: ISC */
/*
 * The process `auth`: who may log in and who may send. Plain blocking code:
 *
 *   intake   one thread; reads the links, answers what needs no wait, queues the rest
 *   lanes    worker threads, each with a database connection and, for a step, a SASL
 *            conversation
 *   notices  one thread that LISTENs for changes and empties what was remembered
 *   last use one thread that writes down when credentials were used
 *
 * All functions are called by one thread, that of the child's main.
 */
#pragma once

#include "gateway/base/compiler.h"
#include "gateway/base/why.h"
#include "gateway/conf/conf.h"

struct auth;

struct auth_settings {
	const struct conf *conf;
	const char *database_password; /* "" or NULL: none */
};

/* Starts the threads; the database need not be there. 0 or -errno with the reason. */
int auth_new(
        const struct auth_settings *settings, struct auth **ret_auth, struct why *why) must_check;

/* Takes these links over; the earlier ones are closed. */
void auth_links(struct auth *auth, const int *fds, size_t count);

/* Ends the threads; what is queued gets no answer. */
void auth_free(struct auth *auth);

/* SPDX-License-Identifier: ISC */
/*
 * The client side of auth/protocol.h for one loop. While `auth` is away every call
 * is answered "unavailable", what was outstanding when it went too, and what it leaves
 * without an answer for 20 s. When it has said nothing at all meanwhile it gets 2 s for what
 * it is asked then, until something comes. The loop's thread only; answers never come from
 * inside a call.
 */
#pragma once

#include "auth/protocol.h"
#include "gateway/base/compiler.h"
#include "gateway/net/loop.h"

struct auth_link;
struct auth_call;

typedef void (*auth_answer_fn)(
        void *arg, const struct auth_message *answer, const struct auth_account *account);
/* This account, or with 0 maybe all, has changed; `era` as in auth_message. */
typedef void (*auth_changed_fn)(void *arg, uint64_t account, uint64_t era);

int auth_link_new(struct loop *loop, auth_changed_fn on_changed, void *arg,
        struct auth_link **ret_link) must_check;
void auth_link_free(struct auth_link *link);

/* Takes a new socket over (-1: `auth` is away). */
void auth_link_connect(struct auth_link *link, int fd);

/*
 * Sends a request and calls `on_answer` once. LOGIN_START opens a call that stays
 * open while the answers are MORE. NULL without memory.
 */
struct auth_call *auth_call_new(struct auth_link *link, const struct auth_message *request,
        auth_answer_fn on_answer, void *arg) must_check;

/* The next step of a login whose last answer was MORE. */
void auth_call_step(struct auth_call *call, struct slice response);

/*
 * Nobody waits any more: no callback follows. A login is cancelled; an admission
 * that still comes is given back. NULL is fine.
 */
void auth_call_cancel(struct auth_call *call);

/* Gives back what an admission charged. */
void auth_settle(struct auth_link *link, const struct auth_charge *charge);

/* SPDX-License-Identifier: ISC */
/*
 * The host that a session goes to, and the address of it: one after the other until one serves. The
 * loop's thread only.
 */
#pragma once

#include <stdint.h>

#include "gateway/relay/session.h"

struct defer;

/* Run by `later`: goes to the address that it is at, or to the next host that may be tried. */
void session_host_step(struct defer *later);

/* The addresses of its host are known now, or why they are not: `text`. */
void session_resolved(struct session *session, const char *text);

/* So long its state may last (ms), whose time is `timeout`: less while mail could go another way.
 */
uint64_t session_host_patience(const struct session *session, uint64_t timeout);

/* It is ready: where the addresses before it did not serve, the next session need not try them
 * first. */
void session_host_prefer(struct session *session);

/* It did not get as far as being ready, `trouble` says why: the next address of the host, or the
 * next host. */
void session_host_failed(struct session *session);

/* Tells that the address it has does not serve. */
void session_log_address(const struct session *session);

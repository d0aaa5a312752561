/* SPDX-License-Identifier: ISC */
/*
 * The inside of the process `relay`: its parts, and what they share. The loop's thread only, but
 * for what the comments of the parts call a worker's.
 *
 * A message's attempt (attempt.h) loads and signs it on a worker, splits its
 * recipients by route into deliveries, and gives each to its upstream (upstream.h),
 * which has a session (session.h) carry it (transaction.h). When all deliveries
 * have come back, the outcome (outcome.h) is recorded and the attempt ends.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "gateway/base/list.h"
#include "gateway/base/slice.h"
#include "gateway/net/loop.h"
#include "gateway/net/timer.h"
#include "gateway/relay/bounce_limit.h"
#include "gateway/relay/task.h"

struct accounts;
struct conf;
struct control;
struct history;
struct jobs;
struct keys;
struct notices;
struct spool_out;
struct upstream;

struct relay {
	const struct conf *conf;
	struct loop *loop;
	struct jobs *jobs; /* disk, signatures, SASL */
	struct spool_out *spool;
	struct keys *keys;
	struct accounts *accounts;
	struct notices *notices; /* tells keys and accounts */
	struct history *history;
	struct control *control;
	struct bounce_limit bounces, delays; /* that accounts have got */
	struct scheduler scheduler;
	struct list upstreams;
	struct list lookups;   /* of hosts' names, in flight */
	struct list routeless; /* tasks whose route is not configured */
	struct defer dispatch;
	/* Attempts; and those of them that are loaded and signed, which have no upstream yet. Of
	 * the others each upstream bounds its own, so that none keeps mail from another. */
	size_t running, preparing;
	size_t busy; /* jobs and marks that will call back */
	int wake_fd;
	struct watch *wake;
	bool stopping;
	struct timer stop_check, stop_limit;
	void (*on_stopped)(void *arg);
	void *on_stopped_arg;
};

/* Starts attempts at the end of this turn. */
void relay_dispatch_soon(struct relay *relay);

/* The upstream of that name, or NULL. */
struct upstream *relay_find_upstream(struct relay *relay, struct slice name);

/* SPDX-License-Identifier: ISC */
/*
 * The event loop: one thread runs it, and everything that belongs to it is used
 * by that thread alone. Other threads reach it only by loop_post(). libuv does
 * the waiting; nobody else includes it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/list.h"

struct loop;

int loop_new(struct loop **ret_loop) must_check;

/* Its thread has ended. Connections that were given up and still linger go with it. */
void loop_free(struct loop *loop);

/* Runs until loop_stop(), which may have come already; it can be run again. */
void loop_run(struct loop *loop);

/* Any thread, any number of times. */
void loop_stop(struct loop *loop);

/*
 * A message to a loop, embedded in what it is about: the sender fills `run` and
 * gives it up until it has run. Posts of one sender run in their order.
 */
struct post {
	struct post *next; /* private */
	void (*run)(struct post *post);
};

/* Any thread; never fails, allocates nothing. */
void loop_post(struct loop *loop, struct post *post);

/*
 * Work for the end of the loop's current turn, by its own thread: how callbacks
 * are kept from running inside a call of their owner. Embedded; may be set again
 * while pending (runs once) and cancelled. What such work defers itself runs at the
 * end of the next turn, which comes without waiting.
 */
struct defer {
	struct list link; /* private */
	void (*run)(struct defer *defer);
};

void loop_defer(struct loop *loop, struct defer *defer);

/*
 * The same for what takes a millisecond or so of processor: it stands in line behind what was
 * set earlier, and of the lines only so much is done in one turn that the others hardly notice.
 * Most of that is for the first line, and what that does not need for the other one.
 */
enum dear_line { DEAR_FIRST, DEAR_LAST, DEAR_LINES };

void loop_defer_dear(struct loop *loop, struct defer *defer, enum dear_line line);

/* Either kind. */
void loop_defer_cancel(struct defer *defer);

/* Which turn this is, the work at its end included: for whom one turn allows only so much. */
uint64_t loop_turn(const struct loop *loop);

/* Watches a descriptor that stays the caller's. */
struct watch;

enum watch_events { WATCH_READ = 1, WATCH_WRITE = 2 };

/* `events` is what is ready; errors show as both. */
typedef void (*watch_fn)(void *arg, unsigned events);

int watch_new(
        struct loop *loop, int fd, watch_fn fn, void *arg, struct watch **ret_watch) must_check;

/* What to wait for; 0 for nothing. Level-triggered. */
void watch_set(struct watch *watch, unsigned events);

/* No call of `fn` after this; close the descriptor afterwards. NULL is fine. */
void watch_free(struct watch *watch);

/* Timers; see timer.h. */
struct heap;
struct heap *loop_timers(struct loop *loop);
void loop_wake_in(struct loop *loop, uint64_t ms);

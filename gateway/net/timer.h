/* SPDX-License-Identifier: ISC */
/*
 * Timers of a loop: embedded, restarted at will, O(log n) each and without memory of
 * their own, one libuv timer below them all. They follow clock_mono_ms(), so tests that
 * move the clock move the timers. The loop's thread only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gateway/base/heap.h"

struct loop;

struct timer {
	struct loop *loop; /* all private */
	void (*fn)(void *arg);
	void *arg;
	struct heap_node due; /* at a monotonic ms */
	bool running;
};

/* A zeroed struct timer may be stopped without having been initialised. */
void timer_init(struct timer *timer, struct loop *loop, void (*fn)(void *arg), void *arg);

/* Calls fn(arg) once, `ms` from now; a running timer starts anew. */
void timer_start(struct timer *timer, uint64_t ms);
void timer_stop(struct timer *timer);
bool timer_is_running(const struct timer *timer);

/* For loop.c. */
void timer_run_due(struct loop *loop);
void timer_run_all(struct loop *loop); /* as if all were due */

/* SPDX-License-Identifier: ISC */
/*
 * A pairing heap of timers (Fredman et al., 1986); see timer.h. It lives in the timers
 * themselves: to start one cannot fail for want of memory.
 */
#include "gateway/net/timer.h"

#include "gateway/base/clock.h"
#include "gateway/net/loop.h"

/* The heap of both heaps: the one that is due later becomes the other's first child. */
static struct timer *merge(struct timer *a, struct timer *b)
{
	if (a == NULL || b == NULL)
		return a != NULL ? a : b;
	struct timer *first = b->due_ms < a->due_ms ? b : a, *later = first == a ? b : a;
	later->before = first;
	later->next = first->child;
	if (first->child != NULL)
		first->child->before = later;
	first->child = later;
	return first;
}

static void detach(struct timer *timer)
{
	timer->before = timer->next = NULL;
}

/* One heap of siblings: merged in pairs, then the pairs from the last to the first. */
static struct timer *merge_siblings(struct timer *first)
{
	struct timer *pairs = NULL, *heap = NULL;

	while (first != NULL) {
		struct timer *a = first, *b = first->next;
		first = b != NULL ? b->next : NULL;
		detach(a);
		if (b != NULL)
			detach(b);
		struct timer *pair = merge(a, b);
		pair->next = pairs;
		pairs = pair;
	}
	while (pairs != NULL) {
		struct timer *pair = pairs;
		pairs = pair->next;
		detach(pair);
		heap = merge(heap, pair);
	}
	return heap;
}

/* Sets the loop's clock to the earliest timer. */
static void set_clock(struct loop *loop)
{
	struct timer_heap *heap = loop_timers(loop);

	if (heap->first == NULL)
		return;
	uint64_t now = clock_mono_ms(), due = heap->first->due_ms;
	uint64_t wait = due > now ? due - now : 0;
	uint64_t longest = clock_longest_sleep_ms();
	loop_wake_in(loop, MIN_OF(wait, longest));
}

void timer_init(struct timer *timer, struct loop *loop, void (*fn)(void *arg), void *arg)
{
	*timer = (struct timer){.loop = loop, .fn = fn, .arg = arg};
}

bool timer_is_running(const struct timer *timer)
{
	return timer->running;
}

void timer_start(struct timer *timer, uint64_t ms)
{
	timer_stop(timer);
	struct timer_heap *heap = loop_timers(timer->loop);
	timer->due_ms = clock_mono_ms() + ms;
	timer->running = true;
	heap->first = merge(heap->first, timer);
	/* Later ones need no new alarm: the clock is set again when the earliest has run. */
	if (heap->first == timer)
		set_clock(timer->loop);
}

void timer_stop(struct timer *timer)
{
	if (!timer->running)
		return;
	struct timer_heap *heap = loop_timers(timer->loop);
	struct timer *below = merge_siblings(timer->child);
	if (timer == heap->first) {
		heap->first = below;
	} else {
		if (timer->before->child == timer)
			timer->before->child = timer->next;
		else
			timer->before->next = timer->next;
		if (timer->next != NULL)
			timer->next->before = timer->before;
		heap->first = merge(heap->first, below);
	}
	detach(timer);
	timer->child = NULL;
	timer->running = false;
}

static void run_until(struct timer_heap *heap, uint64_t now)
{
	while (heap->first != NULL && heap->first->due_ms <= now) {
		struct timer *timer = heap->first;
		timer_stop(timer);
		timer->fn(timer->arg);
	}
}

void timer_run_due(struct loop *loop)
{
	run_until(loop_timers(loop), clock_mono_ms());
	set_clock(loop);
}

void timer_run_all(struct loop *loop)
{
	run_until(loop_timers(loop), UINT64_MAX);
}

/* SPDX-License-Identifier: ISC */
/* A heap of timers; see timer.h. */
#include "gateway/net/timer.h"

#include "gateway/base/clock.h"
#include "gateway/net/loop.h"

/* Sets the loop's clock to the earliest timer. */
static void set_clock(struct loop *loop)
{
	struct heap *heap = loop_timers(loop);

	if (heap->first == NULL)
		return;
	uint64_t now = clock_mono_ms(), due = heap->first->key;
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
	struct heap *heap = loop_timers(timer->loop);
	heap_add(heap, &timer->due, clock_mono_ms() + ms);
	timer->running = true;
	/* Later ones need no new alarm: the clock is set again when the earliest has run. */
	if (heap->first == &timer->due)
		set_clock(timer->loop);
}

void timer_stop(struct timer *timer)
{
	if (!timer->running)
		return;
	heap_remove(loop_timers(timer->loop), &timer->due);
	timer->running = false;
}

static void run_until(struct heap *heap, uint64_t now)
{
	while (heap->first != NULL && heap->first->key <= now) {
		struct timer *timer = heap_entry(heap->first, struct timer, due);
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

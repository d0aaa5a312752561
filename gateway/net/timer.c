/* SPDX-License-Identifier: ISC */
/* A binary heap of timers; see timer.h. */
#include "gateway/net/timer.h"

#include <stdlib.h>

#include "gateway/base/clock.h"
#include "gateway/net/loop.h"

static void place(struct timer_heap *heap, size_t index, struct timer *timer)
{
	heap->entries[index] = timer;
	timer->index = index;
}

static void sift_up(struct timer_heap *heap, size_t index)
{
	struct timer *timer = heap->entries[index];

	while (index > 1 && heap->entries[index / 2]->due_ms > timer->due_ms) {
		place(heap, index, heap->entries[index / 2]);
		index /= 2;
	}
	place(heap, index, timer);
}

static void sift_down(struct timer_heap *heap, size_t index)
{
	struct timer *timer = heap->entries[index];

	for (;;) {
		size_t child = 2 * index;
		if (child > heap->count)
			break;
		if (child < heap->count &&
		        heap->entries[child + 1]->due_ms < heap->entries[child]->due_ms)
			child++;
		if (heap->entries[child]->due_ms >= timer->due_ms)
			break;
		place(heap, index, heap->entries[child]);
		index = child;
	}
	place(heap, index, timer);
}

static void make_room(struct timer_heap *heap)
{
	if (heap->count + 1 < heap->cap)
		return;
	size_t cap = heap->cap == 0 ? 64 : heap->cap * 2;
	struct timer **entries = realloc(heap->entries, cap * sizeof(struct timer *));
	/* A deadline that cannot be kept is worse than an end: the supervisor starts us again. */
	assert_bug(entries != NULL);
	heap->entries = entries;
	heap->cap = cap;
}

/* Sets the loop's clock to the earliest timer. */
static void set_clock(struct loop *loop)
{
	struct timer_heap *heap = loop_timers(loop);

	if (heap->count == 0)
		return;
	uint64_t now = clock_mono_ms(), due = heap->entries[1]->due_ms;
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
	return timer->index != 0;
}

void timer_start(struct timer *timer, uint64_t ms)
{
	struct timer_heap *heap = loop_timers(timer->loop);

	timer->due_ms = clock_mono_ms() + ms;
	if (timer->index == 0) {
		make_room(heap);
		place(heap, ++heap->count, timer);
	}
	sift_up(heap, timer->index);
	sift_down(heap, timer->index);
	/* Later ones need no new alarm: the clock is set again when the earliest has run. */
	if (timer->index == 1)
		set_clock(timer->loop);
}

void timer_stop(struct timer *timer)
{
	if (timer->index == 0)
		return;
	struct timer_heap *heap = loop_timers(timer->loop);
	size_t index = timer->index;
	struct timer *last = heap->entries[heap->count--];

	timer->index = 0;
	if (last != timer) {
		place(heap, index, last);
		sift_up(heap, index);
		sift_down(heap, last->index);
	}
}

static void run_until(struct timer_heap *heap, uint64_t now)
{
	while (heap->count > 0 && heap->entries[1]->due_ms <= now) {
		struct timer *timer = heap->entries[1];
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

void timer_heap_done(struct timer_heap *heap)
{
	free(heap->entries);
	*heap = (struct timer_heap){0};
}

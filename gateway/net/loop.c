/* SPDX-License-Identifier: ISC */
/* The event loop over libuv; see loop.h. */
#include "gateway/net/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <uv.h>

#include "gateway/net/timer.h"

/* Of processor in one turn, for dear work; what was begun is finished. */
#define DEAR_NS      4000000
#define DEAR_LAST_NS 1000000 /* of that for the last line, at least */

struct loop {
	uv_loop_t uv;
	uv_async_t wakeup;
	uv_prepare_t turn_end;
	uv_idle_t no_wait; /* runs while work is left for the end of the next turn */
	uv_timer_t clock;
	struct list deferred;
	struct list dear[DEAR_LINES];
	uint64_t turn;
	struct heap timers;

	_Atomic bool stopping;
	pthread_mutex_t lock; /* of the two fields below */
	struct post *first_post;
	struct post **last_post;
};

struct watch {
	uv_poll_t poll;
	watch_fn fn;
	void *arg;
	unsigned events; /* as set last: libuv pays two system calls for setting the same again */
};

static void run_posts(struct loop *loop)
{
	pthread_mutex_lock(&loop->lock);
	struct post *post = loop->first_post;
	loop->first_post = NULL;
	loop->last_post = &loop->first_post;
	pthread_mutex_unlock(&loop->lock);

	while (post != NULL) {
		struct post *next = post->next;
		post->run(post);
		post = next;
	}
}

static void on_wakeup(uv_async_t *wakeup)
{
	struct loop *loop = wakeup->data;

	run_posts(loop);
	if (atomic_load(&loop->stopping))
		uv_stop(&loop->uv);
}

static void on_no_wait(uv_idle_t *no_wait)
{
	(void)no_wait;
}

static void run_defer(struct list *link)
{
	struct defer *defer = list_entry(link, struct defer, link);

	defer->run(defer);
}

/* What this thread has used of processors: a machine that is busy elsewhere is not the work's. */
static uint64_t used_ns(void)
{
	struct timespec used;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	return (uint64_t)used.tv_sec * 1000000000U + (uint64_t)used.tv_nsec;
}

/* Returns what it took. */
static uint64_t run_line(struct list *line, uint64_t ns)
{
	uint64_t begun = used_ns(), used = 0;
	struct list *link;

	while (used < ns && (link = list_pop(line)) != NULL) {
		run_defer(link);
		used = used_ns() - begun;
	}
	return used;
}

static bool has_dear(const struct loop *loop)
{
	return !list_is_empty(&loop->dear[DEAR_FIRST]) || !list_is_empty(&loop->dear[DEAR_LAST]);
}

static void run_dear(struct loop *loop)
{
	uint64_t used = run_line(&loop->dear[DEAR_FIRST], DEAR_NS - DEAR_LAST_NS);

	used = MIN_OF(used, (uint64_t)DEAR_NS - DEAR_LAST_NS);
	used += run_line(&loop->dear[DEAR_LAST], DEAR_NS - used);
	if (used < DEAR_NS)
		(void)run_line(&loop->dear[DEAR_FIRST], DEAR_NS - used);
}

static void on_turn_end(uv_prepare_t *turn_end)
{
	struct loop *loop = turn_end->data;
	struct list now, *link;

	/* What is deferred from here on waits for the next turn: nobody keeps the loop for himself.
	 */
	list_init(&now);
	while ((link = list_pop(&loop->deferred)) != NULL)
		list_append(&now, link);
	while ((link = list_pop(&now)) != NULL)
		run_defer(link);
	if (has_dear(loop))
		run_dear(loop);
	loop->turn++;
	if (list_is_empty(&loop->deferred) && !has_dear(loop))
		uv_idle_stop(&loop->no_wait);
	else
		assert_bug(uv_idle_start(&loop->no_wait, on_no_wait) == 0);
}

static void on_clock(uv_timer_t *clock)
{
	timer_run_due(clock->data);
}

int loop_new(struct loop **ret_loop)
{
	struct loop *loop = calloc(1, sizeof(*loop));

	if (loop == NULL)
		return -ENOMEM;
	if (uv_loop_init(&loop->uv) != 0) {
		free(loop);
		return -EMFILE;
	}
	pthread_mutex_init(&loop->lock, NULL);
	loop->last_post = &loop->first_post;
	list_init(&loop->deferred);
	list_init(&loop->dear[DEAR_FIRST]);
	list_init(&loop->dear[DEAR_LAST]);
	assert_bug(uv_async_init(&loop->uv, &loop->wakeup, on_wakeup) == 0);
	assert_bug(uv_prepare_init(&loop->uv, &loop->turn_end) == 0);
	assert_bug(uv_prepare_start(&loop->turn_end, on_turn_end) == 0);
	assert_bug(uv_idle_init(&loop->uv, &loop->no_wait) == 0);
	assert_bug(uv_timer_init(&loop->uv, &loop->clock) == 0);
	loop->wakeup.data = loop->turn_end.data = loop->clock.data = loop;
	*ret_loop = loop;
	return 0;
}

static void on_closed_watch(uv_handle_t *handle)
{
	free(handle->data);
}

static void close_handle(uv_handle_t *handle, void *arg)
{
	(void)arg;
	if (!uv_is_closing(handle))
		uv_close(handle, handle->type == UV_POLL ? on_closed_watch : NULL);
}

void loop_free(struct loop *loop)
{
	if (loop == NULL)
		return;
	/* All that is left are connections that were still saying goodbye. */
	timer_run_all(loop);
	uv_walk(&loop->uv, close_handle, NULL);
	while (uv_run(&loop->uv, UV_RUN_NOWAIT) != 0)
		continue;
	assert_bug(uv_loop_close(&loop->uv) == 0);
	pthread_mutex_destroy(&loop->lock);
	free(loop);
}

void loop_run(struct loop *loop)
{
	uv_run(&loop->uv, UV_RUN_DEFAULT);
	atomic_store(&loop->stopping, false);
}

void loop_stop(struct loop *loop)
{
	atomic_store(&loop->stopping, true);
	uv_async_send(&loop->wakeup);
}

void loop_post(struct loop *loop, struct post *post)
{
	post->next = NULL;
	pthread_mutex_lock(&loop->lock);
	bool first = loop->first_post == NULL;
	*loop->last_post = post;
	loop->last_post = &post->next;
	pthread_mutex_unlock(&loop->lock);
	if (first)
		uv_async_send(&loop->wakeup);
}

void loop_defer(struct loop *loop, struct defer *defer)
{
	if (!list_contains_link(&defer->link))
		list_append(&loop->deferred, &defer->link);
}

void loop_defer_dear(struct loop *loop, struct defer *defer, enum dear_line line)
{
	if (!list_contains_link(&defer->link))
		list_append(&loop->dear[line], &defer->link);
}

void loop_defer_cancel(struct defer *defer)
{
	list_remove(&defer->link);
}

uint64_t loop_turn(const struct loop *loop)
{
	return loop->turn;
}

struct heap *loop_timers(struct loop *loop)
{
	return &loop->timers;
}

void loop_wake_in(struct loop *loop, uint64_t ms)
{
	uv_update_time(&loop->uv);
	assert_bug(uv_timer_start(&loop->clock, on_clock, ms, 0) == 0);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
	struct watch *watch = poll->data;
	unsigned ready = 0;

	if (status < 0)
		watch->events = 0; /* libuv has stopped it */
	if (status < 0 || (events & UV_READABLE) != 0)
		ready |= WATCH_READ;
	if (status < 0 || (events & UV_WRITABLE) != 0)
		ready |= WATCH_WRITE;
	watch->fn(watch->arg, ready);
}

int watch_new(struct loop *loop, int fd, watch_fn fn, void *arg, struct watch **ret_watch)
{
	struct watch *watch = calloc(1, sizeof(*watch));

	if (watch == NULL)
		return -ENOMEM;
	int r = uv_poll_init(&loop->uv, &watch->poll, fd);
	if (r != 0) {
		free(watch);
		return r; /* libuv's codes are -errno */
	}
	watch->poll.data = watch;
	watch->fn = fn;
	watch->arg = arg;
	*ret_watch = watch;
	return 0;
}

void watch_set(struct watch *watch, unsigned events)
{
	int uv_events = ((events & WATCH_READ) != 0 ? UV_READABLE : 0) |
	                ((events & WATCH_WRITE) != 0 ? UV_WRITABLE : 0);

	if (events == watch->events)
		return;
	watch->events = events;
	if (uv_events == 0)
		uv_poll_stop(&watch->poll);
	else
		assert_bug(uv_poll_start(&watch->poll, uv_events, on_poll) == 0);
}

void watch_free(struct watch *watch)
{
	if (watch != NULL)
		uv_close((uv_handle_t *)&watch->poll, on_closed_watch);
}

/* SPDX-License-Identifier: ISC */
/* Whose turn it is, and when; see task.h. */
#include "gateway/relay/task.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/conf/conf.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/upstream.h"

struct account_queue {
	uint64_t account;
	struct list ring; /* in scheduler.ring */
	struct heap tasks;
};

void scheduler_init(struct scheduler *scheduler)
{
	map_init(&scheduler->accounts);
	list_init(&scheduler->ring);
}

void scheduler_done(struct scheduler *scheduler)
{
	struct list *link;

	while ((link = list_pop(&scheduler->ring)) != NULL)
		free(list_entry(link, struct account_queue, ring));
	map_done(&scheduler->accounts);
}

static struct slice account_key(const uint64_t *account)
{
	return slice_of(account, sizeof(*account));
}

int scheduler_add(struct scheduler *scheduler, struct task *task)
{
	uint64_t account = task->entry->account;
	struct account_queue *queue = map_get(&scheduler->accounts, account_key(&account));

	if (queue == NULL) {
		queue = calloc(1, sizeof(*queue));
		if (queue == NULL)
			return -ENOMEM;
		queue->account = account;
		if (map_put(&scheduler->accounts, account_key(&queue->account), queue) < 0) {
			free(queue);
			return -ENOMEM;
		}
		list_append(&scheduler->ring, &queue->ring);
	}
	/*
	 * One that found all connections busy, or waited for its next attempt, is not overtaken
	 * without end by those that came after it.
	 */
	heap_add(&queue->tasks, &task->turn, (uint64_t)task->entry->accepted_us);
	return 0;
}

static void leave(struct scheduler *scheduler, struct account_queue *queue, struct task *task)
{
	heap_remove(&queue->tasks, &task->turn);
	list_remove(&queue->ring);
	if (queue->tasks.first != NULL) {
		list_append(&scheduler->ring, &queue->ring);
		return;
	}
	map_remove(&scheduler->accounts, account_key(&queue->account));
	free(queue);
}

struct task *scheduler_take(struct scheduler *scheduler)
{
	if (list_is_empty(&scheduler->ring))
		return NULL;
	struct account_queue *queue = list_entry(scheduler->ring.next, struct account_queue, ring);
	struct task *task = heap_entry(queue->tasks.first, struct task, turn);
	leave(scheduler, queue, task);
	return task;
}

void scheduler_remove(struct scheduler *scheduler, struct task *task)
{
	uint64_t account = task->entry->account;

	leave(scheduler, map_get(&scheduler->accounts, account_key(&account)), task);
}

/* ---- tasks ---- */

static void on_due(void *arg)
{
	struct task *task = arg;

	task_wake(task);
	task->overdue = true;
}

struct task *task_of(const struct spool_entry *entry)
{
	struct task *task = spool_entry_user(entry);

	return task->state == TASK_GONE ? NULL : task;
}

void task_begin(struct relay *relay, struct spool_entry *entry)
{
	struct task *task = spool_entry_user(entry);

	*task = (struct task){.relay = relay, .entry = entry, .counted_from = clock_mono_ms()};
	timer_init(&task->timer, relay->loop, on_due, task);
	task_wait(task);
}

void task_end(struct task *task)
{
	timer_stop(&task->timer);
	if (task->state == TASK_READY)
		scheduler_remove(&task->relay->scheduler, task);
	list_remove(&task->link);
	upstream_task_came(task);
	task->state = TASK_GONE;
	free(TAKE(task->last));
}

void task_wait(struct task *task)
{
	int64_t wait_us = task->entry->next_us - clock_wall_us();

	task->state = TASK_WAITING;
	if (wait_us <= 0) {
		task_wake(task);
		return;
	}
	/* A wall clock that was set back must not hold mail for longer than the longest wait. */
	uint64_t wait_ms = (uint64_t)wait_us / 1000 + 1;
	timer_start(&task->timer, MIN_OF(wait_ms, task->relay->conf->retry.max));
}

void task_hold(struct task *task, struct list *held, bool frozen)
{
	upstream_task_came(task);
	task->state = TASK_WAITING;
	task->frozen = frozen;
	list_append(held, &task->link);
	/* Or nobody would be told of mail for an upstream that is busy for ever. */
	if (!frozen && !timer_is_running(&task->timer))
		timer_start(&task->timer, task->relay->conf->retry.max);
}

static void unfreeze(struct task *task)
{
	if (!task->frozen)
		return;
	task->frozen = false;
	task->counted_from = clock_mono_ms();
}

void task_release(struct task *task)
{
	unfreeze(task);
	task_wait(task);
}

void task_wake_all(struct list *held)
{
	struct list *link;

	/* A task leaves the list as it wakes; one that cannot, for lack of memory, left too. */
	while ((link = list_pop(held)) != NULL)
		task_wake(list_entry(link, struct task, link));
}

void task_wake(struct task *task)
{
	if (task->state != TASK_WAITING)
		return;
	timer_stop(&task->timer);
	list_remove(&task->link);
	unfreeze(task);
	task->overdue = false;
	if (scheduler_add(&task->relay->scheduler, task) < 0) {
		upstream_task_came(task);
		timer_start(&task->timer, NO_MEMORY_WAIT_MS);
		return;
	}
	task->state = TASK_READY;
	relay_dispatch_soon(task->relay);
}

uint64_t task_age(struct task *task)
{
	uint64_t now = clock_mono_ms();

	if (!task->frozen)
		task->entry->age_ms += now - task->counted_from;
	task->counted_from = now;
	return task->entry->age_ms;
}

void task_set_last(struct task *task, const char *text)
{
	char *copy = strndup(text, TASK_LAST_MAX);

	if (copy == NULL)
		return;
	free(task->last);
	task->last = copy;
}

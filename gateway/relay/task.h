/* SPDX-License-Identifier: ISC */
/*
 * A task is a message in the queue: it waits for its time, then for its turn
 * among the accounts, then an attempt is made with it. It lives in the message's
 * entry, so that no message waits for memory. The loop's thread only.
 *
 *     waiting --timer--> ready --turn--> running --> gone
 *        ^                                  |
 *        +------- some recipients left -----+
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/list.h"
#include "gateway/base/map.h"
#include "gateway/net/timer.h"
#include "gateway/spool/spool.h"

struct attempt;
struct relay;
struct upstream;

enum task_state {
	TASK_GONE, /* and not there yet */
	TASK_WAITING,
	TASK_READY,
	TASK_RUNNING,
};

#define TASK_LAST_MAX     300
#define NO_MEMORY_WAIT_MS 5000 /* then it is tried again */

struct task {
	struct heap_node turn; /* ready: among its account's */
	struct list link;      /* waiting: maybe in a list of held tasks */
	struct relay *relay;
	struct spool_entry *entry;
	struct timer timer; /* of the next attempt */
	enum task_state state;
	bool in_history; /* history was told of the message */
	/* A bounce: counted as one that its account gets within this hour; had to wait for that. */
	bool is_counted, was_withheld;
	/* Waits for a stopped upstream, an unknown route, a held account or its hour: does not age.
	 */
	bool frozen;
	bool overdue;               /* its time woke it, not its upstream */
	uint64_t counted_from;      /* monotonic ms: age that is not yet in the entry */
	char *last;                 /* what the last attempt came to, printable; or NULL */
	struct upstream *coming_to; /* that woke it and keeps room for it, or NULL */
};

/*
 * The order in which ready tasks take their turn: one of each account after the other, the
 * oldest message first.
 */
struct scheduler {
	struct map accounts;
	struct list ring; /* accounts with ready tasks */
};

void scheduler_init(struct scheduler *scheduler);
void scheduler_done(struct scheduler *scheduler);

/* 0 or -ENOMEM. */
int scheduler_add(struct scheduler *scheduler, struct task *task) must_check;
/* The next task to run, or NULL. */
struct task *scheduler_take(struct scheduler *scheduler);
/* Takes a ready task out of its turn. */
void scheduler_remove(struct scheduler *scheduler, struct task *task);

/* The task of an entry, which lives in it; NULL when it is gone. */
struct task *task_of(const struct spool_entry *entry);

/* Begins the task of a new entry, due as the entry says. */
void task_begin(struct relay *relay, struct spool_entry *entry);

/* The task is gone; its entry may live on. */
void task_end(struct task *task);

/* Lets it wait until the entry's next_us. */
void task_wait(struct task *task);

/*
 * Lets it wait in a list to be woken with others. Frozen: without ageing, whatever time is set;
 * else for its time at most, or for retry.max.
 */
void task_hold(struct task *task, struct list *held, bool frozen);

/* Makes a waiting task ready now; nothing for others. */
void task_wake(struct task *task);

/* Lets a task that was held wait for the entry's next_us again. Not in a list any more. */
void task_release(struct task *task);

/* As task_wake() for all that are in a list. */
void task_wake_all(struct list *held);

/* How long it has tried to be delivered, in ms; also written into the entry. */
uint64_t task_age(struct task *task);

/* Remembers what an operator should see; cut and made printable. */
void task_set_last(struct task *task, const char *text);

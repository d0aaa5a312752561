/* SPDX-License-Identifier: ISC */
/* Accounts whose mail is held, as the scheduler and the loop see them. */
#include "tests/unit/unit.h"

#include <stdlib.h>

#include "gateway/base/clock.h"
#include "gateway/base/log.h"
#include "gateway/conf/conf.h"
#include "gateway/relay/accounts.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/task.h"

#define TASKS 8

/* A message of the queue with its task behind it, as the spool keeps them. */
struct message {
	struct spool_entry entry;
	struct task task;
};

static struct {
	struct relay relay;
	struct message messages[TASKS];
} bench;

/* The machine may have been started just now: time must pass, not have passed. */
static uint64_t passed_ms;
uint64_t __real_clock_mono_ms(void);
uint64_t __wrap_clock_mono_ms(void);

uint64_t __wrap_clock_mono_ms(void)
{
	return __real_clock_mono_ms() + passed_ms;
}

static struct task *task_at(size_t i)
{
	return task_of(&bench.messages[i].entry);
}

/* Starts nothing: what is ready stays so, what must wait waits. */
static void dispatch(struct defer *defer)
{
	struct task *ready[TASKS], *task;
	size_t count = 0;

	(void)defer;
	while ((task = scheduler_take(&bench.relay.scheduler)) != NULL)
		if (!accounts_hold(bench.relay.accounts, task))
			ready[count++] = task;
	for (size_t i = 0; i < count; i++)
		assert_int_equal(scheduler_add(&bench.relay.scheduler, ready[i]), 0);
}

static unsigned turns;

static void count_turn(struct defer *defer)
{
	if (--turns == 0)
		loop_stop(bench.relay.loop);
	else
		loop_defer(bench.relay.loop, defer);
}

/* Lets the loop take what was told, and do what follows from it. */
static void run(void)
{
	struct defer counting = {.run = count_turn};

	turns = 5;
	loop_defer(bench.relay.loop, &counting);
	loop_run(bench.relay.loop);
}

static void tell(const uint64_t *held, size_t count)
{
	assert_int_equal(accounts_tell(bench.relay.accounts, held, count), 0);
	run();
}

/* A message for each of these accounts. */
static void set_up(const uint64_t *accounts, size_t count)
{
	assert_int_equal(loop_new(&bench.relay.loop), 0);
	assert_int_equal(accounts_new(bench.relay.loop, &bench.relay.accounts), 0);
	bench.relay.dispatch.run = dispatch;
	bench.relay.conf = NULL;
	scheduler_init(&bench.relay.scheduler);
	memset(bench.messages, 0, sizeof(bench.messages));
	for (size_t i = 0; i < count; i++) {
		bench.messages[i].entry.account = accounts[i];
		task_begin(&bench.relay, &bench.messages[i].entry);
	}
}

static void tear_down(size_t count)
{
	for (size_t i = 0; i < count; i++)
		task_end(&bench.messages[i].task);
	loop_defer_cancel(&bench.relay.dispatch);
	scheduler_done(&bench.relay.scheduler);
	accounts_free(bench.relay.accounts);
	loop_free(bench.relay.loop);
}

/* A bit for each message that may leave. */
static unsigned ready(size_t count)
{
	unsigned bits = 0;

	for (size_t i = 0; i < count; i++)
		bits |= (unsigned)(task_at(i)->state == TASK_READY) << i;
	return bits;
}

static const char *reason(size_t i)
{
	return accounts_hold_reason(bench.relay.accounts, &bench.messages[i].entry);
}

static void nothing_leaves_until_somebody_has_told(void **state)
{
	static const uint64_t accounts[] = {7, 8, 9}, held[] = {3, 8};

	(void)state;
	set_up(accounts, 3);
	bench.messages[2].entry.is_dsn = true; /* of ours */
	run();
	assert_int_equal(ready(3), 1U << 2);
	assert_string_equal(reason(0), "accounts-unknown");
	assert_true(task_at(0)->frozen);
	tell(held, 2);
	assert_int_equal(ready(3), 1U << 2 | 1U << 0);
	assert_null(reason(0));
	assert_string_equal(reason(1), "account-suspended");
	tell(NULL, 0);
	assert_int_equal(ready(3), 7);
	tear_down(3);
}

static void a_new_set_moves_what_waits(void **state)
{
	static const uint64_t accounts[] = {1, 2, 3, 4, 5, 5, 6, 9};
	static const struct {
		uint64_t held[5];
		size_t count;
		unsigned ready;
	} steps[] = {
	        {{1, 3, 5}, 3, 0xca},
	        {{2, 3, 5, 9}, 4,
	                0x49}, /* 2 and 9 were ready already, and wait from their turn on */
	        {{3, 4, 5, 8, 9}, 5, 0x43},
	        {{3}, 1, 0xfb},
	        {{9}, 1, 0x7f},
	        {{0}, 0, 0xff},
	};

	(void)state;
	set_up(accounts, 8);
	for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
		tell(steps[i].held, steps[i].count);
		dispatch(NULL);
		assert_int_equal(ready(8), steps[i].ready);
	}
	tear_down(8);
}

static void the_newest_set_counts(void **state)
{
	static const uint64_t accounts[] = {1, 2}, first[] = {1}, second[] = {2};

	(void)state;
	set_up(accounts, 2);
	assert_false(accounts_were_told(bench.relay.accounts));
	assert_int_equal(accounts_tell(bench.relay.accounts, first, 1), 0);
	assert_int_equal(accounts_tell(bench.relay.accounts, second, 1), 0);
	assert_true(accounts_were_told(bench.relay.accounts));
	run();
	assert_int_equal(ready(2), 1);
	tear_down(2);
}

static void what_is_held_does_not_age(void **state)
{
	static const uint64_t accounts[] = {1}, held[] = {1};
	const uint64_t hour = 3600000;

	(void)state;
	set_up(accounts, 1);
	tell(NULL, 0);
	passed_ms += hour;
	tell(held, 1);
	/* It waited elsewhere all the time since then. */
	run();
	dispatch(NULL);
	assert_in_range(bench.messages[0].entry.age_ms, hour, hour + 1000);
	uint64_t age = bench.messages[0].entry.age_ms;
	passed_ms += hour;
	task_wake(task_at(0));
	run();
	assert_int_equal(ready(1), 0);
	assert_int_equal(bench.messages[0].entry.age_ms, age);
	passed_ms += hour;
	tell(NULL, 0);
	assert_int_equal(ready(1), 1);
	assert_in_range(task_age(task_at(0)), age, age + 1000);
	tear_down(1);
}

static void time_goes_before_release(void **state)
{
	static const uint64_t accounts[] = {1}, held[] = {1};
	static struct conf conf;

	(void)state;
	set_up(accounts, 1);
	conf.retry.max = 3600000;
	bench.relay.conf = &conf;
	tell(held, 1);
	bench.messages[0].entry.next_us = clock_wall_us() + 60000000;
	tell(NULL, 0);
	assert_int_equal(ready(1), 0);
	assert_true(timer_is_running(&task_at(0)->timer));
	assert_false(task_at(0)->frozen);
	tear_down(1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(nothing_leaves_until_somebody_has_told),
	        cmocka_unit_test(a_new_set_moves_what_waits),
	        cmocka_unit_test(the_newest_set_counts),
	        cmocka_unit_test(what_is_held_does_not_age),
	        cmocka_unit_test(time_goes_before_release),
	};

	log_init("test", (enum log_level)(LOG_ALARM + 1));
	return cmocka_run_group_tests(tests, NULL, NULL);
}

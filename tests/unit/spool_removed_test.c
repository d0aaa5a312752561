/* SPDX-License-Identifier: ISC */
/* What the spool removes when nothing needs it any more, and what it must not remove yet. */
#include "tests/unit/spool_bench.h"

#include <fcntl.h>
#include <limits.h>
#include <semaphore.h>
#include <stdlib.h>
#include <unistd.h>

/* Stops a worker where it opens a file of this name, until the test lets it go. */
static const char *_Atomic gate_name;
static sem_t gate_reached, gate_opened;

static _Atomic int unlinked;

static int gated_open(const char *path, int flags, mode_t mode)
{
	const char *name = gate_name;

	if (name != NULL && slice_ends_with_nocase(slice_str(path), slice_str(name))) {
		gate_name = NULL;
		sem_post(&gate_reached);
		sem_wait(&gate_opened);
	}
	return file_system.open(path, flags, mode);
}

static int counted_unlink(const char *path)
{
	unlinked++;
	return file_system.unlink(path);
}

static int set_up_gated(void **state)
{
	struct file_ops ops = file_system;

	ops.open = gated_open;
	ops.unlink = counted_unlink;
	sem_init(&gate_reached, 0, 0);
	sem_init(&gate_opened, 0, 0);
	gate_name = NULL;
	return bench_set_up_on(state, &ops);
}

static void dead_segments_are_removed(void **state)
{
	struct bench *bench = *state;

	bench_give_each(bench, 30, 100000); /* a batch each: a batch is never split */
	bench_open_out(bench, 30);
	for (size_t i = 0; i < 30; i++)
		bench_settle_both(bench, bench->entries[i]);
	bench_wait(bench, 30);
	assert_false(bench_has_segment(bench, 1));
}

/* A segment whose last records have been read, but are not in the index yet, must stay. */
static void what_is_being_read_is_not_removed(void **state)
{
	struct bench *bench = *state;

	bench_give_at_once(bench, 1, 200000);
	bench_open_out(bench, 1);
	for (size_t i = 1; i < 14; i++) {
		bench_give(bench, i, 200000);
		bench_wait(bench, 1);
	}
	assert_true(bench_has_segment(bench, 3));
	unlinked = 0;
	gate_name = "in/00000003.seg"; /* its header is read when the second segment is begun */
	spool_out_follow(bench->out);
	sem_wait(&gate_reached);
	bench_settle_both(bench, bench->entries[0]);
	bench_turn_for(bench, 200);
	sem_post(&gate_opened);
	assert_int_equal(bench->marking, 0);
	assert_int_equal(unlinked, 0);
	bench_wait(bench, 14);
	for (size_t i = 1; i < 14; i++)
		bench_expect_body(bench, bench->entries[i], 200000);
}

static void segments_without_messages_are_removed(void **state)
{
	struct bench *bench = *state;

	for (int i = 0; i < 4; i++)
		bench_reopen_in(bench);
	bench_give_at_once(bench, 1, 10);
	bench_reopen_in(bench);
	bench_open_out(bench, 1);
	bench_settle_both(bench, bench->entries[0]);
	bench_wait(bench, 1);
	for (unsigned i = 1; i < 6; i++)
		assert_false(bench_has_segment(bench, i));
	assert_true(bench_has_segment(bench, 6));
}

#define BODY_NAME 60

/* Settles a message with a body in a file while syncs fail, so that the file has to stay. */
static void settle_without_syncs(struct bench *bench, size_t number, char ret_name[BODY_NAME])
{
	char id[ID_TEXT + 1];

	struct message_id message = bench_give(bench, number, 700000);
	bench_wait(bench, 0);
	snprintf(ret_name, BODY_NAME, "in/00000001-%s.body", id_format(&message, id));
	assert_true(bench_has(bench, ret_name));
	bench_open_out(bench, 1);
	bench_settle(bench, bench->entries[0], 0);
	bench_wait(bench, 1);
	bench_settle(bench, bench->entries[0], 1);
	bench->bad_syncs = INT_MAX;
	bench_turn_for(bench, 300);
	bench->bad_syncs = 0;
	assert_true(bench_has(bench, ret_name));
}

/* Bodies that could not be removed yet go later, also after a restart. */
static void a_body_is_removed_in_the_end(void **state)
{
	struct bench *bench = *state;
	char name[BODY_NAME];

	for (size_t restart = 0; restart < 2; restart++) {
		settle_without_syncs(bench, 2 * restart, name);
		if (restart == 1)
			bench_open_out(bench, 0);
		bench_wait(bench, bench->entry_count);
		/* Anything that happens makes it consider what waits. */
		bench_give(bench, 2 * restart + 1, 10);
		bench_wait(bench, bench->entry_count + 1);
		assert_false(bench_has(bench, name));
		bench_settle_both(bench, bench->entries[bench->entry_count - 1]);
		bench_wait(bench, bench->entry_count);
	}
}

/* Body files that a killed `submit` left without their record go, when it has come back. */
static void bodies_without_a_record_are_removed(void **state)
{
	static const char *const names[] = {
	        "in/00000001-aaaaaaaaaaaaaaaa.body",
	        "in/00000002-bbbbbbbbbbbbbbbb.body",
	};
	struct bench *bench = *state;

	bench_give_at_once(bench, 1, 700000);
	bench_open_out(bench, 1);
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		int fd = open(bench_file(bench, names[i]), O_WRONLY | O_CREAT, 0600);
		assert_true(fd >= 0);
		close(fd);
	}
	bench_wait(bench, 1);
	assert_true(bench_has(bench, names[0]));
	bench_reopen_in(bench);
	bench_give(bench, 1, 10);
	bench_wait(bench, 2);
	assert_false(bench_has(bench, names[0]));
	assert_true(bench_has(bench, names[1]));
	bench_expect_body(bench, bench->entries[0], 700000);
}

/* Bounces a message with a body of so many octets, and has the bounce delivered. */
static void bounce_and_deliver(struct bench *bench, struct spool_entry *entry, size_t body_len)
{
	char *body = calloc(1, body_len);

	assert_non_null(body);
	struct spool_entry *bounce = bench_bounce(bench, entry, slice_of(body, body_len));
	free(body);
	bench_settle(bench, bounce, 0);
	bench_wait(bench, bench->entry_count);
}

/* A bounce whose sync failed is written again; delivered once is enough. */
static void a_bounce_that_was_written_twice_is_one(void **state)
{
	struct bench *bench = *state;

	bench_give_at_once(bench, 2, 10);
	bench_open_out(bench, 2);
	bench->bad_syncs = 1;
	bench->good_syncs = 1; /* of the segment's header */
	bounce_and_deliver(bench, bench->entries[0], 10);
	assert_true(bench_has(bench, "out/00000002.seg"));
	/* The second segment is full then, and what is about it can go. */
	bounce_and_deliver(bench, bench->entries[1], 1 << 20);
	bench_reopen_in(bench);
	bench_give(bench, 2, 10);
	bench_wait(bench, 5);
	bench_settle(bench, bench->entries[4], 0);
	bench_wait(bench, 5);
	assert_false(bench_has(bench, "out/00000002.seg"));
	bench_open_out(bench, 1);
	assert_int_equal(bench->entries[0]->account, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        BENCH_TEST(dead_segments_are_removed),
	        cmocka_unit_test_setup_teardown(
	                what_is_being_read_is_not_removed, set_up_gated, bench_tear_down),
	        BENCH_TEST(segments_without_messages_are_removed),
	        BENCH_TEST(a_body_is_removed_in_the_end),
	        BENCH_TEST(bodies_without_a_record_are_removed),
	        BENCH_TEST(a_bounce_that_was_written_twice_is_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: ISC */
/* The spool on a disk that is full, or whose calls fail: what it refuses, and how it goes on. */
#include "tests/unit/spool_bench.h"

#include <errno.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gateway/base/clock.h"

/* File operations that fail when told, in whichever thread. */
static _Atomic int write_failures;
static _Atomic bool disk_full; /* nothing can grow; what has its blocks can be written over */
static _Atomic int good_reads; /* then one fails; -1: none does */

static ssize_t failing_write(int fd, const struct iovec *parts, int count, off_t offset)
{
	struct stat status;

	if (disk_full && fstat(fd, &status) == 0 && offset >= status.st_size)
		return -ENOSPC;
	return write_failures > 0 && write_failures-- > 0
	               ? -ENOSPC
	               : file_system.pwritev(fd, parts, count, offset);
}

static ssize_t failing_read(int fd, void *room, size_t len, off_t offset)
{
	return good_reads >= 0 && good_reads-- == 0 ? -EIO
	                                            : file_system.pread(fd, room, len, offset);
}

static int failing_space(const char *path, uint64_t *ret_free)
{
	*ret_free = 0;
	return disk_full ? 0 : file_system.space(path, ret_free);
}

static int set_up(void **state)
{
	struct file_ops ops = file_system;

	ops.pwritev = failing_write;
	ops.pread = failing_read;
	ops.space = failing_space;
	write_failures = 0;
	disk_full = false;
	good_reads = -1;
	return bench_set_up_on(state, &ops);
}

/* Until a probe has been written nothing is taken. */
static void wait_for_room(struct bench *bench)
{
	uint64_t until = clock_mono_ms() + BENCH_PATIENCE_MS;

	while (spool_in_has_room(bench->in, 1 << 20) != 0) {
		assert_true(clock_mono_ms() < until);
		usleep(10000);
	}
}

/* The first answer may be a failure; the mark is tried again. */
static void settle_somehow(struct bench *bench, struct spool_entry *entry, uint32_t recipient)
{
	const struct stored_result result = {recipient, OUTCOME_DELIVERED};

	assert_int_equal(spool_settle(bench->out, entry, &result, 1, NULL, NULL), 0);
}

static void a_failed_sync_is_not_a_promise(void **state)
{
	struct bench *bench = *state;

	bench->bad_syncs = 1;
	assert_int_equal(bench_give_now(bench, 0, 10), -EIO);
	assert_int_equal(bench_give_now(bench, 1, 10), 0);
	bench_open_out(bench, 1);
	assert_int_equal(bench->entries[0]->account, 1);
}

/* The worker that writes a body fails while the loop goes on giving it more. */
static void a_failed_body_is_not_a_promise(void **state)
{
	struct bench *bench = *state;

	for (size_t i = 0; i < 200; i++) {
		write_failures = 1;
		assert_int_equal(bench_give_now(bench, 0, 900000), -ENOSPC);
	}
}

static void a_full_disk_refuses_and_recovers(void **state)
{
	struct bench *bench = *state;

	write_failures = 1;
	assert_int_equal(bench_give_now(bench, 0, 10), -ENOSPC);
	wait_for_room(bench);
	assert_int_equal(bench_give_now(bench, 1, 10), 0);
}

static uint64_t space;

static int told_space(const char *path, uint64_t *ret_free)
{
	(void)path;
	*ret_free = space;
	return 0;
}

/* Twice the largest message, and for those that have begun as much again as they have brought. */
static void room_is_kept_for_what_has_begun(void **state)
{
	struct bench *bench = *state;

	bench->ops.space = told_space;
	space = 2000 + 500;
	assert_int_equal(spool_in_has_room(bench->in, 1000), 0);
	assert_int_equal(spool_in_has_room(bench->in, 1251), -ENOSPC);
	char octets[1000] = "";
	/* Whoever says that much will come gets nothing for it. */
	struct spool_tx *tx = bench_begin(bench, 0, id_new(), 400);
	assert_int_equal(spool_in_has_room(bench->in, 1250), 0);
	assert_int_equal(spool_tx_write(tx, slice_of(octets, 100)), 0);
	assert_int_equal(spool_in_has_room(bench->in, 1151), -ENOSPC);
	assert_int_equal(spool_in_has_room(bench->in, 1150), 0);
	/* 300 have come, 100 may. */
	assert_int_equal(spool_tx_write(tx, slice_of(octets, 200)), 0);
	assert_int_equal(spool_in_has_room(bench->in, 1051), -ENOSPC);
	assert_int_equal(spool_in_has_room(bench->in, 1050), 0);
	/* What has come is gone from the disk, whether it was to come or not. */
	assert_int_equal(spool_tx_write(tx, slice_of(octets, 1000)), 0);
	assert_int_equal(spool_in_has_room(bench->in, 601), -ENOSPC);
	assert_int_equal(spool_in_has_room(bench->in, 600), 0);
	spool_tx_abort(tx);
	assert_int_equal(spool_in_has_room(bench->in, 600), 0);
}

static void on_gone(void *owned)
{
	*(bool *)owned = true;
}

/* What a worker still has of a message that was given up is not free yet. */
static void what_is_given_up_is_gone_with_its_memory(void **state)
{
	static const struct spool_tx_events events = {.on_gone = on_gone};
	static const char octets[300000];
	struct bench *bench = *state;
	struct spool_tx *tx;

	for (unsigned i = 0; i < 2; i++) {
		bool is_gone = false, has_worker = i == 1;
		assert_int_equal(spool_tx_new(bench->in, bench->loop, id_new(), sizeof(octets),
		                         &events, NULL, &is_gone, &tx),
		        0);
		(void)!spool_tx_write(tx, slice_of(octets, has_worker ? sizeof(octets) : 1000));
		spool_tx_abort(tx);
		/* The worker's end is told on the loop, which has not run. */
		assert_int_equal(is_gone, !has_worker);
		while (!is_gone)
			bench_turn_for(bench, 1);
	}
}

static void marks_are_written_on_a_full_disk(void **state)
{
	struct bench *bench = *state;

	bench_give_at_once(bench, 3, 10);
	bench_open_out(bench, 3);
	disk_full = true;
	/* The first finds the disk full, and is told again when the spare has taken it. */
	for (size_t i = 0; i < 2; i++) {
		struct spool_entry *entry = bench->entries[i];
		settle_somehow(bench, entry, 0);
		settle_somehow(bench, entry, 1);
	}
	bench_wait(bench, 3);
	bench_close_out(bench);
	/* Also the start needs no room... */
	bench->alarm[0] = '\0';
	disk_full = false;
	bench_open_out(bench, 1);
	assert_string_equal(bench->alarm, "");
	bench_close_out(bench);
	/* ...while there is a spare. */
	disk_full = true;
	bench_open_out(bench, 1);
}

/* The services start on a full disk, as often as it takes, and go on when there is room. */
static void starts_on_a_full_disk(void **state)
{
	struct bench *bench = *state;

	bench_give_at_once(bench, 1, 10);
	bench_open_out(bench, 1);
	bench_close_out(bench);
	disk_full = true;
	for (int i = 0; i < 3; i++) {
		bench_reopen_in(bench);
		assert_int_equal(spool_in_has_room(bench->in, 1 << 20), -ENOSPC);
		bench_open_out(bench, 1);
		bench_close_out(bench);
	}
	/* Marks are written then: the spare is still there. */
	bench_open_out(bench, 1);
	settle_somehow(bench, bench->entries[0], 0);
	bench_wait(bench, 1);
	bench_close_out(bench);
	disk_full = false;
	wait_for_room(bench);
	assert_int_equal(bench_give_now(bench, 1, 10), 0);
	bench_open_out(bench, 2);
	assert_int_equal(bench->entries[0]->unsettled + bench->entries[1]->unsettled, 3);
}

/* A process that must end does not wait for a disk that is gone. */
static void marks_that_cannot_be_written_are_given_up(void **state)
{
	struct bench *bench = *state;

	bench_give_at_once(bench, 1, 10);
	bench_open_out(bench, 1);
	write_failures = INT_MAX;
	settle_somehow(bench, bench->entries[0], 0);
	bench_turn_for(bench, 200);
	assert_true(spool_out_is_busy(bench->out));
	spool_out_give_up(bench->out);
	assert_false(spool_out_is_busy(bench->out));
	bench_close_out(bench);
	write_failures = 0;
	bench_open_out(bench, 1);
	assert_int_equal(bench->entries[0]->unsettled, 2);
}

/* Delivery can be held while results cannot be recorded, and goes on by itself. */
static void failing_marks_are_told_and_recover(void **state)
{
	struct bench *bench = *state;

	bench_give_at_once(bench, 1, 10);
	bench_open_out(bench, 1);
	assert_false(spool_out_is_failing(bench->out));
	write_failures = 3; /* also the segment that would come next */
	settle_somehow(bench, bench->entries[0], 0);
	uint64_t until = clock_mono_ms() + BENCH_PATIENCE_MS;
	while (!spool_out_is_failing(bench->out) && clock_mono_ms() < until)
		bench_turn_for(bench, 1);
	assert_non_null(strstr(bench->alarm, "delivery waits"));
	bench_wait(bench, 1);
	assert_false(spool_out_is_failing(bench->out));
	assert_int_equal(bench->recovered, 1);
}

/*
 * What got no 250 is never delivered: the header that says so stays, and so little of
 * its segment, as long as the segment that it is about.
 */
static void what_was_refused_stays_refused(void **state)
{
	struct bench *bench = *state;
	struct stat status;

	bench_give_at_once(bench, 1, 10);
	bench->bad_syncs = 1;
	/* Its record stands behind the first one; the third is in the next segment. */
	assert_int_equal(bench_give_now(bench, 1, 10), -EIO);
	assert_int_equal(bench_give_now(bench, 2, 1000), 0);
	bench_reopen_in(bench);
	bench_open_out(bench, 2);
	struct spool_entry *second = bench->entries[bench->entries[0]->account == 2 ? 0 : 1];
	bench_settle_both(bench, second);
	bench_wait(bench, 2);
	assert_int_equal(stat(bench_file(bench, "in/00000002.seg"), &status), 0);
	assert_int_equal(status.st_size, SEGMENT_HEADER_SIZE);
	for (int i = 0; i < 2; i++) {
		bench_close_out(bench);
		bench_reopen_in(bench);
		bench_open_out(bench, 1);
		assert_int_equal(bench->entries[0]->account, 0);
		assert_string_equal(bench->alarm, "");
	}
	/* With the first message all of them go. */
	bench_open_out(bench, 1);
	bench_settle_both(bench, bench->entries[0]);
	bench_wait(bench, 1);
	for (unsigned i = 1; i <= 4; i++)
		assert_false(bench_has_segment(bench, i));
}

/* Whichever read fails: what can be read later is not lost, nor taken for damaged. */
static void a_failed_read_is_repeated(void **state)
{
	struct bench *bench = *state;
	bool failed = true;
	struct why why;

	bench_give_at_once(bench, 2, 10);
	for (int reads = 0; failed; reads++) {
		assert_true(reads < 1000);
		good_reads = reads;
		if (bench_try_open_out(bench, &why) == 0) {
			bench_wait(bench, 2);
			failed = good_reads < 0;
			good_reads = -1;
			bench_expect_body(bench, bench->entries[0], 10);
			bench_expect_body(bench, bench->entries[1], 10);
			assert_null(strstr(bench->alarm, "damaged"));
			bench_close_out(bench);
		}
	}
}

int main(void)
{
#define FAILING_TEST(test) cmocka_unit_test_setup_teardown(test, set_up, bench_tear_down)
	const struct CMUnitTest tests[] = {
	        FAILING_TEST(a_failed_sync_is_not_a_promise),
	        FAILING_TEST(a_failed_body_is_not_a_promise),
	        FAILING_TEST(a_full_disk_refuses_and_recovers),
	        FAILING_TEST(room_is_kept_for_what_has_begun),
	        FAILING_TEST(what_is_given_up_is_gone_with_its_memory),
	        FAILING_TEST(marks_are_written_on_a_full_disk),
	        FAILING_TEST(starts_on_a_full_disk),
	        FAILING_TEST(marks_that_cannot_be_written_are_given_up),
	        FAILING_TEST(failing_marks_are_told_and_recover),
	        FAILING_TEST(what_was_refused_stays_refused),
	        FAILING_TEST(a_failed_read_is_repeated),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

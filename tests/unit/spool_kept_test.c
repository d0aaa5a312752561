/* SPDX-License-Identifier: ISC */
/* What the spool keeps: messages, marks, deferrals and bounces, also over a restart. */
#include "tests/unit/spool_bench.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "gateway/spool/watermark.h"

static void messages_come_out_as_they_went_in(void **state)
{
	struct bench *bench = *state;

	for (size_t i = 0; i < 10; i++)
		bench_give(bench, i, i * 100);
	assert_int_equal(bench_give_now(bench, 10, 700000), 0); /* in a file of its own */
	for (size_t i = 0; i < 11; i++)
		assert_int_equal(bench->results[i], 0);
	bench_open_out(bench, 11);
	for (size_t i = 0; i < 11; i++) {
		size_t number = (size_t)bench->entries[i]->account;
		bench_expect_body(bench, bench->entries[i], number == 10 ? 700000 : number * 100);
	}
}

static void marks_survive_a_restart(void **state)
{
	struct bench *bench = *state;

	bench_give_at_once(bench, 2, 10);
	bench_open_out(bench, 2);
	uint64_t whole = bench->entries[0]->account;
	bench_settle_both(bench, bench->entries[0]);
	bench_settle(bench, bench->entries[1], 1);
	bench_wait(bench, 2);
	bench_open_out(bench, 1);
	assert_true(bench->entries[0]->account != whole);
	assert_int_equal(bench->entries[0]->unsettled, 1);
	assert_false(spool_entry_is_settled(bench->entries[0], 0));
	assert_true(spool_entry_is_settled(bench->entries[0], 1));
}

static void deferrals_survive_a_restart(void **state)
{
	struct bench *bench = *state;

	bench_give_at_once(bench, 1, 10);
	bench_open_out(bench, 1);
	bench->entries[0]->attempt = 3;
	bench->entries[0]->next_us = 123456789;
	bench->entries[0]->age_ms = 777;
	spool_defer(bench->out, bench->entries[0]);
	bench_wait(bench, 1);
	bench_open_out(bench, 1);
	assert_int_equal(bench->entries[0]->attempt, 3);
	assert_true(bench->entries[0]->next_us == 123456789);
	assert_int_equal(bench->entries[0]->age_ms, 777);
}

static void a_bounce_settles_and_is_a_message(void **state)
{
	struct bench *bench = *state;

	bench_give_at_once(bench, 1, 10);
	bench_open_out(bench, 1);
	bench_bounce(bench, bench->entries[0], SLICE("ffff"));
	assert_int_equal(bench->bounced, 0);
	bench_open_out(bench, 1);
	assert_true(bench->entries[0]->is_dsn);
	assert_false(bench->entries[0]->is_delay);
	bench_expect_body(bench, bench->entries[0], 4);
}

static void a_notice_of_delay_is_told_from_a_bounce(void **state)
{
	struct bench *bench = *state;
	const struct spool_dsn dsn = {
	        .account = 5,
	        .envelope = SLICE("notice"),
	        .header = SLICE("Subject: later\r\n\r\n"),
	};

	bench_give_at_once(bench, 1, 10);
	bench_open_out(bench, 1);
	assert_int_equal(spool_bounce(bench->out, bench->entries[0], NULL, 0, &dsn, NULL, NULL), 0);
	bench_wait(bench, 2);
	assert_true(bench->entries[1]->is_dsn && bench->entries[1]->is_delay);
	bench_open_out(bench, 2);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(bench->entries[i]->is_delay, bench->entries[i]->is_dsn);
}

/* A sync that fails may have written the record nevertheless; then it is written again. */
static void a_bounce_written_twice_is_sent_once(void **state)
{
	struct bench *bench = *state;

	bench_give_at_once(bench, 2, 10);
	bench_open_out(bench, 2);
	bench_settle(bench, bench->entries[0], 0); /* begins a segment */
	bench_wait(bench, 2);
	bench->bad_syncs = 1;
	struct spool_entry *bounce = bench_bounce(bench, bench->entries[1], SLICE(""));
	assert_int_equal(bench->bad_syncs, 0);
	bench_settle(bench, bounce, 0);
	bench_wait(bench, 3);
	bench_open_out(bench, 1);
	assert_false(bench->entries[0]->is_dsn);
}

/* Whatever is answered 250 can be delivered. */
static void what_could_not_be_read_back_is_refused(void **state)
{
	struct bench *bench = *state;
	char *header = calloc(1, (1 << 20) + 1);

	assert_non_null(header);
	for (size_t i = 0; i < 2; i++) {
		const struct spool_commit commit = {
		        .recipients = 1,
		        .envelope = SLICE("envelope"),
		        .header = slice_of(header, (1 << 20) + i),
		};
		spool_tx_commit(bench_begin(bench, i, id_new(), 10), &commit);
	}
	free(header);
	bench_wait(bench, 0);
	assert_int_equal(bench->results[0], 0);
	assert_int_equal(bench->results[1], -ENOBUFS);
	bench_open_out(bench, 1);
	assert_string_equal(bench->alarm, "");
}

/* However far the watermark moves while `relay` does not look, it skips nothing. */
static void a_watermark_that_runs_ahead_skips_nothing(void **state)
{
	struct bench *bench = *state;
	struct watermark watermark;
	uint32_t segment;
	uint64_t end;
	bool fresh;

	bench_give_each(bench, 15, 250000); /* five to a segment */
	bench_close_in(bench);
	assert_int_equal(watermark_lock(bench_file(bench, "in"), &watermark, &fresh, NULL), 0);
	watermark_read(&watermark, &segment, &end);
	assert_int_equal(segment, 3);
	/* What `relay` may have seen before the second segment was published. */
	watermark_publish(&watermark, 1, SEGMENT_HEADER_SIZE);
	assert_int_equal(unlink(bench_file(bench, "in/00000001.seg")), 0);
	bench_open_out(bench, 0);
	watermark_publish(&watermark, segment, end);
	bench_wait(bench, 10);
	for (size_t i = 0; i < 10; i++)
		assert_int_equal(bench->entries[i]->account, 5 + i);
	watermark_close(&watermark);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        BENCH_TEST(messages_come_out_as_they_went_in),
	        BENCH_TEST(marks_survive_a_restart),
	        BENCH_TEST(deferrals_survive_a_restart),
	        BENCH_TEST(a_bounce_settles_and_is_a_message),
	        BENCH_TEST(a_notice_of_delay_is_told_from_a_bounce),
	        BENCH_TEST(a_bounce_written_twice_is_sent_once),
	        BENCH_TEST(what_could_not_be_read_back_is_refused),
	        BENCH_TEST(a_watermark_that_runs_ahead_skips_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: ISC */
/* What a spool whose files are torn, changed, foreign or lost still gives, and what it tells. */
#include "tests/unit/spool_bench.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static int open_segment(struct bench *bench, unsigned number)
{
	char name[40];

	snprintf(name, sizeof(name), "in/%08u.seg", number);
	int fd = open(bench_file(bench, name), O_RDWR);
	assert_true(fd >= 0);
	return fd;
}

/* Where these octets are near the beginning of a segment. */
static off_t find_octets(int fd, const char *wanted)
{
	char octets[8192];

	ssize_t len = pread(fd, octets, sizeof(octets), 0);
	assert_true(len > 0);
	const char *at = memmem(octets, (size_t)len, wanted, strlen(wanted));
	assert_non_null(at);
	return at - octets;
}

/* Changes one octet of a segment of in/. */
static void flip(struct bench *bench, unsigned number, off_t at)
{
	int fd = open_segment(bench, number);
	char octet;

	assert_int_equal(pread(fd, &octet, 1, at), 1);
	octet ^= 1;
	assert_int_equal(pwrite(fd, &octet, 1, at), 1);
	close(fd);
}

/* As after a power cut: another boot's watermark counts for nothing. */
static void lose_watermark(struct bench *bench)
{
	assert_int_equal(unlink(bench_file(bench, "in/lock")), 0);
}

static void a_torn_tail_costs_nothing_before_it(void **state)
{
	static const char garbage[] =
	        "garbage garbage garbage garbage garbage garbage garbage garbage garbage garbage";
	struct bench *bench = *state;
	struct stat status;

	bench_give_each(bench, 5, 1000);
	bench_close_in(bench);
	lose_watermark(bench);
	int fd = open_segment(bench, 1);
	assert_int_equal(fstat(fd, &status), 0);
	assert_int_equal(pwrite(fd, garbage, sizeof(garbage), status.st_size), sizeof(garbage));
	close(fd);
	bench_open_in(bench);
	assert_int_equal(bench_give_now(bench, 5, 1000), 0);
	bench_open_out(bench, 6);
}

static void a_damaged_record_is_told_and_passed(void **state)
{
	struct bench *bench = *state;

	bench_give_each(bench, 3, 1000);
	int fd = open_segment(bench, 1);
	assert_int_equal(pwrite(fd, "X", 1, find_octets(fd, "envelope 1")), 1);
	close(fd);
	bench_open_out(bench, 2);
	assert_true(bench->alarm[0] != '\0');
}

/* What was committed behind damage is found, also by a start that trusts no watermark. */
static void damage_costs_only_what_is_damaged(void **state)
{
	struct bench *bench = *state;

	/* Those that wait while the first is synced are one batch. */
	bench_give_at_once(bench, 4, 300);
	assert_int_equal(bench_give_now(bench, 4, 300), 0);
	bench_close_in(bench);
	lose_watermark(bench);
	int fd = open_segment(bench, 1);
	off_t at = find_octets(fd, "envelope 1");
	for (off_t i = 0; i <= 110; i += 8) /* its header too */
		assert_int_equal(pwrite(fd, "X", 1, at - i), 1);
	close(fd);
	bench_open_in(bench);
	bench_open_out(bench, 4);
	assert_true(bench->alarm[0] != '\0');
}

/* Twelve messages of a process that is gone, the last one alone in the second segment. */
static void give_two_segments(struct bench *bench)
{
	bench_give_each(bench, 12, 100000);
	bench_close_in(bench);
	assert_true(bench_has_segment(bench, 2));
	assert_false(bench_has_segment(bench, 3));
}

/* The messages behind it do not depend on it. */
static void a_damaged_segment_header_costs_no_message(void **state)
{
	for (unsigned number = 1; number <= 2; number++) {
		struct bench *bench = *state;
		give_two_segments(bench);
		flip(bench, number, 20);
		bench_open_in(bench);
		bench_open_out(bench, 12);
		for (size_t i = 0; i < 12; i++)
			bench_expect_body(bench, bench->entries[i], 100000);
		assert_non_null(strstr(bench->alarm, "damaged"));
		assert_int_equal(bench_tear_down(state), 0);
		assert_int_equal(bench_set_up(state), 0);
	}
}

/* What cannot be read is kept for an operator, and takes nothing else along. */
static void a_segment_that_tells_nothing_is_set_aside(void **state)
{
	struct bench *bench = *state;

	give_two_segments(bench);
	flip(bench, 2, 20);
	flip(bench, 2, SEGMENT_HEADER_SIZE + 20);
	bench_open_in(bench);
	assert_non_null(strstr(bench->in_alarm, "in/00000002.seg is damaged"));
	assert_true(bench_has(bench, "in/damaged-00000002.seg"));
	assert_int_equal(bench_give_now(bench, 12, 10), 0);
	bench_open_out(bench, 12);
	for (size_t i = 0; i < 11; i++)
		bench_expect_body(bench, bench->entries[i], 100000);
	bench_expect_body(bench, bench->entries[11], 10);
}

/* Without it nothing new is read, so somebody must know. */
static void a_watermark_that_cannot_be_opened_is_told(void **state)
{
	struct bench *bench = *state;

	bench_give_at_once(bench, 1, 10);
	lose_watermark(bench);
	assert_int_equal(symlink("lock", bench_file(bench, "in/lock")), 0);
	bench_open_out(bench, 0);
	assert_non_null(strstr(bench->alarm, "in/ cannot be read"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        BENCH_TEST(a_torn_tail_costs_nothing_before_it),
	        BENCH_TEST(a_damaged_record_is_told_and_passed),
	        BENCH_TEST(damage_costs_only_what_is_damaged),
	        BENCH_TEST(a_damaged_segment_header_costs_no_message),
	        BENCH_TEST(a_segment_that_tells_nothing_is_set_aside),
	        BENCH_TEST(a_watermark_that_cannot_be_opened_is_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

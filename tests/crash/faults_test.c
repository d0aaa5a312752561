/* SPDX-License-Identifier: ISC */
/*
 * Every file call of a story fails once, in every way it can: what was promised is
 * there nevertheless, also when the power is cut at some moment after it.
 */
#include "tests/unit/unit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/crash/explore.h"

#define CUTS_AFTER_KILL 8
#define CUTS_AFTER      3 /* states of a crash that are drawn for each fault */

static struct bench bench;
static unsigned runs, states;

/* Both are killed soon after the fault, come back, go on, and the power is cut. */
static bool kill_and_cut(const struct disk *first, uint64_t seed)
{
	unsigned from = first->failed_entry,
	         room = MIN_OF(first->count - from, seed % 2 ? 24U : 5U);
	unsigned count = from + (unsigned)(disk_random(&seed) % (room + 1));
	struct disk disk;

	disk_go_on(&disk, first, count, bench.root);
	story_go_on(&bench, &disk);
	bool holds = bench.problem[0] == '\0' &&
	             explore_drawn(&bench, &disk, count, CUTS_AFTER_KILL, seed) >= 0;
	if (!holds)
		fprintf(stderr, "# killed at %u: %s\n", count, bench.problem);
	states += CUTS_AFTER_KILL;
	disk_done(&disk);
	return holds;
}

/*
 * The power is cut soon after the fault, and all that was written has reached the disk:
 * a record that was refused may count then, and must be whole.
 */
static bool cut_with_all_written(const struct disk *disk)
{
	struct cut cut = {.kind = CUT_POWER, .lock = LOCK_GONE, .seed = 2};

	for (unsigned i = 0; i <= 10 && disk->failed_entry + i <= disk->count; i++) {
		cut.count = disk->failed_entry + i;
		if (!explore_cut(&bench, disk, &cut))
			return false;
		states++;
	}
	return true;
}

/* One run with one fault. Whether there was still a call to fail. */
static bool run_with(struct disk_fault *fault)
{
	struct disk disk;

	story_run(&bench, &disk, *fault, false);
	const char *call = disk.fault_call;
	fault->nth = disk.failed_at;
	if (bench.problem[0] == '\0' && disk_watermark_ahead(&disk) != 0)
		snprintf(bench.problem, sizeof(bench.problem), "the watermark is ahead");
	if (bench.problem[0] == '\0' && call != NULL) {
		struct cut all = {.kind = CUT_KILL, .count = disk.count, .seed = 1};
		struct fact facts[NUMBERS_MAX];
		disk_facts(&disk, &all, facts);
		story_check(&bench, facts, true);
	}
	bool holds = bench.problem[0] == '\0';
	if (!holds)
		fprintf(stderr, "# %s\n", bench.problem);
	if (holds && call != NULL) {
		int drawn = explore_drawn(
		        &bench, &disk, 0, CUTS_AFTER, fault->nth * 16 + (unsigned)-fault->error);
		holds = drawn >= 0;
		states += CUTS_AFTER;
		if (holds && fault->times > 1)
			holds = cut_with_all_written(&disk) && kill_and_cut(&disk, fault->nth);
	}
	if (!holds && getenv("POSTERN_CRASH_LOG") != NULL)
		explore_print(&disk, disk.count);
	if (!holds)
		fail_msg("call %u (%s) with error %d, %u times", fault->nth, call, fault->error,
		        fault->times);
	disk_done(&disk);
	runs += call != NULL;
	return call != NULL;
}

static void each_call_fails(int error, unsigned times)
{
	struct disk_fault fault = {.nth = 1, .error = error, .times = times};

	runs = states = 0;
	while (run_with(&fault))
		fault.nth++;
	assert_true(runs > 20);
	printf("# %u calls failed, %u states\n", runs, states);
}

static void each_call_fails_with_an_error(void **state)
{
	(void)state;
	each_call_fails(-EIO, 1);
}

static void each_call_finds_the_disk_full(void **state)
{
	(void)state;
	each_call_fails(-ENOSPC, 1);
}

static void each_write_is_short(void **state)
{
	(void)state;
	each_call_fails(0, 1);
}

static void each_call_is_interrupted(void **state)
{
	(void)state;
	each_call_fails(-EINTR, 1);
}

static void each_call_fails_twice(void **state)
{
	(void)state;
	each_call_fails(-EIO, 2);
}

/* The entry, counted from 1, that writes the header of in/'s next segment after the fault, or 0. */
static unsigned find_next_header(const struct disk *disk)
{
	bool of_segment[DISK_INODES] = {false};

	for (unsigned i = 0; i < disk->count; i++) {
		const struct disk_entry *entry = &disk->entries[i];
		struct slice name = slice_str(entry->name);
		if (entry->kind == DISK_CREATE)
			of_segment[entry->inode] = slice_starts_with(name, SLICE("in/")) &&
			                           slice_ends_with_nocase(name, SLICE(".seg"));
		if (i >= disk->failed_entry && entry->kind == DISK_WRITE && entry->offset == 0 &&
		        of_segment[entry->inode])
			return i + 1;
	}
	return 0;
}

/*
 * `submit` is killed when it has begun the segment that says where the one with refused
 * records ends: its header is the kernel's. It comes back, goes on, and the power is cut.
 */
static void a_header_is_left_to_the_kernel(void **state)
{
	struct disk_fault fault = {.nth = 1, .error = -EIO, .times = 1};
	unsigned found = 0;
	bool failed = true;

	(void)state;
	for (; failed; fault.nth++) {
		/* Of what is not synced some is there: the refused records, and not the header. */
		struct cut cut = {.kind = CUT_POWER, .names = PART_ALL, .octets = PART_SOME};
		struct disk first, second;
		story_run(&bench, &first, fault, false);
		failed = first.fault_call != NULL;
		fault.nth = first.failed_at;
		unsigned header = find_next_header(&first);
		if (failed && strcmp(first.fault_call, "fdatasync") == 0 && header != 0) {
			disk_go_on(&second, &first, header, bench.root);
			story_go_on(&bench, &second);
			assert_string_equal(bench.problem, "");
			cut.count = header;
			for (; cut.count <= second.count; cut.count += 4, cut.seed++)
				assert_true(explore_cut(&bench, &second, &cut));
			disk_done(&second);
			found++;
		}
		disk_done(&first);
	}
	assert_true(found > 1);
}

static int set_up(void **state)
{
	char root[DISK_NAME] = "/dev/shm/pn-crash-XXXXXX";

	(void)state;
	if (mkdtemp(root) == NULL)
		return -1;
	bench_init(&bench, root);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	bench_done(&bench);
	bench_remove(bench.root);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(each_call_fails_with_an_error),
	        cmocka_unit_test(each_call_finds_the_disk_full),
	        cmocka_unit_test(each_write_is_short),
	        cmocka_unit_test(each_call_is_interrupted),
	        cmocka_unit_test(each_call_fails_twice),
	        cmocka_unit_test(a_header_is_left_to_the_kernel),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}

/* SPDX-License-Identifier: ISC */
/*
 * Kills and power cuts at every moment of a story, and in what comes after them: what
 * was promised is there. POSTERN_CRASH_STATES: how many states to look at, 20000 if
 * it is not set; POSTERN_CRASH_SEED: which; POSTERN_CRASH_LOG: prints the log of one
 * that does not hold.
 */
#include "tests/unit/unit.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/crash/explore.h"

#define STATES     20000
#define AFTER_EACH 24 /* states after a second crash, for each first one */

static char root[DISK_NAME - 8];
static struct bench parents, workers; /* one of a process */
static struct bench *bench = &parents;
static struct disk plain, full; /* two stories: with room, and with a disk that fills up */
static uint64_t seed = 1;

/* What both processes have done. */
static struct tally {
	_Atomic unsigned states, second;
} * tally;

/* ---- in two processes ---- */

static void count_states(int states)
{
	if (states < 0)
		exit(1);
	tally->states += (unsigned)states;
}

/* Runs the part of each of two workers; a story's bench belongs to one process. */
static void in_two(void (*part)(unsigned worker))
{
	pid_t pids[2];
	int status, failed = 0;

	fflush(NULL);
	for (unsigned worker = 0; worker < 2; worker++) {
		pids[worker] = fork();
		if (pids[worker] != 0)
			continue;
		char path[DISK_NAME];
		snprintf(path, sizeof(path), "%s/%u", root, worker);
		(void)mkdir(path, 0700);
		bench = &workers;
		bench_init(bench, path);
		part(worker);
		bench_done(bench);
		exit(0);
	}
	for (unsigned worker = 0; worker < 2; worker++) {
		assert_int_equal(waitpid(pids[worker], &status, 0), pids[worker]);
		failed += !WIFEXITED(status) || WEXITSTATUS(status) != 0;
	}
	assert_int_equal(failed, 0);
}

static void look_at_prefixes(unsigned worker)
{
	count_states(explore_prefixes(bench, worker == 0 ? &plain : &full, 0));
}

static void every_moment_of_the_story(void **state)
{
	(void)state;
	in_two(look_at_prefixes);
}

/* After a kill both come back, do one more round, and then the power is cut. */
static void go_on_and_cut(unsigned worker)
{
	const struct disk *first = worker == 0 ? &plain : &full;

	for (unsigned count = worker; count <= first->count; count += 3) {
		struct disk disk;
		disk_go_on(&disk, first, count, bench->root);
		story_go_on(bench, &disk);
		if (bench->problem[0] != '\0') {
			fprintf(stderr, "# after a kill at %u: %s\n", count, bench->problem);
			exit(1);
		}
		if (disk_watermark_ahead(&disk) != 0) {
			fprintf(stderr, "# after a kill at %u: the watermark is ahead\n", count);
			exit(1);
		}
		count_states(explore_drawn(bench, &disk, count, AFTER_EACH, seed * 77 + count));
		tally->second += AFTER_EACH;
		disk_done(&disk);
	}
}

static void a_power_cut_after_a_kill(void **state)
{
	(void)state;
	in_two(go_on_and_cut);
}

static void look_at_drawn(unsigned worker)
{
	const char *text = getenv("POSTERN_CRASH_STATES");
	uint64_t wanted = STATES;

	if (text != NULL && slice_to_u64(slice_str(text), &wanted) < 0)
		exit(1);
	unsigned left = wanted > tally->states ? (unsigned)wanted - tally->states : 2;
	count_states(explore_drawn(
	        bench, worker == 0 ? &plain : &full, 0, (left + 1) / 2, seed * 2 + worker));
}

static void as_many_more_as_there_is_time_for(void **state)
{
	(void)state;
	in_two(look_at_drawn);
	printf("# %u states, %u of them after two crashes\n", tally->states, tally->second);
}

static void the_watermark_is_never_ahead(void **state)
{
	(void)state;
	assert_int_equal(disk_watermark_ahead(&plain), 0);
	assert_int_equal(disk_watermark_ahead(&full), 0);
}

/* ---- crashes with a name ---- */

static bool is_in(const struct disk_entry *entry, const char *folder, const char *suffix)
{
	const char *name = entry->kind == DISK_RENAME ? entry->to : entry->name;

	return slice_starts_with(slice_str(name), slice_str(folder)) &&
	       slice_ends_with_nocase(slice_str(name), slice_str(suffix));
}

/* Whether the inode is that of a file with such a name. */
static bool is_file(const struct disk *disk, uint32_t inode, const char *folder, const char *suffix)
{
	for (unsigned i = 0; i < disk->count; i++) {
		const struct disk_entry *entry = &disk->entries[i];
		if ((entry->kind == DISK_CREATE || entry->kind == DISK_RENAME) &&
		        entry->inode == inode && is_in(entry, folder, suffix))
			return true;
	}
	return false;
}

/* The last entry before the crash, and what it was. */
static bool writes_to(const struct disk *disk, const struct disk_entry *last, const char *folder)
{
	return last->kind == DISK_WRITE && last->offset > 0 &&
	       is_file(disk, last->inode, folder, ".seg");
}

static bool in_mid_batch(const struct disk *disk, const struct disk_entry *last)
{
	return writes_to(disk, last, "in/");
}

static bool between_sync_and_publishing(const struct disk *disk, const struct disk_entry *last)
{
	return last->kind == DISK_SYNC && is_file(disk, last->inode, "in/", ".seg");
}

static bool after_renaming_a_body(const struct disk *disk, const struct disk_entry *last)
{
	(void)disk;
	return last->kind == DISK_RENAME && is_in(last, "in/", ".body");
}

static bool before_a_mark(const struct disk *disk, const struct disk_entry *last)
{
	(void)disk;
	return last->kind == NOTE_ASKED;
}

static bool after_a_bounce(const struct disk *disk, const struct disk_entry *last)
{
	(void)disk;
	return last->kind == NOTE_SYNCED;
}

static bool in_a_removal(const struct disk *disk, const struct disk_entry *last)
{
	(void)disk;
	return last->kind == DISK_UNLINK;
}

static bool after_a_mark(const struct disk *disk, const struct disk_entry *last)
{
	return writes_to(disk, last, "out/");
}

static bool in_a_segment_header(const struct disk *disk, const struct disk_entry *last)
{
	return (last->kind == DISK_WRITE && last->offset == 0 &&
	               is_file(disk, last->inode, "", ".seg")) ||
	       (last->kind == DISK_CREATE && is_in(last, "", ".seg"));
}

static bool after_a_promise(const struct disk *disk, const struct disk_entry *last)
{
	(void)disk;
	return last->kind == NOTE_ACKED;
}

static bool with_a_body_and_no_record(const struct disk *disk, const struct disk_entry *last)
{
	return (last->kind == DISK_SYNC_FOLDER || writes_to(disk, last, "in/")) &&
	       last > disk->entries &&
	       (last[-1].kind == DISK_RENAME || last[-1].kind == DISK_SYNC_FOLDER);
}

/* Crashes whose last entry is such a one, each with the octets and names of that kind lost. */
static void look_at_crashes(
        bool (*matches)(const struct disk *disk, const struct disk_entry *last), struct cut cut)
{
	const struct disk *const stories[] = {&plain, &full};
	unsigned found = 0;

	for (size_t i = 0; i < ARRAY_LEN(stories); i++) {
		for (cut.count = 1; cut.count <= stories[i]->count; cut.count++) {
			if (!matches(stories[i], &stories[i]->entries[cut.count - 1]))
				continue;
			for (cut.seed = 0; cut.seed < 4; cut.seed++)
				assert_true(explore_cut(bench, stories[i], &cut));
			found++;
		}
	}
	assert_true(found > 1);
	tally->states += found * 4;
}

/*
 * Relay is killed when a segment of out/ has just begun and does not yet repeat the marks
 * that the one before it left to the kernel; it comes back, goes on, and the power is cut.
 */
static void marks_left_to_the_kernel_in_two_segments(void **state)
{
	struct cut cut = {.kind = CUT_POWER, .names = PART_ALL, .octets = PART_NONE};
	unsigned found = 0;

	(void)state;
	for (unsigned count = 1; count <= plain.count; count++) {
		const struct disk_entry *last = &plain.entries[count - 1];
		struct disk disk;
		if (last->kind != DISK_WRITE || last->offset != 0 ||
		        !is_file(&plain, last->inode, "out/", ".seg"))
			continue;
		disk_go_on(&disk, &plain, count, bench->root);
		story_go_on(bench, &disk);
		assert_string_equal(bench->problem, "");
		for (cut.count = count; cut.count <= disk.count; cut.count += 2)
			assert_true(explore_cut(bench, &disk, &cut));
		tally->states += (disk.count - count) / 2 + 1;
		disk_done(&disk);
		found++;
	}
	assert_true(found > 1);
}

#define KILL(name, matches)                                                                        \
	static void name(void **state)                                                             \
	{                                                                                          \
		const struct cut cut = {                                                           \
		        .kind = CUT_KILL, .octets = PART_ALL, .lock = LOCK_AS_IT_WAS};             \
		(void)state;                                                                       \
		look_at_crashes(matches, cut);                                                     \
	}

#define POWER_CUT(name, matches, names_, octets_, lock_)                                           \
	static void name(void **state)                                                             \
	{                                                                                          \
		const struct cut cut = {.kind = CUT_POWER,                                         \
		        .names = (names_),                                                         \
		        .octets = (octets_),                                                       \
		        .lock = (lock_)};                                                          \
		(void)state;                                                                       \
		look_at_crashes(matches, cut);                                                     \
	}

KILL(submit_is_killed_in_mid_batch, in_mid_batch)
KILL(submit_is_killed_between_sync_and_publishing, between_sync_and_publishing)
POWER_CUT(a_power_cut_between_sync_and_publishing, between_sync_and_publishing, PART_NONE,
        PART_NONE, LOCK_GONE)
KILL(submit_is_killed_after_renaming_a_body, after_renaming_a_body)
KILL(relay_is_killed_before_its_mark, before_a_mark)
KILL(relay_is_killed_between_a_bounce_and_its_sending, after_a_bounce)
KILL(relay_is_killed_in_a_removal, in_a_removal)
POWER_CUT(a_power_cut_in_a_removal, in_a_removal, PART_ALL, PART_NONE, LOCK_OF_ANOTHER_BOOT)
POWER_CUT(a_power_cut_with_marks_unsynced, after_a_mark, PART_ALL, PART_NONE, LOCK_GONE)
POWER_CUT(a_power_cut_with_the_watermark_stale, after_a_promise, PART_NONE, PART_NONE,
        LOCK_OF_ANOTHER_BOOT)
POWER_CUT(
        a_power_cut_with_a_torn_segment_header, in_a_segment_header, PART_ALL, PART_SOME, LOCK_GONE)
POWER_CUT(a_power_cut_with_a_body_and_no_record, with_a_body_and_no_record, PART_ALL, PART_NONE,
        LOCK_GONE)
POWER_CUT(a_spool_copied_to_another_machine, after_a_promise, PART_ALL, PART_ALL,
        LOCK_OF_ANOTHER_BOOT)

/* ---- the program ---- */

static int set_up(void **state)
{
	const char *text = getenv("POSTERN_CRASH_SEED");

	(void)state;
	snprintf(root, sizeof(root), "/dev/shm/pn-crash-XXXXXX");
	if (mkdtemp(root) == NULL)
		return -1;
	if (text != NULL && slice_to_u64(slice_str(text), &seed) < 0)
		return -1;
	tally = mmap(
	        NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(tally != MAP_FAILED);
	bench_init(bench, root);
	story_run(bench, &plain, (struct disk_fault){0}, false);
	if (bench->problem[0] == '\0')
		story_run(bench, &full, (struct disk_fault){0}, true);
	if (bench->problem[0] != '\0')
		fail_msg("%s", bench->problem);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	disk_done(&plain);
	disk_done(&full);
	bench_done(bench);
	bench_remove(root);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(the_watermark_is_never_ahead),
	        cmocka_unit_test(submit_is_killed_in_mid_batch),
	        cmocka_unit_test(submit_is_killed_between_sync_and_publishing),
	        cmocka_unit_test(a_power_cut_between_sync_and_publishing),
	        cmocka_unit_test(submit_is_killed_after_renaming_a_body),
	        cmocka_unit_test(relay_is_killed_before_its_mark),
	        cmocka_unit_test(relay_is_killed_between_a_bounce_and_its_sending),
	        cmocka_unit_test(relay_is_killed_in_a_removal),
	        cmocka_unit_test(a_power_cut_in_a_removal),
	        cmocka_unit_test(a_power_cut_with_marks_unsynced),
	        cmocka_unit_test(a_power_cut_with_the_watermark_stale),
	        cmocka_unit_test(a_power_cut_with_a_torn_segment_header),
	        cmocka_unit_test(a_power_cut_with_a_body_and_no_record),
	        cmocka_unit_test(a_spool_copied_to_another_machine),
	        cmocka_unit_test(marks_left_to_the_kernel_in_two_segments),
	        cmocka_unit_test(every_moment_of_the_story),
	        cmocka_unit_test(a_power_cut_after_a_kill),
	        cmocka_unit_test(as_many_more_as_there_is_time_for),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}

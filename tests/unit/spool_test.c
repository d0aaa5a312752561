/* SPDX-License-Identifier: ISC */
/* The spool as its two users see it: what was committed is found again, whatever happened. */
#include "tests/unit/spool_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gateway/base/clock.h"
#include "gateway/spool/watermark.h"

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

static int set_up(void **state)
{
	struct file_ops ops = file_system;

	ops.pwritev = failing_write;
	ops.pread = failing_read;
	ops.space = failing_space;
	ops.open = gated_open;
	ops.unlink = counted_unlink;
	sem_init(&gate_reached, 0, 0);
	sem_init(&gate_opened, 0, 0);
	gate_name = NULL;
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
	bench_expect_body(bench, bench->entries[0], 4);
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

/* Twice the largest message, and what those that have begun may still bring. */
static void room_is_kept_for_what_has_begun(void **state)
{
	struct bench *bench = *state;

	bench->ops.space = told_space;
	space = 2000 + 500;
	assert_int_equal(spool_in_has_room(bench->in, 1000), 0);
	assert_int_equal(spool_in_has_room(bench->in, 1251), -ENOSPC);
	struct spool_tx *tx = bench_begin(bench, 0, id_new(), 501);
	assert_int_equal(spool_in_has_room(bench->in, 1000), -ENOSPC);
	assert_int_equal(spool_tx_write(tx, SLICE("a")), 0);
	assert_int_equal(spool_in_has_room(bench->in, 1000), -ENOSPC);
	assert_int_equal(spool_in_has_room(bench->in, 999), 0);
	/* What has come is gone from the disk, whether it was promised or not. */
	char more[1000] = "";
	assert_int_equal(spool_tx_write(tx, slice_of(more, sizeof(more))), 0);
	assert_int_equal(spool_in_has_room(bench->in, 1000), -ENOSPC);
	assert_int_equal(spool_in_has_room(bench->in, 749), 0);
	spool_tx_abort(tx);
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

/* As after a power cut: another boot's watermark counts for nothing. */
static void lose_watermark(struct bench *bench)
{
	assert_int_equal(unlink(bench_file(bench, "in/lock")), 0);
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
		assert_int_equal(set_up(state), 0);
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

int main(void)
{
#define SPOOL_TEST(test) cmocka_unit_test_setup_teardown(test, set_up, bench_tear_down)
	const struct CMUnitTest tests[] = {
	        SPOOL_TEST(messages_come_out_as_they_went_in),
	        SPOOL_TEST(marks_survive_a_restart),
	        SPOOL_TEST(deferrals_survive_a_restart),
	        SPOOL_TEST(a_bounce_settles_and_is_a_message),
	        SPOOL_TEST(a_bounce_written_twice_is_sent_once),
	        SPOOL_TEST(a_failed_sync_is_not_a_promise),
	        SPOOL_TEST(a_failed_body_is_not_a_promise),
	        SPOOL_TEST(a_full_disk_refuses_and_recovers),
	        SPOOL_TEST(room_is_kept_for_what_has_begun),
	        SPOOL_TEST(marks_are_written_on_a_full_disk),
	        SPOOL_TEST(starts_on_a_full_disk),
	        SPOOL_TEST(what_could_not_be_read_back_is_refused),
	        SPOOL_TEST(a_watermark_that_runs_ahead_skips_nothing),
	        SPOOL_TEST(a_watermark_that_cannot_be_opened_is_told),
	        SPOOL_TEST(marks_that_cannot_be_written_are_given_up),
	        SPOOL_TEST(a_torn_tail_costs_nothing_before_it),
	        SPOOL_TEST(a_damaged_record_is_told_and_passed),
	        SPOOL_TEST(a_damaged_segment_header_costs_no_message),
	        SPOOL_TEST(a_segment_that_tells_nothing_is_set_aside),
	        SPOOL_TEST(a_body_is_removed_in_the_end),
	        SPOOL_TEST(what_was_refused_stays_refused),
	        SPOOL_TEST(failing_marks_are_told_and_recover),
	        SPOOL_TEST(a_bounce_that_was_written_twice_is_one),
	        SPOOL_TEST(damage_costs_only_what_is_damaged),
	        SPOOL_TEST(dead_segments_are_removed),
	        SPOOL_TEST(what_is_being_read_is_not_removed),
	        SPOOL_TEST(a_failed_read_is_repeated),
	        SPOOL_TEST(segments_without_messages_are_removed),
	        SPOOL_TEST(bodies_without_a_record_are_removed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

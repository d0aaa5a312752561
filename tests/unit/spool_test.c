/* SPDX-License-Identifier: ISC */
/* The spool as its two users see it: what was committed is found again, whatever happened. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gateway/base/clock.h"
#include "gateway/net/timer.h"
#include "gateway/spool/spool.h"
#include "gateway/spool/watermark.h"

#define ENTRIES_MAX 64
#define DEADLINE_MS 20000

struct bench {
	char path[64], command[128];
	struct loop *loop;
	struct jobs *jobs;
	struct spool_in *in;
	struct spool_out *out;
	struct spool_entry *entries[ENTRIES_MAX];
	size_t entry_count;
	char alarm[200];
	int results[ENTRIES_MAX];
	size_t done, marked;
	struct timer deadline, wait;
	size_t wanted_done, wanted_entries, wanted_marked;
	struct file_ops ops;
};

/* File operations that fail when told. */
static int sync_failures, write_failures;
static int good_syncs;              /* before those that fail */
static bool disk_full;              /* nothing can grow; what has its blocks can be written over */
static _Atomic int good_reads = -1; /* then one fails; -1: none does */
static _Atomic int unlinked;

/* Stops a worker where it opens a file of this name, until the test lets it go. */
static const char *_Atomic gate_name;
static sem_t gate_reached, gate_opened;

static int failing_sync(int fd)
{
	if (sync_failures > 0 && good_syncs-- > 0)
		return file_system.fdatasync(fd);
	return sync_failures > 0 ? (sync_failures--, -EIO) : file_system.fdatasync(fd);
}

static ssize_t failing_write(int fd, const struct iovec *parts, int count, off_t offset)
{
	struct stat status;

	if (disk_full && fstat(fd, &status) == 0 && offset >= status.st_size)
		return -ENOSPC;
	return write_failures > 0 ? (write_failures--, (ssize_t)-ENOSPC)
	                          : file_system.pwritev(fd, parts, count, offset);
}

static ssize_t failing_read(int fd, void *room, size_t len, off_t offset)
{
	return good_reads >= 0 && good_reads-- == 0 ? -EIO
	                                            : file_system.pread(fd, room, len, offset);
}

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

static int failing_space(const char *path, uint64_t *ret_free)
{
	*ret_free = 0;
	return disk_full ? 0 : file_system.space(path, ret_free);
}

static void on_entry(void *arg, struct spool_entry *entry)
{
	struct bench *bench = arg;

	assert_true(bench->entry_count < ENTRIES_MAX);
	bench->entries[bench->entry_count++] = entry;
}

static void on_alarm(void *arg, const char *text)
{
	struct bench *bench = arg;

	snprintf(bench->alarm, sizeof(bench->alarm), "%s", text);
}

static unsigned recovered;

static void on_recovered(void *arg)
{
	(void)arg;
	recovered++;
}

static char in_alarm[200];

static void on_in_alarm(const char *text)
{
	snprintf(in_alarm, sizeof(in_alarm), "%s", text);
}

static void open_in(struct bench *bench)
{
	const struct spool_in_settings settings = {
	        .path = bench->path,
	        .ops = &bench->ops,
	        .segment_size = 1 << 20,
	        .wake_fd = -1,
	        .on_alarm = on_in_alarm,
	};
	struct why why;

	if (spool_in_open(&settings, &bench->in, &why) < 0)
		fail_msg("%s", why.text);
}

static void reopen_in(struct bench *bench)
{
	spool_in_close(bench->in);
	open_in(bench);
}

static int try_open_out(struct bench *bench, struct why *why)
{
	static const struct spool_out_events events = {on_entry, on_alarm, on_recovered};
	const struct spool_out_settings settings = {
	        .path = bench->path,
	        .ops = &bench->ops,
	        .loop = bench->loop,
	        .jobs = bench->jobs,
	        .segment_size = 1 << 20,
	        .events = &events,
	        .arg = bench,
	};

	bench->entry_count = 0;
	int r = spool_out_open(&settings, &bench->out, why);
	if (r == 0)
		spool_out_follow(bench->out);
	return r;
}

static void open_out(struct bench *bench)
{
	struct why why;

	if (try_open_out(bench, &why) < 0)
		fail_msg("%s", why.text);
}

static void on_deadline(void *arg)
{
	(void)arg;
	fail_msg("what was waited for did not happen");
}

static void stop_loop(void *arg)
{
	loop_stop(arg);
}

/* Turns the loop for so long, whatever happens. */
static void turn_for(struct bench *bench, uint64_t ms)
{
	struct timer over;

	timer_init(&over, bench->loop, stop_loop, bench->loop);
	timer_start(&over, ms);
	loop_run(bench->loop);
}

/* Turns the loop until so much has happened. */
static void look(void *arg)
{
	struct bench *bench = arg;

	if (bench->out != NULL && bench->entry_count < bench->wanted_entries)
		spool_out_follow(bench->out);
	if (bench->done >= bench->wanted_done && bench->marked >= bench->wanted_marked &&
	        bench->entry_count >= bench->wanted_entries &&
	        (bench->out == NULL || !spool_out_is_busy(bench->out)))
		loop_stop(bench->loop);
	else
		timer_start(&bench->wait, 1);
}

static void turn(struct bench *bench, size_t done, size_t entries, size_t marked)
{
	bench->wanted_done = done;
	bench->wanted_entries = entries;
	bench->wanted_marked = marked;
	timer_init(&bench->wait, bench->loop, look, bench);
	timer_init(&bench->deadline, bench->loop, on_deadline, bench);
	timer_start(&bench->wait, 0);
	timer_start(&bench->deadline, DEADLINE_MS);
	loop_run(bench->loop);
	timer_stop(&bench->deadline);
}

static int set_up(void **state)
{
	struct bench *bench = calloc(1, sizeof(*bench));

	assert_non_null(bench);
	snprintf(bench->path, sizeof(bench->path), "/tmp/pn-unit-XXXXXX");
	assert_non_null(mkdtemp(bench->path));
	bench->ops = file_system;
	bench->ops.fdatasync = failing_sync;
	bench->ops.pwritev = failing_write;
	bench->ops.space = failing_space;
	bench->ops.pread = failing_read;
	bench->ops.open = gated_open;
	bench->ops.unlink = counted_unlink;
	sem_init(&gate_reached, 0, 0);
	sem_init(&gate_opened, 0, 0);
	gate_name = NULL;
	good_reads = -1;
	recovered = 0;
	good_syncs = 0;
	sync_failures = write_failures = 0;
	disk_full = false;
	assert_int_equal(loop_new(&bench->loop), 0);
	assert_int_equal(jobs_new(2, 100, &bench->jobs), 0);
	char folder[100];
	snprintf(folder, sizeof(folder), "%s/in", bench->path);
	assert_int_equal(mkdir(folder, 0700), 0);
	snprintf(folder, sizeof(folder), "%s/out", bench->path);
	assert_int_equal(mkdir(folder, 0700), 0);
	open_in(bench);
	*state = bench;
	return 0;
}

static void close_out(struct bench *bench)
{
	if (bench->out != NULL)
		spool_out_close(bench->out);
	bench->out = NULL;
}

static int tear_down(void **state)
{
	struct bench *bench = *state;

	if (bench->in != NULL)
		spool_in_close(bench->in);
	close_out(bench);
	jobs_free(bench->jobs);
	loop_free(bench->loop);
	snprintf(bench->command, sizeof(bench->command), "%s", bench->path);
	pid_t pid = fork();
	if (pid == 0)
		execlp("rm", "rm", "-rf", bench->command, (char *)NULL);
	free(bench);
	return 0;
}

struct sending {
	struct bench *bench;
	size_t number;
};
static struct sending sendings[ENTRIES_MAX];

static void on_ready(void *arg)
{
	struct sending *sending = arg;

	loop_stop(sending->bench->loop);
}

static void on_done(void *arg, int result)
{
	struct sending *sending = arg;

	sending->bench->results[sending->number] = result;
	sending->bench->done++;
}

/* Gives a message with a body of so many octets to the journal. */
static struct message_id give(struct bench *bench, size_t number, size_t body_len)
{
	static const struct spool_tx_events events = {on_ready, on_done};
	struct message_id id = id_new();
	struct spool_tx *tx;
	char envelope[32];

	sendings[number] = (struct sending){bench, number};
	assert_int_equal(
	        spool_tx_new(bench->in, bench->loop, id, body_len, &events, &sendings[number], &tx),
	        0);
	char piece[10000];
	memset(piece, 'a' + (int)(number % 26), sizeof(piece));
	for (size_t at = 0; at < body_len; at += sizeof(piece)) {
		int r = spool_tx_write(tx, slice_of(piece, MIN_OF(sizeof(piece), body_len - at)));
		assert_true(r >= 0);
		if (r == SPOOL_WAIT)
			loop_run(bench->loop); /* until on_ready */
	}
	snprintf(envelope, sizeof(envelope), "envelope %zu", number);
	const struct spool_commit commit = {
	        .account = number,
	        .accepted_us = clock_wall_us(),
	        .recipients = 2,
	        .envelope = slice_str(envelope),
	        .header = SLICE("Subject: x\r\n\r\n"),
	};
	spool_tx_commit(tx, &commit);
	return id;
}

static void expect_body(struct bench *bench, const struct spool_entry *entry, size_t body_len)
{
	struct spool_message message;
	char room[4096], octet = (char)('a' + (int)(entry->account % 26));
	size_t got = 0;
	ssize_t len;

	assert_int_equal(spool_message_load(bench->out, entry, &message), 0);
	assert_int_equal(message.stored.body_size, body_len);
	if (message.body_fd < 0) {
		assert_int_equal(buf_len(&message.body), body_len);
		for (size_t i = 0; i < body_len; i++)
			assert_int_equal(buf_slice(&message.body).ptr[i], octet);
	} else {
		while ((len = spool_message_read(&message, room, sizeof(room))) > 0) {
			assert_int_equal(room[0], octet);
			got += (size_t)len;
		}
		assert_int_equal(len, 0);
		assert_int_equal(got, body_len);
	}
	spool_message_done(&message);
}

static void on_marked(void *arg, int result)
{
	struct bench *bench = arg;

	assert_int_equal(result, 0);
	bench->marked++;
}

static void settle(struct bench *bench, struct spool_entry *entry, uint32_t recipient)
{
	const struct stored_result result = {recipient, OUTCOME_DELIVERED};

	assert_int_equal(spool_settle(bench->out, entry, &result, 1, on_marked, bench), 0);
}

/* On a disk that is full the first answer may be a failure; the mark is tried again. */
static void settle_somehow(struct bench *bench, struct spool_entry *entry, uint32_t recipient)
{
	const struct stored_result result = {recipient, OUTCOME_DELIVERED};

	assert_int_equal(spool_settle(bench->out, entry, &result, 1, NULL, NULL), 0);
}

static void messages_come_out_as_they_went_in(void **state)
{
	struct bench *bench = *state;

	for (size_t i = 0; i < 10; i++)
		give(bench, i, i * 100);
	give(bench, 10, 700000); /* in a file of its own */
	turn(bench, 11, 0, 0);
	for (size_t i = 0; i < 11; i++)
		assert_int_equal(bench->results[i], 0);
	open_out(bench);
	turn(bench, 11, 11, 0);
	for (size_t i = 0; i < 11; i++) {
		size_t number = (size_t)bench->entries[i]->account;
		expect_body(bench, bench->entries[i], number == 10 ? 700000 : number * 100);
	}
	close_out(bench);
}

static void marks_survive_a_restart(void **state)
{
	struct bench *bench = *state;

	give(bench, 0, 10);
	give(bench, 1, 10);
	turn(bench, 2, 0, 0);
	open_out(bench);
	turn(bench, 2, 2, 0);
	uint64_t whole = bench->entries[0]->account;
	settle(bench, bench->entries[0], 0);
	settle(bench, bench->entries[0], 1);
	settle(bench, bench->entries[1], 1);
	turn(bench, 2, 2, 3);
	close_out(bench);
	open_out(bench);
	turn(bench, 2, 1, 3);
	assert_int_equal(bench->entry_count, 1);
	assert_true(bench->entries[0]->account != whole);
	assert_int_equal(bench->entries[0]->unsettled, 1);
	assert_false(spool_entry_is_settled(bench->entries[0], 0));
	assert_true(spool_entry_is_settled(bench->entries[0], 1));
	close_out(bench);
}

static void deferrals_survive_a_restart(void **state)
{
	struct bench *bench = *state;

	give(bench, 0, 10);
	turn(bench, 1, 0, 0);
	open_out(bench);
	turn(bench, 1, 1, 0);
	bench->entries[0]->attempt = 3;
	bench->entries[0]->next_us = 123456789;
	bench->entries[0]->age_ms = 777;
	spool_defer(bench->out, bench->entries[0]);
	turn(bench, 1, 1, 0);
	close_out(bench);
	open_out(bench);
	turn(bench, 1, 1, 0);
	assert_int_equal(bench->entries[0]->attempt, 3);
	assert_true(bench->entries[0]->next_us == 123456789);
	assert_int_equal(bench->entries[0]->age_ms, 777);
	close_out(bench);
}

static void a_bounce_settles_and_is_a_message(void **state)
{
	struct bench *bench = *state;
	const struct stored_result failed[] = {{0, OUTCOME_FAILED}, {1, OUTCOME_FAILED}};
	const struct spool_dsn dsn = {
	        .account = 5,
	        .envelope = SLICE("bounce"),
	        .header = SLICE("Subject: sorry\r\n\r\n"),
	        .body = SLICE("ffff"),
	};

	give(bench, 0, 10);
	turn(bench, 1, 0, 0);
	open_out(bench);
	turn(bench, 1, 1, 0);
	assert_int_equal(
	        spool_bounce(bench->out, bench->entries[0], failed, 2, &dsn, on_marked, bench), 0);
	turn(bench, 1, 2, 1);
	assert_true(bench->entries[1]->is_dsn);
	close_out(bench);
	open_out(bench);
	turn(bench, 1, 1, 1);
	assert_int_equal(bench->entry_count, 1);
	assert_true(bench->entries[0]->is_dsn);
	expect_body(bench, bench->entries[0], 4);
	close_out(bench);
}

/* A sync that fails may have written the record nevertheless; then it is written again. */
static void a_bounce_written_twice_is_sent_once(void **state)
{
	struct bench *bench = *state;
	const struct stored_result failed[] = {{0, OUTCOME_FAILED}, {1, OUTCOME_FAILED}};
	const struct spool_dsn dsn = {.account = 5, .header = SLICE("Subject: sorry\r\n\r\n")};

	give(bench, 0, 10);
	give(bench, 1, 10);
	turn(bench, 2, 0, 0);
	open_out(bench);
	turn(bench, 2, 2, 0);
	struct spool_entry *kept = bench->entries[0];
	settle(bench, kept, 0); /* begins a segment */
	turn(bench, 2, 2, 1);
	sync_failures = 1;
	assert_int_equal(
	        spool_bounce(bench->out, bench->entries[1], failed, 2, &dsn, NULL, NULL), 0);
	turn(bench, 2, 3, 1);
	assert_int_equal(sync_failures, 0);
	assert_true(bench->entries[2]->is_dsn);
	settle(bench, bench->entries[2], 0);
	turn(bench, 2, 3, 2);
	close_out(bench);
	open_out(bench);
	turn(bench, 2, 1, 2);
	assert_int_equal(bench->entry_count, 1);
	assert_false(bench->entries[0]->is_dsn);
	close_out(bench);
}

static void a_failed_sync_is_not_a_promise(void **state)
{
	struct bench *bench = *state;

	sync_failures = 1;
	give(bench, 0, 10);
	turn(bench, 1, 0, 0);
	assert_int_equal(bench->results[0], -EIO);
	give(bench, 1, 10);
	turn(bench, 2, 0, 0);
	assert_int_equal(bench->results[1], 0);
	open_out(bench);
	turn(bench, 2, 1, 0);
	assert_int_equal(bench->entry_count, 1);
	assert_int_equal(bench->entries[0]->account, 1);
	close_out(bench);
}

/* The worker that writes a body fails while the loop goes on giving it more. */
static void a_failed_body_is_not_a_promise(void **state)
{
	struct bench *bench = *state;

	for (size_t i = 0; i < 200; i++) {
		write_failures = 1;
		give(bench, 0, 900000);
		turn(bench, i + 1, 0, 0);
		assert_int_equal(bench->results[0], -ENOSPC);
	}
}

static void a_full_disk_refuses_and_recovers(void **state)
{
	struct bench *bench = *state;

	write_failures = 1;
	give(bench, 0, 10);
	turn(bench, 1, 0, 0);
	assert_int_equal(bench->results[0], -ENOSPC);
	/* Until a probe has been written nothing is taken. */
	uint64_t until = clock_mono_ms() + DEADLINE_MS;
	while (spool_in_has_room(bench->in, 1 << 20) != 0 && clock_mono_ms() < until)
		usleep(10000);
	give(bench, 1, 10);
	turn(bench, 2, 0, 0);
	assert_int_equal(bench->results[1], 0);
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
	static const struct spool_tx_events events = {on_ready, on_done};
	struct spool_tx *tx;

	bench->ops.space = told_space;
	space = 2000 + 500;
	assert_int_equal(spool_in_has_room(bench->in, 1000), 0);
	assert_int_equal(spool_in_has_room(bench->in, 1251), -ENOSPC);
	assert_int_equal(
	        spool_tx_new(bench->in, bench->loop, id_new(), 501, &events, bench, &tx), 0);
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

	for (size_t i = 0; i < 3; i++)
		give(bench, i, 10);
	turn(bench, 3, 0, 0);
	open_out(bench);
	turn(bench, 3, 3, 0);
	disk_full = true;
	struct spool_entry *all[3];
	memcpy(all, bench->entries, sizeof(all));
	/* The first finds the disk full, and is told again when the spare has taken it. */
	for (size_t i = 0; i < 2; i++) {
		settle_somehow(bench, all[i], 0);
		settle_somehow(bench, all[i], 1);
	}
	turn(bench, 3, 3, 0);
	close_out(bench);
	/* Also the start needs no room... */
	bench->alarm[0] = '\0';
	disk_full = false;
	open_out(bench);
	turn(bench, 3, 1, 0);
	assert_int_equal(bench->entry_count, 1);
	assert_string_equal(bench->alarm, "");
	close_out(bench);
	/* ...while there is a spare. */
	disk_full = true;
	open_out(bench);
	turn(bench, 3, 1, 0);
	close_out(bench);
}

/* The services start on a full disk, as often as it takes, and go on when there is room. */
static void starts_on_a_full_disk(void **state)
{
	struct bench *bench = *state;

	give(bench, 0, 10);
	turn(bench, 1, 0, 0);
	open_out(bench);
	turn(bench, 1, 1, 0);
	close_out(bench);
	disk_full = true;
	for (int i = 0; i < 3; i++) {
		reopen_in(bench);
		assert_int_equal(spool_in_has_room(bench->in, 1 << 20), -ENOSPC);
		open_out(bench);
		turn(bench, 1, 1, 0);
		close_out(bench);
	}
	/* Marks are written then: the spare is still there. */
	open_out(bench);
	turn(bench, 1, 1, 0);
	settle_somehow(bench, bench->entries[0], 0);
	turn(bench, 1, 1, 0);
	close_out(bench);
	disk_full = false;
	uint64_t until = clock_mono_ms() + DEADLINE_MS;
	while (spool_in_has_room(bench->in, 1 << 20) != 0 && clock_mono_ms() < until)
		usleep(10000);
	give(bench, 1, 10);
	turn(bench, 2, 0, 0);
	assert_int_equal(bench->results[1], 0);
	open_out(bench);
	turn(bench, 2, 2, 0);
	assert_int_equal(bench->entries[0]->unsettled + bench->entries[1]->unsettled, 3);
	close_out(bench);
}

/* Whatever is answered 250 can be delivered. */
static void what_could_not_be_read_back_is_refused(void **state)
{
	static const struct spool_tx_events events = {on_ready, on_done};
	struct bench *bench = *state;
	struct spool_tx *tx;
	char *header = calloc(1, (1 << 20) + 1);

	for (size_t i = 0; i < 2; i++) {
		const struct spool_commit commit = {
		        .recipients = 1,
		        .envelope = SLICE("envelope"),
		        .header = slice_of(header, (1 << 20) + i),
		};
		sendings[i] = (struct sending){bench, i};
		assert_int_equal(spool_tx_new(bench->in, bench->loop, id_new(), 10, &events,
		                         &sendings[i], &tx),
		        0);
		spool_tx_commit(tx, &commit);
	}
	turn(bench, 2, 0, 0);
	assert_int_equal(bench->results[0], 0);
	assert_int_equal(bench->results[1], -ENOBUFS);
	open_out(bench);
	turn(bench, 2, 1, 0);
	assert_string_equal(bench->alarm, "");
	close_out(bench);
	free(header);
}

/* However far the watermark moves while `relay` does not look, it skips nothing. */
static void a_watermark_that_runs_ahead_skips_nothing(void **state)
{
	struct bench *bench = *state;
	struct watermark watermark;
	char path[100];
	uint32_t segment;
	uint64_t end;
	bool fresh;

	for (size_t i = 0; i < 15; i++) { /* five to a segment */
		give(bench, i, 250000);
		turn(bench, i + 1, 0, 0);
	}
	spool_in_close(bench->in);
	bench->in = NULL;
	snprintf(path, sizeof(path), "%s/in", bench->path);
	assert_int_equal(watermark_lock(path, &watermark, &fresh, NULL), 0);
	watermark_read(&watermark, &segment, &end);
	assert_int_equal(segment, 3);
	/* What `relay` may have seen before the second segment was published. */
	watermark_publish(&watermark, 1, SEGMENT_HEADER_SIZE);
	snprintf(path, sizeof(path), "%s/in/00000001.seg", bench->path);
	assert_int_equal(unlink(path), 0);
	open_out(bench);
	turn(bench, 15, 0, 0);
	assert_int_equal(bench->entry_count, 0);
	watermark_publish(&watermark, segment, end);
	turn(bench, 15, 10, 0);
	for (size_t i = 0; i < 10; i++)
		assert_int_equal(bench->entries[i]->account, 5 + i);
	close_out(bench);
	watermark_close(&watermark);
}

/* Without it nothing new is read, so somebody must know. */
static void a_watermark_that_cannot_be_opened_is_told(void **state)
{
	struct bench *bench = *state;
	char path[100];

	give(bench, 0, 10);
	turn(bench, 1, 0, 0);
	snprintf(path, sizeof(path), "%s/in/lock", bench->path);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink("lock", path), 0);
	open_out(bench);
	turn(bench, 1, 0, 0);
	assert_non_null(strstr(bench->alarm, "in/ cannot be read"));
	close_out(bench);
}

/* A process that must end does not wait for a disk that is gone. */
static void marks_that_cannot_be_written_are_given_up(void **state)
{
	struct bench *bench = *state;

	give(bench, 0, 10);
	turn(bench, 1, 0, 0);
	open_out(bench);
	turn(bench, 1, 1, 0);
	write_failures = INT_MAX;
	settle_somehow(bench, bench->entries[0], 0);
	turn_for(bench, 200);
	assert_true(spool_out_is_busy(bench->out));
	spool_out_give_up(bench->out);
	assert_false(spool_out_is_busy(bench->out));
	close_out(bench);
	write_failures = 0;
	open_out(bench);
	turn(bench, 1, 1, 0);
	assert_int_equal(bench->entries[0]->unsettled, 2);
	close_out(bench);
}

/* The newest segment of in/. */
static int open_segment(struct bench *bench, int flags)
{
	char path[100];

	for (unsigned number = 20; number > 0; number--) {
		snprintf(path, sizeof(path), "%s/in/%08u.seg", bench->path, number);
		int fd = open(path, flags);
		if (fd >= 0)
			return fd;
	}
	fail_msg("no segment");
	return -1;
}

static void a_torn_tail_costs_nothing_before_it(void **state)
{
	struct bench *bench = *state;

	for (size_t i = 0; i < 5; i++) {
		give(bench, i, 1000);
		turn(bench, i + 1, 0, 0);
	}
	spool_in_close(bench->in);
	bench->in = NULL;
	/* As after a power cut: another boot's watermark counts for nothing, the end is garbage. */
	char path[100];
	snprintf(path, sizeof(path), "%s/in/lock", bench->path);
	assert_int_equal(unlink(path), 0);
	int fd = open_segment(bench, O_WRONLY);
	struct stat status;
	assert_int_equal(fstat(fd, &status), 0);
	assert_int_equal(pwrite(fd,
	                         "garbage garbage garbage garbage garbage garbage garbage garbage "
	                         "garbage garbage",
	                         80, status.st_size),
	        80);
	close(fd);
	open_in(bench);
	give(bench, 5, 1000);
	turn(bench, 6, 0, 0);
	open_out(bench);
	turn(bench, 6, 6, 0);
	assert_int_equal(bench->entry_count, 6);
	close_out(bench);
}

static void a_damaged_record_is_told_and_passed(void **state)
{
	struct bench *bench = *state;

	for (size_t i = 0; i < 3; i++) {
		give(bench, i, 1000);
		turn(bench, i + 1, 0, 0);
	}
	int fd = open_segment(bench, O_RDWR);
	/* In the envelope of the second record. */
	char octets[4096];
	ssize_t len = pread(fd, octets, sizeof(octets), 0);
	const char *at = memmem(octets, (size_t)len, "envelope 1", 10);
	assert_non_null(at);
	assert_int_equal(pwrite(fd, "X", 1, at - octets), 1);
	close(fd);
	open_out(bench);
	turn(bench, 3, 2, 0);
	assert_int_equal(bench->entry_count, 2);
	assert_true(bench->alarm[0] != '\0');
	close_out(bench);
}

static bool exists(struct bench *bench, const char *name)
{
	char path[200];

	snprintf(path, sizeof(path), "%s/%s", bench->path, name);
	return access(path, F_OK) == 0;
}

/*
 * What got no 250 is never delivered: the header that says so stays, and so little of
 * its segment, as long as the segment that it is about.
 */
static void what_was_refused_stays_refused(void **state)
{
	struct bench *bench = *state;
	struct stat status;
	char path[100];

	give(bench, 0, 10);
	turn(bench, 1, 0, 0);
	sync_failures = 1;
	give(bench, 1, 10); /* its record stands behind the first one */
	turn(bench, 2, 0, 0);
	assert_int_equal(bench->results[1], -EIO);
	give(bench, 2, 1000); /* in the next segment */
	turn(bench, 3, 0, 0);
	reopen_in(bench);
	open_out(bench);
	turn(bench, 3, 2, 0);
	struct spool_entry *second = bench->entries[bench->entries[0]->account == 2 ? 0 : 1];
	settle(bench, second, 0);
	settle(bench, second, 1);
	turn(bench, 3, 2, 2);
	snprintf(path, sizeof(path), "%s/in/00000002.seg", bench->path);
	assert_int_equal(stat(path, &status), 0);
	assert_int_equal(status.st_size, SEGMENT_HEADER_SIZE);
	close_out(bench);
	for (int i = 0; i < 2; i++) {
		reopen_in(bench);
		open_out(bench);
		turn(bench, 3, 1, 0);
		assert_int_equal(bench->entry_count, 1);
		assert_int_equal(bench->entries[0]->account, 0);
		assert_string_equal(bench->alarm, "");
		close_out(bench);
	}
	/* With the first message all of them go. */
	open_out(bench);
	turn(bench, 3, 1, 0);
	size_t marked = bench->marked;
	settle(bench, bench->entries[0], 0);
	settle(bench, bench->entries[0], 1);
	turn(bench, 3, 1, marked + 2);
	for (int i = 1; i <= 4; i++) {
		char name[40];
		snprintf(name, sizeof(name), "in/%08d.seg", i);
		assert_false(exists(bench, name));
	}
	close_out(bench);
}

/* Delivery can be held while results cannot be recorded, and goes on by itself. */
static void failing_marks_are_told_and_recover(void **state)
{
	struct bench *bench = *state;

	give(bench, 0, 10);
	turn(bench, 1, 0, 0);
	open_out(bench);
	turn(bench, 1, 1, 0);
	assert_false(spool_out_is_failing(bench->out));
	write_failures = 3; /* also the segment that would come next */
	settle_somehow(bench, bench->entries[0], 0);
	uint64_t until = clock_mono_ms() + DEADLINE_MS;
	while (!spool_out_is_failing(bench->out) && clock_mono_ms() < until) {
		turn_for(bench, 1);
	}
	assert_non_null(strstr(bench->alarm, "delivery waits"));
	turn(bench, 1, 1, 0);
	assert_false(spool_out_is_failing(bench->out));
	assert_int_equal(recovered, 1);
	close_out(bench);
}

/* Bounces a message with a body of so many octets, and has the bounce delivered. */
static void bounce_and_deliver(struct bench *bench, struct spool_entry *entry, size_t body_len)
{
	const struct stored_result failed[] = {{0, OUTCOME_FAILED}, {1, OUTCOME_FAILED}};
	const struct stored_result delivered = {0, OUTCOME_DELIVERED};
	size_t before = bench->entry_count;
	char *body = calloc(1, body_len);
	const struct spool_dsn dsn = {
	        .account = 5,
	        .envelope = SLICE("bounce"),
	        .header = SLICE("Subject: sorry\r\n\r\n"),
	        .body = slice_of(body, body_len),
	};

	assert_non_null(body);
	assert_int_equal(spool_bounce(bench->out, entry, failed, 2, &dsn, NULL, NULL), 0);
	free(body);
	turn(bench, bench->done, before + 1, 0);
	assert_int_equal(
	        spool_settle(bench->out, bench->entries[before], &delivered, 1, NULL, NULL), 0);
	turn(bench, bench->done, before + 1, 0);
}

/* A bounce whose sync failed is written again; delivered once is enough. */
static void a_bounce_that_was_written_twice_is_one(void **state)
{
	struct bench *bench = *state;

	give(bench, 0, 10);
	give(bench, 1, 10);
	turn(bench, 2, 0, 0);
	open_out(bench);
	turn(bench, 2, 2, 0);
	sync_failures = 1;
	good_syncs = 1; /* of the segment's header */
	bounce_and_deliver(bench, bench->entries[0], 10);
	assert_true(exists(bench, "out/00000002.seg"));
	/* The second segment is full then, and what is about it can go. */
	bounce_and_deliver(bench, bench->entries[1], 1 << 20);
	reopen_in(bench);
	give(bench, 2, 10);
	turn(bench, 3, 5, 0);
	settle(bench, bench->entries[4], 0);
	turn(bench, 3, 5, 1);
	assert_false(exists(bench, "out/00000002.seg"));
	close_out(bench);
	open_out(bench);
	turn(bench, 3, 1, 0);
	assert_int_equal(bench->entry_count, 1);
	assert_int_equal(bench->entries[0]->account, 2);
	close_out(bench);
}

/* Changes one octet of a segment of in/. */
static void flip(struct bench *bench, unsigned number, off_t at)
{
	char path[100], octet;

	snprintf(path, sizeof(path), "%s/in/%08u.seg", bench->path, number);
	int fd = open(path, O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &octet, 1, at), 1);
	octet ^= 1;
	assert_int_equal(pwrite(fd, &octet, 1, at), 1);
	close(fd);
}

/* Twelve messages of a process that is gone, the last one alone in the second segment. */
static void give_two_segments(struct bench *bench)
{
	for (size_t i = 0; i < 12; i++) {
		give(bench, i, 100000);
		turn(bench, i + 1, 0, 0);
	}
	spool_in_close(bench->in);
	bench->in = NULL;
	assert_true(exists(bench, "in/00000002.seg"));
	assert_false(exists(bench, "in/00000003.seg"));
}

/* The messages behind it do not depend on it. */
static void a_damaged_segment_header_costs_no_message(void **state)
{
	struct bench *bench = *state;

	for (unsigned number = 1; number <= 2; number++) {
		give_two_segments(bench);
		flip(bench, number, 20);
		open_in(bench);
		open_out(bench);
		turn(bench, 12, 12, 0);
		for (size_t i = 0; i < 12; i++)
			expect_body(bench, bench->entries[i], 100000);
		assert_non_null(strstr(bench->alarm, "damaged"));
		close_out(bench);
		assert_int_equal(tear_down(state), 0);
		assert_int_equal(set_up(state), 0);
		bench = *state;
	}
}

/* What cannot be read is kept for an operator, and takes nothing else along. */
static void a_segment_that_tells_nothing_is_set_aside(void **state)
{
	struct bench *bench = *state;

	give_two_segments(bench);
	flip(bench, 2, 20);
	flip(bench, 2, SEGMENT_HEADER_SIZE + 20);
	open_in(bench);
	assert_non_null(strstr(in_alarm, "in/00000002.seg is damaged"));
	assert_true(exists(bench, "in/damaged-00000002.seg"));
	give(bench, 12, 10);
	turn(bench, 13, 0, 0);
	open_out(bench);
	turn(bench, 13, 12, 0);
	for (size_t i = 0; i < 11; i++)
		expect_body(bench, bench->entries[i], 100000);
	expect_body(bench, bench->entries[11], 10);
	close_out(bench);
}

/* Bodies that could not be removed yet go later, also after a restart. */
static void a_body_is_removed_in_the_end(void **state)
{
	struct bench *bench = *state;
	char name[60], id[ID_TEXT + 1];

	for (int restart = 0; restart < 2; restart++) {
		size_t n = bench->done;
		struct message_id message = give(bench, n, 700000);
		turn(bench, n + 1, 0, 0);
		snprintf(name, sizeof(name), "in/00000001-%s.body", id_format(&message, id));
		assert_true(exists(bench, name));
		open_out(bench);
		turn(bench, n + 1, 1, bench->marked);
		settle(bench, bench->entries[0], 0);
		turn(bench, n + 1, 1, bench->marked + 1);
		settle(bench, bench->entries[0], 1);
		sync_failures = INT_MAX;
		turn_for(bench, 300);
		sync_failures = 0;
		assert_true(exists(bench, name));
		if (restart == 1) {
			close_out(bench);
			open_out(bench);
		}
		turn(bench, n + 1, bench->entry_count, 0);
		/* Anything that happens makes it consider what waits. */
		give(bench, n + 1, 10);
		turn(bench, n + 2, bench->entry_count + 1, 0);
		assert_false(exists(bench, name));
		settle(bench, bench->entries[bench->entry_count - 1], 0);
		settle(bench, bench->entries[bench->entry_count - 1], 1);
		turn(bench, n + 2, bench->entry_count, bench->marked + 2);
		close_out(bench);
	}
}

/* What was committed behind damage is found, also by a start that trusts no watermark. */
static void damage_costs_only_what_is_damaged(void **state)
{
	struct bench *bench = *state;
	char path[100], octets[8192];

	/* Those that wait while the first is synced are one batch. */
	for (size_t i = 0; i < 4; i++)
		give(bench, i, 300);
	turn(bench, 4, 0, 0);
	give(bench, 4, 300);
	turn(bench, 5, 0, 0);
	spool_in_close(bench->in);
	bench->in = NULL;
	snprintf(path, sizeof(path), "%s/in/lock", bench->path);
	assert_int_equal(unlink(path), 0);
	int fd = open_segment(bench, O_RDWR);
	ssize_t len = pread(fd, octets, sizeof(octets), 0);
	const char *at = memmem(octets, (size_t)len, "envelope 1", 10);
	assert_non_null(at);
	for (off_t i = 0; i <= 110; i += 8) /* its header too */
		assert_int_equal(pwrite(fd, "X", 1, at - octets - i), 1);
	close(fd);
	open_in(bench);
	open_out(bench);
	turn(bench, 5, 4, 0);
	assert_int_equal(bench->entry_count, 4);
	assert_true(bench->alarm[0] != '\0');
	close_out(bench);
}

static void dead_segments_are_removed(void **state)
{
	struct bench *bench = *state;
	char path[100];

	for (size_t i = 0; i < 30; i++) {
		give(bench, i, 100000);
		turn(bench, i + 1, 0, 0); /* a batch each: a batch is never split */
	}
	open_out(bench);
	turn(bench, 30, 30, 0);
	struct spool_entry *all[30];
	memcpy(all, bench->entries, sizeof(all));
	for (size_t i = 0; i < 30; i++) {
		settle(bench, all[i], 0);
		settle(bench, all[i], 1);
	}
	turn(bench, 30, 30, 60);
	snprintf(path, sizeof(path), "%s/in/00000001.seg", bench->path);
	assert_int_equal(access(path, F_OK), -1);
	close_out(bench);
}

static void make_file(struct bench *bench, const char *name)
{
	char path[200];

	snprintf(path, sizeof(path), "%s/%s", bench->path, name);
	int fd = open(path, O_WRONLY | O_CREAT, 0600);
	assert_true(fd >= 0);
	close(fd);
}

/* A segment whose last records have been read, but are not in the index yet, must stay. */
static void what_is_being_read_is_not_removed(void **state)
{
	struct bench *bench = *state;

	give(bench, 0, 200000);
	turn(bench, 1, 0, 0);
	open_out(bench);
	turn(bench, 1, 1, 0);
	for (size_t i = 1; i < 14; i++) {
		give(bench, i, 200000);
		turn(bench, i + 1, 1, 0);
	}
	assert_true(exists(bench, "in/00000003.seg"));
	unlinked = 0;
	gate_name = "in/00000003.seg"; /* its header is read when the second segment is begun */
	spool_out_follow(bench->out);
	sem_wait(&gate_reached);
	settle(bench, bench->entries[0], 0);
	settle(bench, bench->entries[0], 1);
	turn_for(bench, 200);
	sem_post(&gate_opened);
	assert_int_equal(bench->marked, 2);
	assert_int_equal(unlinked, 0);
	turn(bench, 14, 14, 2);
	for (size_t i = 1; i < 14; i++)
		expect_body(bench, bench->entries[i], 200000);
	close_out(bench);
}

/* Whichever read fails: what can be read later is not lost, nor taken for damaged. */
static void a_failed_read_is_repeated(void **state)
{
	struct bench *bench = *state;
	bool failed = true;
	struct why why;

	give(bench, 0, 10);
	give(bench, 1, 10);
	turn(bench, 2, 0, 0);
	for (int reads = 0; failed; reads++) {
		assert_true(reads < 1000);
		good_reads = reads;
		if (try_open_out(bench, &why) == 0) {
			turn(bench, 2, 2, 0);
			failed = good_reads < 0;
			good_reads = -1;
			expect_body(bench, bench->entries[0], 10);
			expect_body(bench, bench->entries[1], 10);
			assert_null(strstr(bench->alarm, "damaged"));
			close_out(bench);
		}
		bench->out = NULL;
	}
}

static void segments_without_messages_are_removed(void **state)
{
	struct bench *bench = *state;

	for (int i = 0; i < 4; i++)
		reopen_in(bench);
	give(bench, 0, 10);
	turn(bench, 1, 0, 0);
	reopen_in(bench);
	open_out(bench);
	turn(bench, 1, 1, 0);
	settle(bench, bench->entries[0], 0);
	settle(bench, bench->entries[0], 1);
	turn(bench, 1, 1, 2);
	for (int i = 1; i < 6; i++) {
		char name[40];
		snprintf(name, sizeof(name), "in/%08d.seg", i);
		assert_false(exists(bench, name));
	}
	assert_true(exists(bench, "in/00000006.seg"));
	close_out(bench);
}

/* Body files that a killed `submit` left without their record go, when it has come back. */
static void bodies_without_a_record_are_removed(void **state)
{
	struct bench *bench = *state;

	give(bench, 0, 700000);
	turn(bench, 1, 0, 0);
	open_out(bench);
	turn(bench, 1, 1, 0);
	make_file(bench, "in/00000001-aaaaaaaaaaaaaaaa.body");
	make_file(bench, "in/00000002-bbbbbbbbbbbbbbbb.body");
	turn(bench, 1, 1, 0);
	assert_true(exists(bench, "in/00000001-aaaaaaaaaaaaaaaa.body"));
	reopen_in(bench);
	give(bench, 1, 10);
	turn(bench, 2, 2, 0);
	assert_false(exists(bench, "in/00000001-aaaaaaaaaaaaaaaa.body"));
	assert_true(exists(bench, "in/00000002-bbbbbbbbbbbbbbbb.body"));
	expect_body(bench, bench->entries[0], 700000);
	close_out(bench);
}

int main(void)
{
#define SPOOL_TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
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

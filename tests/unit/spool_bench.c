/* SPDX-License-Identifier: ISC */
/* See spool_bench.h. */
#include "tests/unit/spool_bench.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gateway/base/clock.h"

/* What is not given it as its argument finds it here. */
static struct bench *the_bench;

static int failing_sync(int fd)
{
	struct bench *bench = the_bench;

	if (bench->bad_syncs <= 0 || bench->good_syncs-- > 0)
		return file_system.fdatasync(fd);
	bench->bad_syncs--;
	return -EIO;
}

static void make_folder(const char *path)
{
	assert_int_equal(mkdir(path, 0700), 0);
}

int bench_set_up_on(void **state, const struct file_ops *ops)
{
	struct bench *bench = calloc(1, sizeof(*bench));

	assert_non_null(bench);
	the_bench = bench;
	snprintf(bench->path, sizeof(bench->path), "/tmp/pn-unit-XXXXXX");
	assert_non_null(mkdtemp(bench->path));
	make_folder(bench_file(bench, "in"));
	make_folder(bench_file(bench, "out"));
	bench->ops = *ops;
	bench->ops.fdatasync = failing_sync;
	assert_int_equal(loop_new(&bench->loop), 0);
	assert_int_equal(jobs_new(2, 100, &bench->jobs), 0);
	bench_open_in(bench);
	*state = bench;
	return 0;
}

int bench_set_up(void **state)
{
	return bench_set_up_on(state, &file_system);
}

int bench_tear_down(void **state)
{
	struct bench *bench = *state;

	bench_close_out(bench);
	bench_close_in(bench);
	timer_stop(&bench->look); /* after a wait in vain it would look for ever */
	timer_stop(&bench->patience);
	jobs_free(bench->jobs);
	loop_free(bench->loop);
	pid_t pid = fork();
	if (pid == 0) {
		execlp("rm", "rm", "-rf", bench->path, (char *)NULL);
		_exit(127);
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	free(bench);
	return 0;
}

/* ---- files ---- */

const char *bench_file(struct bench *bench, const char *name)
{
	snprintf(bench->file, sizeof(bench->file), "%s/%s", bench->path, name);
	return bench->file;
}

bool bench_has(struct bench *bench, const char *name)
{
	return access(bench_file(bench, name), F_OK) == 0;
}

bool bench_has_segment(struct bench *bench, unsigned number)
{
	char name[40];

	snprintf(name, sizeof(name), "in/%08u.seg", number);
	return bench_has(bench, name);
}

/* ---- opening, closing, waiting ---- */

static void on_in_alarm(const char *text)
{
	snprintf(the_bench->in_alarm, sizeof(the_bench->in_alarm), "%s", text);
}

void bench_open_in(struct bench *bench)
{
	const struct spool_in_settings settings = {
	        .path = bench->path,
	        .ops = &bench->ops,
	        .segment_size = BENCH_SEGMENT_SIZE,
	        .wake_fd = -1,
	        .on_alarm = on_in_alarm,
	};
	struct why why;

	if (spool_in_open(&settings, &bench->in, &why) < 0)
		fail_msg("%s", why.text);
}

void bench_close_in(struct bench *bench)
{
	if (bench->in != NULL)
		spool_in_close(bench->in);
	bench->in = NULL;
}

void bench_reopen_in(struct bench *bench)
{
	bench_close_in(bench);
	bench_open_in(bench);
}

static void on_entry(void *arg, struct spool_entry *entry)
{
	struct bench *bench = arg;

	assert_true(bench->entry_count < BENCH_ENTRIES_MAX);
	bench->entries[bench->entry_count++] = entry;
}

static void on_alarm(void *arg, const char *text)
{
	struct bench *bench = arg;

	snprintf(bench->alarm, sizeof(bench->alarm), "%s", text);
}

static void on_recovered(void *arg)
{
	struct bench *bench = arg;

	bench->recovered++;
}

int bench_try_open_out(struct bench *bench, struct why *why)
{
	static const struct spool_out_events events = {on_entry, on_alarm, on_recovered};
	const struct spool_out_settings settings = {
	        .path = bench->path,
	        .ops = &bench->ops,
	        .loop = bench->loop,
	        .jobs = bench->jobs,
	        .segment_size = BENCH_SEGMENT_SIZE,
	        .events = &events,
	        .arg = bench,
	};

	bench->entry_count = 0;
	int r = spool_out_open(&settings, &bench->out, why);
	if (r == 0)
		spool_out_follow(bench->out);
	return r;
}

void bench_open_out(struct bench *bench, size_t entries)
{
	struct why why;

	bench_close_out(bench);
	if (bench_try_open_out(bench, &why) < 0)
		fail_msg("%s", why.text);
	bench_wait(bench, entries);
	assert_int_equal(bench->entry_count, entries);
}

void bench_close_out(struct bench *bench)
{
	if (bench->out != NULL)
		spool_out_close(bench->out);
	bench->out = NULL;
}

static void out_of_patience(void *arg)
{
	(void)arg;
	fail_msg("what was waited for did not happen");
}

static bool is_there(const struct bench *bench)
{
	return bench->giving == 0 && bench->marking == 0 && bench->entry_count >= bench->wanted &&
	       (bench->out == NULL || !spool_out_is_busy(bench->out));
}

static void look(void *arg)
{
	struct bench *bench = arg;

	if (bench->out != NULL && bench->entry_count < bench->wanted)
		spool_out_follow(bench->out);
	if (is_there(bench))
		loop_stop(bench->loop);
	else
		timer_start(&bench->look, 1);
}

void bench_wait(struct bench *bench, size_t entries)
{
	bench->wanted = entries;
	timer_init(&bench->look, bench->loop, look, bench);
	timer_init(&bench->patience, bench->loop, out_of_patience, bench);
	timer_start(&bench->look, 0);
	timer_start(&bench->patience, BENCH_PATIENCE_MS);
	loop_run(bench->loop);
	timer_stop(&bench->patience);
}

static void stop_loop(void *arg)
{
	loop_stop(arg);
}

void bench_turn_for(struct bench *bench, uint64_t ms)
{
	struct timer over;

	timer_init(&over, bench->loop, stop_loop, bench->loop);
	timer_start(&over, ms);
	loop_run(bench->loop);
}

/* ---- messages ---- */

static void on_ready(void *arg)
{
	(void)arg;
	loop_stop(the_bench->loop);
}

static void on_done(void *arg, int result)
{
	*(int *)arg = result;
	the_bench->giving--;
}

struct spool_tx *bench_begin(
        struct bench *bench, size_t number, struct message_id id, size_t body_len)
{
	static const struct spool_tx_events events = {.on_ready = on_ready, .on_done = on_done};
	struct spool_tx *tx;

	assert_true(number < BENCH_ENTRIES_MAX);
	assert_int_equal(spool_tx_new(bench->in, bench->loop, id, body_len, &events,
	                         &bench->results[number], NULL, &tx),
	        0);
	bench->giving++;
	return tx;
}

static char octet_of(size_t number)
{
	return (char)('a' + (int)(number % 26));
}

struct message_id bench_give(struct bench *bench, size_t number, size_t body_len)
{
	struct message_id id = id_new();
	struct spool_tx *tx = bench_begin(bench, number, id, body_len);
	char envelope[32], piece[10000];

	memset(piece, octet_of(number), sizeof(piece));
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

int bench_give_now(struct bench *bench, size_t number, size_t body_len)
{
	bench_give(bench, number, body_len);
	bench_wait(bench, 0);
	return bench->results[number];
}

void bench_give_at_once(struct bench *bench, size_t count, size_t body_len)
{
	for (size_t i = 0; i < count; i++)
		bench_give(bench, i, body_len);
	bench_wait(bench, 0);
	for (size_t i = 0; i < count; i++)
		assert_int_equal(bench->results[i], 0);
}

void bench_give_each(struct bench *bench, size_t count, size_t body_len)
{
	for (size_t i = 0; i < count; i++)
		assert_int_equal(bench_give_now(bench, i, body_len), 0);
}

void bench_expect_body(struct bench *bench, const struct spool_entry *entry, size_t body_len)
{
	struct spool_message message;
	char room[4096], octet = octet_of(entry->account);
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
	bench->marking--;
}

void bench_settle(struct bench *bench, struct spool_entry *entry, uint32_t recipient)
{
	const struct stored_result result = {recipient, OUTCOME_DELIVERED};

	bench->marking++;
	assert_int_equal(spool_settle(bench->out, entry, &result, 1, on_marked, bench), 0);
}

void bench_settle_both(struct bench *bench, struct spool_entry *entry)
{
	bench_settle(bench, entry, 0);
	bench_settle(bench, entry, 1);
}

static void on_bounced(void *arg, int result)
{
	struct bench *bench = arg;

	bench->bounced = result;
	bench->marking--;
}

struct spool_entry *bench_bounce(struct bench *bench, struct spool_entry *entry, struct slice body)
{
	static const struct stored_result failed[] = {{0, OUTCOME_FAILED}, {1, OUTCOME_FAILED}};
	const struct spool_dsn dsn = {
	        .account = 5,
	        .envelope = SLICE("bounce"),
	        .header = SLICE("Subject: sorry\r\n\r\n"),
	        .body = body,
	};
	size_t before = bench->entry_count;

	bench->marking++;
	assert_int_equal(spool_bounce(bench->out, entry, failed, 2, &dsn, on_bounced, bench), 0);
	bench_wait(bench, before + 1);
	assert_true(bench->entries[before]->is_dsn);
	return bench->entries[before];
}

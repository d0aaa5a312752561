/* SPDX-License-Identifier: ISC */
/*
 * The writing side of in/: recovery, the reserve of free space, transactions.
 *
 * A transaction holds up to 256 KiB of body in memory; a larger body streams to a
 * file of its own, written by spill workers in steps and pushed to the disk every
 * 1 MiB, so that the journal's sync never waits behind it:
 *
 *     .part file → fdatasync → rename to <run>-<id>.body → folder sync → record
 *
 * Threads: a transaction belongs to its loop; while its job runs or its record is
 * queued, it belongs to the worker or the journal's writer.
 */
#include "gateway/spool/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <dirent.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "gateway/base/clock.h"
#include "gateway/spool/journal.h"
#include "gateway/spool/segment.h"
#include "gateway/spool/watermark.h"

#define SEGMENT_SIZE    (64U << 20)
#define INLINE_MAX      (256U << 10)
#define SPILL_STEP      (256U << 10)
#define PACE_OCTETS     (1U << 20)
#define SPILL_THREADS   2
#define SPILL_QUEUE_MAX 100000
#define SPACE_CACHE_US  250000

static_assert(INLINE_MAX + SPILL_STEP <= SPOOL_TX_MEMORY_MAX, "what a transaction has of memory");

struct spool_in {
	char folder[4096];
	const struct file_ops *ops;
	void (*on_alarm)(const char *text);
	struct watermark watermark;
	struct journal *journal;
	struct jobs *spill;
	_Atomic uint64_t promised; /* octets kept free for open transactions; see promise() */
	_Atomic int64_t space;     /* free octets: as last read, less what has come since */
	_Atomic uint64_t space_read_us;
};

enum tx_state { TX_OPEN, TX_COMMITTING };

struct spool_tx {
	struct spool_in *in;
	struct loop *loop;
	struct message_id id;
	const struct spool_tx_events *events;
	void *arg, *owned;
	enum tx_state state;
	bool aborted, working, told_to_wait;
	int error;
	struct buf body; /* inline, or the step that is being gathered */

	/* of a body in a file */
	int fd;
	struct buf step; /* what the job writes */
	int step_error;  /* of the job, while the loop may set `error` */
	uint64_t written, paced;
	XXH3_state_t *sum;
	struct job job;

	uint64_t size, most, promised;
	struct buf record;
	struct journal_entry entry;
	struct post post;
	int result;
};

static void part_path(const struct spool_tx *tx, char path[SEGMENT_PATH])
{
	char id[ID_TEXT + 1];

	snprintf(path, SEGMENT_PATH, "%s/%s.part", tx->in->folder, id_format(&tx->id, id));
}

static void body_path(const struct spool_tx *tx, char path[SEGMENT_PATH])
{
	char id[ID_TEXT + 1];

	snprintf(path, SEGMENT_PATH, "%s/%08u-%s.body", tx->in->folder,
	        journal_run(tx->in->journal), id_format(&tx->id, id));
}

/* Removes what an earlier run did not finish. The lock is held. */
static void remove_unfinished(struct spool_in *in)
{
	char path[SEGMENT_PATH + 256];
	struct dirent *entry;
	DIR *dir = opendir(in->folder);

	if (dir == NULL)
		return;
	while ((entry = readdir(dir)) != NULL) {
		if (!slice_ends_with_nocase(slice_str(entry->d_name), SLICE(".part")))
			continue;
		snprintf(path, sizeof(path), "%s/%s", in->folder, entry->d_name);
		(void)in->ops->unlink(path);
	}
	closedir(dir);
}

/*
 * The committed end of the newest valid segment. The watermark tells it unless the
 * machine was started since: then whole records count as accepted.
 */
static int find_committed_end(
        struct spool_in *in, struct segment *newest, bool trust_watermark, uint64_t *ret_end)
{
	uint32_t number;
	uint64_t offset;

	if (!trust_watermark)
		return segment_find_end(newest, ret_end, NULL);
	watermark_read(&in->watermark, &number, &offset);
	/* Above it: the watermark's own segment was damaged, and this one is sealed. */
	if (number > newest->header.number)
		return segment_find_end(newest, ret_end, NULL);
	/* Below it: begun and never published, nothing in it was acknowledged. */
	*ret_end = number == newest->header.number ? offset : SEGMENT_HEADER_SIZE;
	return 0;
}

static void discard(struct spool_in *in, uint32_t number)
{
	char text[SEGMENT_PATH + 64];

	if (segment_discard(in->ops, in->folder, number) != 1 || in->on_alarm == NULL)
		return;
	snprintf(text, sizeof(text), "in/%08u.seg is damaged; it is %s/damaged-%08u.seg now",
	        number, in->folder, number);
	in->on_alarm(text);
}

/* Fills in where the journal goes on; removes segments that hold nothing. */
static int recover(struct spool_in *in, bool fresh, struct journal_settings *journal)
{
	_cleanup_(freep) uint32_t *numbers = NULL;
	bool trust_watermark = !fresh && watermark_is_of_this_boot(&in->watermark);
	struct segment segment;
	size_t count;

	int r = segment_list(in->folder, &numbers, &count);
	if (r < 0)
		return r;
	journal->highest = count > 0 ? numbers[count - 1] : 0;
	for (size_t i = count; i > 0 && journal->previous == 0; i--) {
		r = segment_open(in->ops, in->folder, numbers[i - 1], &segment);
		if (r == -EBADMSG) {
			discard(in, numbers[i - 1]);
			continue;
		}
		if (r < 0)
			return r;
		r = find_committed_end(in, &segment, trust_watermark, &journal->previous_end);
		segment_close(&segment);
		/*
		 * A killed process may have left its header, which says where the one before ends,
		 * and its records to the kernel. The next segment builds on them.
		 */
		if (r == 0)
			r = segment_make_sure(in->ops, in->folder, numbers[i - 1],
			        fresh ? 0 : journal->previous_end, journal->previous_end);
		if (r < 0)
			return r;
		journal->previous = numbers[i - 1];
	}
	return 0;
}

static int open_journal(
        struct spool_in *in, const struct spool_in_settings *settings, bool fresh, struct why *why)
{
	struct journal_settings journal = {
	        .folder = in->folder,
	        .ops = in->ops,
	        .segment_size = settings->segment_size != 0 ? settings->segment_size : SEGMENT_SIZE,
	        .mode = 0660, /* `relay` empties segments */
	        .watermark = &in->watermark,
	        .wake_fd = settings->wake_fd,
	};

	int r = recover(in, fresh, &journal);
	if (r < 0)
		return why_errno(why, r, "cannot recover %s", in->folder);
	return journal_open(&journal, &in->journal, why);
}

int spool_in_open(
        const struct spool_in_settings *settings, struct spool_in **ret_in, struct why *why)
{
	struct spool_in *in = calloc(1, sizeof(*in));
	bool fresh;

	if (in == NULL)
		return why_errno(why, ENOMEM, "in/");
	in->ops = settings->ops;
	in->on_alarm = settings->on_alarm;
	snprintf(in->folder, sizeof(in->folder), "%s/in", settings->path);
	int r = mkdir(in->folder, 0770) < 0 && errno != EEXIST
	                ? why_errno(why, errno, "cannot make %s", in->folder)
	                : 0;
	if (r == 0)
		r = watermark_lock(in->folder, &in->watermark, &fresh, why);
	if (r == 0) {
		remove_unfinished(in);
		r = open_journal(in, settings, fresh, why);
	}
	if (r == 0 && (r = jobs_new(SPILL_THREADS, SPILL_QUEUE_MAX, &in->spill)) < 0)
		why_errno(why, r, "cannot start the spill workers");
	if (r < 0) {
		journal_close(in->journal);
		watermark_close(&in->watermark);
		free(in);
		return r;
	}
	*ret_in = in;
	return 0;
}

void spool_in_close(struct spool_in *in)
{
	if (in == NULL)
		return;
	jobs_free(in->spill);
	journal_close(in->journal);
	watermark_close(&in->watermark);
	free(in);
}

/* 0 when there is so much room beside what is promised, -ENOSPC, or -errno. */
static int check_room(struct spool_in *in, uint64_t octets)
{
	uint64_t now = clock_mono_us();

	uint64_t read_us = atomic_load(&in->space_read_us);
	if (read_us == 0 || now - read_us > SPACE_CACHE_US) {
		uint64_t free_octets;
		int r = in->ops->space(in->folder, &free_octets);
		if (r < 0)
			return r;
		atomic_store(&in->space, (int64_t)free_octets);
		atomic_store(&in->space_read_us, now);
	}
	int64_t needed = (int64_t)(octets + atomic_load(&in->promised));
	return atomic_load(&in->space) < needed ? -ENOSPC : 0;
}

int spool_in_has_room(struct spool_in *in, uint64_t message_size)
{
	int failure = journal_failure(in->journal);

	if (failure < 0) {
		journal_probe(in->journal);
		return failure == -ENOSPC || failure == -EDQUOT ? -ENOSPC : -EIO;
	}
	return check_room(in, 2 * message_size);
}

uint64_t spool_in_left(struct spool_in *in)
{
	int64_t left = atomic_load(&in->space) - (int64_t)atomic_load(&in->promised);

	return (uint64_t)MAX_OF(left, (int64_t)0);
}

uint64_t spool_tx_disk(const struct spool_tx *tx)
{
	return tx->size + tx->promised;
}

/*
 * Keeps room for as much again as has come, within what may come. Not for all that a client says
 * will come: who says much and sends nothing would have the disk to himself.
 */
static void promise(struct spool_tx *tx)
{
	uint64_t promised = tx->size < tx->most ? MIN_OF(tx->size, tx->most - tx->size) : 0;

	atomic_fetch_add(&tx->in->promised, promised - tx->promised);
	tx->promised = promised;
}

int spool_tx_new(struct spool_in *in, struct loop *loop, struct message_id id, uint64_t size,
        const struct spool_tx_events *events, void *arg, void *owned, struct spool_tx **ret_tx)
{
	struct spool_tx *tx = calloc(1, sizeof(*tx));

	if (tx == NULL)
		return -ENOMEM;
	*tx = (struct spool_tx){
	        .in = in,
	        .loop = loop,
	        .id = id,
	        .events = events,
	        .arg = arg,
	        .owned = owned,
	        .fd = -1,
	        .most = size,
	};
	buf_init(&tx->body, INLINE_MAX + SPILL_STEP);
	buf_init(&tx->step, INLINE_MAX + SPILL_STEP);
	buf_init(&tx->record, RECORD_ENVELOPE_MAX);
	*ret_tx = tx;
	return 0;
}

/* Frees it; a file that was not renamed goes too. */
static void tx_free(struct spool_tx *tx)
{
	char path[SEGMENT_PATH];

	if (tx->fd >= 0) {
		close(tx->fd);
		part_path(tx, path);
		(void)tx->in->ops->unlink(path);
	}
	atomic_fetch_sub(&tx->in->promised, tx->promised);
	buf_done(&tx->body);
	buf_done(&tx->step);
	buf_done(&tx->record);
	XXH3_freeState(tx->sum);
	if (tx->owned != NULL)
		tx->events->on_gone(tx->owned);
	free(tx);
}

/* On the loop, at the very end. */
static void tx_finish(struct spool_tx *tx, int result)
{
	bool tell = !tx->aborted;
	const struct spool_tx_events *events = tx->events;
	void *arg = tx->arg;

	tx_free(tx);
	if (tell)
		events->on_done(arg, result);
}

/*
 * Worker: starts the write-back of the last step and waits for that of the one
 * before, so that the disk never gets all of a large body at once.
 */
static void pace(struct spool_tx *tx)
{
	(void)sync_file_range(
	        tx->fd, (off_t)tx->paced, (off_t)(tx->written - tx->paced), SYNC_FILE_RANGE_WRITE);
	if (tx->paced > 0)
		(void)sync_file_range(tx->fd, 0, (off_t)tx->paced,
		        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
		                SYNC_FILE_RANGE_WAIT_AFTER);
	tx->paced = tx->written;
}

/* Worker: makes the file if need be and writes the step. */
static int write_step(struct spool_tx *tx)
{
	const struct file_ops *ops = tx->in->ops;
	struct slice octets = buf_slice(&tx->step);
	char path[SEGMENT_PATH];

	if (tx->fd < 0) {
		part_path(tx, path);
		tx->fd = ops->open(path, O_WRONLY | O_CREAT | O_EXCL, 0640);
		if (tx->fd < 0)
			return tx->fd;
	}
	const struct iovec part = {(void *)(uintptr_t)octets.ptr, octets.len};
	int r = octets.len > 0 ? file_write_exactly(ops, tx->fd, &part, 1, (off_t)tx->written) : 0;
	if (r < 0)
		return r;
	XXH3_64bits_update(tx->sum, octets.ptr, octets.len);
	tx->written += octets.len;
	buf_clear(&tx->step);
	if (tx->written - tx->paced >= PACE_OCTETS)
		pace(tx);
	return 0;
}

static void run_step(struct job *job)
{
	struct spool_tx *tx = container_of(job, struct spool_tx, job);

	tx->step_error = write_step(tx);
}

static void start_commit(struct spool_tx *tx);
static int start_step(struct spool_tx *tx);

static void step_done(struct job *job)
{
	struct spool_tx *tx = container_of(job, struct spool_tx, job);

	tx->working = false;
	if (tx->error == 0)
		tx->error = tx->step_error;
	if (tx->state == TX_COMMITTING) {
		start_commit(tx);
	} else if (tx->aborted) {
		tx_free(tx);
	} else {
		if (buf_len(&tx->body) >= SPILL_STEP && tx->error == 0)
			tx->error = start_step(tx);
		if (tx->told_to_wait) {
			tx->told_to_wait = false;
			tx->events->on_ready(tx->arg);
		}
	}
}

/*
 * Gives what was gathered to a worker. Large bodies give way before the disk is full: small
 * messages and what `relay` has to note still find room then.
 */
static int start_step(struct spool_tx *tx)
{
	struct buf filled = tx->body;
	int r = check_room(tx->in, 0);

	if (r < 0)
		return r;
	if (tx->sum == NULL) {
		tx->sum = XXH3_createState();
		if (tx->sum == NULL)
			return -ENOMEM;
		XXH3_64bits_reset(tx->sum);
	}
	tx->body = tx->step;
	tx->step = filled;
	tx->job = (struct job){.loop = tx->loop, .run = run_step, .done = step_done};
	r = jobs_submit(tx->in->spill, &tx->job);
	tx->working = r == 0;
	return r;
}

int spool_tx_write(struct spool_tx *tx, struct slice octets)
{
	/* After an error the rest is let through: the commit reports it. */
	if (tx->error != 0)
		return 0;
	atomic_fetch_sub(&tx->in->space, (int64_t)octets.len);
	tx->size += octets.len;
	promise(tx);
	tx->error = buf_append_slice(&tx->body, octets);
	/* NOLINTNEXTLINE(bugprone-branch-clone): the two sizes need not be the same */
	bool full = buf_len(&tx->body) >= (tx->sum != NULL ? SPILL_STEP : INLINE_MAX);
	if (tx->error == 0 && full && !tx->working)
		tx->error = start_step(tx);
	if (tx->working && buf_len(&tx->body) >= SPILL_STEP / 2) {
		tx->told_to_wait = true;
		return SPOOL_WAIT;
	}
	return 0;
}

static void on_recorded_post(struct post *post)
{
	struct spool_tx *tx = container_of(post, struct spool_tx, post);

	tx_finish(tx, tx->result);
}

/* On the journal's writer thread. */
static void on_recorded(struct journal_entry *entry, int result)
{
	struct spool_tx *tx = container_of(entry, struct spool_tx, entry);
	char path[SEGMENT_PATH];

	/*
	 * While nothing can be written, nothing tells that the record does not count: after a
	 * power cut it may. Then the body stays, and `relay` removes it when a later run has told.
	 */
	if (result < 0 && tx->sum != NULL && journal_failure(tx->in->journal) == 0) {
		body_path(tx, path);
		(void)tx->in->ops->unlink(path);
	}
	tx->result = result;
	tx->post.run = on_recorded_post;
	loop_post(tx->loop, &tx->post);
}

static void append_record(struct spool_tx *tx)
{
	tx->entry = (struct journal_entry){
	        .type = RECORD_MESSAGE,
	        .envelope = buf_slice(&tx->record),
	        .body = tx->sum != NULL ? SLICE("") : buf_slice(&tx->body),
	        .level = JOURNAL_SYNCED,
	        .done = on_recorded,
	};
	journal_append(tx->in->journal, &tx->entry);
}

/* Worker: the last step of a large body, up to its name being safe. */
static void run_finish_file(struct job *job)
{
	struct spool_tx *tx = container_of(job, struct spool_tx, job);
	const struct file_ops *ops = tx->in->ops;
	char from[SEGMENT_PATH], to[SEGMENT_PATH];

	if (tx->error == 0)
		tx->error = write_step(tx);
	if (tx->error == 0)
		tx->error = ops->fdatasync(tx->fd);
	part_path(tx, from);
	body_path(tx, to);
	if (tx->error == 0)
		tx->error = ops->rename(from, to);
	if (tx->error < 0)
		return;
	close(tx->fd);
	tx->fd = -1;
	tx->error = ops->sync_folder(tx->in->folder);
	if (tx->error < 0)
		(void)ops->unlink(to);
}

static void pack_record(struct spool_tx *tx, const struct spool_commit *commit)
{
	struct stored_message message = {
	        .id = tx->id,
	        .account = commit->account,
	        .accepted_us = commit->accepted_us,
	        .recipients = commit->recipients,
	        .body_size = tx->size,
	        .body_in_file = tx->sum != NULL,
	        .file_run = tx->sum != NULL ? journal_run(tx->in->journal) : 0,
	        .envelope = commit->envelope,
	        .header = commit->header,
	};
	struct pack pack = pack_start(&tx->record);

	stored_message_pack(&message, &pack);
	if (tx->error == 0)
		tx->error = pack.error;
}

/* The sum is known only when the file is complete: 8 octets at a fixed place of the record. */
#define FILE_SUM_AT (ID_SIZE + 8 + 8 + 4 + 8 + 1 + 4)

static void finish_file_done(struct job *job)
{
	struct spool_tx *tx = container_of(job, struct spool_tx, job);

	if (tx->error < 0) {
		tx_finish(tx, tx->error);
		return;
	}
	uint64_t sum = XXH3_64bits_digest(tx->sum);
	uint8_t *at = (uint8_t *)(uintptr_t)buf_slice(&tx->record).ptr + FILE_SUM_AT;
	for (unsigned i = 0; i < sizeof(sum); i++)
		at[i] = (uint8_t)(sum >> (8 * i));
	append_record(tx);
}

/* All of the body has been given; no job is running. */
static void start_commit(struct spool_tx *tx)
{
	if (tx->error == 0 && tx->sum == NULL) {
		append_record(tx);
		return;
	}
	if (tx->error == 0) {
		struct buf last = tx->body;
		tx->body = tx->step;
		tx->step = last;
		tx->job = (struct job){
		        .loop = tx->loop, .run = run_finish_file, .done = finish_file_done};
		int r = jobs_submit(tx->in->spill, &tx->job);
		if (r == 0)
			return; /* `error` is the job's now */
		tx->error = r;
	}
	tx->result = tx->error;
	tx->post.run = on_recorded_post;
	loop_post(tx->loop, &tx->post);
}

void spool_tx_commit(struct spool_tx *tx, const struct spool_commit *commit)
{
	assert_bug(tx->state == TX_OPEN);
	tx->state = TX_COMMITTING;
	pack_record(tx, commit);
	if (!tx->working)
		start_commit(tx);
}

void spool_tx_abort(struct spool_tx *tx)
{
	if (tx == NULL)
		return;
	tx->aborted = true;
	if (tx->state == TX_OPEN && !tx->working)
		tx_free(tx);
}

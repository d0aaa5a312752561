/* SPDX-License-Identifier: ISC */
/*
 * The journal's writer thread; see journal.h.
 *
 * Happy path: take the whole queue (bounded by IOV_MAX and 8 MiB) → number and
 * place the records → one pwritev → one fdatasync when somebody waits for it →
 * watermark → done. Marks that only had to be written are synced 50 ms later.
 *
 * When a write or sync fails, the file is left as it is: its pages may be marked
 * clean without having reached the disk (fsyncgate), so syncing it again proves
 * nothing. A new segment starts, whose header says where the committed part of
 * the old one ends; marks that had been written and not yet synced are kept in
 * memory until then and written again first.
 */
#include "gateway/spool/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "gateway/base/buf.h"
#include "gateway/base/clock.h"
#include "gateway/base/random.h"
#include "gateway/spool/segment.h"
#include "gateway/spool/spare.h"

#define BATCH_ENTRIES  256
#define BATCH_OCTETS   (8U << 20)
#define SYNC_AFTER_MS  50
#define PROBE_AFTER_US 1000000
#define UNSYNCED_MAX   (16U << 20)
#define LEAVE_SPARE_AT (64U << 20) /* octets free */

struct batch {
	struct journal_entry *entries[BATCH_ENTRIES];
	size_t count;
	uint8_t headers[BATCH_ENTRIES][RECORD_HEADER_SIZE];
	struct iovec parts[BATCH_ENTRIES * 4 + 1];
	int part_count;
	uint64_t octets;
	bool wants_sync;
};

struct journal {
	struct journal_settings settings;
	char *folder;
	pthread_t thread;

	pthread_mutex_t lock; /* of the queue */
	pthread_cond_t wakeup;
	struct journal_entry *first, **last;
	bool ending;

	/* owner: the writer thread */
	int fd; /* -1: a new segment must be begun */
	struct segment_header header;
	uint64_t room;           /* of the current segment: the spare's size, else no limit */
	uint64_t end, committed; /* in the current segment: written, synced */
	uint64_t sync_due_ms;    /* of marks written and not synced; 0: none */
	struct buf unsynced;     /* those marks: type, length, envelope part */
	struct batch batch;

	_Atomic uint32_t run, segment;
	_Atomic unsigned failures; /* in a row */
	_Atomic int error;         /* of the last of them */
	_Atomic uint64_t probed_us;
	struct journal_entry probe;
	_Atomic bool probing;
};

static const uint8_t padding[RECORD_ALIGN];

static bool is_full(int result)
{
	return result == -ENOSPC || result == -EDQUOT;
}

/* Makes the file of a segment: header synced, then the folder. A descriptor or -errno. */
static int place_segment(struct journal *journal, const char *path,
        const struct segment_header *header, bool from_spare)
{
	const struct file_ops *ops = journal->settings.ops;
	uint8_t octets[SEGMENT_HEADER_SIZE];
	const struct iovec part = {octets, sizeof(octets)};

	segment_header_encode(header, octets);
	int fd = from_spare ? spare_take(ops, journal->folder, path)
	                    : ops->open(path, O_WRONLY | O_CREAT | O_EXCL, journal->settings.mode);
	if (fd < 0)
		return fd;
	(void)!fchmod(fd, journal->settings.mode); /* whatever the umask was */
	int r = file_write_exactly(ops, fd, &part, 1, 0);
	if (r == 0)
		r = ops->fdatasync(fd);
	if (r == 0)
		r = ops->sync_folder(journal->folder);
	if (r == 0)
		return fd;
	close(fd);
	/* Its header may or may not check; either way it holds nothing. */
	(void)ops->unlink(path);
	return r;
}

static void poke(int fd)
{
	const uint64_t one = 1;

	if (fd >= 0)
		(void)!write(fd, &one, sizeof(one));
}

/* The first segment of this run stands: what counts of earlier ones is settled now. */
static void begin_run(struct journal *journal)
{
	atomic_store(&journal->run, journal->header.number);
	if (journal->settings.watermark != NULL)
		watermark_start(
		        journal->settings.watermark, journal->header.number, journal->committed);
	/* `relay` may have looked before: what earlier runs left can be read from now on. */
	poke(journal->settings.wake_fd);
}

/* Makes the next segment before anything depends on it; on a full disk from the spare. */
static int begin_segment(struct journal *journal)
{
	char path[SEGMENT_PATH];
	struct segment_header header = {.number = ++journal->settings.highest};
	bool from_spare = false;

	if (journal->fd >= 0)
		close(journal->fd);
	journal->fd = -1;
	journal->sync_due_ms = 0; /* what waits for it is written again behind the header */
	random_bytes(&header.nonce, sizeof(header.nonce));
	header.previous = journal->settings.previous;
	header.previous_end = journal->settings.previous_end;
	header.run = atomic_load(&journal->run) != 0 ? atomic_load(&journal->run) : header.number;
	segment_path(journal->folder, header.number, path);

	int fd = place_segment(journal, path, &header, false);
	if (is_full(fd) && journal->settings.spare) {
		from_spare = true;
		fd = place_segment(journal, path, &header, true);
	}
	if (fd < 0)
		return fd;
	if (journal->settings.spare && !from_spare)
		(void)!spare_make(journal->settings.ops, journal->folder);
	journal->fd = fd;
	journal->header = header;
	journal->room = from_spare ? SPARE_SIZE : UINT64_MAX;
	journal->end = journal->committed = SEGMENT_HEADER_SIZE;
	journal->settings.previous = header.number;
	journal->settings.previous_end = journal->committed;
	atomic_store(&journal->segment, header.number);
	if (atomic_load(&journal->run) == 0)
		begin_run(journal);
	return 0;
}

static void add_part(struct batch *batch, const void *data, size_t len)
{
	if (len > 0)
		batch->parts[batch->part_count++] = (struct iovec){(void *)(uintptr_t)data, len};
	batch->octets += len;
}

/* Gives the entry its place behind what is already in the batch. */
static void add_entry(struct journal *journal, struct journal_entry *entry)
{
	struct batch *batch = &journal->batch;
	struct record_header header = {
	        .type = entry->type,
	        .nonce = journal->header.nonce,
	        .offset = journal->end + batch->octets,
	        .committed = journal->committed,
	        .envelope_len = (uint32_t)entry->envelope.len,
	        .body_len = (uint32_t)entry->body.len,
	        .envelope_sum = format_checksum(entry->envelope),
	        .body_sum = format_checksum(entry->body),
	};

	entry->segment = journal->header.number;
	entry->offset = header.offset;
	record_header_encode(&header, batch->headers[batch->count]);
	add_part(batch, batch->headers[batch->count], RECORD_HEADER_SIZE);
	add_part(batch, entry->envelope.ptr, entry->envelope.len);
	add_part(batch, entry->body.ptr, entry->body.len);
	size_t size = RECORD_HEADER_SIZE + entry->envelope.len + entry->body.len;
	add_part(batch, padding, (size_t)record_size(&header) - size);
	batch->entries[batch->count++] = entry;
	batch->wants_sync |= entry->level == JOURNAL_SYNCED;
}

/* Remembers a mark until it is synced, in case its segment has to be given up. */
static int remember(struct journal *journal, const struct journal_entry *entry)
{
	struct pack pack = pack_start(&journal->unsynced);

	pack_u8(&pack, (uint8_t)entry->type);
	pack_bytes(&pack, entry->envelope);
	return pack.error;
}

static int write_batch(struct journal *journal)
{
	const struct file_ops *ops = journal->settings.ops;
	struct batch *batch = &journal->batch;

	if (journal->end + batch->octets > journal->room)
		return -ENOSPC;
	int r = file_write_exactly(
	        ops, journal->fd, batch->parts, batch->part_count, (off_t)journal->end);
	if (r < 0)
		return r;
	journal->end += batch->octets;
	return 0;
}

static int sync_now(struct journal *journal)
{
	int r = journal->settings.ops->fdatasync(journal->fd);

	if (r < 0)
		return r;
	journal->committed = journal->settings.previous_end = journal->end;
	journal->sync_due_ms = 0;
	buf_clear(&journal->unsynced);
	atomic_store(&journal->failures, 0);
	if (journal->settings.watermark != NULL)
		watermark_publish(
		        journal->settings.watermark, journal->header.number, journal->committed);
	return 0;
}

/*
 * Begins a new segment with the marks that the last one may have lost. Only then
 * is it in force.
 */
static int replace_segment(struct journal *journal)
{
	int r = begin_segment(journal);

	if (r < 0 || buf_len(&journal->unsynced) == 0)
		return r;

	struct unpack unpack = unpack_start(buf_slice(&journal->unsynced));
	while (r == 0 && unpack.left.len > 0) {
		struct journal_entry again = {.type = (enum record_type)unpack_u8(&unpack)};
		again.envelope = unpack_bytes(&unpack, RECORD_ENVELOPE_MAX);
		again.level = JOURNAL_WRITTEN;
		journal->batch.count = 0;
		journal->batch.part_count = 0;
		journal->batch.octets = 0;
		add_entry(journal, &again);
		r = write_batch(journal);
	}
	if (r == 0)
		r = sync_now(journal);
	if (r < 0) {
		close(journal->fd);
		journal->fd = -1;
	}
	return r;
}

static void note_failure(struct journal *journal, int error)
{
	atomic_store(&journal->error, error);
	atomic_fetch_add(&journal->failures, 1);
}

static void give_segment_up(struct journal *journal, int error)
{
	close(journal->fd);
	journal->fd = -1;
	journal->sync_due_ms = 0;
	note_failure(journal, error);
	/* Its header must stand before the failed batch is answered. */
	int r = replace_segment(journal);
	if (r < 0)
		note_failure(journal, r);
	else if (journal->settings.watermark != NULL)
		watermark_publish(
		        journal->settings.watermark, journal->header.number, journal->committed);
}

static void complete(struct journal_entry **entries, size_t count, int result)
{
	for (size_t i = 0; i < count; i++)
		entries[i]->done(entries[i], result);
}

/* The disk has room again: the spare segment is sealed, a new spare can be made. */
static bool may_leave_spare(const struct journal *journal)
{
	uint64_t space;

	return journal->room != UINT64_MAX &&
	       journal->settings.ops->space(journal->folder, &space) == 0 && space > LEAVE_SPARE_AT;
}

/* Writes the entries that were taken from the queue; calls `done` of each. */
static void commit(struct journal *journal, struct journal_entry **entries, size_t count)
{
	struct batch *batch = &journal->batch;
	int r = 0;

	if (journal->fd < 0 || journal->end >= journal->settings.segment_size ||
	        may_leave_spare(journal))
		r = replace_segment(journal);
	if (r < 0) {
		note_failure(journal, r);
		complete(entries, count, r);
		return;
	}
	batch->count = 0;
	batch->part_count = 0;
	batch->octets = 0;
	batch->wants_sync = false;
	for (size_t i = 0; i < count; i++)
		add_entry(journal, entries[i]);
	r = write_batch(journal);
	if (r == 0 && batch->wants_sync)
		r = sync_now(journal);
	for (size_t i = 0; r == 0 && !batch->wants_sync && i < count; i++)
		r = remember(journal, entries[i]);
	if (r == 0 && !batch->wants_sync && journal->sync_due_ms == 0)
		journal->sync_due_ms = clock_mono_ms() + SYNC_AFTER_MS;
	if (r < 0)
		give_segment_up(journal, r);
	complete(entries, count, r);
	if (r == 0)
		poke(journal->settings.wake_fd);
}

static void wait_for_work(struct journal *journal)
{
	while (journal->first == NULL && !journal->ending) {
		if (journal->sync_due_ms == 0) {
			pthread_cond_wait(&journal->wakeup, &journal->lock);
			continue;
		}
		uint64_t now = clock_mono_ms();
		if (now >= journal->sync_due_ms)
			return;
		struct timespec until;
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += (long)MIN_OF(journal->sync_due_ms - now, (uint64_t)SYNC_AFTER_MS) *
		                 1000000L;
		until.tv_sec += until.tv_nsec / 1000000000L;
		until.tv_nsec %= 1000000000L;
		pthread_cond_timedwait(&journal->wakeup, &journal->lock, &until);
	}
}

/* Takes as much from the queue as one write may carry. The lock is held. */
static size_t take_entries(struct journal *journal, struct journal_entry **ret_entries)
{
	size_t count = 0;
	uint64_t octets = 0;

	while (journal->first != NULL && count < BATCH_ENTRIES && octets < BATCH_OCTETS) {
		struct journal_entry *entry = journal->first;
		journal->first = entry->next;
		octets += entry->envelope.len + entry->body.len;
		ret_entries[count++] = entry;
	}
	if (journal->first == NULL)
		journal->last = &journal->first;
	return count;
}

static void *writer(void *arg)
{
	struct journal *journal = arg;
	struct journal_entry *entries[BATCH_ENTRIES];
	bool ending;
	int r;

	do {
		pthread_mutex_lock(&journal->lock);
		wait_for_work(journal);
		size_t count = take_entries(journal, entries);
		ending = journal->ending && count == 0;
		pthread_mutex_unlock(&journal->lock);

		if (count > 0)
			commit(journal, entries, count);
		if (journal->sync_due_ms != 0 &&
		        (ending || clock_mono_ms() >= journal->sync_due_ms) &&
		        (r = sync_now(journal)) < 0)
			give_segment_up(journal, r);
	} while (!ending);
	return NULL;
}

static void on_probed(struct journal_entry *entry, int result)
{
	struct journal *journal = container_of(entry, struct journal, probe);

	(void)result;
	atomic_store(&journal->probing, false);
}

static int start(struct journal *journal)
{
	if (journal->settings.spare) {
		(void)!spare_make(journal->settings.ops, journal->folder);
		return 0;
	}
	int r = begin_segment(journal);
	if (!is_full(r))
		return r;
	note_failure(journal, r);
	note_failure(journal, r);
	return 0;
}

int journal_open(
        const struct journal_settings *settings, struct journal **ret_journal, struct why *why)
{
	struct journal *journal = calloc(1, sizeof(*journal));
	pthread_condattr_t monotonic;

	if (journal == NULL || (journal->folder = strdup(settings->folder)) == NULL) {
		free(journal);
		return why_errno(why, ENOMEM, "journal in %s", settings->folder);
	}
	journal->settings = *settings;
	journal->settings.folder = journal->folder;
	journal->fd = -1;
	journal->last = &journal->first;
	buf_init(&journal->unsynced, UNSYNCED_MAX);
	pthread_mutex_init(&journal->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&journal->wakeup, &monotonic);
	pthread_condattr_destroy(&monotonic);

	atomic_store(&journal->segment, settings->highest + 1);
	int r = start(journal);
	if (r == 0)
		r = -pthread_create(&journal->thread, NULL, writer, journal);
	if (r < 0) {
		if (journal->fd >= 0)
			close(journal->fd);
		free(journal->folder);
		free(journal);
		return why_errno(why, r, "cannot begin a segment in %s", settings->folder);
	}
	*ret_journal = journal;
	return 0;
}

void journal_close(struct journal *journal)
{
	if (journal == NULL)
		return;
	pthread_mutex_lock(&journal->lock);
	journal->ending = true;
	pthread_cond_signal(&journal->wakeup);
	pthread_mutex_unlock(&journal->lock);
	pthread_join(journal->thread, NULL);
	if (journal->fd >= 0)
		close(journal->fd);
	buf_done(&journal->unsynced);
	pthread_cond_destroy(&journal->wakeup);
	pthread_mutex_destroy(&journal->lock);
	free(journal->folder);
	free(journal);
}

void journal_append(struct journal *journal, struct journal_entry *entry)
{
	assert_bug(
	        entry->envelope.len <= RECORD_ENVELOPE_MAX && entry->body.len <= RECORD_BODY_MAX);
	entry->next = NULL;
	pthread_mutex_lock(&journal->lock);
	bool was_empty = journal->first == NULL;
	*journal->last = entry;
	journal->last = &entry->next;
	if (was_empty)
		pthread_cond_signal(&journal->wakeup);
	pthread_mutex_unlock(&journal->lock);
}

int journal_failure(const struct journal *journal)
{
	return atomic_load(&journal->failures) >= 2 ? atomic_load(&journal->error) : 0;
}

void journal_probe(struct journal *journal)
{
	uint64_t now = clock_mono_us();

	if (journal_failure(journal) == 0 ||
	        now - atomic_load(&journal->probed_us) < PROBE_AFTER_US ||
	        atomic_exchange(&journal->probing, true))
		return;
	atomic_store(&journal->probed_us, now);
	journal->probe = (struct journal_entry){
	        .type = RECORD_PROBE,
	        .level = JOURNAL_SYNCED,
	        .done = on_probed,
	};
	journal_append(journal, &journal->probe);
}

uint32_t journal_run(const struct journal *journal)
{
	return atomic_load(&journal->run);
}

uint32_t journal_segment(const struct journal *journal)
{
	return atomic_load(&journal->segment);
}

/* SPDX-License-Identifier: ISC */
/*
 * The spool: two journals in which accepted messages wait.
 *
 * `submit` writes in/ (struct spool_in, struct spool_tx), `relay` reads it and
 * writes out/ (struct spool_out, struct spool_entry): results, deferrals and
 * bounces. README.md tells the whole protocol and why no message is lost.
 *
 * Each side takes the lock of its journal before it touches anything there. Only
 * `relay` unlinks messages.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/file.h"
#include "gateway/base/id.h"
#include "gateway/base/list.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"
#include "gateway/net/jobs.h"
#include "gateway/net/loop.h"
#include "gateway/spool/format.h"

/* ---- in/: `submit` ---- */

struct spool_in;

struct spool_in_settings {
	const char *path; /* of the spool; in/ below it exists or can be made */
	const struct file_ops *ops;
	uint64_t segment_size; /* 0: 64 MiB */
	int wake_fd;           /* eventfd poked after each commit, or -1 */
	/* Something at the start that an operator must know. */
	void (*on_alarm)(const char *text);
};

/*
 * Locks in/ (waiting up to 15 s for a predecessor), recovers, begins a segment (on a
 * full disk: as soon as there is room), starts the writer and the spill workers. 0, or
 * -errno with the reason.
 */
int spool_in_open(const struct spool_in_settings *settings, struct spool_in **ret_in,
        struct why *why) must_check;

/* Commits what was given up for commit. No transaction may be left. */
void spool_in_close(struct spool_in *in);

/*
 * Whether a message may begin: 0; -ENOSPC when the free space is below twice the
 * largest message plus what is kept for open transactions; -EIO while writing
 * fails. Any thread.
 */
int spool_in_has_room(struct spool_in *in, uint64_t message_size) must_check;

/*
 * Octets that were free when somebody last asked for room, less what has come since and what is
 * kept for open transactions. Any thread.
 */
uint64_t spool_in_left(struct spool_in *in);

/* A message on its way into the journal. Owner: the loop that made it. */
struct spool_tx;

#define SPOOL_TX_MEMORY_MAX (512U << 10) /* octets of it that are in memory */

struct spool_tx_events {
	/* After SPOOL_WAIT: the body may go on. */
	void (*on_ready)(void *arg);
	/*
	 * After spool_tx_commit(): 0 means on stable storage, -errno means never
	 * accepted (-ENOSPC: full). The transaction is gone.
	 */
	void (*on_done)(void *arg, int result);
	/*
	 * All that it had is free again, which after spool_tx_abort() may take as long as the disk.
	 * With what it owns, if that is not NULL.
	 */
	void (*on_gone)(void *owned);
};

enum { SPOOL_WAIT = 1 };

/*
 * `size`: the most octets that may come. Room is kept for as much again as has come, within that.
 * It owns `owned` unless this fails: 0 or -ENOMEM.
 */
int spool_tx_new(struct spool_in *in, struct loop *loop, struct message_id id, uint64_t size,
        const struct spool_tx_events *events, void *arg, void *owned,
        struct spool_tx **ret_tx) must_check;

/* Octets of the disk that it has, and that are kept for it. */
uint64_t spool_tx_disk(const struct spool_tx *tx);

/*
 * Appends to the body. 0, or SPOOL_WAIT: it was taken, but stop reading until
 * on_ready. Errors show at the commit.
 */
int spool_tx_write(struct spool_tx *tx, struct slice octets) must_check;

struct spool_commit {
	uint64_t account;
	int64_t accepted_us;
	uint32_t recipients;
	struct slice envelope; /* copied */
	struct slice header;   /* copied; with its empty line */
};

void spool_tx_commit(struct spool_tx *tx, const struct spool_commit *commit);

/*
 * Gives the transaction up, no callback follows. After spool_tx_commit() the
 * message may still be accepted. NULL is fine.
 */
void spool_tx_abort(struct spool_tx *tx);

/* ---- out/: `relay` ---- */

struct spool_out;

/* Which recipients of a message are settled. */
struct settled {
	uint64_t first; /* bits of recipients 0 to 63 */
	uint64_t *more; /* those of the others, or NULL */
	uint32_t words; /* of `more` */
};

/* A message in the queue, small: a million of them must fit. Owner: `relay`'s loop. */
struct spool_entry {
	struct list link; /* private, until on_entry */
	struct message_id id;
	uint64_t account;
	int64_t accepted_us;
	uint32_t recipients, unsettled;
	uint32_t attempt; /* made so far */
	bool delay_told;  /* a notice of delay has been written */
	int64_t next_us;  /* wall clock, of the next one */
	uint64_t age_ms;  /* counted so far, without times of a stopped route */
	/* private */
	uint32_t segment;
	uint64_t offset;
	uint32_t file_run;
	bool in_out, body_in_file, is_dsn;
	bool is_delay; /* a notice of delay: a DSN that settles nobody */
	unsigned marks_pending;
	struct settled settled;
};

/* The caller's octets of an entry: spool_out_settings.user_size, zero at first, freed with it. */
static inline void *spool_entry_user(const struct spool_entry *entry)
{
	return (void *)(uintptr_t)(entry + 1);
}

bool spool_entry_is_settled(const struct spool_entry *entry, uint32_t recipient);

struct spool_out_events {
	/* A message to deliver: at the start, from in/, or a bounce made here. */
	void (*on_entry)(void *arg, struct spool_entry *entry);
	/* Something that an operator must know: damage, a journal that cannot be written. */
	void (*on_alarm)(void *arg, const char *text);
	/* Marks can be written again: spool_out_is_failing() was true until now. */
	void (*on_recovered)(void *arg);
};

struct spool_out_settings {
	const char *path;
	const struct file_ops *ops;
	struct loop *loop;
	struct jobs *jobs;
	uint64_t segment_size; /* 0: 64 MiB */
	size_t user_size;      /* octets of each entry that are the caller's: spool_entry_user() */
	const struct spool_out_events *events;
	void *arg;
};

/*
 * Locks out/, replays marks and bounces. Blocks; on_entry calls
 * begin with spool_out_follow(). 0, or -errno with the reason.
 */
int spool_out_open(const struct spool_out_settings *settings, struct spool_out **ret_out,
        struct why *why) must_check;

/* Looks for new messages below the watermark; cheap to call again while it looks. */
void spool_out_follow(struct spool_out *out);

/* Writes and syncs all marks. Entries are freed. No job or callback may be outstanding. */
void spool_out_close(struct spool_out *out);

/* The entry of that id, or NULL. */
struct spool_entry *spool_out_find(struct spool_out *out, const struct message_id *id);

/* All entries in no order: start with *position = 0, ends with NULL. None may come or go meanwhile.
 */
struct spool_entry *spool_out_next(struct spool_out *out, size_t *position);
size_t spool_out_count(const struct spool_out *out);

/* Whether marks wait to be written, in/ is being read, or something is being removed. */
bool spool_out_is_busy(const struct spool_out *out);

/* Whether a mark could not be written: until it is, nothing more should be delivered. */
bool spool_out_is_failing(const struct spool_out *out);

/* Gives up marks that cannot be written, before closing: what they settle is tried again. */
void spool_out_give_up(struct spool_out *out);

/* A message read for delivery. Owner: whoever loads it, one thread at a time. */
struct spool_message {
	struct stored_message stored; /* slices point into `record` */
	struct buf record, body;      /* body: when it is not in a file */
	int body_fd;                  /* -1: in `body` */
	uint64_t body_read;
	void *body_sum; /* of a body in a file, as far as it was read */
};

/*
 * Reads envelope, header and an inline body, checking their sums. Blocks: on a
 * worker. 0, -EBADMSG when damaged, -errno. The entry must not change meanwhile.
 */
int spool_message_load(struct spool_out *out, const struct spool_entry *entry,
        struct spool_message *ret_message) must_check;
void spool_message_done(struct spool_message *message);

/*
 * The next octets of a body in a file, in order: their number, 0 at the end, or
 * -EBADMSG at the end when the sum does not fit: then the final dot must not be
 * sent. Blocks.
 */
ssize_t spool_message_read(struct spool_message *message, void *room, size_t len) must_check;

typedef void (*spool_marked_fn)(void *arg, int result);

/*
 * Settles recipients: at once in the entry, and by a mark. `on_marked` (or NULL) runs on
 * the loop when the mark has been written; -errno: it could not be, and nothing may depend
 * on it. An entry with no recipient left is freed after its last mark; do not touch it
 * after that callback (nor after the call, without one). 0, -ENOMEM or -ENOBUFS, and then
 * nothing has happened.
 */
int spool_settle(struct spool_out *out, struct spool_entry *entry,
        const struct stored_result *results, uint32_t count, spool_marked_fn on_marked,
        void *arg) must_check;

/*
 * The same in two steps: first all that can fail, so that what is to be recorded may then
 * happen: 0, -ENOMEM or -ENOBUFS. It is written, or freed unused (NULL is fine); one at a time for
 * a recipient. The entry must live until then.
 */
struct spool_mark;
int spool_mark_new(struct spool_out *out, struct spool_entry *entry,
        const struct stored_result *results, uint32_t count,
        struct spool_mark **ret_mark) must_check;
void spool_mark_write(struct spool_mark *mark, spool_marked_fn on_marked, void *arg);
void spool_mark_free(struct spool_mark *mark);

/* Records attempt, next_us and age_ms of the entry. Lost by a power cut at worst. */
void spool_defer(struct spool_out *out, struct spool_entry *entry);

struct spool_dsn {
	uint64_t account;
	int64_t accepted_us;
	struct slice envelope, header, body; /* copied; body at most 1 MiB */
};

/* The id that a bounce as below gets: the same whenever it is written. */
struct message_id spool_bounce_id(
        const struct spool_entry *entry, const struct stored_result *results, uint32_t count);

/*
 * Writes a bounce that settles these recipients of the entry: one synced record,
 * never one without the other. With none it is a notice of delay and is the mark of
 * that. on_entry for the bounce and then `on_marked` follow. The entry's fate as with
 * spool_settle().
 */
int spool_bounce(struct spool_out *out, struct spool_entry *entry,
        const struct stored_result *results, uint32_t count, const struct spool_dsn *dsn,
        spool_marked_fn on_marked, void *arg) must_check;

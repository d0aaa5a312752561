/* SPDX-License-Identifier: ISC */
/*
 * The writing end of a journal: one thread that collects what is ready, writes it
 * with one pwritev, syncs it with one fdatasync, publishes the watermark and
 * completes the batch. A segment in which a write or a sync failed is never
 * touched again: the next batch begins a new one.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/file.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"
#include "gateway/spool/format.h"
#include "gateway/spool/watermark.h"

struct journal;

enum journal_level {
	JOURNAL_WRITTEN, /* with the kernel: survives a kill, synced within 50 ms */
	JOURNAL_SYNCED,  /* on stable storage */
};

/* A record to append; the submitter owns it again when `done` is called. */
struct journal_entry {
	struct journal_entry *next; /* private */
	enum record_type type;
	struct slice envelope, body;
	enum journal_level level;
	/*
	 * On the writer's thread: 0, and where the record stands; else -errno and the
	 * record counts as never written.
	 */
	void (*done)(struct journal_entry *entry, int result);
	uint32_t segment;
	uint64_t offset;
};

struct journal_settings {
	const char *folder;
	const struct file_ops *ops;
	uint64_t segment_size;       /* a segment that is larger is followed by a new one */
	mode_t mode;                 /* of segments */
	struct watermark *watermark; /* published after each sync; NULL: none (out/) */
	bool spare;                  /* keeps one written out for a full disk (out/) */
	int wake_fd;                 /* eventfd poked after each batch, or -1 */
	/* The end of the last valid segment, from recovery; 0: none. */
	uint32_t previous;
	uint64_t previous_end;
	uint32_t highest; /* highest number in the folder, valid or not */
};

/*
 * Begins a segment and starts the thread; with a spare only when the first record
 * comes, so that starts on a full disk do not use it up. A disk that is full is no
 * error here: writing fails until there is room. 0 or -errno with the reason.
 */
int journal_open(const struct journal_settings *settings, struct journal **ret_journal,
        struct why *why) must_check;

/* Writes what is queued, syncs, ends the thread; as journal_open(), it blocks. NULL is fine. */
void journal_close(struct journal *journal);

/* Any thread; never blocks for the disk. */
void journal_append(struct journal *journal, struct journal_entry *entry);

/*
 * 0; -errno of the last failure when there were two in a row: until a probe succeeds
 * nothing should be accepted.
 */
int journal_failure(const struct journal *journal);

/* Asks for a probe write if it is failing and none was made in the last second. Any thread. */
void journal_probe(struct journal *journal);

/*
 * The first segment of this run (0 before there is one), and the one that is or will
 * be written: those below it are sealed. Any thread.
 */
uint32_t journal_run(const struct journal *journal);
uint32_t journal_segment(const struct journal *journal);

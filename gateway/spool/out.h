/* SPDX-License-Identifier: ISC */
/* The parts of struct spool_out that its files share. */
#pragma once

#include "gateway/net/timer.h"
#include "gateway/spool/index.h"
#include "gateway/spool/journal.h"
#include "gateway/spool/segment.h"
#include "gateway/spool/spool.h"
#include "gateway/spool/watermark.h"

#define FOLLOW_ALARMS_MAX 2048

/* The reader of in/: its job runs on a worker and owns this meanwhile. */
struct follow {
	struct job job;
	bool running, again; /* owner: loop */
	struct watermark watermark;
	bool this_boot;
	uint32_t number; /* segment that is read, 0: none yet */
	uint64_t offset;
	struct segment segment; /* open if number > 0 */
	bool caught_up, bodies_listed;
	struct list found; /* entries read by the job */
	struct buf alarms; /* lines */
	struct buf bodies; /* names of all body files, once: lines */
	struct buf room;
};

/* Unlinking what nothing needs any more, after the marks that say so are synced. */
struct cleanup {
	struct job job;
	struct journal_entry sync;
	struct post synced;
	bool running;
	int result;
	struct buf waiting, paths; /* each path ends with a zero */
};

struct spool_out {
	struct spool_out_settings settings;
	char in_folder[4096], out_folder[4096];
	struct spool_index index;
	struct journal *journal;
	struct watermark lock;
	struct follow follow;
	struct cleanup cleanup;
	struct list ready;    /* entries read at the start, told by the first follow */
	struct list retrying; /* marks that could not be written */
	struct timer retry;
	size_t marks_outstanding;
};

/* follow.c: the job's work and the telling of what it found. */
void follow_init(struct spool_out *out);
void follow_done(struct spool_out *out);

/* message.c: an entry from a record; NULL without memory or when it is malformed. */
struct spool_entry *entry_from_record(const struct record_header *record, struct slice envelope,
        uint32_t segment, bool in_out) must_check;
void entry_body_path(
        const struct spool_out *out, const struct spool_entry *entry, char path[SEGMENT_PATH]);

/* out.c */
void cleanup_consider(struct spool_out *out);
void cleanup_add_path(struct spool_out *out, const char *path);

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

/* The reader of in/. Its job runs on a worker; the loop takes over what it found. */
struct follow {
	struct job job;
	struct timer retry; /* after a failure */

	/* owner: loop */
	bool running, again;
	uint32_t taken_to; /* all records of segments below it are in the index */
	bool caught_up;    /* with the watermark, at least once */

	/* owner: the job while it runs */
	struct watermark watermark;
	bool this_boot;
	uint32_t number; /* segment that is read, 0: none yet */
	uint64_t offset;
	struct segment segment; /* open if number > 0 */
	bool at_end;            /* of what the watermark allowed */
	int result;             /* 1: there is more; -errno */
	uint32_t bodies_run;    /* body files of older runs have been listed; 0: not yet */
	struct list found;      /* entries */
	struct buf passed;      /* struct passed: segments that were gone through */
	struct buf alarms;      /* lines */
	struct buf bodies;      /* names of body files of older runs: lines */
	struct buf room;
};

/* Unlinking what nothing needs any more, after the marks that say so are synced. */
struct cleanup {
	struct job job;
	struct journal_entry sync;
	struct post synced;
	bool running;
	int result, emptied;       /* of unlinking; of emptying */
	struct buf waiting, paths; /* each path ends with a zero */
	struct buf emptying;       /* paths of segments of which the header stays */
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
	bool failing;         /* there are some, or they are being tried again */
	struct timer retry;
	size_t marks_outstanding;
};

/* follow.c: the job's work and the telling of what it found. */
void follow_init(struct spool_out *out);
void follow_done(struct spool_out *out);

/* message.c: an entry from a record; 0, -EBADMSG, -ENOMEM. */
int entry_from_record(const struct spool_out *out, const struct record_header *record,
        struct slice envelope, uint32_t segment, bool in_out,
        struct spool_entry **ret_entry) must_check;
void entry_body_path(
        const struct spool_out *out, const struct spool_entry *entry, char path[SEGMENT_PATH]);

/* removal.c: looks for what may go; adds a body that may, after the marks are synced. */
void cleanup_consider(struct spool_out *out);
void cleanup_add_path(struct spool_out *out, const char *path);

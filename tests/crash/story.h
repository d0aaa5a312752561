/* SPDX-License-Identifier: ISC */
/*
 * A story that uses both sides of the spool in every way: messages inline and in
 * files, settled, deferred, bounced and removed, with restarts between; and what
 * must hold of the spool after it, or after a crash in it. One thread.
 */
#pragma once

#include "gateway/net/timer.h"
#include "gateway/spool/spool.h"
#include "tests/crash/disk.h"

/* Numbers of messages: as given; the bounce and the notice of delay about number n. */
#define NUMBER_BOUNCE 100
#define NUMBER_DELAY  200

struct bench {
	char root[DISK_NAME];
	const struct file_ops *ops;
	struct disk *disk; /* that `ops` writes to, or NULL */
	struct loop *loop;
	struct jobs *jobs;
	struct spool_in *in;
	struct spool_out *out;
	struct fact facts[NUMBERS_MAX]; /* so far */
	unsigned giving, marking;       /* callbacks outstanding */
	int result[NUMBERS_MAX];        /* of each message given */
	bool forgiving;                 /* calls may fail */
	bool wait_for_all;              /* until all that was acknowledged is found */
	struct post look;
	uint64_t began_ms, shifted_ms;
	char problem[400]; /* what does not hold, or empty */
};

void bench_init(struct bench *bench, const char *root);
void bench_done(struct bench *bench);

/* Removes a folder and what is in it. */
void bench_remove(const char *root);

/* The whole story into an empty log; `full`: the disk fills up in the middle of it. */
void story_run(struct bench *bench, struct disk *disk, struct disk_fault fault, bool full);

/* What comes after a crash: recovery, one more round of everything, a clean end. */
void story_go_on(struct bench *bench, struct disk *disk);

/* Opens the spool in bench->root and says in bench->problem what does not hold. */
void story_check(struct bench *bench, const struct fact facts[NUMBERS_MAX], bool and_use);

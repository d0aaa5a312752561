/* SPDX-License-Identifier: ISC */
/*
 * A disk that remembers: the file operations of gateway/base/file.h on a real
 * folder, with a log of all that changes it, and the Nth call failing if asked.
 * From the log, folders can be made as a crash may have left them.
 *
 * What the story promised and asked is noted in the same log, so that for every
 * prefix of it one knows what must hold. Operations: any thread; the rest: one.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/file.h"
#include "gateway/base/id.h"

#define DISK_NAME   64
#define DISK_FDS    1024
#define DISK_NAMES  256
#define DISK_INODES 2048
#define DISK_HELD   32
#define DISK_NEVER  UINT32_MAX
#define LOCK_OCTETS 56 /* of in/lock: boot id, run, position */

enum disk_kind {
	DISK_CREATE,
	DISK_WRITE,
	DISK_SYNC,
	DISK_SYNC_FOLDER,
	DISK_RENAME,
	DISK_UNLINK,
	DISK_SHORTEN,  /* to `offset` octets; synced when it returns */
	NOTE_GIVEN,    /* from now on the message may be there */
	NOTE_ACKED,    /* and must be */
	NOTE_ASKED,    /* these recipients may be settled */
	NOTE_REPORTED, /* their mark is written */
	NOTE_SYNCED,   /* and on stable storage */
};

/* Recipients of a message that a mark settles. */
struct disk_held {
	uint32_t number;
	uint64_t recipients;
};

struct disk_entry {
	enum disk_kind kind;
	bool failed;
	uint32_t inode;
	char name[DISK_NAME], to[DISK_NAME]; /* relative to the root; of a folder its name */
	uint64_t offset, len;
	uint8_t *data; /* NULL: zeros */
	uint32_t number;
	uint64_t recipients;
	unsigned stands_from; /* after so many entries it is on stable storage; DISK_NEVER: not yet
	                       */
	bool doomed;          /* a sync of it failed, so that no later one proves anything */
	struct disk_held held[DISK_HELD]; /* of a write: the marks in it */
	unsigned held_count;
	/* in/lock when the call began and when it ended; zeros: there is none */
	uint8_t lock_before[LOCK_OCTETS], lock_after[LOCK_OCTETS];
};

struct disk_name {
	char name[DISK_NAME]; /* empty: free */
	uint32_t inode;
};

/* What fails: the `nth` call from 1, 0: none. */
struct disk_fault {
	unsigned nth;
	int error;      /* what it returns; 0: pwritev writes half */
	unsigned times; /* in a row, of the same call; 0 counts as 1 */
};

struct disk {
	char root[DISK_NAME];
	pthread_mutex_t lock;
	struct disk_entry *entries;
	unsigned count, cap;
	uint32_t inodes;
	struct disk_name names[DISK_NAMES]; /* as the process sees them */
	uint32_t inode_of[DISK_FDS];        /* + 1; 0: none */
	struct disk_fault fault;
	unsigned calls, failed_at, failed_entry;
	const char *fault_call; /* which one failed, or NULL */
	bool full;              /* nothing grows */
};

/* The number of a message by its id; -1: never heard of. The story's. */
int number_of_id(const struct message_id *id);

/* The log becomes the one that `disk_ops` writes to; one at a time. */
extern const struct file_ops disk_ops;
void disk_start(struct disk *disk, const char *root);
void disk_stop(struct disk *disk);
void disk_done(struct disk *disk);

void disk_note(struct disk *disk, enum disk_kind kind, uint32_t number, uint64_t recipients);

/* A disk that goes on, on a folder made as a kill after `count` entries left it. */
void disk_go_on(struct disk *disk, const struct disk *before, unsigned count, const char *root);

enum cut_kind { CUT_KILL, CUT_POWER };
enum cut_part { PART_ALL, PART_NONE, PART_PREFIX, PART_SOME };
enum cut_lock { LOCK_GONE, LOCK_OF_ANOTHER_BOOT, LOCK_AS_IT_WAS };

/* What became of everything that was not synced when the crash came after `count` entries. */
struct cut {
	enum cut_kind kind;
	unsigned count;
	enum cut_part names, octets;
	enum cut_lock lock;
	uint64_t seed;
};

/* Makes the folder's in/ and out/ as that crash left them; what was in them goes. */
void disk_make(const struct disk *disk, const struct cut *cut, const char *root);

/* Empties in/ and out/ of a folder, making them if need be. */
void disk_clear(const char *root);

#define NUMBERS_MAX 300

/* What must and may be true of a message after a cut. */
struct fact {
	bool given, acked;
	uint64_t asked, held; /* recipients that may be, that must be settled */
};

void disk_facts(const struct disk *disk, const struct cut *cut, struct fact facts[NUMBERS_MAX]);

/* Whether in/lock ever told of octets that were not synced: the entry's number + 1, or 0. */
unsigned disk_watermark_ahead(const struct disk *disk);

uint64_t disk_random(uint64_t *seed);

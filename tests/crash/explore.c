/* SPDX-License-Identifier: ISC */
/* See explore.h. */
#include "tests/crash/explore.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const kinds[] = {"create", "write", "sync", "sync-folder", "rename", "unlink",
        "given", "acked", "asked", "reported", "synced"};
static const char *const parts[] = {"all", "none", "prefix", "some"};

void explore_print(const struct disk *disk, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		const struct disk_entry *entry = &disk->entries[i];
		fprintf(stderr, "# %4u %s%s", i + 1, kinds[entry->kind],
		        entry->failed ? " FAILED" : "");
		if (entry->kind >= NOTE_GIVEN)
			fprintf(stderr, " %u/%" PRIx64 "\n", entry->number, entry->recipients);
		else
			fprintf(stderr, " %u %s %s %" PRIu64 "+%" PRIu64 " stands from %d\n",
			        entry->inode, entry->name, entry->to, entry->offset, entry->len,
			        (int)entry->stands_from);
	}
}

bool explore_cut(struct bench *bench, const struct disk *disk, const struct cut *cut)
{
	struct fact facts[NUMBERS_MAX];

	disk_make(disk, cut, bench->root);
	disk_facts(disk, cut, facts);
	story_check(bench, facts, cut->seed % 16 == 1);
	if (bench->problem[0] == '\0')
		return true;
	fprintf(stderr,
	        "# %s after %u of %u entries (names %s, octets %s, lock %d, seed %" PRIu64
	        "): %s\n",
	        cut->kind == CUT_KILL ? "kill" : "power cut", cut->count, disk->count,
	        parts[cut->names], parts[cut->octets], cut->lock, cut->seed, bench->problem);
	if (getenv("POSTERN_CRASH_LOG") != NULL)
		explore_print(disk, cut->count);
	return false;
}

int explore_prefixes(struct bench *bench, const struct disk *disk, unsigned first)
{
	static const struct cut plain[] = {
	        {.kind = CUT_KILL, .octets = PART_ALL, .lock = LOCK_AS_IT_WAS},
	        {.kind = CUT_KILL, .octets = PART_SOME, .lock = LOCK_AS_IT_WAS},
	        {.kind = CUT_POWER, .names = PART_NONE, .octets = PART_NONE, .lock = LOCK_GONE},
	        {.kind = CUT_POWER, .names = PART_ALL, .octets = PART_NONE, .lock = LOCK_GONE},
	        {.kind = CUT_POWER,
	                .names = PART_ALL,
	                .octets = PART_ALL,
	                .lock = LOCK_OF_ANOTHER_BOOT},
	        {.kind = CUT_POWER,
	                .names = PART_NONE,
	                .octets = PART_ALL,
	                .lock = LOCK_OF_ANOTHER_BOOT},
	        {.kind = CUT_POWER, .names = PART_ALL, .octets = PART_SOME, .lock = LOCK_GONE},
	};
	int states = 0;

	for (unsigned count = first; count <= disk->count; count++) {
		for (size_t i = 0; i < ARRAY_LEN(plain); i++, states++) {
			struct cut cut = plain[i];
			cut.count = count;
			cut.seed = count;
			if (!explore_cut(bench, disk, &cut))
				return -1;
		}
	}
	return states;
}

int explore_drawn(
        struct bench *bench, const struct disk *disk, unsigned first, unsigned count, uint64_t seed)
{
	for (unsigned i = 0; i < count; i++) {
		uint64_t dice = disk_random(&seed);
		struct cut cut = {
		        .kind = dice % 8 == 0 ? CUT_KILL : CUT_POWER,
		        .count = first + (unsigned)(disk_random(&seed) % (disk->count - first + 1)),
		        .names = (enum cut_part)(dice >> 8 & 3),
		        .octets = (enum cut_part)(dice >> 10 & 3),
		        .lock = dice >> 12 & 1 ? LOCK_GONE : LOCK_OF_ANOTHER_BOOT,
		        .seed = disk_random(&seed),
		};
		if (cut.kind == CUT_KILL)
			cut.lock = LOCK_AS_IT_WAS;
		if (!explore_cut(bench, disk, &cut))
			return -1;
	}
	return (int)count;
}

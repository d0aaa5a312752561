/* SPDX-License-Identifier: ISC */
/* Going through the states in which a crash may leave the disk. One thread. */
#pragma once

#include "tests/crash/story.h"

/* Opens the spool on that state. Whether all holds; if not it is told on stderr. */
bool explore_cut(struct bench *bench, const struct disk *disk, const struct cut *cut);

/* States of a crash after each entry from `first` on, the plain ones. Their number, or -1. */
int explore_prefixes(struct bench *bench, const struct disk *disk, unsigned first);

/* So many more, drawn by the seed. Their number, or -1. */
int explore_drawn(struct bench *bench, const struct disk *disk, unsigned first, unsigned count,
        uint64_t seed);

/* Prints a log with what is around the entry that matters. */
void explore_print(const struct disk *disk, unsigned count);

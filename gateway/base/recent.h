/* SPDX-License-Identifier: ISC */
/*
 * The last numbers that were noted, each with the mark of its moment: was this one noted since?
 * Marks never fall. One thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define RECENT_KEPT 1024

/* Zeroed it is empty. */
struct recent {
	uint64_t numbers[RECENT_KEPT], marks[RECENT_KEPT]; /* at their place % RECENT_KEPT */
	uint64_t count;                                    /* of all that were ever noted */
};

void recent_note(struct recent *recent, uint64_t number, uint64_t mark);

/* Whether the number was noted with a mark above this one; also true when nobody knows any more. */
bool recent_since(const struct recent *recent, uint64_t number, uint64_t mark);

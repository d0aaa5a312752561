/* SPDX-License-Identifier: ISC */
/*
 * Memory that is freed all at once: the strings of one session or one
 * transaction. Bounded: beyond `max` octets allocation fails, so that a peer
 * cannot make it grow without end. One thread at a time.
 */
#pragma once

#include <stddef.h>

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

struct arena_chunk;

struct arena {
	struct arena_chunk *chunks; /* private */
	size_t used, max;           /* private */
};

void arena_init(struct arena *arena, size_t max);

/* Frees everything that came from it; it can be used again. */
void arena_reset(struct arena *arena);

/* Zeroed, aligned for any type; NULL without memory or beyond the maximum. */
void *arena_alloc(struct arena *arena, size_t size) must_check;

/* A terminated copy / a slice of such a copy (ptr NULL without memory). */
char *arena_str(struct arena *arena, struct slice s) must_check;
struct slice arena_slice(struct arena *arena, struct slice s) must_check;

/* SPDX-License-Identifier: ISC */
/*
 * A hash map from bytes to a pointer. Keys are not copied: the key lives in the
 * value, or outlives it. The hash (XXH3) is keyed per process, so that a peer
 * who chooses the keys cannot choose the collisions. One thread at a time.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

struct map_slot;

struct map {
	struct map_slot *slots; /* private */
	size_t cap;             /* private: 0 or a power of two */
	size_t count;           /* entries; callers may read it */
};

void map_init(struct map *map);
void map_done(struct map *map);

/* The value of the key, or NULL. */
void *map_get(const struct map *map, struct slice key);

/* Adds or replaces. 0 or -ENOMEM (the map is unchanged). `value` is not NULL. */
int map_put(struct map *map, struct slice key, void *value) must_check;

/* Takes the entry out; its value, or NULL if there was none. */
void *map_remove(struct map *map, struct slice key);

/*
 * Goes through all values in no order: start with *position = 0, ends with NULL.
 * The map must not change meanwhile.
 */
void *map_next(const struct map *map, size_t *position);

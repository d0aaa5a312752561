/* SPDX-License-Identifier: ISC */
/* Hash map with open addressing and backward-shift deletion; see map.h. */
#include "gateway/base/map.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "gateway/base/random.h"

#define FIRST_CAP 16

struct map_slot {
	struct slice key;
	uint64_t hash;
	void *value; /* NULL: the slot is free */
};

static uint64_t hash_seed;
static pthread_once_t hash_seed_once = PTHREAD_ONCE_INIT;

static void make_hash_seed(void)
{
	random_bytes(&hash_seed, sizeof(hash_seed));
}

static uint64_t hash_key(struct slice key)
{
	return XXH3_64bits_withSeed(key.ptr, key.len, hash_seed);
}

void map_init(struct map *map)
{
	pthread_once(&hash_seed_once, make_hash_seed);
	*map = (struct map){0};
}

void map_done(struct map *map)
{
	free(map->slots);
	*map = (struct map){0};
}

/* The slot of the key, or the free one where it would go. Needs a free slot to end. */
static size_t find_slot(const struct map *map, struct slice key, uint64_t hash)
{
	size_t i = hash & (map->cap - 1);

	while (map->slots[i].value != NULL &&
	        !(map->slots[i].hash == hash && slice_equal(map->slots[i].key, key)))
		i = (i + 1) & (map->cap - 1);
	return i;
}

static int grow(struct map *map)
{
	struct map bigger = {
	        .cap = map->cap == 0 ? FIRST_CAP : map->cap * 2,
	        .count = map->count,
	};

	bigger.slots = calloc(bigger.cap, sizeof(*bigger.slots));
	if (bigger.slots == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < map->cap; i++) {
		const struct map_slot *slot = &map->slots[i];
		if (slot->value != NULL)
			bigger.slots[find_slot(&bigger, slot->key, slot->hash)] = *slot;
	}
	free(map->slots);
	*map = bigger;
	return 0;
}

void *map_get(const struct map *map, struct slice key)
{
	if (map->count == 0)
		return NULL;
	return map->slots[find_slot(map, key, hash_key(key))].value;
}

int map_put(struct map *map, struct slice key, void *value)
{
	assert_bug(value != NULL);
	if (map->count + 1 > map->cap / 4 * 3) {
		int r = grow(map);
		if (r < 0)
			return r;
	}

	uint64_t hash = hash_key(key);
	struct map_slot *slot = &map->slots[find_slot(map, key, hash)];
	if (slot->value == NULL)
		map->count++;
	*slot = (struct map_slot){.key = key, .hash = hash, .value = value};
	return 0;
}

void *map_remove(struct map *map, struct slice key)
{
	if (map->count == 0)
		return NULL;

	size_t hole = find_slot(map, key, hash_key(key));
	void *value = map->slots[hole].value;
	if (value == NULL)
		return NULL;

	/* Entries behind the hole move up unless that would put them before their home slot. */
	const size_t mask = map->cap - 1;
	for (size_t i = (hole + 1) & mask; map->slots[i].value != NULL; i = (i + 1) & mask) {
		size_t home = map->slots[i].hash & mask;
		if (((i - home) & mask) >= ((i - hole) & mask)) {
			map->slots[hole] = map->slots[i];
			hole = i;
		}
	}
	map->slots[hole] = (struct map_slot){0};
	map->count--;
	return value;
}

void *map_next(const struct map *map, size_t *position)
{
	while (*position < map->cap) {
		void *value = map->slots[(*position)++].value;
		if (value != NULL)
			return value;
	}
	return NULL;
}

/* SPDX-License-Identifier: ISC */
/* Memory freed all at once; see arena.h. */
#include "gateway/base/arena.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_SIZE 1024

struct arena_chunk {
	struct arena_chunk *next;
	size_t used, size;
	alignas(max_align_t) char data[];
};

void arena_init(struct arena *arena, size_t max)
{
	*arena = (struct arena){.max = max};
}

void arena_reset(struct arena *arena)
{
	while (arena->chunks != NULL) {
		struct arena_chunk *chunk = arena->chunks;
		arena->chunks = chunk->next;
		free(chunk);
	}
	arena->used = 0;
}

void *arena_alloc(struct arena *arena, size_t size)
{
	const size_t align = alignof(max_align_t);

	if (size > arena->max || arena->used > arena->max - size)
		return NULL;
	size_t need = (size + align - 1) / align * align;
	struct arena_chunk *chunk = arena->chunks;

	if (chunk == NULL || chunk->size - chunk->used < need) {
		size_t chunk_size = need > CHUNK_SIZE ? need : CHUNK_SIZE;
		chunk = malloc(sizeof(*chunk) + chunk_size);
		if (chunk == NULL)
			return NULL;
		*chunk = (struct arena_chunk){.next = arena->chunks, .size = chunk_size};
		arena->chunks = chunk;
	}
	void *memory = chunk->data + chunk->used;
	chunk->used += need;
	arena->used += need;
	return memset(memory, 0, need);
}

char *arena_str(struct arena *arena, struct slice s)
{
	char *copy = arena_alloc(arena, s.len + 1);

	if (copy != NULL && s.len > 0)
		memcpy(copy, s.ptr, s.len);
	return copy;
}

struct slice arena_slice(struct arena *arena, struct slice s)
{
	char *copy = arena_str(arena, s);

	return slice_of(copy, copy == NULL ? 0 : s.len);
}

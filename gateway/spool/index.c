/* SPDX-License-Identifier: ISC */
/* The queue in memory; see index.h. */
#include "gateway/spool/index.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct slice id_key(const struct message_id *id)
{
	return slice_of(id->bytes, ID_SIZE);
}

void index_init(struct spool_index *index)
{
	*index = (struct spool_index){0};
	map_init(&index->entries);
	map_init(&index->early_marks);
}

void index_done(struct spool_index *index)
{
	size_t position = 0;
	struct spool_entry *entry;
	struct early_marks *marks;

	while ((entry = map_next(&index->entries, &position)) != NULL)
		entry_free(entry);
	position = 0;
	while ((marks = map_next(&index->early_marks, &position)) != NULL) {
		free(marks->settled.more);
		free(marks);
	}
	map_done(&index->entries);
	map_done(&index->early_marks);
	free(index->segments);
}

int settled_reserve(struct settled *settled, uint32_t recipients)
{
	uint32_t words = recipients > 64 ? (recipients - 1) / 64 : 0;

	if (words <= settled->words)
		return 0;
	uint64_t *more = realloc(settled->more, words * sizeof(*more));
	if (more == NULL)
		return -ENOMEM;
	memset(more + settled->words, 0, (words - settled->words) * sizeof(*more));
	settled->more = more;
	settled->words = words;
	return 0;
}

int settled_set(struct settled *settled, uint32_t recipient)
{
	uint64_t *word = &settled->first, bit = 1ULL << (recipient % 64);

	if (settled_has(settled, recipient))
		return 0;
	int r = settled_reserve(settled, recipient + 1);
	if (r < 0)
		return r;
	if (recipient >= 64)
		word = &settled->more[recipient / 64 - 1];
	*word |= bit;
	return 1;
}

bool settled_has(const struct settled *settled, uint32_t recipient)
{
	uint64_t bit = 1ULL << (recipient % 64);

	if (recipient < 64)
		return (settled->first & bit) != 0;
	uint32_t index = recipient / 64 - 1;
	return index < settled->words && (settled->more[index] & bit) != 0;
}

bool spool_entry_is_settled(const struct spool_entry *entry, uint32_t recipient)
{
	return settled_has(&entry->settled, recipient);
}

struct early_marks *index_early_marks(struct spool_index *index, const struct message_id *id)
{
	struct early_marks *marks = map_get(&index->early_marks, id_key(id));

	if (marks != NULL)
		return marks;
	marks = calloc(1, sizeof(*marks));
	if (marks == NULL)
		return NULL;
	marks->id = *id;
	if (map_put(&index->early_marks, id_key(&marks->id), marks) < 0) {
		free(marks);
		return NULL;
	}
	return marks;
}

void entry_free(struct spool_entry *entry)
{
	free(entry->settled.more);
	free(entry);
}

/* Moves what is known from marks into the entry. */
static void apply_early_marks(struct spool_index *index, struct spool_entry *entry)
{
	struct early_marks *marks = map_get(&index->early_marks, id_key(&entry->id));

	if (marks == NULL)
		return;
	/*
	 * A bounce may stand there twice, if its first write was answered by an error: what
	 * settles it must be there for its second record too.
	 */
	if (entry->is_dsn && settled_has(&marks->settled, 0)) {
		entry->unsettled = 0;
		return;
	}
	(void)map_remove(&index->early_marks, id_key(&entry->id));
	entry->settled = marks->settled;
	for (uint32_t i = 0; i < entry->recipients; i++)
		entry->unsettled -= settled_has(&entry->settled, i);
	entry->delay_told = marks->delay_told;
	if (marks->has_deferral) {
		entry->attempt = marks->deferral.attempt;
		entry->next_us = marks->deferral.next_us;
		entry->age_ms = marks->deferral.age_ms;
	}
	free(marks);
}

int index_add(struct spool_index *index, struct spool_entry *entry)
{
	struct segment_use *segment = index_segment(index, entry->in_out, entry->segment);

	if (segment == NULL)
		return -ENOMEM;
	apply_early_marks(index, entry);
	bool known = map_get(&index->entries, id_key(&entry->id)) != NULL;
	if (known || entry->unsettled == 0) {
		entry_free(entry);
		return known ? INDEX_KNOWN : INDEX_SETTLED;
	}
	int r = map_put(&index->entries, id_key(&entry->id), entry);
	if (r < 0)
		return r;
	segment->live++;
	return INDEX_LIVES;
}

void index_forget(struct spool_index *index, struct spool_entry *entry)
{
	struct segment_use *segment = index_segment(index, entry->in_out, entry->segment);

	assert_bug(segment != NULL && segment->live > 0);
	segment->live--;
	(void)map_remove(&index->entries, id_key(&entry->id));
	entry_free(entry);
}

struct segment_use *index_find_segment(struct spool_index *index, bool in_out, uint32_t number)
{
	/* The newest are asked for most. */
	for (size_t i = index->segment_count; i > 0; i--) {
		struct segment_use *segment = &index->segments[i - 1];
		if (segment->in_out == in_out && segment->number == number)
			return segment;
	}
	return NULL;
}

struct segment_use *index_segment(struct spool_index *index, bool in_out, uint32_t number)
{
	struct segment_use *known = index_find_segment(index, in_out, number);

	if (known != NULL)
		return known;
	if (index->segment_count == index->segment_cap) {
		size_t cap = index->segment_cap == 0 ? 16 : index->segment_cap * 2;
		struct segment_use *more = realloc(index->segments, cap * sizeof(*more));
		if (more == NULL)
			return NULL;
		index->segments = more;
		index->segment_cap = cap;
	}
	struct segment_use *segment = &index->segments[index->segment_count++];
	*segment = (struct segment_use){.in_out = in_out, .number = number};
	return segment;
}

void index_drop_segment(struct spool_index *index, bool in_out, uint32_t number)
{
	for (size_t i = 0; i < index->segment_count; i++) {
		struct segment_use *segment = &index->segments[i];
		if (segment->in_out != in_out || segment->number != number)
			continue;
		memmove(segment, segment + 1, (index->segment_count - i - 1) * sizeof(*segment));
		index->segment_count--;
		return;
	}
}

uint32_t index_oldest(const struct spool_index *index, bool in_out)
{
	uint32_t oldest = UINT32_MAX;

	for (size_t i = 0; i < index->segment_count; i++) {
		if (index->segments[i].in_out == in_out && !index->segments[i].emptied)
			oldest = MIN_OF(oldest, index->segments[i].number);
	}
	return oldest;
}

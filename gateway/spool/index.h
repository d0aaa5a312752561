/* SPDX-License-Identifier: ISC */
/*
 * What `relay` knows of the queue in memory: entries by id, marks that were read
 * before their message, and the segments with what still needs them. The loop's
 * thread only (at the start: the only thread).
 */
#pragma once

#include "gateway/base/map.h"
#include "gateway/spool/spool.h"

/* Marks of a message whose record has not been read yet. */
struct early_marks {
	struct message_id id;
	struct settled settled;
	bool delay_told, has_deferral;
	struct stored_deferral deferral;
};

/* A segment and how many unsettled messages stand in it. */
struct segment_use {
	bool in_out;
	uint32_t number;
	uint32_t live;
	bool has_marks;       /* of out/: results, deferrals or bounces */
	uint32_t newest_mark; /* the newest segment of in/ that one of them is about */
	enum { SEGMENT_STAYS, SEGMENT_GOES, SEGMENT_IS_EMPTIED } going; /* under way */
	/*
	 * of in/: whose committed end its header tells. While that one is there, this one is
	 * emptied and its header stays.
	 */
	uint32_t previous;
	bool emptied;
};

struct spool_index {
	struct map entries;     /* id → struct spool_entry */
	struct map early_marks; /* id → struct early_marks */
	struct segment_use *segments;
	size_t segment_count, segment_cap;
};

void index_init(struct spool_index *index);
void index_done(struct spool_index *index);

/* Makes room for so many recipients: 0 or -ENOMEM. */
int settled_reserve(struct settled *settled, uint32_t recipients) must_check;
/* Sets the bit; 1 if it was not set, 0 if it was, -ENOMEM where no room was made. */
int settled_set(struct settled *settled, uint32_t recipient) must_check;
bool settled_has(const struct settled *settled, uint32_t recipient);

/* The marks of that id, made if need be; NULL without memory. */
struct early_marks *index_early_marks(
        struct spool_index *index, const struct message_id *id) must_check;

/*
 * Takes an entry that was read, applying early marks. INDEX_LIVES; it is settled or
 * known already, and then it has been freed; or -ENOMEM.
 */
enum index_added { INDEX_SETTLED, INDEX_LIVES, INDEX_KNOWN };
int index_add(struct spool_index *index, struct spool_entry *entry) must_check;

/* Takes it out and frees it; its segment has one less to wait for. */
void index_forget(struct spool_index *index, struct spool_entry *entry);

void entry_free(struct spool_entry *entry);

/* The segment, added if it is new; NULL without memory. */
struct segment_use *index_segment(
        struct spool_index *index, bool in_out, uint32_t number) must_check;
void index_drop_segment(struct spool_index *index, bool in_out, uint32_t number);

/* The segment if it is known, or NULL. */
struct segment_use *index_find_segment(struct spool_index *index, bool in_out, uint32_t number);

/* The lowest number of a folder's known segments that hold records, UINT32_MAX if there is none. */
uint32_t index_oldest(const struct spool_index *index, bool in_out);

/* SPDX-License-Identifier: ISC */
/*
 * Reading segments: listing them, going through their records, telling torn from damaged;
 * and making sure of what was read. Blocking: workers and starts only, a segment on one
 * thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/file.h"
#include "gateway/spool/format.h"

#define SEGMENT_PATH 4160

/* "FOLDER/00000001.seg"; returns `ret_path`. */
const char *segment_path(const char *folder, uint32_t number, char ret_path[SEGMENT_PATH]);

/* Numbers of all segment files, ascending; the caller frees. 0 or -errno. */
int segment_list(const char *folder, uint32_t **ret_numbers, size_t *ret_count) must_check;

struct segment {
	const struct file_ops *ops;
	int fd;
	struct segment_header header;
	bool header_damaged; /* its first record told the nonce; what stood before it is not known
	                      */
	uint64_t size;       /* of the file when it was opened */
};

/*
 * 0; -EBADMSG when neither its header nor its first record checks; -ENOTSUP when it
 * is of another version; -errno.
 */
int segment_open(const struct file_ops *ops, const char *folder, uint32_t number,
        struct segment *ret_segment) must_check;
void segment_close(struct segment *segment);

/*
 * For the writer, of a segment that segment_open() found bad. Nothing but zeros behind
 * its header: it was being made, holds nothing, and is removed: 0. Else its header was
 * damaged later, and it is renamed to damaged-NNNNNNNN.seg: 1. Or -errno.
 */
int segment_discard(const struct file_ops *ops, const char *folder, uint32_t number) must_check;

/*
 * For its writer's next start: makes sure that its header and what stands between the two
 * offsets is on stable storage. A sync that failed before leaves octets in the kernel's cache
 * that are read, but that no later sync writes; so they are written again, in their place. 0 or
 * -errno.
 */
int segment_make_sure(const struct file_ops *ops, const char *folder, uint32_t number,
        uint64_t from, uint64_t end) must_check;

/* Looks at the size again, of a segment that is still written. */
int segment_refresh(struct segment *segment) must_check;

enum segment_found {
	SEGMENT_RECORD,  /* a header that checks; *offset stands behind its record */
	SEGMENT_DAMAGED, /* octets that were committed and do not check; *offset stands behind them
	                  */
	SEGMENT_END,     /* the limit, or the torn tail */
};

#define SEGMENT_NO_LIMIT UINT64_MAX

/*
 * The next record at *offset. `limit` is the end of the committed part where it is
 * known: what stands before it and does not check is damage. Else the scan decides:
 * damage if a later valid header was written with a committed offset beyond it.
 * An enum segment_found, or -errno. Checks headers only.
 */
int segment_next(struct segment *segment, uint64_t *offset, uint64_t limit,
        struct record_header *ret_record) must_check;

/* Reads the envelope or body part and checks its sum: 0, -EBADMSG, -errno. */
int segment_read_envelope(struct segment *segment, const struct record_header *record,
        struct buf *ret_octets) must_check;
int segment_read_body(struct segment *segment, const struct record_header *record,
        struct buf *ret_octets) must_check;

/*
 * Where the records end: the offset at which segment_next() says SEGMENT_END; and how far it
 * had been synced when the last of them was written (or NULL). 0 or -errno.
 */
int segment_find_end(
        struct segment *segment, uint64_t *ret_end, uint64_t *ret_committed) must_check;

/*
 * Copies octets that do not check to FOLDER/damaged-NAME-NUMBER-OFFSET, for an
 * operator to look at; as far as it can, since the damage may be the disk's.
 */
void segment_quarantine(
        struct segment *segment, const char *folder, const char *name, uint64_t from, uint64_t to);

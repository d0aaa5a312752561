/* SPDX-License-Identifier: ISC */
/*
 * Segments of the spool. The first octet: 0, the rest is the file as it is; else so many
 * records (up to 15) are written first, each of three octets, and then octets are changed:
 * what the scan must find of them a simple model says.
 */
#include "gateway/spool/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

#define NUMBER      7
#define NONCE       0x0123456789abcdefULL
#define RECORDS_MAX 16

/* A segment under construction, and what was written where. */
struct written {
	struct buf octets, untouched;
	struct record_header records[RECORDS_MAX];
	unsigned count;
};

static int file = -1;

static int open_file(const char *path, int flags, mode_t mode)
{
	(void)path;
	(void)flags;
	(void)mode;
	return dup(file);
}

static int open_segment(struct slice octets, struct segment *ret_segment)
{
	static struct file_ops ops;

	ops = file_system;
	ops.open = open_file;
	file = memfd_create("segment", MFD_CLOEXEC);
	assert_bug(file >= 0);
	assert_bug(write(file, octets.ptr, octets.len) == (ssize_t)octets.len);
	return segment_open(&ops, "in", NUMBER, ret_segment);
}

static void append_record(struct written *written, struct slice *in)
{
	static const char fill[256];
	uint8_t committed = fuzz_u8(in), octets[RECORD_HEADER_SIZE];
	struct slice envelope = slice_of(fill, fuzz_u8(in)), body = slice_of(fill, fuzz_u8(in));
	uint64_t offset = buf_len(&written->octets);
	struct record_header *record = &written->records[written->count++];

	*record = (struct record_header){
	        .type = RECORD_MESSAGE,
	        .nonce = NONCE,
	        .offset = offset,
	        /* The end of some record before it, or nothing yet. */
	        .committed = committed < written->count ? written->records[committed].offset : 0,
	        .envelope_len = (uint32_t)envelope.len,
	        .body_len = (uint32_t)body.len,
	        .envelope_sum = format_checksum(envelope),
	        .body_sum = format_checksum(body),
	};
	record_header_encode(record, octets);
	assert_bug(buf_append(&written->octets, octets, sizeof(octets)) == 0);
	assert_bug(buf_append_slice(&written->octets, envelope) == 0);
	assert_bug(buf_append_slice(&written->octets, body) == 0);
	while (buf_len(&written->octets) - offset < record_size(record))
		assert_bug(buf_append(&written->octets, "", 1) == 0);
}

static void change_octets(struct written *written, struct slice *in)
{
	size_t len = buf_len(&written->octets);
	char *room;

	assert_bug(buf_append_slice(&written->untouched, buf_slice(&written->octets)) == 0);
	buf_clear(&written->octets);
	assert_bug(buf_reserve(&written->octets, len, &room) == 0);
	memcpy(room, buf_slice(&written->untouched).ptr, len);
	while (in->len >= 3) {
		size_t at = fuzz_u8(in) << 8;
		at = (at | fuzz_u8(in)) % len;
		if (at >= SEGMENT_HEADER_SIZE)
			room[at] = (char)(room[at] ^ (char)fuzz_u8(in));
	}
	/* An octet that is left over cuts the end off. */
	size_t cut = fuzz_u8(in);
	buf_added(&written->octets, len - MIN_OF(cut, len - SEGMENT_HEADER_SIZE));
}

static void write_segment(struct written *written, unsigned count, struct slice *in)
{
	const struct segment_header header = {.number = NUMBER, .nonce = NONCE, .run = NUMBER};
	uint8_t octets[SEGMENT_HEADER_SIZE];

	segment_header_encode(&header, octets);
	assert_bug(buf_append(&written->octets, octets, sizeof(octets)) == 0);
	while (written->count < count)
		append_record(written, in);
	change_octets(written, in);
}

/* Whether these octets of the segment are as they were written. */
static bool is_whole(const struct written *written, uint64_t offset, uint64_t len)
{
	struct slice now = slice_part(buf_slice(&written->octets), offset, len);

	return now.len == len &&
	       slice_equal(now, slice_part(buf_slice(&written->untouched), offset, len));
}

static bool header_is_whole(const struct written *written, unsigned i)
{
	/* With its room: what does not fit before the end is no record. */
	return is_whole(written, written->records[i].offset, RECORD_HEADER_SIZE) &&
	       written->records[i].offset + record_size(&written->records[i]) <=
	               buf_len(&written->octets);
}

/* The next record that the scan must find from record `i` on; the count if there is none. */
static unsigned next_found(const struct written *written, unsigned i)
{
	unsigned next = i;

	while (next < written->count && !header_is_whole(written, next))
		next++;
	if (next == i || next == written->count)
		return next;
	/* Damage, if any later one was written when this one was committed; else the torn tail. */
	for (unsigned later = next; later < written->count; later++) {
		if (header_is_whole(written, later) &&
		        written->records[later].committed > written->records[i].offset)
			return next;
	}
	return written->count;
}

static void check_parts(struct segment *segment, const struct record_header *record)
{
	struct buf part;

	buf_init(&part, RECORD_ENVELOPE_MAX);
	int r = segment_read_envelope(segment, record, &part);
	assert_bug(r == -EBADMSG || (r == 0 && buf_len(&part) == record->envelope_len));
	r = segment_read_body(segment, record, &part);
	assert_bug(r == -EBADMSG || (r == 0 && buf_len(&part) == record->body_len));
	buf_done(&part);
}

/* Goes through; `written` may be NULL: then nothing is known of what stands there. */
static void scan(struct segment *segment, const struct written *written, uint64_t limit)
{
	uint64_t offset = 0, before = 0, end;
	struct record_header record;
	unsigned expected = 0;
	int r;

	while ((r = segment_next(segment, &offset, limit, &record)) != SEGMENT_END) {
		assert_bug(r == SEGMENT_RECORD || r == SEGMENT_DAMAGED);
		assert_bug(offset > before && offset <= segment->size && offset <= limit);
		before = offset;
		if (r == SEGMENT_DAMAGED)
			continue;
		check_parts(segment, &record);
		if (written == NULL || limit != SEGMENT_NO_LIMIT)
			continue;
		expected = next_found(written, expected);
		assert_bug(expected < written->count);
		assert_bug(record.offset == written->records[expected].offset);
		expected++;
	}
	if (written != NULL && limit == SEGMENT_NO_LIMIT && expected < written->count)
		assert_bug(next_found(written, expected) == written->count);
	assert_bug(segment_find_end(segment, &end, NULL) == 0);
	assert_bug(end >= SEGMENT_HEADER_SIZE && end <= MAX_OF(segment->size, 64UL));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice in = slice_of(data, size);
	struct written written = {0};
	unsigned count = fuzz_u8(&in) % RECORDS_MAX;
	struct segment segment;

	buf_init(&written.octets, 1U << 20);
	buf_init(&written.untouched, 1U << 20);
	if (count > 0)
		write_segment(&written, count, &in);
	else
		assert_bug(buf_append_slice(&written.octets, slice_part(in, 0, 65536)) == 0);
	int r = open_segment(buf_slice(&written.octets), &segment);
	assert_bug(r == 0 || (r == -EBADMSG && count == 0));
	if (r == 0) {
		scan(&segment, count > 0 ? &written : NULL, SEGMENT_NO_LIMIT);
		scan(&segment, NULL, segment.size / 2);
		segment_close(&segment);
	}
	close(file);
	buf_done(&written.octets);
	buf_done(&written.untouched);
	return 0;
}

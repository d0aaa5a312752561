/* SPDX-License-Identifier: ISC */
/* See segment.h. Blocking: workers and starts only. */
#include "gateway/spool/segment.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOOK_AHEAD 65536

const char *segment_path(const char *folder, uint32_t number, char ret_path[SEGMENT_PATH])
{
	snprintf(ret_path, SEGMENT_PATH, "%s/%08u.seg", folder, number);
	return ret_path;
}

static int compare_numbers(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

/* The number in "00000001.seg", 0 for any other name. */
static uint32_t number_of(const char *name)
{
	struct slice text = slice_str(name);
	uint64_t number;

	if (text.len < 12 || !slice_ends_with_nocase(text, SLICE(".seg")) ||
	        slice_to_u64(slice_of(text.ptr, text.len - 4), &number) < 0 || number > UINT32_MAX)
		return 0;
	return (uint32_t)number;
}

int segment_list(const char *folder, uint32_t **ret_numbers, size_t *ret_count)
{
	uint32_t *numbers = NULL;
	size_t count = 0, cap = 0;
	struct dirent *entry;
	DIR *dir = opendir(folder);

	if (dir == NULL)
		return -errno;
	while (errno = 0, (entry = readdir(dir)) != NULL) {
		uint32_t number = number_of(entry->d_name);
		if (number == 0)
			continue;
		if (count == cap) {
			cap = cap == 0 ? 16 : cap * 2;
			uint32_t *more = realloc(numbers, cap * sizeof(*numbers));
			if (more == NULL) {
				free(numbers);
				closedir(dir);
				return -ENOMEM;
			}
			numbers = more;
		}
		numbers[count++] = number;
	}
	/* Half a list would be taken for all there is. */
	int error = errno;
	closedir(dir);
	if (error != 0) {
		free(numbers);
		return -error;
	}
	if (count > 0)
		qsort(numbers, count, sizeof(*numbers), compare_numbers);
	*ret_numbers = numbers;
	*ret_count = count;
	return 0;
}

int segment_refresh(struct segment *segment)
{
	struct stat st;

	if (fstat(segment->fd, &st) < 0)
		return -errno;
	segment->size = (uint64_t)st.st_size;
	return 0;
}

/* A header is synced before the first record is written, so that record tells it was whole. */
static int header_from_record(struct segment *segment, uint32_t number)
{
	uint8_t octets[RECORD_HEADER_SIZE];
	uint64_t nonce;

	int r = file_read_exactly(
	        segment->ops, segment->fd, octets, sizeof(octets), SEGMENT_HEADER_SIZE);
	if (r == 0)
		r = record_header_nonce(octets, SEGMENT_HEADER_SIZE, &nonce);
	if (r != 0)
		return r == -ENODATA ? -EBADMSG : r;
	segment->header = (struct segment_header){.number = number, .nonce = nonce};
	segment->header_damaged = true;
	return 0;
}

int segment_open(const struct file_ops *ops, const char *folder, uint32_t number,
        struct segment *ret_segment)
{
	char path[SEGMENT_PATH];
	uint8_t octets[SEGMENT_HEADER_SIZE];
	struct segment segment = {.ops = ops};

	segment.fd = ops->open(segment_path(folder, number, path), O_RDONLY, 0);
	if (segment.fd < 0)
		return segment.fd;
	int r = file_read_exactly(ops, segment.fd, octets, sizeof(octets), 0);
	if (r == -ENODATA)
		r = -EBADMSG;
	if (r == 0)
		r = segment_header_decode(octets, &segment.header);
	if (r == 0 && segment.header.number != number)
		r = -EBADMSG;
	if (r == -EBADMSG)
		r = header_from_record(&segment, number);
	if (r == 0)
		r = segment_refresh(&segment);
	if (r < 0) {
		close(segment.fd);
		return r;
	}
	*ret_segment = segment;
	return 0;
}

/* Whether there is anything but zeros behind the header: 1, 0, -errno. */
static int has_content(const struct file_ops *ops, int fd)
{
	char window[16384];
	off_t at = SEGMENT_HEADER_SIZE;
	ssize_t got;

	while ((got = ops->pread(fd, window, sizeof(window), at)) > 0) {
		for (ssize_t i = 0; i < got; i++) {
			if (window[i] != 0)
				return 1;
		}
		at += got;
	}
	return (int)got;
}

int segment_discard(const struct file_ops *ops, const char *folder, uint32_t number)
{
	char path[SEGMENT_PATH], damaged[SEGMENT_PATH];

	segment_path(folder, number, path);
	_cleanup_(closep) int fd = ops->open(path, O_RDONLY, 0);
	if (fd < 0)
		return fd;
	int r = has_content(ops, fd);
	if (r == 0)
		return ops->unlink(path);
	if (r < 0)
		return r;
	snprintf(damaged, sizeof(damaged), "%s/damaged-%08u.seg", folder, number);
	r = ops->rename(path, damaged);
	return r < 0 ? r : 1;
}

/* Writes again what stands there. */
static int write_again(const struct file_ops *ops, int fd, uint64_t at, uint64_t end)
{
	char window[16384];
	ssize_t got;
	int r = 0;

	while (r == 0 && at < end) {
		got = ops->pread(fd, window, MIN_OF((uint64_t)sizeof(window), end - at), (off_t)at);
		if (got <= 0)
			return (int)got;
		const struct iovec part = {window, (size_t)got};
		r = file_write_exactly(ops, fd, &part, 1, (off_t)at);
		at += (uint64_t)got;
	}
	return r;
}

int segment_make_sure(const struct file_ops *ops, const char *folder, uint32_t number,
        uint64_t from, uint64_t end)
{
	char path[SEGMENT_PATH];
	_cleanup_(closep) int fd = ops->open(segment_path(folder, number, path), O_RDWR, 0);

	if (fd < 0)
		return fd;
	int r = write_again(ops, fd, 0, SEGMENT_HEADER_SIZE);
	if (r == 0)
		r = write_again(ops, fd, MAX_OF(from, (uint64_t)SEGMENT_HEADER_SIZE), end);
	return r == 0 ? ops->fdatasync(fd) : r;
}

void segment_close(struct segment *segment)
{
	if (segment->fd >= 0)
		close(segment->fd);
	segment->fd = -1;
}

/* The record header at the offset: 0, -EBADMSG (also when it does not fit before `end`), -errno. */
static int read_header(
        struct segment *segment, uint64_t offset, uint64_t end, struct record_header *ret_record)
{
	uint8_t octets[RECORD_HEADER_SIZE];

	if (end < RECORD_HEADER_SIZE || offset > end - RECORD_HEADER_SIZE)
		return -EBADMSG;
	int r = file_read_exactly(segment->ops, segment->fd, octets, sizeof(octets), (off_t)offset);
	if (r == 0)
		r = record_header_decode(octets, segment->header.nonce, offset, ret_record);
	if (r == 0 && record_size(ret_record) > end - offset)
		r = -EBADMSG;
	return r == -ENODATA ? -EBADMSG : r;
}

/*
 * Looks behind the bad record at `bad` for what shows that it is damage: where the end is
 * known any header that checks, else one that was written when `bad` was committed; those
 * of its own batch before that one were not. 1 with the offset of the first header that
 * checks, 0 when nothing shows it, -errno.
 */
static int find_next(struct segment *segment, uint64_t bad, uint64_t from, uint64_t end,
        bool limited, uint64_t *ret_offset)
{
	_cleanup_(freep) uint8_t *window = malloc(LOOK_AHEAD + RECORD_HEADER_SIZE);
	struct record_header record;
	uint64_t first = 0;

	if (window == NULL)
		return -ENOMEM;
	for (uint64_t at = from; at + RECORD_HEADER_SIZE <= end; at += LOOK_AHEAD) {
		ssize_t got = segment->ops->pread(
		        segment->fd, window, LOOK_AHEAD + RECORD_HEADER_SIZE, (off_t)at);
		if (got < 0)
			return (int)got;
		for (uint64_t i = 0; i < LOOK_AHEAD && i + RECORD_HEADER_SIZE <= (uint64_t)got;
		        i += RECORD_ALIGN) {
			if (record_header_decode(
			            window + i, segment->header.nonce, at + i, &record) < 0 ||
			        at + i + record_size(&record) > end)
				continue;
			if (first == 0)
				first = at + i;
			if (limited || record.committed > bad) {
				*ret_offset = first;
				return 1;
			}
		}
	}
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): it does not know _cleanup_ */
	return 0;
}

int segment_next(
        struct segment *segment, uint64_t *offset, uint64_t limit, struct record_header *ret_record)
{
	bool limited = limit != SEGMENT_NO_LIMIT;
	uint64_t end = MIN_OF(limit, segment->size);
	uint64_t next = end;

	if (*offset < SEGMENT_HEADER_SIZE)
		*offset = SEGMENT_HEADER_SIZE;
	/* The file was cut short, unless nothing but its header was left on purpose. */
	if (*offset >= end && limited && *offset < limit && segment->size > SEGMENT_HEADER_SIZE) {
		*offset = limit;
		return SEGMENT_DAMAGED;
	}
	if (*offset >= end)
		return SEGMENT_END;
	int r = read_header(segment, *offset, end, ret_record);
	if (r == 0) {
		*offset += record_size(ret_record);
		return SEGMENT_RECORD;
	}
	if (r != -EBADMSG)
		return r;

	r = find_next(segment, *offset, *offset + RECORD_ALIGN, end, limited, &next);
	if (r < 0)
		return r;
	if (r == 1 || limited) {
		*offset = next;
		return SEGMENT_DAMAGED;
	}
	return SEGMENT_END;
}

static int read_part(struct segment *segment, uint64_t offset, uint32_t len, uint64_t sum,
        struct buf *ret_octets)
{
	char *room;

	buf_clear(ret_octets);
	int r = buf_reserve(ret_octets, len, &room);
	if (r == 0)
		r = file_read_exactly(segment->ops, segment->fd, room, len, (off_t)offset);
	if (r < 0)
		return r == -ENODATA ? -EBADMSG : r;
	buf_added(ret_octets, len);
	return format_checksum(buf_slice(ret_octets)) == sum ? 0 : -EBADMSG;
}

int segment_read_envelope(
        struct segment *segment, const struct record_header *record, struct buf *ret_octets)
{
	return read_part(segment, record->offset + RECORD_HEADER_SIZE, record->envelope_len,
	        record->envelope_sum, ret_octets);
}

int segment_read_body(
        struct segment *segment, const struct record_header *record, struct buf *ret_octets)
{
	return read_part(segment, record->offset + RECORD_HEADER_SIZE + record->envelope_len,
	        record->body_len, record->body_sum, ret_octets);
}

/* Whether both parts check: 1, 0, -errno. */
static int parts_check(struct segment *segment, const struct record_header *record)
{
	struct buf part;

	buf_init(&part, RECORD_ENVELOPE_MAX);
	int r = segment_read_envelope(segment, record, &part);
	if (r == 0)
		r = segment_read_body(segment, record, &part);
	buf_done(&part);
	return r == 0 ? 1 : r == -EBADMSG ? 0 : r;
}

int segment_find_end(struct segment *segment, uint64_t *ret_end, uint64_t *ret_committed)
{
	struct record_header record;
	uint64_t offset = 0, committed = SEGMENT_HEADER_SIZE, next;
	int r;

	while ((r = segment_next(segment, &offset, SEGMENT_NO_LIMIT, &record)) == SEGMENT_RECORD ||
	        r == SEGMENT_DAMAGED) {
		if (r == SEGMENT_DAMAGED)
			continue;
		r = parts_check(segment, &record);
		if (r < 0)
			return r;
		if (r == 1) {
			committed = record.committed;
			continue;
		}
		/* Half a record: the torn tail, unless something later was written after its
		 * commit. */
		r = find_next(segment, record.offset, offset, segment->size, false, &next);
		if (r < 0)
			return r;
		if (r == 0) {
			offset = record.offset;
			break;
		}
	}
	if (r < 0)
		return r;
	*ret_end = offset;
	if (ret_committed != NULL)
		*ret_committed = committed;
	return 0;
}

void segment_quarantine(
        struct segment *segment, const char *folder, const char *name, uint64_t from, uint64_t to)
{
	char path[SEGMENT_PATH], window[16384];

	snprintf(path, sizeof(path), "%s/damaged-%s-%08u-%" PRIu64, folder, name,
	        segment->header.number, from);
	_cleanup_(closep) int fd = segment->ops->open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	for (uint64_t at = from; fd >= 0 && at < to;) {
		ssize_t got = segment->ops->pread(
		        segment->fd, window, MIN_OF((uint64_t)sizeof(window), to - at), (off_t)at);
		if (got <= 0 || write(fd, window, (size_t)got) != got)
			break;
		at += (uint64_t)got;
	}
}

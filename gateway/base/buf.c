/* SPDX-License-Identifier: ISC */
/* Growing buffers with a maximum; see buf.h. */
#include "gateway/base/buf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_CAP 256

void buf_init(struct buf *buf, size_t max)
{
	*buf = (struct buf){.max = max};
}

void buf_done(struct buf *buf)
{
	free(buf->data);
	buf_init(buf, buf->max);
}

void buf_wipe(struct buf *buf)
{
	if (buf->data != NULL)
		explicit_bzero(buf->data, buf->cap);
	buf_done(buf);
}

/* Makes the memory hold `need` octets from `start` on; moves them to the front first. */
static int make_room(struct buf *buf, size_t need)
{
	if (buf->start > 0 && buf->cap - buf->start < need) {
		memmove(buf->data, buf->data + buf->start, buf->end - buf->start);
		buf->end -= buf->start;
		buf->start = 0;
	}
	if (buf->cap - buf->start >= need && buf->data != NULL)
		return 0;

	size_t cap = buf->cap < FIRST_CAP ? FIRST_CAP : buf->cap;
	while (cap < need)
		cap *= 2;
	cap = MIN_OF(cap, buf->max + 1);
	/* Not realloc: it would leave a copy of a secret in freed memory. */
	char *data = malloc(cap);
	if (data == NULL)
		return -ENOMEM;
	if (buf->data != NULL) {
		memcpy(data, buf->data, buf->end);
		explicit_bzero(buf->data, buf->cap);
		free(buf->data);
	}
	buf->data = data;
	buf->cap = cap;
	return 0;
}

int buf_reserve(struct buf *buf, size_t len, char **ret_room)
{
	size_t used = buf->end - buf->start;

	if (len > buf->max || used > buf->max - len)
		return -ENOBUFS;
	int r = make_room(buf, used + len + 1);
	if (r < 0)
		return r;
	*ret_room = buf->data + buf->end;
	return 0;
}

void buf_added(struct buf *buf, size_t len)
{
	assert_bug(len <= buf->cap - buf->end);
	buf->end += len;
}

int buf_append(struct buf *buf, const void *data, size_t len)
{
	char *room;

	int r = buf_reserve(buf, len, &room);
	if (r < 0)
		return r;
	if (len > 0)
		memcpy(room, data, len);
	buf->end += len;
	return 0;
}

int buf_append_slice(struct buf *buf, struct slice s)
{
	return buf_append(buf, s.ptr, s.len);
}

int buf_append_str(struct buf *buf, const char *text)
{
	return buf_append(buf, text, strlen(text));
}

int buf_printf(struct buf *buf, const char *format, ...)
{
	va_list args;
	char *room;

	va_start(args, format);
	int len = vsnprintf(NULL, 0, format, args);
	va_end(args);
	if (len < 0)
		return -EINVAL;
	int r = buf_reserve(buf, (size_t)len, &room);
	if (r < 0)
		return r;
	va_start(args, format);
	vsnprintf(room, (size_t)len + 1, format, args);
	va_end(args);
	buf->end += (size_t)len;
	return 0;
}

int buf_read_fd(struct buf *buf, int fd)
{
	char *room;

	for (;;) {
		/* When it is full, one octet still tells the end from too much. */
		size_t room_left = MIN_OF(buf_room(buf), (size_t)65536);
		int r = buf_reserve(buf, room_left, &room);
		if (r < 0)
			return r;
		ssize_t got = room_left > 0 ? read(fd, room, room_left) : read(fd, &(char){0}, 1);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? -errno : 0;
		if (room_left == 0)
			return -ENOBUFS;
		buf_added(buf, (size_t)got);
	}
}

struct slice buf_slice(const struct buf *buf)
{
	/* Nothing may be added to a null pointer, not even nothing. */
	return buf->data == NULL ? SLICE("")
	                         : slice_of(buf->data + buf->start, buf->end - buf->start);
}

size_t buf_len(const struct buf *buf)
{
	return buf->end - buf->start;
}

size_t buf_room(const struct buf *buf)
{
	return buf->max - buf_len(buf);
}

void buf_consume(struct buf *buf, size_t len)
{
	assert_bug(len <= buf_len(buf));
	buf->start += len;
	if (buf->start == buf->end)
		buf_clear(buf);
}

void buf_clear(struct buf *buf)
{
	buf->start = 0;
	buf->end = 0;
}

void buf_truncate(struct buf *buf, size_t len)
{
	assert_bug(len <= buf_len(buf));
	buf->end = buf->start + len;
}

const char *buf_str(struct buf *buf)
{
	if (make_room(buf, buf_len(buf) + 1) < 0)
		return NULL;
	buf->data[buf->end] = '\0';
	return buf->data + buf->start;
}

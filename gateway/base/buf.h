/* SPDX-License-Identifier: ISC */
/*
 * A growing byte buffer with a maximum: appended at the end, consumed at the
 * front. Nothing is allocated before the first append; `buf_done` frees, and a
 * buffer that is done can be used again. One thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

struct buf {
	char *data;   /* private: use buf_slice() */
	size_t start; /* private: first octet not yet consumed */
	size_t end;   /* private: behind the last octet */
	size_t cap;   /* private */
	size_t max;   /* octets it may hold at a time */
};

void buf_init(struct buf *buf, size_t max);
void buf_done(struct buf *buf);

/* As buf_done, and overwrites what it held before: for secrets. */
void buf_wipe(struct buf *buf);

/* 0, -ENOBUFS beyond the maximum (nothing is appended then), or -ENOMEM. */
int buf_append(struct buf *buf, const void *data, size_t len) must_check;
int buf_append_slice(struct buf *buf, struct slice s) must_check;
int buf_append_str(struct buf *buf, const char *text) must_check;
int buf_printf(struct buf *buf, const char *format, ...) must_check printf_like(2, 3);

/*
 * Room for at least `len` octets at the end; *ret_room is where to write them and
 * buf_added() says how many were written. -ENOBUFS or -ENOMEM as above.
 */
int buf_reserve(struct buf *buf, size_t len, char **ret_room) must_check;
void buf_added(struct buf *buf, size_t len);

/* Appends what the descriptor gives until its end; -errno of read(2), or as buf_append. */
int buf_read_fd(struct buf *buf, int fd) must_check;

/* What it holds; valid until the next call that changes the buffer. */
struct slice buf_slice(const struct buf *buf);
size_t buf_len(const struct buf *buf);
size_t buf_room(const struct buf *buf);

/* Drops octets at the front / all of them (keeps the memory). */
void buf_consume(struct buf *buf, size_t len);
void buf_clear(struct buf *buf);

/* Shortens it to its first `len` octets. */
void buf_truncate(struct buf *buf, size_t len);

/* A terminating zero behind the content, not counted in it; NULL without memory or room. */
const char *buf_str(struct buf *buf) must_check;

/* SPDX-License-Identifier: ISC */
/*
 * A view of bytes that somebody else owns. It may hold any octet and is not
 * terminated. Comparisons know ASCII only: no locale ever decides what mail means.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "gateway/base/compiler.h"

struct slice {
	const char *ptr;
	size_t len;
};

/* Printf arguments for "%.*s"; for text of ours only, peers' text goes through LOG_VALUE. */
#define SLICE_ARGS(s) (int)(s).len, (s).ptr

#define SLICE(literal) ((struct slice){(literal), sizeof(literal) - 1})

static inline struct slice slice_of(const void *ptr, size_t len)
{
	return (struct slice){ptr, len};
}

static inline struct slice slice_str(const char *text)
{
	return (struct slice){text, text == NULL ? 0 : strlen(text)};
}

static inline bool slice_equal(struct slice a, struct slice b)
{
	return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

static inline char ascii_lower(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

/* Whether the two are equal when ASCII letters are folded. */
bool slice_equal_nocase(struct slice a, struct slice b);

bool slice_starts_with(struct slice s, struct slice prefix);
bool slice_starts_with_nocase(struct slice s, struct slice prefix);
bool slice_ends_with_nocase(struct slice s, struct slice suffix);

/* Where the octet occurs first / last, or -1. */
ptrdiff_t slice_find(struct slice s, char octet);
ptrdiff_t slice_find_last(struct slice s, char octet);

/* The part from `offset` on (empty when beyond the end), at most `len` octets. */
struct slice slice_part(struct slice s, size_t offset, size_t len);

/* Without spaces and tabs at both ends. */
struct slice slice_trim(struct slice s);

/*
 * Splits off what stands before the first `octet`; `rest` becomes what follows it.
 * Without one: everything, and `rest` is empty.
 */
struct slice slice_until(struct slice *rest, char octet);

/* Decimal digits only, no sign, no overflow: 0 and *ret_value, else -EINVAL or -ERANGE. */
int slice_to_u64(struct slice s, uint64_t *ret_value) must_check;

/* Whether it is valid UTF-8 (RFC 3629: no overlong forms, no surrogates, not above U+10FFFF). */
bool slice_is_utf8(struct slice s);

/*
 * How many octets of the character at the front, of valid UTF-8, steer a terminal or the order of
 * what stands beside them: controls, also of C1, separators of lines, changes of direction, what
 * has no width. 0: it is none of these.
 */
size_t slice_steering(struct slice s);

/* Whether all octets are below 0x80. */
bool slice_is_ascii(struct slice s);

/* A terminated copy on the heap, or NULL without memory; the caller frees. */
char *slice_dup(struct slice s) must_check;

/* SPDX-License-Identifier: ISC */
/* Views of bytes; see slice.h. Pure, any thread. */
#include "gateway/base/slice.h"

#include <errno.h>
#include <stdlib.h>

bool slice_equal_nocase(struct slice a, struct slice b)
{
	return a.len == b.len && slice_starts_with_nocase(a, b);
}

bool slice_starts_with(struct slice s, struct slice prefix)
{
	return s.len >= prefix.len && slice_equal(slice_of(s.ptr, prefix.len), prefix);
}

bool slice_starts_with_nocase(struct slice s, struct slice prefix)
{
	if (s.len < prefix.len)
		return false;
	for (size_t i = 0; i < prefix.len; i++) {
		if (ascii_lower(s.ptr[i]) != ascii_lower(prefix.ptr[i]))
			return false;
	}
	return true;
}

bool slice_ends_with_nocase(struct slice s, struct slice suffix)
{
	return s.len >= suffix.len &&
	       slice_starts_with_nocase(slice_part(s, s.len - suffix.len, suffix.len), suffix);
}

ptrdiff_t slice_find(struct slice s, char octet)
{
	const char *at = s.len == 0 ? NULL : memchr(s.ptr, octet, s.len);

	return at == NULL ? -1 : at - s.ptr;
}

ptrdiff_t slice_find_last(struct slice s, char octet)
{
	const char *at = s.len == 0 ? NULL : memrchr(s.ptr, octet, s.len);

	return at == NULL ? -1 : at - s.ptr;
}

struct slice slice_part(struct slice s, size_t offset, size_t len)
{
	if (offset >= s.len)
		return slice_of(s.ptr + s.len, 0);
	return slice_of(s.ptr + offset, MIN_OF(len, s.len - offset));
}

struct slice slice_trim(struct slice s)
{
	while (s.len > 0 && (s.ptr[0] == ' ' || s.ptr[0] == '\t'))
		s = slice_of(s.ptr + 1, s.len - 1);
	while (s.len > 0 && (s.ptr[s.len - 1] == ' ' || s.ptr[s.len - 1] == '\t'))
		s.len--;
	return s;
}

struct slice slice_until(struct slice *rest, char octet)
{
	struct slice all = *rest;
	ptrdiff_t at = slice_find(all, octet);

	if (at < 0) {
		*rest = slice_of(all.ptr + all.len, 0);
		return all;
	}
	*rest = slice_part(all, (size_t)at + 1, all.len);
	return slice_of(all.ptr, (size_t)at);
}

int slice_to_u64(struct slice s, uint64_t *ret_value)
{
	uint64_t value = 0;

	if (s.len == 0)
		return -EINVAL;
	for (size_t i = 0; i < s.len; i++) {
		if (s.ptr[i] < '0' || s.ptr[i] > '9')
			return -EINVAL;
		if (__builtin_mul_overflow(value, 10, &value) ||
		        __builtin_add_overflow(value, (uint64_t)(s.ptr[i] - '0'), &value))
			return -ERANGE;
	}
	*ret_value = value;
	return 0;
}

/* The length of the well-formed sequence at `p` (RFC 3629 section 4), 0 if there is none. */
static size_t utf8_sequence(const unsigned char *p, size_t left)
{
	unsigned char low = 0x80, high = 0xbf;
	size_t len;

	if (p[0] < 0x80)
		return 1;
	if (p[0] >= 0xc2 && p[0] <= 0xdf)
		len = 2;
	else if (p[0] >= 0xe0 && p[0] <= 0xef)
		len = 3;
	else if (p[0] >= 0xf0 && p[0] <= 0xf4)
		len = 4;
	else
		return 0;
	if (left < len)
		return 0;

	/* The second octet carries the bounds that shut out overlong forms and surrogates. */
	if (p[0] == 0xe0)
		low = 0xa0;
	else if (p[0] == 0xed)
		high = 0x9f;
	else if (p[0] == 0xf0)
		low = 0x90;
	else if (p[0] == 0xf4)
		high = 0x8f;
	if (p[1] < low || p[1] > high)
		return 0;
	for (size_t i = 2; i < len; i++) {
		if (p[i] < 0x80 || p[i] > 0xbf)
			return 0;
	}
	return len;
}

bool slice_is_utf8(struct slice s)
{
	const unsigned char *p = (const unsigned char *)s.ptr;

	for (size_t at = 0; at < s.len;) {
		size_t len = utf8_sequence(p + at, s.len - at);
		if (len == 0)
			return false;
		at += len;
	}
	return true;
}

size_t slice_steering(struct slice s)
{
	const unsigned char *p = (const unsigned char *)s.ptr;

	if (s.len >= 1 && (p[0] < ' ' || p[0] == 0x7f))
		return 1;
	/* U+0080 to U+009F, U+061C */
	if (s.len >= 2 && ((p[0] == 0xc2 && p[1] < 0xa0) || (p[0] == 0xd8 && p[1] == 0x9c)))
		return 2;
	/* U+200B to U+200F, U+2028 to U+202E, U+2060 to U+206F */
	if (s.len >= 3 && p[0] == 0xe2 &&
	        ((p[1] == 0x80 && p[2] >= 0x8b && p[2] <= 0x8f) ||
	                (p[1] == 0x80 && p[2] >= 0xa8 && p[2] <= 0xae) ||
	                (p[1] == 0x81 && p[2] >= 0xa0 && p[2] <= 0xaf)))
		return 3;
	/* U+FEFF, U+FFF9 to U+FFFB */
	if (s.len >= 3 && p[0] == 0xef &&
	        ((p[1] == 0xbb && p[2] == 0xbf) || (p[1] == 0xbf && p[2] >= 0xb9 && p[2] <= 0xbb)))
		return 3;
	return 0;
}

bool slice_is_ascii(struct slice s)
{
	for (size_t i = 0; i < s.len; i++) {
		if ((unsigned char)s.ptr[i] >= 0x80)
			return false;
	}
	return true;
}

char *slice_dup(struct slice s)
{
	char *copy = malloc(s.len + 1);

	if (copy == NULL)
		return NULL;
	if (s.len > 0)
		memcpy(copy, s.ptr, s.len);
	copy[s.len] = '\0';
	return copy;
}

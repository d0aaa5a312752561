/* SPDX-License-Identifier: ISC */
/*
 * A target gets untrusted octets and asks what must hold for any of them; what
 * does not hold is an assert_bug(). libFuzzer calls it, or replay.c with files.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "gateway/base/slice.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Of a target whose inputs are pieces (pieces.c): what may be one, its 0xff behind it. */
extern const char *const fuzz_phrases[];
extern const size_t fuzz_phrase_count;

/* The next octet of the input, 0 when there is none left. */
static inline uint8_t fuzz_u8(struct slice *in)
{
	uint8_t octet = in->len > 0 ? (uint8_t)in->ptr[0] : 0;

	*in = slice_part(*in, 1, in->len);
	return octet;
}

/* The next `len` octets, or what there is. */
static inline struct slice fuzz_take(struct slice *in, size_t len)
{
	struct slice part = slice_part(*in, 0, len);

	*in = slice_part(*in, len, in->len);
	return part;
}

/* A length octet and so many octets. */
static inline struct slice fuzz_bytes(struct slice *in)
{
	return fuzz_take(in, fuzz_u8(in));
}

static inline bool fuzz_has_controls(struct slice text)
{
	for (size_t i = 0; i < text.len; i++) {
		unsigned char c = (unsigned char)text.ptr[i];
		if (c < ' ' || c == 0x7f)
			return true;
	}
	return false;
}

/* Whether each CR is followed by LF and each LF comes behind a CR. */
static inline bool fuzz_lines_are_whole(struct slice text)
{
	for (size_t i = 0; i < text.len; i++) {
		if (text.ptr[i] == '\r' && (i + 1 == text.len || text.ptr[i + 1] != '\n'))
			return false;
		if (text.ptr[i] == '\n' && (i == 0 || text.ptr[i - 1] != '\r'))
			return false;
	}
	return text.len == 0 || text.ptr[text.len - 1] == '\n';
}

/* Whether `part` lies inside `whole`. */
static inline bool fuzz_is_inside(struct slice part, struct slice whole)
{
	return part.len == 0 ||
	       (part.ptr >= whole.ptr && part.ptr + part.len <= whole.ptr + whole.len);
}

/* SPDX-License-Identifier: ISC */
/*
 * How the search changes the inputs of sessions: beside octets, whole pieces (they end with
 * 0xff) are removed, repeated elsewhere, or taken from the target's phrases. So random sequences
 * of commands are tried, and not only octets in one.
 */
#include <string.h>

#include "gateway/base/compiler.h"
#include "tests/fuzz/fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

static unsigned draw(unsigned *seed, size_t bound)
{
	*seed = *seed * 1664525U + 1013904223U;
	return (unsigned)((*seed >> 8) % bound);
}

/* Behind the piece that the offset is in. */
static size_t end_of_piece(struct slice in, size_t offset)
{
	ptrdiff_t end = slice_find(slice_part(in, offset, in.len), '\xff');

	return end < 0 ? in.len : offset + (size_t)end + 1;
}

/* Puts a piece in at the offset, as far as there is room. */
static size_t insert(uint8_t *data, size_t size, size_t max_size, size_t at, struct slice piece)
{
	if (piece.len > max_size - size)
		return size;
	memmove(data + at + piece.len, data + at, size - at);
	memcpy(data + at, piece.ptr, piece.len);
	return size + piece.len;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	struct slice in = slice_of(data, size), piece;
	uint8_t copy[4096];

	if (size == 0 || draw(&seed, 3) == 0)
		return LLVMFuzzerMutate(data, size, max_size);
	size_t at = end_of_piece(in, draw(&seed, size));
	size_t from = end_of_piece(in, draw(&seed, size)), to = end_of_piece(in, from);
	switch (draw(&seed, 4)) {
	case 0:
		memmove(data + from, data + to, size - to);
		return size - (to - from);
	case 1:
		piece = slice_part(in, from, MIN_OF(to - from, sizeof(copy)));
		memcpy(copy, piece.ptr, piece.len);
		return insert(data, size, max_size, at, slice_of(copy, piece.len));
	default:
		piece = slice_str(fuzz_phrases[draw(&seed, fuzz_phrase_count)]);
		return insert(data, size, max_size, at, piece);
	}
}

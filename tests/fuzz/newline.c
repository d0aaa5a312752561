/* SPDX-License-Identifier: ISC */
/*
 * Bare line ends: the same whole and in pieces, nothing bare is left, and a second reader that
 * counts CRs makes the same of it. The first octet seeds the sizes of the pieces.
 */
#include "gateway/mail/newline.h"

#include "gateway/base/buf.h"
#include "gateway/mail/dot.h"
#include "tests/fuzz/fuzz.h"

static void on_text(void *arg, struct slice text)
{
	assert_bug(text.len > 0 && buf_append_slice(arg, text) == 0);
}

static unsigned make(struct slice in, unsigned seed, struct buf *out)
{
	struct newline newline;
	bool whole = seed == 0;

	newline_init(&newline);
	while (in.len > 0) {
		seed = seed * 1103515245U + 12345U;
		size_t len = whole ? in.len : MIN_OF((size_t)1 + (seed >> 16) % 8, in.len);
		newline_take(&newline, slice_of(in.ptr, len), on_text, out);
		in = slice_part(in, len, in.len);
	}
	newline_finish(&newline, on_text, out);
	return newline.faults;
}

static void make_simply(struct slice in, struct buf *out)
{
	size_t at = 0;

	while (at < in.len) {
		size_t crs = 0, ends;
		while (at < in.len && in.ptr[at] == '\r') {
			crs++;
			at++;
		}
		bool lf = at < in.len && in.ptr[at] == '\n';
		ends = lf ? MAX_OF(crs, (size_t)2) - 1 : crs;
		for (; ends > 0; ends--)
			on_text(out, SLICE("\r\n"));
		if (lf)
			at++;
		else if (at < in.len)
			on_text(out, slice_of(in.ptr + at++, 1));
	}
	if (buf_len(out) > 0 && !slice_ends_with_nocase(buf_slice(out), SLICE("\n")))
		on_text(out, SLICE("\r\n"));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice in = slice_of(data, size);
	unsigned seed = fuzz_u8(&in) + 1U;
	struct buf whole, pieces, simple, again;
	size_t room = 2 * size + 2;

	buf_init(&whole, room);
	buf_init(&pieces, room);
	buf_init(&simple, room);
	buf_init(&again, room);
	unsigned faults = make(in, 0, &whole);
	assert_bug(make(in, seed, &pieces) == faults);
	make_simply(in, &simple);
	struct slice made = buf_slice(&whole);
	assert_bug(slice_equal(made, buf_slice(&pieces)) && slice_equal(made, buf_slice(&simple)));
	assert_bug(fuzz_lines_are_whole(made));
	assert_bug(((faults & DOT_NUL) != 0) == (in.len > 0 && slice_find(in, '\0') >= 0));
	bool is_long = false;
	for (struct slice rest = made; rest.len > 0;)
		is_long |= slice_until(&rest, '\n').len > TEXT_LINE_MAX + 1;
	assert_bug(((faults & DOT_LONG_LINE) != 0) == is_long);
	/* What is whole stays as it is. */
	assert_bug(make(made, seed, &again) == faults && slice_equal(made, buf_slice(&again)));
	buf_done(&whole);
	buf_done(&pieces);
	buf_done(&simple);
	buf_done(&again);
	return 0;
}

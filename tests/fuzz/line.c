/* SPDX-License-Identifier: ISC */
/*
 * Lines: the same whole and in pieces, and as a second reader splits them. The first octet
 * seeds the sizes of the pieces, the second is the longest line.
 */
#include "gateway/mail/line.h"

#include "gateway/base/buf.h"
#include "tests/fuzz/fuzz.h"

/* One line of what was found: its text, how it ended. */
static void tell(struct buf *out, enum line_found found, const struct line *line)
{
	if (found == LINE_WHOLE)
		assert_bug(buf_append_slice(out, line->text) == 0);
	const char *end = found == LINE_TOO_LONG ? "!" : line->crlf ? "|" : "/";
	assert_bug(buf_append(out, end, 1) == 0);
}

static void read_all(struct slice in, size_t max, unsigned seed, struct buf *out)
{
	struct line_reader reader = {.skipping = false};
	size_t from = 0, to = 0, used;
	bool whole = seed == 0;
	struct line line;

	while (to < in.len) {
		seed = seed * 1103515245U + 12345U;
		to = whole ? in.len : MIN_OF(to + 1 + (seed >> 16) % 8, in.len);
		enum line_found found;
		do {
			struct slice window = slice_part(in, from, to - from);
			found = line_find(&reader, window, max, &line, &used);
			assert_bug(used <= window.len && (found == LINE_NONE || used > 0));
			assert_bug(found != LINE_WHOLE || fuzz_is_inside(line.text, window));
			from += used;
			if (found != LINE_NONE)
				tell(out, found, &line);
		} while (found != LINE_NONE);
		/* What waits is short: the window never fills. */
		assert_bug(to - from <= max);
	}
}

static void read_simply(struct slice in, size_t max, struct buf *out)
{
	while (slice_find(in, '\n') >= 0) {
		struct slice text = slice_until(&in, '\n');
		bool crlf = text.len > 0 && text.ptr[text.len - 1] == '\r';
		struct line line = {slice_of(text.ptr, text.len - crlf), crlf};
		tell(out, text.len > max ? LINE_TOO_LONG : LINE_WHOLE, &line);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice in = slice_of(data, size);
	unsigned seed = fuzz_u8(&in) + 1U;
	size_t max = fuzz_u8(&in);
	struct buf whole, pieces, simple;

	buf_init(&whole, size + 1);
	buf_init(&pieces, size + 1);
	buf_init(&simple, size + 1);
	read_all(in, max, 0, &whole);
	read_all(in, max, seed, &pieces);
	read_simply(in, max, &simple);
	assert_bug(slice_equal(buf_slice(&whole), buf_slice(&pieces)));
	assert_bug(slice_equal(buf_slice(&whole), buf_slice(&simple)));
	assert_bug(!line_is_clean(in) || !line_has_controls(in));
	assert_bug(line_has_controls(in) == fuzz_has_controls(in));
	buf_done(&whole);
	buf_done(&pieces);
	buf_done(&simple);
	return 0;
}

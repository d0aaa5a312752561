/* SPDX-License-Identifier: ISC */
/*
 * The end of data: the same whole and in pieces, and as a second reader sees it that has
 * all of it before its eyes; in chunks nothing ends it, and what bare line ends are made of
 * has none. The first octet seeds the sizes of the pieces.
 */
#include "gateway/mail/dot.h"

#include "gateway/base/buf.h"
#include "gateway/mail/newline.h"
#include "tests/fuzz/fuzz.h"

struct reading {
	struct buf out;
	struct newline newline;
	unsigned faults;
	size_t used;
	bool end;
};

static void on_content(void *arg, struct slice content)
{
	struct reading *reading = arg;

	assert_bug(content.len > 0 && buf_append_slice(&reading->out, content) == 0);
}

/* In pieces of 1 to 8 octets; whole without a seed. */
static void read_all(struct slice in, bool chunks, unsigned seed, struct reading *ret_reading)
{
	struct reading reading = {0};
	struct slice rest = in;
	bool whole = seed == 0;
	struct dot dot;

	buf_init(&reading.out, in.len + 16);
	dot_init(&dot, chunks);
	while (rest.len > 0 && !reading.end) {
		seed = seed * 1103515245U + 12345U;
		size_t len = whole ? rest.len : MIN_OF((size_t)1 + (seed >> 16) % 8, rest.len);
		size_t used = dot_decode(
		        &dot, slice_of(rest.ptr, len), on_content, &reading, &reading.end);
		assert_bug(used == len || (reading.end && used < len));
		rest = slice_part(rest, used, rest.len);
	}
	if (chunks)
		dot_finish(&dot, on_content, &reading);
	reading.faults = dot.faults;
	reading.used = in.len - rest.len;
	*ret_reading = reading;
}

/* What must come of the lines of `text`, which end with CRLF; `whole` has room for them. */
static unsigned decode_simply(struct slice text, struct buf *whole)
{
	unsigned faults = 0;

	while (text.len > 0) {
		const char *end = memmem(text.ptr, text.len, "\r\n", 2);
		struct slice line = slice_of(text.ptr, (size_t)(end - text.ptr));
		text = slice_part(text, line.len + 2, text.len);
		if (line.len > 0 && line.ptr[0] == '.')
			line = slice_part(line, 1, line.len);
		faults |= line.len > TEXT_LINE_MAX ? DOT_LONG_LINE : 0;
		faults |= slice_find(line, '\r') >= 0 ? DOT_BARE_CR : 0;
		faults |= slice_find(line, '\n') >= 0 ? DOT_BARE_LF : 0;
		faults |= slice_find(line, '\0') >= 0 ? DOT_NUL : 0;
		assert_bug(buf_append_slice(whole, line) == 0 && buf_append(whole, "\r\n", 2) == 0);
	}
	return faults;
}

/* Where the data ends: behind CR LF . CR LF, the first CR LF being that of the command; or 0. */
static size_t find_end(struct slice in)
{
	if (slice_starts_with(in, SLICE(".\r\n")))
		return 3;
	const char *end = in.len == 0 ? NULL : memmem(in.ptr, in.len, "\r\n.\r\n", 5);
	return end == NULL ? 0 : (size_t)(end - in.ptr) + 5;
}

/* All of it is content, and no line is left open. */
static void check_chunks(struct slice in, unsigned seed)
{
	struct reading whole, pieces;

	read_all(in, true, 0, &whole);
	read_all(in, true, seed, &pieces);
	struct slice out = buf_slice(&whole.out);
	assert_bug(slice_equal(out, buf_slice(&pieces.out)) && whole.faults == pieces.faults);
	assert_bug(!whole.end && whole.used == in.len && slice_starts_with(out, in));
	assert_bug(out.len == in.len || (out.len == in.len + 2 && out.ptr[in.len] == '\r'));
	assert_bug(in.len == 0 || slice_ends_with_nocase(out, SLICE("\r\n")));
	assert_bug(
	        ((whole.faults & (DOT_BARE_CR | DOT_BARE_LF)) == 0) == fuzz_lines_are_whole(out));
	assert_bug(((whole.faults & DOT_NUL) != 0) == (in.len > 0 && slice_find(in, '\0') >= 0));
	buf_done(&whole.out);
	buf_done(&pieces.out);
}

static void make_whole(void *arg, struct slice content)
{
	struct reading *reading = arg;

	newline_take(&reading->newline, content, on_content, reading);
}

/* As a listener does it that takes bare line ends: the same end, and none in what is made. */
static void check_newlines(struct slice in, const struct reading *strict)
{
	struct reading made = {.end = false};
	struct dot dot;

	buf_init(&made.out, 2 * in.len + 16);
	dot_init(&dot, false);
	newline_init(&made.newline);
	made.used = dot_decode(&dot, in, make_whole, &made, &made.end);
	assert_bug(made.end == strict->end && made.used == strict->used);
	newline_finish(&made.newline, on_content, &made);
	assert_bug(fuzz_lines_are_whole(buf_slice(&made.out)));
	assert_bug(strict->faults != 0 || !made.end ||
	           slice_equal(buf_slice(&made.out), buf_slice(&strict->out)));
	buf_done(&made.out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice in = slice_of(data, size);
	unsigned seed = fuzz_u8(&in) + 1U;
	struct reading whole, pieces;
	size_t end = find_end(in);

	read_all(in, false, 0, &whole);
	read_all(in, false, seed, &pieces);
	assert_bug(slice_equal(buf_slice(&whole.out), buf_slice(&pieces.out)));
	assert_bug(whole.faults == pieces.faults && whole.used == pieces.used);
	assert_bug(whole.end == pieces.end);
	assert_bug(whole.end == (end > 0) && whole.used == (end > 0 ? end : in.len));

	check_chunks(in, seed);
	check_newlines(in, &whole);
	if (whole.end) {
		struct buf simple;
		buf_init(&simple, in.len + 16);
		unsigned faults = decode_simply(slice_of(in.ptr, end - 3), &simple);
		/* A long line may have bare line ends in it, which count. */
		assert_bug((faults & ~DOT_LONG_LINE) == (whole.faults & ~DOT_LONG_LINE));
		assert_bug(faults == whole.faults || (faults & DOT_BARE_LF) != 0);
		assert_bug((faults & (DOT_BARE_CR | DOT_BARE_LF)) != 0 ||
		           slice_equal(buf_slice(&simple), buf_slice(&whole.out)));
		buf_done(&simple);
	}
	buf_done(&whole.out);
	buf_done(&pieces.out);
	return 0;
}

/* SPDX-License-Identifier: ISC */
/*
 * The decoder after DATA; see dot.h.
 *
 *   LINE_START --'.'--> DOT --CR--> DOT_CR --LF--> end
 *       |                |             |
 *       '---- other -----'---> TEXT <--'        TEXT --CR at the end of input--> CR
 *                               ^--------------- LINE_START <--LF--'
 *
 * A bare LF leads back to TEXT, never to LINE_START: LF . CR LF ends nothing.
 */
#include "gateway/mail/dot.h"

#include <string.h>

enum { LINE_START, DOT, DOT_CR, TEXT, CR };

void dot_init(struct dot *dot)
{
	*dot = (struct dot){.state = LINE_START};
}

/* Counts octets of the line; `content` has no line end in it. */
static void check_content(struct dot *dot, struct slice content)
{
	if (content.len == 0)
		return;
	dot->line_len = (uint32_t)MIN_OF(dot->line_len + content.len, (size_t)TEXT_LINE_MAX + 1);
	if (dot->line_len > TEXT_LINE_MAX)
		dot->faults |= DOT_LONG_LINE;
	if (memchr(content.ptr, '\r', content.len) != NULL)
		dot->faults |= DOT_BARE_CR;
	if (memchr(content.ptr, '\0', content.len) != NULL)
		dot->faults |= DOT_NUL;
}

/* In TEXT: takes everything to the end of the line or of the input. Returns octets used. */
static size_t take_text(
        struct dot *dot, struct slice in, void (*emit)(void *arg, struct slice content), void *arg)
{
	const char *lf = memchr(in.ptr, '\n', in.len);
	size_t used = lf != NULL ? (size_t)(lf - in.ptr) + 1 : in.len;

	if (lf == NULL) {
		/* A CR at the very end waits for its LF. */
		if (in.ptr[in.len - 1] == '\r')
			dot->state = CR;
		struct slice content = slice_of(in.ptr, in.len - (dot->state == CR));
		check_content(dot, content);
		if (content.len > 0)
			emit(arg, content);
		return used;
	}
	if (used >= 2 && in.ptr[used - 2] == '\r') {
		check_content(dot, slice_of(in.ptr, used - 2));
		dot->state = LINE_START;
		dot->line_len = 0;
	} else {
		check_content(dot, slice_of(in.ptr, used - 1));
		dot->faults |= DOT_BARE_LF;
	}
	emit(arg, slice_of(in.ptr, used));
	return used;
}

size_t dot_decode(struct dot *dot, struct slice in, void (*emit)(void *arg, struct slice content),
        void *arg, bool *ret_end)
{
	size_t at = 0;

	*ret_end = false;
	while (at < in.len) {
		char c = in.ptr[at];
		switch (dot->state) {
		case LINE_START:
			dot->state = c == '.' ? DOT : TEXT;
			at += c == '.';
			break;
		case DOT:
			dot->state = c == '\r' ? DOT_CR : TEXT;
			at += c == '\r';
			break;
		case DOT_CR:
			if (c == '\n') {
				*ret_end = true;
				return at + 1;
			}
			dot->faults |= DOT_BARE_CR;
			dot->state = TEXT;
			break;
		case CR:
			if (c == '\n') {
				emit(arg, SLICE("\r\n"));
				dot->state = LINE_START;
				dot->line_len = 0;
				at++;
			} else {
				dot->faults |= DOT_BARE_CR;
				dot->state = TEXT;
			}
			break;
		default:
			at += take_text(dot, slice_part(in, at, in.len), emit, arg);
		}
	}
	return at;
}

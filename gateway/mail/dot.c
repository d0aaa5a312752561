/* SPDX-License-Identifier: ISC */
/*
 * The decoder after DATA; see dot.h.
 *
 *   LINE_START --'.'--> DOT --CR--> DOT_CR --LF--> end
 *       |                |             |
 *       '---- other -----'---> TEXT <--'        TEXT --CR at the end of input--> CR
 *                               ^--------------- LINE_START <--LF--'
 *
 * A bare LF leads back to TEXT, never to LINE_START: LF . CR LF ends nothing. In
 * chunks LINE_START leads to TEXT, whatever comes.
 */
#include "gateway/mail/dot.h"

#include <string.h>

enum { LINE_START, DOT, DOT_CR, TEXT, CR };

void dot_init(struct dot *dot, bool chunks)
{
	*dot = (struct dot){.state = LINE_START, .chunks = chunks};
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

/*
 * In TEXT: takes everything to the end of the line or of the input, except a CR at
 * the very end of the input, which waits for its LF. Returns octets used.
 */
static size_t take_text(struct dot *dot, struct slice in)
{
	const char *lf = memchr(in.ptr, '\n', in.len);

	if (lf == NULL) {
		bool ends_with_cr = in.ptr[in.len - 1] == '\r';
		dot->state = ends_with_cr ? CR : TEXT;
		check_content(dot, slice_of(in.ptr, in.len - ends_with_cr));
		return in.len;
	}
	size_t used = (size_t)(lf - in.ptr) + 1;
	if (used >= 2 && in.ptr[used - 2] == '\r') {
		check_content(dot, slice_of(in.ptr, used - 2));
		dot->state = LINE_START;
		dot->line_len = 0;
	} else {
		check_content(dot, slice_of(in.ptr, used - 1));
		dot->faults |= DOT_BARE_LF;
	}
	return used;
}

size_t dot_decode(struct dot *dot, struct slice in, void (*emit)(void *arg, struct slice content),
        void *arg, bool *ret_end)
{
	size_t at = 0, from = 0; /* in[from, at) is content that was not emitted yet */

	*ret_end = false;
	while (at < in.len && !*ret_end) {
		char c = in.ptr[at];
		switch (dot->state) {
		case LINE_START:
			if (c == '.' && !dot->chunks) {
				if (at > from)
					emit(arg, slice_of(in.ptr + from, at - from));
				from = ++at;
				dot->state = DOT;
			} else {
				dot->state = TEXT;
			}
			break;
		case DOT:
			dot->state = c == '\r' ? DOT_CR : TEXT;
			if (c == '\r')
				from = ++at;
			break;
		case DOT_CR:
			*ret_end = c == '\n';
			if (*ret_end) {
				from = ++at;
				break;
			}
			emit(arg, SLICE("\r"));
			dot->faults |= DOT_BARE_CR;
			dot->state = TEXT;
			break;
		case CR:
			/* The CR that waited at the end of the last input. */
			emit(arg, SLICE("\r"));
			dot->state = TEXT;
			if (c == '\n') {
				dot->state = LINE_START;
				dot->line_len = 0;
				at++;
			} else {
				check_content(dot, SLICE("\r"));
			}
			break;
		default:
			at += take_text(dot, slice_part(in, at, in.len));
		}
	}
	size_t held = dot->state == CR && at > from ? 1 : 0;
	if (at - held > from)
		emit(arg, slice_of(in.ptr + from, at - held - from));
	return at;
}

void dot_finish(struct dot *dot, void (*emit)(void *arg, struct slice content), void *arg)
{
	if (dot->state == CR) {
		emit(arg, SLICE("\r"));
		check_content(dot, SLICE("\r"));
	}
	if (dot->state != LINE_START)
		emit(arg, SLICE("\r\n"));
	dot->state = LINE_START;
}

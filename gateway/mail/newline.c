/* SPDX-License-Identifier: ISC */
/* Bare line ends made CR LF; see newline.h. */
#include "gateway/mail/newline.h"

#include "gateway/mail/dot.h"

typedef void (*emit_fn)(void *arg, struct slice content);

void newline_init(struct newline *newline)
{
	*newline = (struct newline){0};
}

static void end_lines(struct newline *newline, unsigned count, emit_fn emit, void *arg)
{
	if (count == 0)
		return;
	emit(arg, slice_of("\r\n\r\n", count * 2UL));
	newline->line_len = 0;
}

/* Without any line end in it. */
static void take_text(struct newline *newline, struct slice text, emit_fn emit, void *arg)
{
	newline->line_len =
	        (uint32_t)MIN_OF(newline->line_len + text.len, (size_t)TEXT_LINE_MAX + 1);
	if (newline->line_len > TEXT_LINE_MAX)
		newline->faults |= DOT_LONG_LINE;
	if (memchr(text.ptr, '\0', text.len) != NULL)
		newline->faults |= DOT_NUL;
	emit(arg, text);
}

void newline_take(struct newline *newline, struct slice in, emit_fn emit, void *arg)
{
	while (in.len > 0) {
		size_t used = 1;
		if (*in.ptr == '\n') {
			end_lines(newline, 1, emit, arg);
			newline->crs = 0;
		} else if (*in.ptr == '\r') {
			/* The first of three stands for itself. */
			end_lines(newline, newline->crs == 2, emit, arg);
			newline->crs = MIN_OF(newline->crs + 1, 2U);
		} else {
			end_lines(newline, newline->crs, emit, arg);
			newline->crs = 0;
			const char *lf = memchr(in.ptr, '\n', in.len);
			used = lf == NULL ? in.len : (size_t)(lf - in.ptr);
			const char *cr = memchr(in.ptr, '\r', used);
			used = cr == NULL ? used : (size_t)(cr - in.ptr);
			take_text(newline, slice_of(in.ptr, used), emit, arg);
		}
		in = slice_part(in, used, in.len);
	}
}

void newline_finish(struct newline *newline, emit_fn emit, void *arg)
{
	end_lines(newline, newline->crs, emit, arg);
	newline->crs = 0;
	end_lines(newline, newline->line_len > 0, emit, arg);
}

/* SPDX-License-Identifier: ISC */
/*
 * Lines of SMTP, commands and replies: split off what has come, within limits, and
 * judged. Nothing is kept; a line that is too long is thrown away as it comes and
 * never seen in part. Pure.
 */
#pragma once

#include <stdbool.h>

#include "gateway/base/slice.h"

struct line_reader {
	bool skipping; /* in a line that is too long */
};

enum line_found {
	LINE_NONE,     /* not whole yet */
	LINE_WHOLE,    /* *ret_line: without CR LF, or without the LF if no CR is before it */
	LINE_TOO_LONG, /* its end has come; nothing of it is told */
};

struct line {
	struct slice text; /* of the input */
	bool crlf;         /* it ends with CR LF, not with a bare LF */
};

/*
 * Looks for the next line at the front of `in`; with its CR it may have at most `max`
 * octets. *ret_used is how much of the input is done with, whatever was found.
 */
enum line_found line_find(struct line_reader *reader, struct slice in, size_t max,
        struct line *ret_line, size_t *ret_used);

/* Whether it has octets below 0x20, or 0x7f: such never leave in a command. */
bool line_has_controls(struct slice text);

/* Whether it has neither control characters nor malformed UTF-8. */
bool line_is_clean(struct slice text);

/* SPDX-License-Identifier: ISC */
/*
 * Reading a message after DATA: only CR LF . CR LF ends it, a leading dot is
 * removed (RFC 5321 4.5.2). What must not be in a message is noted and reading
 * goes on to the real end, so that the client and we never disagree on where the
 * next command begins (SMTP smuggling). In chunks (RFC 3030) there are no dots and no
 * end, and the same must not be in it. Constant memory. Pure.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/slice.h"

#define TEXT_LINE_MAX 998 /* without CRLF: RFC 5322 2.1.1 */

enum dot_fault {
	DOT_BARE_CR = 1,
	DOT_BARE_LF = 2,
	DOT_NUL = 4,
	DOT_LONG_LINE = 8,
};

struct dot {
	unsigned faults; /* enum dot_fault, all that were seen */
	/* private */
	int state;
	bool chunks;
	uint32_t line_len;
};

void dot_init(struct dot *dot, bool chunks);

/*
 * Decodes what has come. `emit` gets the content in pieces, in order; they point
 * into `in` or to constants. Returns how much of `in` was used: all of it, unless
 * *ret_end says that the end was reached; what follows then belongs to the next
 * command.
 */
size_t dot_decode(struct dot *dot, struct slice in, void (*emit)(void *arg, struct slice content),
        void *arg, bool *ret_end);

/* After the last chunk: a line that has not ended ends now. */
void dot_finish(struct dot *dot, void (*emit)(void *arg, struct slice content), void *arg);

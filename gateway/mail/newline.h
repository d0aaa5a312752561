/* SPDX-License-Identifier: ISC */
/*
 * Text of old devices, whose lines end as they like: each bare LF and each bare CR
 * becomes CR LF. CR CR LF is one line end: it comes of programs that put a CR before
 * each LF though one was there. It stands behind the dot decoder, so that it never
 * makes an end of data. Constant memory. Pure.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/slice.h"

struct newline {
	unsigned faults; /* enum dot_fault: DOT_NUL and DOT_LONG_LINE, of the text that is made */
	/* private */
	unsigned crs; /* that wait for what is behind them: at most two */
	uint32_t line_len;
};

void newline_init(struct newline *newline);

/* `emit` gets the text in pieces, which point into `in` or to constants. */
void newline_take(struct newline *newline, struct slice in,
        void (*emit)(void *arg, struct slice content), void *arg);

/* The text is over: what waits is emitted, and the last line ended. */
void newline_finish(
        struct newline *newline, void (*emit)(void *arg, struct slice content), void *arg);

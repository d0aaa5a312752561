/* SPDX-License-Identifier: ISC */
/*
 * The two clocks. The monotonic one (CLOCK_BOOTTIME: it counts while a laptop
 * sleeps) serves every deadline, back-off and age; the wall clock is only for
 * what people and other hosts read: Received, Date, DKIM t=, logs. Any thread.
 *
 * Builds with test hooks can be moved in time: the environment variable
 * POSTERN_TEST_CLOCK names a file of 8 octets (a native int64_t, microseconds),
 * mapped shared and added to both clocks.
 */
#pragma once

#include <stdint.h>

uint64_t clock_mono_us(void);
uint64_t clock_mono_ms(void);

/* Since the Unix epoch. */
int64_t clock_wall_us(void);
int64_t clock_wall_s(void);

/* In builds with test hooks: maps the file, once, before any thread starts. Else nothing. */
void clock_init(void);

/*
 * The longest time in ms that a timer may sleep before it asks the clock again:
 * UINT64_MAX, or a short one when the clock can be moved.
 */
uint64_t clock_longest_sleep_ms(void);

#define CLOCK_TEXT_SIZE 32

/* "2026-11-24T10:00:00Z", of a time in seconds since the epoch; returns `ret_text`. */
const char *clock_iso(int64_t wall_s, char ret_text[CLOCK_TEXT_SIZE]);

/* "Tue, 24 Nov 2026 10:00:00 +0000" (RFC 5322 3.3); returns `ret_text`. */
const char *clock_rfc5322(int64_t wall_s, char ret_text[CLOCK_TEXT_SIZE]);

/* SPDX-License-Identifier: ISC */
/*
 * The pace of a message: until when more of it must have come. Each octet moves the deadline on by
 * what it may take at the least rate, but never further than the patience from now. Who dribbles is
 * let go after about that time, however regularly he does; a slow honest line goes on for hours.
 *
 * While nothing is read from the client (pace_pause) its time stands still. Pure; times are
 * clock_mono_ms().
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Octets a second that a client must bring in the long run: a tenth of what GPRS has. */
#define PACE_LEAST 250

struct pace {
	uint64_t due_ms;
	uint64_t left_ms; /* while it stands still: what was left then */
	bool paused;
};

/* The message begins. */
void pace_start(struct pace *pace, uint64_t now_ms, uint64_t patience_ms);

/* So many octets have come. */
void pace_add(struct pace *pace, uint64_t octets, uint64_t now_ms, uint64_t patience_ms);

void pace_pause(struct pace *pace, uint64_t now_ms);
void pace_resume(struct pace *pace, uint64_t now_ms);

/* How long it may take until more comes; 0: too slow. */
uint64_t pace_left_ms(const struct pace *pace, uint64_t now_ms);

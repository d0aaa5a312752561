/* SPDX-License-Identifier: ISC */
/* The pace of a message; see pace.h. */
#include "gateway/submit/pace.h"

#include "gateway/base/compiler.h"

void pace_start(struct pace *pace, uint64_t now_ms, uint64_t patience_ms)
{
	*pace = (struct pace){.due_ms = now_ms + patience_ms};
}

void pace_add(struct pace *pace, uint64_t octets, uint64_t now_ms, uint64_t patience_ms)
{
	uint64_t earned_ms = octets * 1000 / PACE_LEAST, latest_ms = now_ms + patience_ms;

	pace->due_ms = MIN_OF(pace->due_ms + earned_ms, latest_ms);
}

void pace_pause(struct pace *pace, uint64_t now_ms)
{
	if (pace->paused)
		return;
	pace->left_ms = pace_left_ms(pace, now_ms);
	pace->paused = true;
}

void pace_resume(struct pace *pace, uint64_t now_ms)
{
	if (!pace->paused)
		return;
	pace->paused = false;
	pace->due_ms = now_ms + pace->left_ms;
}

uint64_t pace_left_ms(const struct pace *pace, uint64_t now_ms)
{
	if (pace->paused)
		return pace->left_ms;
	return pace->due_ms > now_ms ? pace->due_ms - now_ms : 0;
}

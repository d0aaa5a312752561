/* SPDX-License-Identifier: ISC */
/* What was noted lately; see recent.h. */
#include "gateway/base/recent.h"

void recent_note(struct recent *recent, uint64_t number, uint64_t mark)
{
	uint64_t place = recent->count++ % RECENT_KEPT;

	recent->numbers[place] = number;
	recent->marks[place] = mark;
}

bool recent_since(const struct recent *recent, uint64_t number, uint64_t mark)
{
	/* From the newest one back. */
	for (uint64_t i = 1; i <= recent->count; i++) {
		uint64_t place = (recent->count - i) % RECENT_KEPT;
		if (i > RECENT_KEPT)
			return true;
		if (recent->marks[place] <= mark)
			return false;
		if (recent->numbers[place] == number)
			return true;
	}
	return false;
}

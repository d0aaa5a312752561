/* SPDX-License-Identifier: ISC */
/* Bounces within an hour; see bounce_limit.h. A bounce costs far more than this search. */
#include "gateway/relay/bounce_limit.h"

#include <stddef.h>

/* The running hour of the account, begun if need be. */
static struct bounce_count *count_of(struct bounce_limit *limit, uint64_t account, uint64_t now_ms)
{
	struct bounce_count *oldest = &limit->counts[0];

	for (size_t i = 0; i < BOUNCE_LIMIT_ACCOUNTS; i++) {
		struct bounce_count *count = &limit->counts[i];
		if (count->account == account && count->until_ms > now_ms)
			return count;
		if (count->until_ms < oldest->until_ms)
			oldest = count;
	}
	*oldest = (struct bounce_count){.account = account, .until_ms = now_ms + BOUNCE_LIMIT_MS};
	return oldest;
}

bool bounce_limit_take(struct bounce_limit *limit, uint64_t account, uint64_t most, uint64_t now_ms,
        struct bounce_wait *ret_wait)
{
	struct bounce_count *count = count_of(limit, account, now_ms);

	if (count->told < most) {
		count->told++;
		return true;
	}
	*ret_wait = (struct bounce_wait){
	        .ms = count->until_ms - now_ms,
	        .is_first = !count->is_over,
	};
	count->is_over = true;
	return false;
}

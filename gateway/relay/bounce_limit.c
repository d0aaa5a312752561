/* SPDX-License-Identifier: ISC */
/* Bounces within an hour; see bounce_limit.h. A bounce costs far more than this search. */
#include "gateway/relay/bounce_limit.h"

#include <stddef.h>

#include "gateway/base/compiler.h"

uint64_t bounce_limit_left(const struct bounce_limit *limit, uint64_t account, uint64_t most,
        uint64_t now_ms, uint64_t *ret_wait_ms)
{
	*ret_wait_ms = BOUNCE_LIMIT_MS;
	for (size_t i = 0; i < BOUNCE_LIMIT_ACCOUNTS; i++) {
		const struct bounce_count *count = &limit->counts[i];
		if (count->account != account || count->until_ms <= now_ms)
			continue;
		*ret_wait_ms = count->until_ms - now_ms;
		return count->told < most ? most - count->told : 0;
	}
	return most;
}

void bounce_limit_take(struct bounce_limit *limit, uint64_t account, uint64_t now_ms)
{
	struct bounce_count *oldest = &limit->counts[0];

	for (size_t i = 0; i < BOUNCE_LIMIT_ACCOUNTS; i++) {
		struct bounce_count *count = &limit->counts[i];
		if (count->account == account && count->until_ms > now_ms) {
			count->told++;
			return;
		}
		if (count->until_ms < oldest->until_ms)
			oldest = count;
	}
	*oldest = (struct bounce_count){
	        .account = account, .until_ms = now_ms + BOUNCE_LIMIT_MS, .told = 1};
}

/* SPDX-License-Identifier: ISC */
/*
 * How many bounces, or notices of delay, an account has got within an hour, which begins
 * with its first. In memory only: a restart begins anew, and of more accounts than there is
 * room for, that whose hour is the oldest is forgotten. One thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/compiler.h"

#define BOUNCE_LIMIT_ACCOUNTS 4096
#define BOUNCE_LIMIT_MS       3600000U

/* Zeroed it is empty. */
struct bounce_limit {
	struct bounce_count {
		uint64_t account;
		uint64_t until_ms; /* monotonic: the end of its hour; 0: free */
		uint64_t told;
		bool is_over; /* one more was asked for */
	} counts[BOUNCE_LIMIT_ACCOUNTS];
};

struct bounce_wait {
	uint64_t ms; /* until the account's hour ends */
	bool is_first;
};

/*
 * Whether the account gets one more within its hour, which is counted then. It gets at most
 * `most`; *ret_wait is for when it does not, and says whether that is the first of this hour.
 */
bool bounce_limit_take(struct bounce_limit *limit, uint64_t account, uint64_t most, uint64_t now_ms,
        struct bounce_wait *ret_wait) must_check;

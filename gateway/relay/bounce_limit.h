/* SPDX-License-Identifier: ISC */
/*
 * How many bounces and notices of delay an account has got within an hour, which begins
 * with its first. In memory only: a restart begins anew, and of more accounts than there is
 * room for, that whose hour is the oldest is forgotten. One thread at a time.
 */
#pragma once

#include <stdint.h>

#define BOUNCE_LIMIT_ACCOUNTS 4096
#define BOUNCE_LIMIT_MS       3600000U

/* Zeroed it is empty. */
struct bounce_limit {
	struct bounce_count {
		uint64_t account;
		uint64_t until_ms; /* monotonic: the end of its hour; 0: free */
		uint64_t told;
	} counts[BOUNCE_LIMIT_ACCOUNTS];
};

/* How many more the account may get of `most`; *ret_wait_ms is how long its hour still lasts. */
uint64_t bounce_limit_left(const struct bounce_limit *limit, uint64_t account, uint64_t most,
        uint64_t now_ms, uint64_t *ret_wait_ms);

/* It gets one. */
void bounce_limit_take(struct bounce_limit *limit, uint64_t account, uint64_t now_ms);

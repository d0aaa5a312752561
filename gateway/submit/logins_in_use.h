/* SPDX-License-Identifier: ISC */
/*
 * How many connections each account has, on all loops, so that it gets its number of them and no
 * more. Any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/compiler.h"

struct logins_in_use;

/* 0 or -ENOMEM. */
int logins_in_use_new(struct logins_in_use **ret_logins) must_check;
/* NULL is fine. */
void logins_in_use_free(struct logins_in_use *logins);

/*
 * Counts a connection of that account: false when it has `most` already (0: any number), or without
 * memory.
 */
bool logins_in_use_take(struct logins_in_use *logins, uint64_t account, uint32_t most) must_check;
void logins_in_use_give_back(struct logins_in_use *logins, uint64_t account);

/* How many connections the account has. */
uint64_t logins_in_use_count(struct logins_in_use *logins, uint64_t account);

/* SPDX-License-Identifier: ISC */
/*
 * What each account has of the process, on all loops: connections, and octets of messages that have
 * not ended, in memory and on the disk. Any thread.
 *
 * Messages that have not ended are not charged yet, so that no limit of a plan holds them: without
 * a share a single account could have all of the memory, or all of the room that the spool has.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/compiler.h"

#define SHARES_MEMORY_MAX (128UL << 20) /* octets that an account's messages have at most */

struct shares;

/* 0 or -ENOMEM. */
int shares_new(struct shares **ret_shares) must_check;
/* NULL is fine. */
void shares_free(struct shares *shares);

/*
 * Counts a connection of that account: false when it has `most` already (0: any number), or without
 * memory.
 */
bool shares_take_connection(struct shares *shares, uint64_t account, uint32_t most) must_check;
/* Its messages hold nothing any more. */
void shares_give_connection_back(struct shares *shares, uint64_t account);

/* How many connections the account has. */
uint64_t shares_connections(struct shares *shares, uint64_t account);

/* Octets of one message. */
struct shares_held {
	uint64_t memory, disk;
};

/*
 * A message of an account that has a connection holds `now`, and no longer *held, which becomes
 * that. Whether all of its messages are within its share: SHARES_MEMORY_MAX, and on the disk
 * `disk_least`, or a quarter of what would be free without them, of which `disk_free` is left.
 */
bool shares_hold(struct shares *shares, uint64_t account, struct shares_held *held,
        struct shares_held now, uint64_t disk_free, uint64_t disk_least) must_check;
void shares_let_go(struct shares *shares, uint64_t account, struct shares_held *held);

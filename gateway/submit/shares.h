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

struct shares;

/* What each account may have. */
struct shares_limits {
	uint64_t connections; /* where its plan says nothing */
	uint64_t memory;      /* octets */
};

/* 0 or -ENOMEM. It has no limits before they are set. */
int shares_new(struct shares **ret_shares) must_check;
/* NULL is fine. */
void shares_free(struct shares *shares);

void shares_set_limits(struct shares *shares, const struct shares_limits *limits);

/*
 * Counts a connection of that account, of which it may have so many; 0: as the limits say. 0,
 * -EUSERS when it has them already, or -ENOMEM.
 */
int shares_take_connection(struct shares *shares, uint64_t account, uint32_t most) must_check;
void shares_give_connection_back(struct shares *shares, uint64_t account);

/* How many connections the account has. */
uint64_t shares_connections(struct shares *shares, uint64_t account);

/* Whether the log should tell that the account's share is full: once a minute. It has a connection.
 */
bool shares_is_due(struct shares *shares, uint64_t account);

/* What a message, or a part of it, holds. One thread at a time. */
struct holding;

/* Nothing yet. The account has a connection now; it need not until the end. NULL without memory. */
struct holding *holding_new(struct shares *shares, uint64_t account) must_check;
/* NULL is fine. */
void holding_free(struct holding *holding);

/* Octets. */
struct held {
	uint64_t memory;
	uint64_t disk; /* what is there, and what is kept free for the rest of it */
};

struct disk_room {
	uint64_t left;  /* octets that are free, and kept for nobody */
	uint64_t least; /* that any account may have */
};

enum holding_answer { HOLDING_FINE, HOLDING_MEMORY_FULL, HOLDING_DISK_FULL };

/*
 * It holds so much from here on. Whether all that its account holds is within its share: the limit
 * of memory, and of the disk as much as it leaves to all others, or the least.
 */
enum holding_answer holding_set(
        struct holding *holding, struct held now, struct disk_room disk) must_check;

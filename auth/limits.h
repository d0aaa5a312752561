/* SPDX-License-Identifier: ISC */
/* Charging the rate limits, many accounts in one statement. Blocks; a lane's thread. */
#pragma once

#include "auth/protocol.h"
#include "db/db.h"

#define LIMITS_BATCH_MAX 64

struct admission {
	struct auth_charge charge;  /* in */
	struct slice recipients;    /* in: hashes as in ADMIT */
	struct auth_message answer; /* out: all but its number; its texts are in `room` */
	char measure[32], per[32];
};

/*
 * Fills in every answer; UNAVAILABLE, and -errno with the reason, when the database cannot tell:
 * then it may have charged all the same. Logs limits that have come to 80 %.
 */
int limits_admit(
        struct db *db, struct admission *admissions, unsigned count, struct why *why) must_check;

/* Gives back; what cannot be given back stays charged. */
void limits_settle(struct db *db, const struct auth_charge *charges, unsigned count);

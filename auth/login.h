/* SPDX-License-Identifier: ISC */
/*
 * Logins: what the intake can answer at once, their steps on a lane, and the table of those
 * that wait for their client's next word. Nobody has a login but the table or one lane.
 */
#pragma once

#include "auth/link.h"
#include "auth/outage.h"
#include "auth/penalty.h"
#include "auth/queue.h"
#include "auth/sasl.h"
#include "auth/last_use.h"

struct logins;

struct logins_settings {
	struct sasl *sasl;
	struct identity_store *store;
	struct penalty *penalty;
	struct outage *outage;
	struct last_use *last_use;
	size_t waiting_max; /* logins that wait for their clients; beyond it the oldest one ends */
};

/* The settings' objects outlive it. 0 or -ENOMEM. */
int logins_new(const struct logins_settings *settings, struct logins **ret_logins) must_check;

/* No lane is there any more. NULL is fine. */
void logins_free(struct logins *logins);

/*
 * Answers a LOGIN_START that needs no lane: PLAIN with a password that was right a moment ago
 * (no query, no PBKDF2, no penalty). Whether it did. Any thread; microseconds.
 */
bool logins_answer_at_once(
        struct logins *logins, struct link *link, const struct auth_message *message);

/* How a request that is to wait for a lane stands there. Any thread; microseconds. */
struct standing logins_standing(
        struct logins *logins, struct link *link, const struct auth_message *message);

/* What a lane knows of a request that it has taken. */
struct turn {
	struct db *db;      /* the lane's connection */
	uint64_t waited_ms; /* since it was first told to come again; 0: it never was */
	bool may_wait;      /* there is room for one more that waits */
};

/*
 * LOGIN_START and LOGIN_STEP, with their answers. On a lane. Not 0: it has not been answered,
 * but is to be asked again after so many ms, because others were wrong before.
 */
uint64_t logins_start(struct logins *logins, struct link *link, const struct auth_message *message,
        const struct turn *turn) must_check;
uint64_t logins_step(struct logins *logins, struct link *link, const struct auth_message *message,
        const struct turn *turn) must_check;

/* LOGIN_NETWORK and LOGIN_AGAIN, with their answers. On a lane, whose connection `db` is. */
void logins_network(struct logins *logins, struct link *link, const struct auth_message *message,
        struct db *db);
void logins_again(struct logins *logins, struct link *link, const struct auth_message *message,
        struct db *db);

/* The client has gone: a login that waits for it ends. Any thread. */
void logins_cancel(struct logins *logins, struct link *link, uint32_t number);

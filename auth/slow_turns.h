/* SPDX-License-Identifier: ISC */
/*
 * Whose turn it is to have a password checked against a slow hash. Two at a time: one is checked,
 * the next one is ready. Who has failed least goes first, and of several who came first: a crowd
 * that guesses, at whatever logins, falls behind an owner who has not. Who waits holds no lane, but
 * asks again; his place is kept for a minute, also for his next attempt.
 *
 * Memory is bounded: 1,024 places, one for each login from a network. In a full table who has
 * failed most makes room. Any thread; microseconds.
 */
#pragma once

#include "auth/penalty.h"

#define SLOW_TURNS_MAX 2

struct slow_turns;

/* 0 or -ENOMEM. */
int slow_turns_new(struct slow_turns **ret_turns) must_check;
/* NULL is fine. */
void slow_turns_free(struct slow_turns *turns);

/*
 * For who may have a place, before anything is done for him: 0, he may try to take a turn, or so
 * many ms until he is to ask again. `who` need not be open.
 */
uint64_t slow_turns_look(struct slow_turns *turns, const struct penalty_ticket *who) must_check;

/* Takes a turn, with an open ticket: 0, and slow_turns_end() must follow; or as above. */
uint64_t slow_turns_take(struct slow_turns *turns, const struct penalty_ticket *who) must_check;
void slow_turns_end(struct slow_turns *turns);

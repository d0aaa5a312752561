/* SPDX-License-Identifier: ISC */
/*
 * A link from one loop of `submit`: the intake reads it, lanes answer on it. Shared by the
 * requests that came over it, and closed with the last of them. Any thread.
 */
#pragma once

#include <stdatomic.h>

#include "auth/protocol.h"

struct link {
	_Atomic unsigned refs;
	int fd;
	bool greeted;            /* owner: intake */
	_Atomic unsigned queued; /* its requests that wait for a lane */
	_Atomic uint64_t missed; /* era of a CHANGED that was lost; 0: none */
};

/* Takes the descriptor over, also on failure. 0 or -ENOMEM. */
int link_new(int fd, struct link **ret_link) must_check;
struct link *link_ref(struct link *link);
void link_unref(struct link *link);

/*
 * Answers; `account` with DONE. Waits while the socket is full, for 5 s at most: an answer that
 * does not leave is lost, and its question fails by its own deadline. A CHANGED that is lost
 * comes before the next one, as a change of all.
 */
void link_answer(
        struct link *link, const struct auth_message *message, const struct auth_account *account);

/* The same for an answer that says no more than its type. */
void link_answer_type(struct link *link, uint32_t number, enum auth_type type);

/* SPDX-License-Identifier: ISC */
/*
 * What waits for a lane. Charges go first, and of several lanes one takes nothing else: a
 * flood of logins, each a PBKDF2 long, does not hold up messages. While that lane asks the
 * database the next charges gather, and go in one question. When it is stuck, as by one
 * account's locked row, the other lanes take charges too.
 *
 * Then comes who is known, or costs next to nothing. Of all others networks take turns: a request
 * has the turn behind that of the one before it from its network, and each failure there puts it
 * one further back. Of one turn look-ups go before passwords, and then the oldest first. So who has
 * not failed waits for the first guess of each network of a crowd, and for no more. Any thread.
 */
#pragma once

#include "auth/limits.h"
#include "auth/link.h"
#include "gateway/base/list.h"

/* Requests of each link: half as many of who has failed, twice as many with who goes first. */
#define QUEUE_MAX   4096
#define DELAYED_MAX 1024 /* of all links */

enum standing_kind {
	STANDING_FIRST,    /* charges; who is known; what costs next to nothing */
	STANDING_LOOK_UP,  /* a question to the database */
	STANDING_PASSWORD, /* a hash to compute, too */
};

/* How a request stands among others. Nothing of it may tell whether there is such a login. */
struct standing {
	enum standing_kind kind;
	uint64_t network; /* a number that stands for it */
	unsigned failures;
};

struct request {
	struct list link_in_queue; /* private, as the next five */
	uint64_t turn;             /* of its network's */
	struct network *network;   /* counted there while it waits for a lane; or NULL */
	struct queue *holder;      /* a lane has taken it from there; NULL: it waits */
	bool cancelled;
	uint64_t due_ms;
	struct link *link;
	struct standing standing; /* to be brought up to date before it is delayed */
	uint64_t since_ms;        /* when it was delayed first; 0: it never was */
	struct buf datagram;
	struct auth_message message; /* points into the datagram */
};

/* One that a lane has taken, before its queue ends. NULL is fine. */
void request_free(struct request *request);

struct queue;

/* For so many lanes. 0 or -ENOMEM. */
int queue_new(unsigned lanes, struct queue **ret_queue) must_check;

/* After queue_end(), when no lane is there any more; what waits gets no answer. NULL is fine. */
void queue_free(struct queue *queue);

/* Copies a datagram that was well formed. 0; -ENOBUFS: the link has too many; -ENOMEM. */
int queue_put(struct queue *queue, struct link *link, struct slice datagram,
        const struct standing *standing) must_check;

enum lane_kind { LANE_OF_CHARGES, LANE_OF_ANYTHING };

/* A lane begins: what it is to take. */
enum lane_kind queue_join(struct queue *queue);

/*
 * Waits for work of a lane: charges, all ADMIT or all SETTLE, or one step of a login. Their
 * number; the caller frees them. 0 at the end.
 */
unsigned queue_take(struct queue *queue, enum lane_kind kind,
        struct request *ret_batch[LIMITS_BATCH_MAX]) must_check;

/* How many wait to be put in again. */
size_t queue_delayed(struct queue *queue);

/*
 * Puts a step of a login, which the calling lane has taken, back: some lane takes it after so many
 * ms, and until then it holds none. If it was cancelled meanwhile it is freed instead.
 */
void queue_delay(struct queue *queue, struct request *request, uint64_t ms);

/* Puts in what is due. When to call again: a clock_mono_ms(), or UINT64_MAX. */
uint64_t queue_put_due(struct queue *queue);

/* Nobody waits for that login any more: drops its step, or marks it if a lane has it. */
void queue_cancel(struct queue *queue, const struct link *link, uint32_t number);

/* Whether the step that the calling lane has taken was cancelled meanwhile. */
bool queue_is_cancelled(struct queue *queue, const struct request *request) must_check;

/* Ends the waiting of all lanes. */
void queue_end(struct queue *queue);

/* SPDX-License-Identifier: ISC */
/* What waits for a lane; see queue.h. */
#include "auth/queue.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "gateway/base/clock.h"
#include "gateway/base/map.h"

#define CHARGER_STUCK_MS 20
#define TURNS            128 /* from the one that it is; the last one for all that are beyond */

/* One of which requests wait that do not go first. */
struct network {
	uint64_t tag; /* key of the map */
	unsigned waiting;
	uint64_t next_turn; /* of its next request, or later */
};

struct queue {
	unsigned lanes;
	pthread_mutex_t lock; /* of all that follows */
	struct list charges;
	struct list first;           /* of all others: who goes first, */
	struct list lines[TURNS][2]; /* then look-ups and passwords of each turn, at turn % TURNS */
	uint64_t turn;               /* that it is: of none that waits it is over */
	struct map networks;
	struct list delayed; /* in no order: there are few */
	struct list held;    /* steps of logins that lanes have taken */
	size_t delayed_count;
	uint64_t next_due_ms; /* of those, or earlier */
	pthread_cond_t wakeup, charger_wakeup;
	bool has_charger, charger_waits;
	bool watched;               /* a lane waits to see whether the charger is stuck */
	uint64_t charging_since_ms; /* 0: the charger is not with the database */
	bool ending;
};

int queue_new(unsigned lanes, struct queue **ret_queue)
{
	struct queue *queue = calloc(1, sizeof(*queue));

	if (queue == NULL)
		return -ENOMEM;
	queue->lanes = lanes;
	pthread_mutex_init(&queue->lock, NULL);
	pthread_cond_init(&queue->wakeup, NULL);
	pthread_cond_init(&queue->charger_wakeup, NULL);
	list_init(&queue->charges);
	list_init(&queue->first);
	for (unsigned i = 0; i < TURNS; i++) {
		list_init(&queue->lines[i][0]);
		list_init(&queue->lines[i][1]);
	}
	map_init(&queue->networks);
	list_init(&queue->delayed);
	list_init(&queue->held);
	queue->next_due_ms = UINT64_MAX;
	*ret_queue = queue;
	return 0;
}

/* It is in no list any more. */
static void drop(struct request *request)
{
	atomic_fetch_sub(&request->link->queued, 1);
	link_unref(request->link);
	buf_wipe(&request->datagram);
	free(request);
}

void request_free(struct request *request)
{
	if (request == NULL)
		return;
	struct queue *holder = request->holder;
	if (holder != NULL) {
		pthread_mutex_lock(&holder->lock);
		list_remove(&request->link_in_queue);
		pthread_mutex_unlock(&holder->lock);
	}
	drop(request);
}

/* It is in no list any more. The lock is held. */
static void leave_delayed(struct queue *queue, struct request *request)
{
	queue->delayed_count--;
	atomic_fetch_add(&request->link->queued, 1);
}

static void drop_delayed(struct queue *queue, struct request *request)
{
	leave_delayed(queue, request);
	drop(request);
}

static struct slice network_key(const struct network *network)
{
	return slice_of(&network->tag, sizeof(network->tag));
}

/* Without memory it is NULL: its requests go as if each were its only one. The lock is held. */
static struct network *find_or_add_network(struct queue *queue, uint64_t tag)
{
	struct network *network = map_get(&queue->networks, slice_of(&tag, sizeof(tag)));

	if (network != NULL || (network = calloc(1, sizeof(*network))) == NULL)
		return network;
	network->tag = tag;
	if (map_put(&queue->networks, network_key(network), network) == 0)
		return network;
	free(network);
	return NULL;
}

/*
 * The lock is held, as in what follows. A later request of a network never gets an earlier turn, or
 * who waits there could wait without end.
 */
static struct list *choose_line(struct queue *queue, struct request *request)
{
	const struct standing *standing = &request->standing;
	uint64_t last = queue->turn + TURNS - 1;

	request->turn = queue->turn;
	if (standing->kind == STANDING_FIRST)
		return &queue->first;
	struct network *network = find_or_add_network(queue, standing->network);
	if (network != NULL) {
		request->turn = MIN_OF(MAX_OF(queue->turn, network->next_turn), last);
		network->next_turn = request->turn + 1;
		network->waiting++;
	}
	request->network = network;
	/* Its failures put it back alone: not what its network asks behind it. */
	uint64_t at = MIN_OF(request->turn + standing->failures, last);
	return &queue->lines[at % TURNS][standing->kind == STANDING_PASSWORD];
}

static void join_line(struct queue *queue, struct request *request)
{
	list_append(choose_line(queue, request), &request->link_in_queue);
}

static void leave_line(struct queue *queue, struct request *request)
{
	struct network *network = TAKE(request->network);

	list_remove(&request->link_in_queue);
	if (network == NULL || --network->waiting > 0)
		return;
	(void)map_remove(&queue->networks, network_key(network));
	free(network);
}

static struct list *first_line(struct queue *queue)
{
	if (!list_is_empty(&queue->first))
		return &queue->first;
	for (unsigned i = 0; i < 2 * TURNS; i++) {
		struct list *line = &queue->lines[(queue->turn + i / 2) % TURNS][i % 2];
		if (!list_is_empty(line))
			return line;
	}
	return NULL;
}

static struct request *first_in_lines(struct queue *queue)
{
	struct list *line = first_line(queue);

	return line != NULL ? list_entry(line->next, struct request, link_in_queue) : NULL;
}

void queue_free(struct queue *queue)
{
	struct list *link;
	struct request *request;

	if (queue == NULL)
		return;
	while ((link = list_pop(&queue->charges)) != NULL)
		drop(list_entry(link, struct request, link_in_queue));
	while ((request = first_in_lines(queue)) != NULL) {
		leave_line(queue, request);
		drop(request);
	}
	while ((link = list_pop(&queue->delayed)) != NULL)
		drop_delayed(queue, list_entry(link, struct request, link_in_queue));
	map_done(&queue->networks);
	pthread_cond_destroy(&queue->wakeup);
	pthread_cond_destroy(&queue->charger_wakeup);
	pthread_mutex_destroy(&queue->lock);
	free(queue);
}

static int request_new(struct link *link, struct slice datagram, struct request **ret_request)
{
	struct request *request = calloc(1, sizeof(*request));
	struct auth_account_room unused;

	if (request == NULL)
		return -ENOMEM;
	buf_init(&request->datagram, PROTOCOL_DATAGRAM_MAX);
	if (buf_append_slice(&request->datagram, datagram) < 0 ||
	        protocol_decode(buf_slice(&request->datagram), &request->message, &unused) < 0) {
		buf_wipe(&request->datagram);
		free(request);
		return -ENOMEM;
	}
	request->link = link_ref(link);
	atomic_fetch_add(&link->queued, 1);
	*ret_request = request;
	return 0;
}

static bool is_charge(const struct request *request)
{
	return request->message.type == AUTH_ADMIT || request->message.type == AUTH_SETTLE;
}

/* A crowd that fills the queue leaves room to those it is not to hold up. */
static unsigned room_for(const struct standing *standing)
{
	if (standing->kind == STANDING_FIRST)
		return 2 * QUEUE_MAX;
	return standing->failures == 0 ? QUEUE_MAX : QUEUE_MAX / 2;
}

int queue_put(struct queue *queue, struct link *link, struct slice datagram,
        const struct standing *standing)
{
	struct request *request;

	if (atomic_load(&link->queued) >= room_for(standing))
		return -ENOBUFS;
	int r = request_new(link, datagram, &request);
	if (r < 0)
		return r;
	request->standing = *standing;
	bool charges = is_charge(request);
	pthread_mutex_lock(&queue->lock);
	if (charges)
		list_append(&queue->charges, &request->link_in_queue);
	else
		join_line(queue, request);
	if (charges && queue->charger_waits) {
		queue->charger_waits = false;
		pthread_cond_signal(&queue->charger_wakeup);
	} else if (!charges || !queue->watched) {
		pthread_cond_signal(&queue->wakeup);
	}
	pthread_mutex_unlock(&queue->lock);
	return 0;
}

enum lane_kind queue_join(struct queue *queue)
{
	pthread_mutex_lock(&queue->lock);
	bool first = !queue->has_charger && queue->lanes > 1;
	queue->has_charger |= first;
	pthread_mutex_unlock(&queue->lock);
	return first ? LANE_OF_CHARGES : LANE_OF_ANYTHING;
}

/* The first charge with all others of its kind. The lock is held. */
static unsigned take_charges(struct queue *queue, struct request *ret_batch[LIMITS_BATCH_MAX])
{
	enum auth_type type =
	        list_entry(queue->charges.next, struct request, link_in_queue)->message.type;
	unsigned count = 0;

	list_for_each_safe (at, &queue->charges) {
		struct request *request = list_entry(at, struct request, link_in_queue);
		if (count == LIMITS_BATCH_MAX)
			break;
		if (request->message.type != type)
			continue;
		list_remove(at);
		ret_batch[count++] = request;
	}
	return count;
}

/* Whether a lane of anything may take charges: only when nobody else does. */
static bool charges_are_free(const struct queue *queue)
{
	return !queue->has_charger ||
	       (queue->charging_since_ms != 0 &&
	               clock_mono_ms() - queue->charging_since_ms > CHARGER_STUCK_MS);
}

/* The first one of what a lane should serve now, or NULL. The lock is held. */
static struct request *find_work(struct queue *queue, enum lane_kind kind)
{
	bool charger = kind == LANE_OF_CHARGES;

	if (!list_is_empty(&queue->charges) && (charger || charges_are_free(queue)))
		return list_entry(queue->charges.next, struct request, link_in_queue);
	return charger ? NULL : first_in_lines(queue);
}

/* The lock is held. */
static void wait_for_work(struct queue *queue, enum lane_kind kind)
{
	struct timespec until;

	if (kind == LANE_OF_CHARGES) {
		queue->charger_waits = true;
		pthread_cond_wait(&queue->charger_wakeup, &queue->lock);
		return;
	}
	if (list_is_empty(&queue->charges) || queue->watched) {
		pthread_cond_wait(&queue->wakeup, &queue->lock);
		return;
	}
	/* One lane looks whether the charger comes back for these. */
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += CHARGER_STUCK_MS * 1000000L;
	until.tv_sec += until.tv_nsec / 1000000000L;
	until.tv_nsec %= 1000000000L;
	queue->watched = true;
	pthread_cond_clockwait(&queue->wakeup, &queue->lock, CLOCK_MONOTONIC, &until);
	queue->watched = false;
}

/* The lock is held. */
static struct request *hold(struct queue *queue, struct request *request)
{
	request->holder = queue;
	/* Nobody who waits stands before it, so no turn of theirs is over either. */
	queue->turn = MAX_OF(queue->turn, request->turn);
	leave_line(queue, request);
	list_append(&queue->held, &request->link_in_queue);
	return request;
}

unsigned queue_take(
        struct queue *queue, enum lane_kind kind, struct request *ret_batch[LIMITS_BATCH_MAX])
{
	struct request *work;
	unsigned count = 0;

	pthread_mutex_lock(&queue->lock);
	if (kind == LANE_OF_CHARGES)
		queue->charging_since_ms = 0;
	while ((work = find_work(queue, kind)) == NULL && !queue->ending)
		wait_for_work(queue, kind);
	if (work == NULL || queue->ending) {
		count = 0;
	} else if (is_charge(work)) {
		count = take_charges(queue, ret_batch);
		if (kind == LANE_OF_CHARGES)
			queue->charging_since_ms = clock_mono_ms();
	} else {
		ret_batch[count++] = hold(queue, work);
	}
	pthread_mutex_unlock(&queue->lock);
	return count;
}

size_t queue_delayed(struct queue *queue)
{
	pthread_mutex_lock(&queue->lock);
	size_t count = queue->delayed_count;
	pthread_mutex_unlock(&queue->lock);
	return count;
}

void queue_delay(struct queue *queue, struct request *request, uint64_t ms)
{
	uint64_t now = clock_mono_ms();

	if (request->since_ms == 0)
		request->since_ms = now;
	request->due_ms = now + ms;
	pthread_mutex_lock(&queue->lock);
	request->holder = NULL;
	list_remove(&request->link_in_queue);
	if (request->cancelled) {
		drop(request);
	} else {
		/* What only waits leaves its link's room to others. */
		atomic_fetch_sub(&request->link->queued, 1);
		list_append(&queue->delayed, &request->link_in_queue);
		queue->delayed_count++;
		queue->next_due_ms = MIN_OF(queue->next_due_ms, request->due_ms);
	}
	pthread_mutex_unlock(&queue->lock);
}

/* The lock is held. */
static void put_due(struct queue *queue, uint64_t now)
{
	queue->next_due_ms = UINT64_MAX;
	list_for_each_safe (at, &queue->delayed) {
		struct request *request = list_entry(at, struct request, link_in_queue);
		if (request->due_ms > now) {
			queue->next_due_ms = MIN_OF(queue->next_due_ms, request->due_ms);
			continue;
		}
		list_remove(at);
		leave_delayed(queue, request);
		join_line(queue, request);
		pthread_cond_signal(&queue->wakeup);
	}
}

uint64_t queue_put_due(struct queue *queue)
{
	uint64_t now = clock_mono_ms();

	pthread_mutex_lock(&queue->lock);
	if (queue->next_due_ms <= now)
		put_due(queue, now);
	uint64_t next = queue->next_due_ms;
	pthread_mutex_unlock(&queue->lock);
	return next;
}

/* The step of that login in a list, or NULL. The lock is held. */
static struct request *find_step(struct list *list, const struct link *link, uint32_t number)
{
	list_for_each_safe (at, list) {
		struct request *request = list_entry(at, struct request, link_in_queue);
		if (request->link == link && request->message.number == number)
			return request;
	}
	return NULL;
}

static struct request *find_in_lines(struct queue *queue, const struct link *link, uint32_t number)
{
	struct request *request = find_step(&queue->first, link, number);

	for (unsigned i = 0; i < 2 * TURNS && request == NULL; i++)
		request = find_step(&queue->lines[i / 2][i % 2], link, number);
	return request;
}

void queue_cancel(struct queue *queue, const struct link *link, uint32_t number)
{
	struct request *request;

	pthread_mutex_lock(&queue->lock);
	if ((request = find_step(&queue->held, link, number)) != NULL) {
		request->cancelled = true;
	} else if ((request = find_step(&queue->delayed, link, number)) != NULL) {
		list_remove(&request->link_in_queue);
		drop_delayed(queue, request);
	} else if ((request = find_in_lines(queue, link, number)) != NULL) {
		leave_line(queue, request);
		drop(request);
	}
	pthread_mutex_unlock(&queue->lock);
}

bool queue_is_cancelled(struct queue *queue, const struct request *request)
{
	pthread_mutex_lock(&queue->lock);
	bool cancelled = request->cancelled;
	pthread_mutex_unlock(&queue->lock);
	return cancelled;
}

void queue_end(struct queue *queue)
{
	pthread_mutex_lock(&queue->lock);
	queue->ending = true;
	pthread_cond_broadcast(&queue->wakeup);
	pthread_cond_broadcast(&queue->charger_wakeup);
	pthread_mutex_unlock(&queue->lock);
}

/* SPDX-License-Identifier: ISC */
/*
 * Who may connect; see slots.h.
 *
 * A network is in the map while it has connections or is remembered. What is remembered stands in a
 * list in the order of the last logins, is forgotten after a while, and the oldest when there are
 * too many.
 */
#include "gateway/submit/slots.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/base/list.h"
#include "gateway/base/map.h"

#define REMEMBERED_S (7UL * 24 * 3600)
#define MANY         16 /* connections of one network without a login, when there are few left */
#define KEY_MAX      (1 + ADDR_CUSTOMER_OCTETS_V6)

struct network {
	uint8_t key[KEY_MAX]; /* family and address, or as much of it as a customer has */
	uint64_t count;       /* of its connections */
	uint64_t waiting;     /* those of them that have not logged in */
	struct list link;     /* in slots->remembered, or in none */
	uint64_t logged_in_ms;
};

struct slots {
	pthread_mutex_t lock; /* of all that follows */
	struct map networks;
	struct list remembered; /* the one that logged in last is the last */
	uint64_t remembered_count;
	uint64_t count;
	uint64_t waiting;   /* connections without a login */
	uint64_t strangers; /* those of networks that are not remembered */
	uint64_t logins;    /* so far */
};

static struct slice make_key(const struct addr *addr, uint8_t key[KEY_MAX])
{
	bool v6 = addr->u.sa.sa_family == AF_INET6;
	size_t len = v6 ? ADDR_CUSTOMER_OCTETS_V6 : 4;

	key[0] = v6 ? 6 : 4;
	memcpy(key + 1, v6 ? (const void *)&addr->u.in6.sin6_addr : &addr->u.in.sin_addr, len);
	return slice_of(key, len + 1);
}

static struct slice key_of(const struct network *network)
{
	return slice_of(network->key, network->key[0] == 6 ? KEY_MAX : 5);
}

int slots_new(struct slots **ret_slots)
{
	struct slots *slots = calloc(1, sizeof(*slots));

	if (slots == NULL)
		return -ENOMEM;
	pthread_mutex_init(&slots->lock, NULL);
	map_init(&slots->networks);
	list_init(&slots->remembered);
	*ret_slots = slots;
	return 0;
}

void slots_free(struct slots *slots)
{
	struct network *network;
	size_t position = 0;

	if (slots == NULL)
		return;
	while ((network = map_next(&slots->networks, &position)) != NULL)
		free(network);
	map_done(&slots->networks);
	pthread_mutex_destroy(&slots->lock);
	free(slots);
}

static struct network *find(struct slots *slots, const struct addr *peer)
{
	uint8_t key[KEY_MAX];

	return map_get(&slots->networks, make_key(peer, key));
}

static bool is_remembered(const struct network *network)
{
	return network != NULL && list_contains_link(&network->link);
}

static void drop_if_idle(struct slots *slots, struct network *network)
{
	if (network->count > 0 || is_remembered(network))
		return;
	(void)map_remove(&slots->networks, key_of(network));
	free(network);
}

static void forget(struct slots *slots, struct network *network)
{
	list_remove(&network->link);
	slots->remembered_count--;
	slots->strangers += network->waiting;
	drop_if_idle(slots, network);
}

/* Those whose time is over, and the oldest beyond the maximum. */
static void forget_old(struct slots *slots)
{
	uint64_t now = clock_mono_ms();

	while (!list_is_empty(&slots->remembered)) {
		struct network *oldest = list_entry(slots->remembered.next, struct network, link);
		if (slots->remembered_count <= SLOTS_REMEMBERED_MAX &&
		        now - oldest->logged_in_ms < REMEMBERED_S * 1000)
			return;
		forget(slots, oldest);
	}
}

static enum slot_answer judge(
        const struct slots *slots, const struct slot_limits *limits, const struct network *network)
{
	uint64_t most = limits->connections;

	if (network != NULL && network->count >= limits->connections_per_address)
		return SLOT_ADDRESS_FULL;
	if (slots->count >= most)
		return SLOT_ALL_FULL;
	if (is_remembered(network)) {
		/* Or who has logged in once could take all that there is without doing so again. */
		uint64_t share = MAX_OF(MIN_OF(most / 32, (uint64_t)MANY), 1UL);
		/* Or who has done so in many networks. */
		if (slots->count >= most - most / 4 &&
		        slots->waiting - slots->strangers >= most / 4)
			share = 1;
		return slots->count >= most / 2 && network->waiting >= share ? SLOT_STRANGERS_FULL
		                                                             : SLOT_TAKEN;
	}
	/* Rounded so that of one or two connections in all a stranger gets some. */
	if (slots->count >= most - most / 4 || slots->strangers >= most - most / 2)
		return SLOT_STRANGERS_FULL;
	if (slots->strangers >= most / 4 && network != NULL && network->waiting >= MANY)
		return SLOT_STRANGERS_FULL;
	return SLOT_TAKEN;
}

static struct network *add(struct slots *slots, const struct addr *peer)
{
	struct network *network = calloc(1, sizeof(*network));

	if (network == NULL)
		return NULL;
	(void)make_key(peer, network->key);
	if (map_put(&slots->networks, key_of(network), network) < 0)
		free(TAKE(network));
	return network;
}

enum slot_answer slots_take(
        struct slots *slots, const struct slot_limits *limits, const struct addr *peer)
{
	pthread_mutex_lock(&slots->lock);
	forget_old(slots);
	struct network *network = find(slots, peer);
	enum slot_answer answer = judge(slots, limits, network);
	if (answer == SLOT_TAKEN && network == NULL && (network = add(slots, peer)) == NULL)
		answer = SLOT_NO_MEMORY;
	if (answer == SLOT_TAKEN) {
		network->count++;
		network->waiting++;
		slots->count++;
		slots->waiting++;
		slots->strangers += !is_remembered(network);
	}
	pthread_mutex_unlock(&slots->lock);
	return answer;
}

bool slots_remember(struct slots *slots, const struct addr *peer)
{
	pthread_mutex_lock(&slots->lock);
	bool remembered = is_remembered(find(slots, peer));
	pthread_mutex_unlock(&slots->lock);
	return remembered;
}

void slots_log_in(struct slots *slots, const struct addr *peer)
{
	pthread_mutex_lock(&slots->lock);
	struct network *network = find(slots, peer);
	assert_bug(network != NULL && network->waiting > 0);
	if (is_remembered(network)) {
		list_remove(&network->link);
	} else {
		slots->remembered_count++;
		slots->strangers -= network->waiting;
	}
	network->waiting--;
	slots->waiting--;
	slots->logins++;
	network->logged_in_ms = clock_mono_ms();
	list_append(&slots->remembered, &network->link);
	forget_old(slots);
	pthread_mutex_unlock(&slots->lock);
}

void slots_give_back(struct slots *slots, const struct addr *peer, bool logged_in)
{
	pthread_mutex_lock(&slots->lock);
	struct network *network = find(slots, peer);
	assert_bug(network != NULL && network->count > 0);
	network->count--;
	slots->count--;
	if (!logged_in) {
		network->waiting--;
		slots->waiting--;
		slots->strangers -= !is_remembered(network);
	}
	drop_if_idle(slots, network);
	pthread_mutex_unlock(&slots->lock);
}

void slots_recall(struct slots *slots, const struct addr *peer, uint64_t age_s)
{
	if (age_s >= REMEMBERED_S)
		return;
	pthread_mutex_lock(&slots->lock);
	struct network *network = find(slots, peer);
	if (network == NULL)
		network = add(slots, peer);
	if (network != NULL && !is_remembered(network)) {
		/* It may be longer ago than this clock's zero: then its age alone is right. */
		network->logged_in_ms = clock_mono_ms() - age_s * 1000;
		slots->remembered_count++;
		slots->strangers -= network->waiting;
		list_append(&slots->remembered, &network->link);
		forget_old(slots);
	}
	pthread_mutex_unlock(&slots->lock);
}

static struct addr first_address(const struct network *network)
{
	struct addr addr = {0};

	if (network->key[0] == 6) {
		addr.u.in6.sin6_family = AF_INET6;
		addr.len = sizeof(addr.u.in6);
		memcpy(&addr.u.in6.sin6_addr, network->key + 1, ADDR_CUSTOMER_OCTETS_V6);
	} else {
		addr.u.in.sin_family = AF_INET;
		addr.len = sizeof(addr.u.in);
		memcpy(&addr.u.in.sin_addr, network->key + 1, 4);
	}
	return addr;
}

int slots_list(struct slots *slots, struct slots_network **ret_networks, size_t *ret_count)
{
	size_t count = 0;

	pthread_mutex_lock(&slots->lock);
	forget_old(slots);
	struct slots_network *networks = calloc(slots->remembered_count + 1, sizeof(*networks));
	if (networks != NULL) {
		uint64_t now = clock_mono_ms();
		list_for_each (at, &slots->remembered) {
			const struct network *network = list_entry(at, struct network, link);
			networks[count++] = (struct slots_network){
			        .addr = first_address(network),
			        .age_s = (now - network->logged_in_ms) / 1000,
			};
		}
	}
	pthread_mutex_unlock(&slots->lock);
	if (networks == NULL)
		return -ENOMEM;
	*ret_networks = networks;
	*ret_count = count;
	return 0;
}

uint64_t slots_logins(struct slots *slots)
{
	pthread_mutex_lock(&slots->lock);
	uint64_t logins = slots->logins;
	pthread_mutex_unlock(&slots->lock);
	return logins;
}

/* SPDX-License-Identifier: ISC */
/* Turns at slow hashes; see slow_turns.h. */
#include "auth/slow_turns.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "gateway/base/clock.h"

#define PLACES   1024
#define ASK_MS   100 /* between two questions */
#define FRESH_MS 250 /* who has not asked for so long holds up nobody */
#define KEEP_MS  60000

struct place {
	uint64_t login, network; /* tags; 0: free */
	unsigned rank;           /* failures, and places of its network that came before */
	uint64_t number;         /* in the order of coming */
	uint64_t asked_ms;
	bool waits; /* false: it has had its turn, and has not asked for another */
};

struct slow_turns {
	pthread_mutex_t lock; /* of all that follows */
	struct place places[PLACES];
	uint64_t last_number;
	unsigned taken;
};

int slow_turns_new(struct slow_turns **ret_turns)
{
	struct slow_turns *turns = calloc(1, sizeof(*turns));

	if (turns == NULL)
		return -ENOMEM;
	pthread_mutex_init(&turns->lock, NULL);
	*ret_turns = turns;
	return 0;
}

void slow_turns_free(struct slow_turns *turns)
{
	if (turns == NULL)
		return;
	pthread_mutex_destroy(&turns->lock);
	free(turns);
}

/* ---- the lock is held ---- */

static bool goes_before(const struct place *one, const struct place *other)
{
	return one->rank != other->rank ? one->rank < other->rank : one->number < other->number;
}

static struct place *find(struct slow_turns *turns, const struct penalty_ticket *who)
{
	for (unsigned i = 0; i < PLACES; i++) {
		if (turns->places[i].login == who->login.tag)
			return &turns->places[i];
	}
	return NULL;
}

static bool is_over(const struct place *place, uint64_t now)
{
	return place->login == 0 || now - place->asked_ms >= KEEP_MS;
}

/* A free place, or that of who would go last if it is not the new one. */
static struct place *find_room(struct slow_turns *turns, const struct place *wanted, uint64_t now)
{
	struct place *last = &turns->places[0];

	for (unsigned i = 0; i < PLACES && !is_over(last, now); i++) {
		struct place *place = &turns->places[i];
		if (is_over(place, now) || goes_before(last, place))
			last = place;
	}
	return is_over(last, now) || goes_before(wanted, last) ? last : NULL;
}

static unsigned others_of_network(
        const struct slow_turns *turns, const struct place *place, uint64_t now)
{
	unsigned count = 0;

	for (unsigned i = 0; i < PLACES; i++) {
		const struct place *other = &turns->places[i];
		count += !is_over(other, now) && other->network == place->network && other->waits &&
		         other->number < place->number;
	}
	return count;
}

static bool is_turn_of(const struct slow_turns *turns, const struct place *place, uint64_t now)
{
	if (turns->taken >= SLOW_TURNS_MAX)
		return false;
	for (unsigned i = 0; i < PLACES; i++) {
		const struct place *rival = &turns->places[i];
		if (rival != place && rival->login != 0 && rival->waits &&
		        now - rival->asked_ms < FRESH_MS && goes_before(rival, place))
			return false;
	}
	return true;
}

static struct place *find_or_add(
        struct slow_turns *turns, const struct penalty_ticket *who, uint64_t now)
{
	struct place *place = find(turns, who);

	if (place != NULL && place->waits && !is_over(place, now))
		return place;
	struct place wanted = {
	        .login = who->login.tag,
	        .network = who->network.tag,
	        .number = ++turns->last_number,
	        .waits = true,
	};
	wanted.rank = who->failures + others_of_network(turns, &wanted, now);
	if (place == NULL)
		place = find_room(turns, &wanted, now);
	if (place != NULL)
		*place = wanted;
	return place;
}

/* ---- turns ---- */

uint64_t slow_turns_look(struct slow_turns *turns, const struct penalty_ticket *who)
{
	uint64_t now = clock_mono_ms();

	pthread_mutex_lock(&turns->lock);
	struct place *place = find(turns, who);
	bool waits = place != NULL && place->waits && !is_over(place, now);
	if (waits) {
		place->asked_ms = now;
		waits = !is_turn_of(turns, place, now);
	}
	pthread_mutex_unlock(&turns->lock);
	return waits ? ASK_MS : 0;
}

uint64_t slow_turns_take(struct slow_turns *turns, const struct penalty_ticket *who)
{
	uint64_t now = clock_mono_ms();

	pthread_mutex_lock(&turns->lock);
	struct place *place = find_or_add(turns, who, now);
	bool taken = false;
	if (place != NULL) {
		place->asked_ms = now;
		taken = is_turn_of(turns, place, now);
		place->waits = !taken;
	}
	turns->taken += taken;
	pthread_mutex_unlock(&turns->lock);
	return taken ? 0 : ASK_MS;
}

void slow_turns_end(struct slow_turns *turns)
{
	pthread_mutex_lock(&turns->lock);
	turns->taken--;
	pthread_mutex_unlock(&turns->lock);
}

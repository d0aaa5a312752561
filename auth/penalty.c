/* SPDX-License-Identifier: ISC */
/* Time that wrong passwords cost; see penalty.h. */
#include "auth/penalty.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/crypto.h>
#include <pthread.h>
#include <stdlib.h>

#include "gateway/base/addr.h"
#include "gateway/base/clock.h"
#include "gateway/base/random.h"

#define WAYS          8 /* entries that share a place */
#define FIRST_MS      1000
#define LONGEST_MS    60000
#define LOOK_AGAIN_MS 100 /* while an attempt is under way that may turn out right */
#define KNOWN_MS      (24UL * 3600 * 1000)
#define NETWORK_TEXT  64

struct rule {
	unsigned free_failures;
	unsigned failures_max; /* what comes above is not counted */
	uint64_t forget_ms;    /* after so long there is one failure less */
};

/*
 * Of a login: a device with an old password, which tries every few minutes, stays at one try a
 * minute. Of a network: what two or three such devices cause is forgotten as fast as it comes.
 */
static const struct rule login_rule = {5, 12, 5UL * 60 * 1000};
static const struct rule network_rule = {50, 70, 15000};

struct entry {
	uint64_t tag; /* 0: unused */
	uint64_t since_ms;
	uint64_t next_ms; /* no attempt begins before, once the free ones are used up */
	uint16_t failures, running;
	bool told;
};

struct table {
	struct entry *entries;
	size_t places; /* a power of two, of WAYS entries each */
};

struct penalty {
	uint8_t key[32]; /* of the places; made at the start */
	pthread_mutex_t lock;
	struct table logins, networks;
	struct table known; /* who has logged in, from where; `since_ms`: when last */
};

static int table_make(struct table *table, size_t places)
{
	table->entries = calloc(places * WAYS, sizeof(struct entry));
	table->places = places;
	return table->entries != NULL ? 0 : -ENOMEM;
}

int penalty_new(struct penalty **ret_penalty)
{
	struct penalty *penalty = calloc(1, sizeof(*penalty));

	if (penalty == NULL)
		return -ENOMEM;
	pthread_mutex_init(&penalty->lock, NULL);
	random_bytes(penalty->key, sizeof(penalty->key));
	if (table_make(&penalty->logins, 8192) < 0 || table_make(&penalty->networks, 4096) < 0 ||
	        table_make(&penalty->known, 8192) < 0) {
		penalty_free(penalty);
		return -ENOMEM;
	}
	*ret_penalty = penalty;
	return 0;
}

void penalty_free(struct penalty *penalty)
{
	if (penalty == NULL)
		return;
	free(penalty->logins.entries);
	free(penalty->networks.entries);
	free(penalty->known.entries);
	pthread_mutex_destroy(&penalty->lock);
	free(penalty);
}

/* ---- keys ---- */

/* The octets that stand for the network; how many. */
static size_t read_network(struct slice address, uint8_t ret_network[16])
{
	char text[NETWORK_TEXT] = "";

	memcpy(text, address.ptr != NULL ? address.ptr : "", MIN_OF(address.len, sizeof(text) - 1));
	if (inet_pton(AF_INET, text, ret_network) == 1)
		return 4;
	/* No IPv4 is among these: sockets of IPv6 take none, and a proxy's header is read so. */
	return inet_pton(AF_INET6, text, ret_network) == 1 ? ADDR_CUSTOMER_OCTETS_V6 : 0;
}

static struct penalty_key make_key(
        const struct penalty *penalty, struct slice network, struct slice login)
{
	uint8_t mac[32];
	struct penalty_key key = {0};
	const uint8_t network_len = (uint8_t)network.len;
	gnutls_hmac_hd_t hmac;

	/* Without memory all share one entry. */
	if (gnutls_hmac_init(&hmac, GNUTLS_MAC_SHA256, penalty->key, sizeof(penalty->key)) < 0)
		return (struct penalty_key){0, 1};
	gnutls_hmac(hmac, &network_len, 1);
	gnutls_hmac(hmac, network.ptr, network.len);
	gnutls_hmac(hmac, login.ptr, login.len);
	gnutls_hmac_deinit(hmac, mac);
	memcpy(&key, mac, sizeof(key));
	key.tag |= 1;
	return key;
}

struct penalty_ticket penalty_ticket_of(
        const struct penalty *penalty, struct slice login, struct slice address)
{
	uint8_t octets[16];
	struct slice network = slice_of(octets, read_network(address, octets));

	return (struct penalty_ticket){
	        .login = make_key(penalty, network, login),
	        .network = make_key(penalty, network, SLICE("")),
	};
}

/* ---- entries; the lock is held ---- */

static struct entry *place_of(const struct table *table, const struct penalty_key *key)
{
	return &table->entries[(key->place & (table->places - 1)) * WAYS];
}

static struct entry *find(const struct table *table, const struct penalty_key *key)
{
	struct entry *place = place_of(table, key);

	for (unsigned i = 0; i < WAYS; i++) {
		if (place[i].tag == key->tag)
			return &place[i];
	}
	return NULL;
}

/* Failures are forgotten one by one. */
static void forget(struct entry *entry, const struct rule *rule, uint64_t now)
{
	uint64_t gone = now > entry->since_ms ? (now - entry->since_ms) / rule->forget_ms : 0;

	if (gone >= entry->failures) {
		entry->failures = 0;
		entry->since_ms = now;
	} else {
		entry->failures -= (uint16_t)gone;
		entry->since_ms += gone * rule->forget_ms;
	}
	entry->told &= entry->failures >= rule->free_failures;
}

static unsigned worth(const struct entry *entry)
{
	return entry->tag == 0 ? 0 : 1U + entry->failures + entry->running;
}

/* Who has failed least makes room, and of several the one from longest ago. */
static struct entry *find_or_add(const struct table *table, const struct penalty_key *key,
        const struct rule *rule, uint64_t now)
{
	struct entry *entry = find(table, key);

	if (entry != NULL)
		return entry;
	struct entry *place = place_of(table, key);
	entry = place;
	for (unsigned i = 0; i < WAYS; i++) {
		if (rule != NULL)
			forget(&place[i], rule, now);
		if (worth(&place[i]) < worth(entry) ||
		        (worth(&place[i]) == worth(entry) && place[i].since_ms < entry->since_ms))
			entry = &place[i];
	}
	*entry = (struct entry){.tag = key->tag, .since_ms = now};
	return entry;
}

static uint64_t delay_ms(unsigned failures, const struct rule *rule)
{
	unsigned doublings = failures - rule->free_failures;

	return doublings < 6 ? (uint64_t)FIRST_MS << doublings : LONGEST_MS;
}

/* How long an attempt has to wait here, by what is known now. */
static uint64_t wait_ms(struct entry *entry, const struct rule *rule, uint64_t now)
{
	if (entry == NULL)
		return 0;
	forget(entry, rule, now);
	if (entry->failures + entry->running < rule->free_failures || entry->next_ms <= now)
		return 0;
	/* A right one would end the wait. */
	return entry->running > 0 ? MIN_OF(entry->next_ms - now, (uint64_t)LOOK_AGAIN_MS)
	                          : entry->next_ms - now;
}

static void begin(
        struct table *table, const struct penalty_key *key, const struct rule *rule, uint64_t now)
{
	struct entry *entry = find_or_add(table, key, rule, now);
	unsigned failures = entry->failures + entry->running;

	if (failures >= rule->free_failures)
		entry->next_ms = now + delay_ms(failures, rule);
	if (entry->running < UINT16_MAX)
		entry->running++;
}

/* Whether it begins to be slowed now. */
static bool fail(
        struct table *table, const struct penalty_key *key, const struct rule *rule, uint64_t now)
{
	struct entry *entry = find_or_add(table, key, rule, now);

	forget(entry, rule, now);
	if (entry->failures < rule->failures_max)
		entry->failures++;
	if (entry->failures < rule->free_failures)
		return false;
	entry->next_ms = MAX_OF(entry->next_ms, now + delay_ms(entry->failures, rule));
	bool news = !entry->told;
	entry->told = true;
	return news;
}

static void end_running(struct table *table, const struct penalty_key *key)
{
	struct entry *entry = find(table, key);

	if (entry != NULL && entry->running > 0)
		entry->running--;
}

static bool is_known(const struct penalty *penalty, const struct penalty_key *key, uint64_t now)
{
	const struct entry *entry = find(&penalty->known, key);

	return entry != NULL && now - entry->since_ms < KNOWN_MS;
}

static void note_right(struct penalty *penalty, const struct penalty_key *key, uint64_t now)
{
	struct entry *entry = find(&penalty->logins, key);

	if (entry != NULL) {
		entry->failures = 0;
		entry->next_ms = 0;
		entry->told = false;
	}
	find_or_add(&penalty->known, key, NULL, now)->since_ms = now;
}

/* ---- attempts ---- */

uint64_t penalty_enter(struct penalty *penalty, struct slice login, struct slice address,
        struct penalty_ticket *ret_ticket)
{
	struct penalty_ticket ticket = penalty_ticket_of(penalty, login, address);
	uint64_t now = clock_mono_ms();

	pthread_mutex_lock(&penalty->lock);
	struct entry *of_login = find(&penalty->logins, &ticket.login);
	uint64_t wait = wait_ms(of_login, &login_rule, now);
	ticket.failures = of_login != NULL ? of_login->failures : 0;
	ticket.takes_turn = !is_known(penalty, &ticket.login, now);
	if (ticket.takes_turn) {
		struct entry *of_network = find(&penalty->networks, &ticket.network);
		uint64_t other = wait_ms(of_network, &network_rule, now);
		wait = MAX_OF(wait, other);
		ticket.failures += of_network != NULL ? of_network->failures : 0;
	}
	if (wait == 0) {
		begin(&penalty->logins, &ticket.login, &login_rule, now);
		if (ticket.takes_turn)
			begin(&penalty->networks, &ticket.network, &network_rule, now);
	}
	pthread_mutex_unlock(&penalty->lock);
	ticket.open = wait == 0;
	*ret_ticket = ticket;
	return wait;
}

static unsigned count_failures(const struct table *table, const struct penalty_key *key,
        const struct rule *rule, uint64_t now)
{
	struct entry *entry = find(table, key);

	if (entry == NULL)
		return 0;
	forget(entry, rule, now);
	return entry->failures + entry->running;
}

struct penalty_ticket penalty_look(
        struct penalty *penalty, struct slice login, struct slice address)
{
	struct penalty_ticket ticket = penalty_ticket_of(penalty, login, address);
	uint64_t now = clock_mono_ms();

	pthread_mutex_lock(&penalty->lock);
	ticket.takes_turn = !is_known(penalty, &ticket.login, now);
	ticket.failures = count_failures(&penalty->logins, &ticket.login, &login_rule, now);
	if (ticket.takes_turn)
		ticket.failures +=
		        count_failures(&penalty->networks, &ticket.network, &network_rule, now);
	pthread_mutex_unlock(&penalty->lock);
	return ticket;
}

unsigned penalty_leave(
        struct penalty *penalty, struct penalty_ticket *ticket, enum penalty_outcome outcome)
{
	uint64_t now = clock_mono_ms();
	unsigned news = PENALTY_NO_NEWS;

	if (!ticket->open)
		return PENALTY_NO_NEWS;
	ticket->open = false;
	pthread_mutex_lock(&penalty->lock);
	end_running(&penalty->logins, &ticket->login);
	if (ticket->takes_turn)
		end_running(&penalty->networks, &ticket->network);
	if (outcome == PENALTY_RIGHT) {
		note_right(penalty, &ticket->login, now);
	} else if (outcome != PENALTY_UNTRIED) {
		if (outcome == PENALTY_WRONG &&
		        fail(&penalty->logins, &ticket->login, &login_rule, now))
			news |= PENALTY_LOGIN_SLOWED;
		if (fail(&penalty->networks, &ticket->network, &network_rule, now))
			news |= PENALTY_NETWORK_SLOWED;
	}
	pthread_mutex_unlock(&penalty->lock);
	return news;
}

void penalty_right(struct penalty *penalty, struct slice login, struct slice address)
{
	struct penalty_ticket ticket = penalty_ticket_of(penalty, login, address);
	uint64_t now = clock_mono_ms();

	pthread_mutex_lock(&penalty->lock);
	note_right(penalty, &ticket.login, now);
	pthread_mutex_unlock(&penalty->lock);
}

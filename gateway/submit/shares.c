/* SPDX-License-Identifier: ISC */
/* What each account has; see shares.h. */
#include "gateway/submit/shares.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "gateway/base/log.h"
#include "gateway/base/map.h"

/* Of an account that has a connection, or holds something. */
struct share {
	uint64_t account;
	uint64_t connections, holdings;
	struct held held; /* by all of these */
	uint64_t told_ms; /* the last time that the log told that it is full; 0: never */
};

struct holding {
	struct shares *shares;
	uint64_t account;
	struct held held;
};

struct shares {
	pthread_mutex_t lock; /* of all that follows */
	struct shares_limits limits;
	struct map accounts; /* struct share */
};

static struct slice key_of(const uint64_t *account)
{
	return slice_of(account, sizeof(*account));
}

int shares_new(struct shares **ret_shares)
{
	struct shares *shares = calloc(1, sizeof(*shares));

	if (shares == NULL)
		return -ENOMEM;
	pthread_mutex_init(&shares->lock, NULL);
	shares->limits = (struct shares_limits){UINT64_MAX, UINT64_MAX};
	map_init(&shares->accounts);
	*ret_shares = shares;
	return 0;
}

void shares_free(struct shares *shares)
{
	struct share *share;
	size_t position = 0;

	if (shares == NULL)
		return;
	while ((share = map_next(&shares->accounts, &position)) != NULL)
		free(share);
	map_done(&shares->accounts);
	pthread_mutex_destroy(&shares->lock);
	free(shares);
}

/* The lock is held; the account is there. */
static struct share *find(struct shares *shares, uint64_t account)
{
	struct share *share = map_get(&shares->accounts, key_of(&account));

	assert_bug(share != NULL);
	return share;
}

/* The lock is held. NULL without memory. */
static struct share *find_or_add(struct shares *shares, uint64_t account)
{
	struct share *share = map_get(&shares->accounts, key_of(&account));

	if (share != NULL || (share = calloc(1, sizeof(*share))) == NULL)
		return share;
	share->account = account;
	if (map_put(&shares->accounts, key_of(&share->account), share) < 0)
		free(TAKE(share));
	return share;
}

void shares_set_limits(struct shares *shares, const struct shares_limits *limits)
{
	pthread_mutex_lock(&shares->lock);
	shares->limits = *limits;
	pthread_mutex_unlock(&shares->lock);
}

int shares_take_connection(struct shares *shares, uint64_t account, uint32_t most)
{
	int r = -ENOMEM;

	pthread_mutex_lock(&shares->lock);
	struct share *share = find_or_add(shares, account);
	if (share != NULL) {
		r = share->connections < (most != 0 ? most : shares->limits.connections) ? 0
		                                                                         : -EUSERS;
		share->connections += r == 0;
	}
	pthread_mutex_unlock(&shares->lock);
	return r;
}

/* The lock is held. */
static void drop_if_unused(struct shares *shares, struct share *share)
{
	if (share->connections > 0 || share->holdings > 0)
		return;
	assert_bug(share->held.memory == 0 && share->held.disk == 0);
	(void)map_remove(&shares->accounts, key_of(&share->account));
	free(share);
}

void shares_give_connection_back(struct shares *shares, uint64_t account)
{
	pthread_mutex_lock(&shares->lock);
	struct share *share = find(shares, account);
	assert_bug(share->connections > 0);
	share->connections--;
	drop_if_unused(shares, share);
	pthread_mutex_unlock(&shares->lock);
}

uint64_t shares_connections(struct shares *shares, uint64_t account)
{
	pthread_mutex_lock(&shares->lock);
	const struct share *share = map_get(&shares->accounts, key_of(&account));
	uint64_t count = share != NULL ? share->connections : 0;
	pthread_mutex_unlock(&shares->lock);
	return count;
}

bool shares_is_due(struct shares *shares, uint64_t account)
{
	pthread_mutex_lock(&shares->lock);
	bool is_due = log_is_due(&find(shares, account)->told_ms);
	pthread_mutex_unlock(&shares->lock);
	return is_due;
}

struct holding *holding_new(struct shares *shares, uint64_t account)
{
	struct holding *holding = calloc(1, sizeof(*holding));

	if (holding == NULL)
		return NULL;
	holding->shares = shares;
	holding->account = account;
	pthread_mutex_lock(&shares->lock);
	find(shares, account)->holdings++;
	pthread_mutex_unlock(&shares->lock);
	return holding;
}

/* The lock is held. */
static void replace(struct share *share, struct holding *holding, struct held now)
{
	share->held.memory += now.memory - holding->held.memory;
	share->held.disk += now.disk - holding->held.disk;
	holding->held = now;
}

void holding_free(struct holding *holding)
{
	if (holding == NULL)
		return;
	struct shares *shares = holding->shares;
	pthread_mutex_lock(&shares->lock);
	struct share *share = find(shares, holding->account);
	replace(share, holding, (struct held){0});
	share->holdings--;
	drop_if_unused(shares, share);
	pthread_mutex_unlock(&shares->lock);
	free(holding);
}

enum holding_answer holding_set(struct holding *holding, struct held now, struct disk_room disk)
{
	struct shares *shares = holding->shares;

	pthread_mutex_lock(&shares->lock);
	struct share *share = find(shares, holding->account);
	replace(share, holding, now);
	struct held all = share->held;
	uint64_t memory_most = shares->limits.memory;
	pthread_mutex_unlock(&shares->lock);
	if (all.memory > memory_most)
		return HOLDING_MEMORY_FULL;
	return all.disk > MAX_OF(disk.left, disk.least) ? HOLDING_DISK_FULL : HOLDING_FINE;
}

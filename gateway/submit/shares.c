/* SPDX-License-Identifier: ISC */
/* What each account has; see shares.h. */
#include "gateway/submit/shares.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "gateway/base/map.h"

/* Of an account that has a connection. */
struct share {
	uint64_t account;
	uint64_t connections;
	struct shares_held held;
};

struct shares {
	pthread_mutex_t lock; /* of the map and all in it */
	struct map accounts;
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

bool shares_take_connection(struct shares *shares, uint64_t account, uint32_t most)
{
	pthread_mutex_lock(&shares->lock);
	struct share *share = find_or_add(shares, account);
	bool taken = share != NULL && (most == 0 || share->connections < most);
	if (taken)
		share->connections++;
	pthread_mutex_unlock(&shares->lock);
	return taken;
}

void shares_give_connection_back(struct shares *shares, uint64_t account)
{
	pthread_mutex_lock(&shares->lock);
	struct share *share = map_get(&shares->accounts, key_of(&account));
	assert_bug(share != NULL);
	if (--share->connections == 0) {
		(void)map_remove(&shares->accounts, key_of(&account));
		free(share);
	}
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

static struct shares_held replace(
        struct shares *shares, uint64_t account, struct shares_held *held, struct shares_held now)
{
	pthread_mutex_lock(&shares->lock);
	struct share *share = map_get(&shares->accounts, key_of(&account));
	assert_bug(share != NULL);
	share->held.memory += now.memory - held->memory;
	share->held.disk += now.disk - held->disk;
	struct shares_held all = share->held;
	pthread_mutex_unlock(&shares->lock);
	*held = now;
	return all;
}

bool shares_hold(struct shares *shares, uint64_t account, struct shares_held *held,
        struct shares_held now, uint64_t disk_free, uint64_t disk_least)
{
	struct shares_held all = replace(shares, account, held, now);

	return all.memory <= SHARES_MEMORY_MAX &&
	       all.disk <= MAX_OF((disk_free + all.disk) / 4, disk_least);
}

void shares_let_go(struct shares *shares, uint64_t account, struct shares_held *held)
{
	(void)replace(shares, account, held, (struct shares_held){0});
}

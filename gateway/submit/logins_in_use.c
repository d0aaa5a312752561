/* SPDX-License-Identifier: ISC */
/* Connections of each account; see logins_in_use.h. */
#include "gateway/submit/logins_in_use.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "gateway/base/map.h"

/* Of an account that has any. */
struct use {
	uint64_t account, count;
};

struct logins_in_use {
	pthread_mutex_t lock; /* of the map and all in it */
	struct map uses;
};

static struct slice key_of(const uint64_t *account)
{
	return slice_of(account, sizeof(*account));
}

int logins_in_use_new(struct logins_in_use **ret_logins)
{
	struct logins_in_use *logins = calloc(1, sizeof(*logins));

	if (logins == NULL)
		return -ENOMEM;
	pthread_mutex_init(&logins->lock, NULL);
	map_init(&logins->uses);
	*ret_logins = logins;
	return 0;
}

void logins_in_use_free(struct logins_in_use *logins)
{
	struct use *use;
	size_t position = 0;

	if (logins == NULL)
		return;
	while ((use = map_next(&logins->uses, &position)) != NULL)
		free(use);
	map_done(&logins->uses);
	pthread_mutex_destroy(&logins->lock);
	free(logins);
}

/* The lock is held. NULL without memory. */
static struct use *find_or_add(struct logins_in_use *logins, uint64_t account)
{
	struct use *use = map_get(&logins->uses, key_of(&account));

	if (use != NULL || (use = calloc(1, sizeof(*use))) == NULL)
		return use;
	use->account = account;
	if (map_put(&logins->uses, key_of(&use->account), use) < 0)
		free(TAKE(use));
	return use;
}

bool logins_in_use_take(struct logins_in_use *logins, uint64_t account, uint32_t most)
{
	pthread_mutex_lock(&logins->lock);
	struct use *use = find_or_add(logins, account);
	bool taken = use != NULL && (most == 0 || use->count < most);
	if (taken)
		use->count++;
	pthread_mutex_unlock(&logins->lock);
	return taken;
}

void logins_in_use_give_back(struct logins_in_use *logins, uint64_t account)
{
	pthread_mutex_lock(&logins->lock);
	struct use *use = map_get(&logins->uses, key_of(&account));
	assert_bug(use != NULL);
	if (--use->count == 0) {
		(void)map_remove(&logins->uses, key_of(&account));
		free(use);
	}
	pthread_mutex_unlock(&logins->lock);
}

uint64_t logins_in_use_count(struct logins_in_use *logins, uint64_t account)
{
	pthread_mutex_lock(&logins->lock);
	const struct use *use = map_get(&logins->uses, key_of(&account));
	uint64_t count = use != NULL ? use->count : 0;
	pthread_mutex_unlock(&logins->lock);
	return count;
}

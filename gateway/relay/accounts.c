/* SPDX-License-Identifier: ISC */
/*
 * Accounts whose mail is held; see accounts.h. Whoever listens makes each new set whole
 * and hands it over, so that the loop needs no memory to put it in force.
 */
#include "gateway/relay/accounts.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "db/db.h"
#include "gateway/base/clock.h"
#include "gateway/base/log.h"
#include "gateway/net/loop.h"
#include "gateway/relay/task.h"

struct held_account {
	uint64_t id;
	uint64_t since_ms; /* monotonic: what waits does not age from then on */
	struct list tasks;
};

/* In ascending order of their numbers, which never change. */
struct held_set {
	size_t count;
	struct held_account accounts[];
};

struct accounts {
	int wake; /* eventfd: there is a fresh set */
	struct watch *watch;
	/* owner: the loop */
	struct held_set *held; /* NULL: nobody knows yet */
	struct list undecided; /* tasks that wait for the first set */

	pthread_mutex_t lock; /* of the set that is handed over */
	struct held_set *fresh;
	/* owner: the listener */
	uint64_t *told; /* what it has told last */
	size_t told_count;
	bool were_told;
};

/* ---- putting a set in force ---- */

static void begin(struct held_set *set)
{
	uint64_t now = clock_mono_ms();

	for (size_t i = 0; i < set->count; i++) {
		set->accounts[i].since_ms = now;
		list_init(&set->accounts[i].tasks);
	}
}

static void log_change(enum event event, const struct held_account *account)
{
	LOG(NULL, event, "number=%" PRIu64, account->id);
}

/* What waited for an account that is held no more goes by its own time again. */
static void release(struct list *tasks)
{
	struct list *link;

	while ((link = list_pop(tasks)) != NULL)
		task_release(list_entry(link, struct task, link));
}

/* Both in the same order: what waits moves from the old set to the new one, or goes. */
static void replace(struct held_set *old, struct held_set *fresh)
{
	size_t at = 0;

	for (size_t i = 0; i < old->count; i++) {
		struct held_account *before = &old->accounts[i];
		while (at < fresh->count && fresh->accounts[at].id < before->id)
			log_change(EV_ACCOUNT_HELD, &fresh->accounts[at++]);
		if (at < fresh->count && fresh->accounts[at].id == before->id) {
			fresh->accounts[at].since_ms = before->since_ms;
			list_move(&fresh->accounts[at++].tasks, &before->tasks);
			continue;
		}
		log_change(EV_ACCOUNT_RELEASED, before);
		release(&before->tasks);
	}
	while (at < fresh->count)
		log_change(EV_ACCOUNT_HELD, &fresh->accounts[at++]);
}

static void put_in_force(struct accounts *accounts, struct held_set *fresh)
{
	struct held_set *old = accounts->held;

	accounts->held = fresh;
	begin(fresh);
	if (old == NULL) {
		LOG(NULL, EV_ACCOUNTS_KNOWN, "held=%zu", fresh->count);
		release(&accounts->undecided);
	} else {
		replace(old, fresh);
	}
	free(old);
}

static void on_wake(void *arg, unsigned events)
{
	struct accounts *accounts = arg;
	uint64_t count;

	(void)events;
	if (read(accounts->wake, &count, sizeof(count)) < 0)
		return;
	pthread_mutex_lock(&accounts->lock);
	struct held_set *fresh = TAKE(accounts->fresh);
	pthread_mutex_unlock(&accounts->lock);
	if (fresh != NULL)
		put_in_force(accounts, fresh);
}

int accounts_new(struct loop *loop, struct accounts **ret_accounts)
{
	struct accounts *accounts = calloc(1, sizeof(*accounts));

	if (accounts == NULL)
		return -ENOMEM;
	list_init(&accounts->undecided);
	pthread_mutex_init(&accounts->lock, NULL);
	accounts->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int r = accounts->wake < 0
	                ? -errno
	                : watch_new(loop, accounts->wake, on_wake, accounts, &accounts->watch);
	if (r < 0) {
		accounts_free(accounts);
		return r;
	}
	watch_set(accounts->watch, WATCH_READ);
	*ret_accounts = accounts;
	return 0;
}

void accounts_free(struct accounts *accounts)
{
	if (accounts == NULL)
		return;
	watch_free(accounts->watch);
	if (accounts->wake >= 0)
		close(accounts->wake);
	free(accounts->held);
	free(accounts->fresh);
	free(accounts->told);
	pthread_mutex_destroy(&accounts->lock);
	free(accounts);
}

/* ---- what waits ---- */

static int compare_ids(const void *key, const void *element)
{
	const struct held_account *account = element;
	const uint64_t *id = key;

	return *id < account->id ? -1 : *id > account->id;
}

static struct held_account *find(const struct held_set *set, uint64_t id)
{
	return bsearch(&id, set->accounts, set->count, sizeof(set->accounts[0]), compare_ids);
}

const char *accounts_hold_reason(const struct accounts *accounts, const struct spool_entry *entry)
{
	if (entry->is_dsn)
		return NULL;
	if (accounts->held == NULL)
		return "accounts-unknown";
	return find(accounts->held, entry->account) != NULL ? "account-suspended" : NULL;
}

bool accounts_hold(struct accounts *accounts, struct task *task)
{
	struct held_account *account =
	        accounts->held == NULL ? NULL : find(accounts->held, task->entry->account);
	uint64_t since_ms = account == NULL ? 0 : account->since_ms;

	if (accounts_hold_reason(accounts, task->entry) == NULL)
		return false;
	/* It may have waited elsewhere until now, for its time or for its turn. */
	if (task->counted_from < since_ms)
		task->entry->age_ms += since_ms - task->counted_from;
	task_hold(task, account == NULL ? &accounts->undecided : &account->tasks, true);
	return true;
}

/* ---- what is told: the listener's thread ---- */

int accounts_tell(struct accounts *accounts, const uint64_t *held, size_t count)
{
	struct held_set *set = malloc(sizeof(*set) + count * sizeof(set->accounts[0]));
	uint64_t *told = count == 0 ? NULL : reallocarray(NULL, count, sizeof(*told));
	const uint64_t one = 1;

	if (set == NULL || (count > 0 && told == NULL)) {
		free(set);
		free(told);
		return -ENOMEM;
	}
	set->count = count;
	for (size_t i = 0; i < count; i++)
		set->accounts[i].id = told[i] = held[i];
	free(accounts->told);
	accounts->told = told;
	accounts->told_count = count;
	accounts->were_told = true;
	pthread_mutex_lock(&accounts->lock);
	free(accounts->fresh); /* one that the loop has not taken yet is old already */
	accounts->fresh = set;
	pthread_mutex_unlock(&accounts->lock);
	(void)!write(accounts->wake, &one, sizeof(one));
	return 0;
}

bool accounts_were_told(const struct accounts *accounts)
{
	return accounts->were_told;
}

int accounts_load(struct accounts *accounts, struct db *db)
{
	PGresult *rows;

	int r = db_exec(db, "select postern.held_accounts()", 0, NULL, &rows, NULL);
	if (r < 0)
		return r;
	int count = PQntuples(rows);
	uint64_t *held = reallocarray(NULL, (size_t)count + 1, sizeof(*held));
	for (int i = 0; held != NULL && i < count; i++)
		held[i] = (uint64_t)db_int(rows, i, 0);
	PQclear(rows);
	r = held == NULL ? -ENOMEM : accounts_tell(accounts, held, (size_t)count);
	free(held);
	return r;
}

static int compare_numbers(const void *a, const void *b)
{
	const uint64_t *one = a, *other = b;

	return *one < *other ? -1 : *one > *other;
}

static bool was_told(const struct accounts *accounts, uint64_t id)
{
	return accounts->told_count > 0 && bsearch(&id, accounts->told, accounts->told_count,
	                                           sizeof(id), compare_numbers) != NULL;
}

/* Whether what the database says of these is what was told; `rows` are in ascending order. */
static bool is_news(const struct accounts *accounts, const uint64_t *changed, size_t count,
        const PGresult *rows)
{
	size_t known = 0;

	for (size_t i = 0; i < count; i++)
		known += was_told(accounts, changed[i]);
	for (int i = 0; i < PQntuples(rows); i++)
		if (!was_told(accounts, (uint64_t)db_int(rows, i, 0)))
			return true;
	return known != (size_t)PQntuples(rows);
}

int accounts_check(struct accounts *accounts, struct db *db, uint64_t *changed, size_t count)
{
	struct db_numbers numbers;
	PGresult *rows;
	size_t distinct = 0;
	int r = -ENOMEM;

	qsort(changed, count, sizeof(*changed), compare_numbers);
	db_numbers_init(&numbers, count);
	for (size_t i = 0; i < count; i++) {
		if (distinct > 0 && changed[distinct - 1] == changed[i])
			continue;
		changed[distinct++] = changed[i];
		db_numbers_add(&numbers, changed[i]);
	}
	const char *const params[] = {db_numbers_text(&numbers)};
	if (params[0] != NULL)
		r = db_exec_often(db, "select postern.held_among($1)", 1, params, &rows, NULL);
	db_numbers_done(&numbers);
	if (r < 0)
		return r;
	/* Most changes of an account are of other things. */
	bool news = is_news(accounts, changed, distinct, rows);
	PQclear(rows);
	return news ? accounts_load(accounts, db) : 0;
}

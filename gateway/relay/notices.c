/* SPDX-License-Identifier: ISC */
/* Listening to the database; see notices.h. */
#include "gateway/relay/notices.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "db/db.h"
#include "gateway/base/log.h"
#include "gateway/relay/accounts.h"
#include "gateway/relay/keys.h"

#define WAIT_MS     1000
#define REST_MS     200
#define PAYLOAD_MAX 8192
#define CHANGED_MAX 1000 /* accounts in one question */

struct notices {
	struct keys *keys;
	struct accounts *accounts;
	struct db *db;
	pthread_t thread;
	bool runs;
	_Atomic bool ending;
	int wake; /* eventfd: it ends */

	/* owner: the thread */
	bool all_changed; /* of the accounts, or nothing is known of them yet */
	uint64_t changed[CHANGED_MAX];
	size_t changed_count;
	bool told; /* the operator, that nothing is known of them */
};

static void take(struct notices *notices, struct slice payload)
{
	struct slice rest = payload;
	struct slice kind = slice_until(&rest, ' ');
	uint64_t account;

	if (slice_equal(kind, SLICE("dkim")))
		keys_changed(notices->keys, rest);
	else if (slice_equal(kind, SLICE("account")) && slice_to_u64(rest, &account) == 0)
		notices->changed[notices->changed_count++] = account;
}

static bool has_questions(const struct notices *notices)
{
	return notices->all_changed || notices->changed_count > 0;
}

/* 0, or the database cannot tell now. */
static int ask(struct notices *notices)
{
	int r = 0;

	if (notices->all_changed)
		r = accounts_load(notices->accounts, notices->db);
	else if (notices->changed_count > 0)
		r = accounts_check(
		        notices->accounts, notices->db, notices->changed, notices->changed_count);
	/* If the connection was lost a new one brings all; if not, this does. */
	notices->all_changed = r < 0;
	notices->changed_count = 0;
	return r;
}

static void tell_unknown(struct notices *notices)
{
	if (notices->told || accounts_were_told(notices->accounts))
		return;
	notices->told = true;
	LOG(NULL, EV_ACCOUNTS_UNKNOWN, "");
}

static void *listen(void *arg)
{
	struct notices *notices = arg;
	struct buf payload;
	bool anew;

	buf_init(&payload, PAYLOAD_MAX);
	while (!notices->ending) {
		/* What has come already is asked about in one question. */
		unsigned wait_ms = has_questions(notices) ? 0 : WAIT_MS;
		int r = db_wait_notice(
		        notices->db, "postern", wait_ms, notices->wake, &payload, &anew);
		if (anew) {
			keys_changed(notices->keys, SLICE(""));
			notices->all_changed = true;
		}
		if (r == 1)
			take(notices, buf_slice(&payload));
		if (r == 0 || notices->changed_count == CHANGED_MAX)
			r = ask(notices);
		if (r < 0) {
			tell_unknown(notices);
			poll(NULL, 0, REST_MS);
		}
	}
	buf_done(&payload);
	return NULL;
}

int notices_new(const struct notices_settings *settings, struct notices **ret_notices)
{
	struct notices *notices = calloc(1, sizeof(*notices));

	if (notices == NULL)
		return -ENOMEM;
	notices->keys = settings->keys;
	notices->accounts = settings->accounts;
	const struct db_settings db = {
	        .conninfo = settings->database,
	        .user = "postern_relay",
	        .password = settings->password,
	};
	notices->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int r = notices->wake < 0 ? -errno : db_new(&db, &notices->db, NULL);
	if (r == 0) {
		r = -pthread_create(&notices->thread, NULL, listen, notices);
		notices->runs = r == 0;
	}
	if (r < 0) {
		notices_free(notices);
		return r;
	}
	*ret_notices = notices;
	return 0;
}

void notices_free(struct notices *notices)
{
	const uint64_t one = 1;

	if (notices == NULL)
		return;
	notices->ending = true;
	if (notices->wake >= 0)
		(void)!write(notices->wake, &one, sizeof(one));
	if (notices->runs)
		pthread_join(notices->thread, NULL);
	if (notices->wake >= 0)
		close(notices->wake);
	db_free(notices->db);
	free(notices);
}

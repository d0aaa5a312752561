/* SPDX-License-Identifier: ISC */
/* The threads of the process `auth`: lanes, intake, notices; see auth.h. */
#include "auth/auth.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "auth/login.h"
#include "auth/penalty.h"
#include "auth/queue.h"
#include "gateway/base/board.h"
#include "gateway/base/clock.h"

#define LINKS_MAX       128
#define LANES_MAX       64
#define LOGINS_WAIT_MAX 20000
#define NOTICE_WAIT_MS  1000
#define REST_MS         200

struct auth {
	const struct conf *conf;
	struct db_settings db_settings;
	char *password;
	struct identity_store *store;
	struct sasl *sasl;
	struct last_use *last_use;
	struct penalty *penalty;
	struct logins *logins;
	struct queue *queue;
	struct outage outage;

	pthread_mutex_t lock; /* of the links */
	struct link *links[LINKS_MAX];
	size_t link_count;

	int intake_wake, notices_wake; /* eventfds */
	_Atomic bool ending;
	pthread_t intake, notices;
	pthread_t lanes[LANES_MAX];
	unsigned lane_count;
	bool intake_runs, notices_run;
};

/* ---- lanes ---- */

static void poke(int wake_fd)
{
	const uint64_t one = 1;

	(void)!write(wake_fd, &one, sizeof(one));
}

static void run_admits(
        struct auth *auth, struct request *const batch[], unsigned count, struct db *db)
{
	struct admission admissions[LIMITS_BATCH_MAX];
	struct why why = {{0}};

	for (unsigned i = 0; i < count; i++) {
		admissions[i].charge = batch[i]->message.charge;
		admissions[i].recipients = batch[i]->message.recipients;
	}
	int r = limits_admit(db, admissions, count, &why);
	/* One that refuses is there. */
	outage_note(&auth->outage, r < 0 && r != -EPROTO ? &why : NULL);
	for (unsigned i = 0; i < count; i++) {
		admissions[i].answer.number = batch[i]->message.number;
		link_answer(batch[i]->link, &admissions[i].answer, NULL);
	}
}

static void run_settles(struct request *const batch[], unsigned count, struct db *db)
{
	struct auth_charge charges[LIMITS_BATCH_MAX];

	for (unsigned i = 0; i < count; i++)
		charges[i] = batch[i]->message.charge;
	limits_settle(db, charges, count);
}

/* A request that has to wait for its turn is taken, and NULL is left. */
static void run_login(struct auth *auth, struct request **request, struct db *db)
{
	struct link *link = (*request)->link;
	const struct auth_message *message = &(*request)->message;
	bool waited = (*request)->since_ms != 0;
	const struct turn turn = {
	        .db = db,
	        .waited_ms = waited ? clock_mono_ms() - (*request)->since_ms : 0,
	        .may_wait = queue_delayed(auth->queue) < DELAYED_MAX,
	};

	uint64_t wait = message->type == AUTH_LOGIN_START
	                        ? logins_start(auth->logins, link, message, &turn)
	                        : logins_step(auth->logins, link, message, &turn);
	if (queue_is_cancelled(auth->queue, *request)) {
		/* Its cancel has not found it in the table, where it may be again. */
		logins_cancel(auth->logins, link, message->number);
		return;
	}
	if (wait == 0)
		return;
	if (!waited)
		counter_add(CT_LOGINS_DELAYED, 1);
	(*request)->standing = logins_standing(auth->logins, link, message);
	queue_delay(auth->queue, TAKE(*request), wait);
	poke(auth->intake_wake);
}

static void run(struct auth *auth, struct request *batch[], unsigned count, struct db *db)
{
	struct link *link = batch[0]->link;
	const struct auth_message *message = &batch[0]->message;

	switch (message->type) {
	case AUTH_LOGIN_START:
	case AUTH_LOGIN_STEP:
		run_login(auth, &batch[0], db);
		break;
	case AUTH_LOGIN_NETWORK:
		logins_network(auth->logins, link, message, db);
		break;
	case AUTH_LOGIN_AGAIN:
		logins_again(auth->logins, link, message, db);
		break;
	case AUTH_ADMIT:
		run_admits(auth, batch, count, db);
		break;
	case AUTH_SETTLE:
		run_settles(batch, count, db);
		break;
	default:
		break;
	}
}

static void *lane(void *arg)
{
	struct auth *auth = arg;
	struct request *batch[LIMITS_BATCH_MAX];
	struct db *db;
	unsigned count;

	if (db_new(&auth->db_settings, &db, NULL) < 0)
		return NULL;
	enum lane_kind kind = queue_join(auth->queue);
	while ((count = queue_take(auth->queue, kind, batch)) > 0) {
		run(auth, batch, count, db);
		for (unsigned i = 0; i < count; i++)
			request_free(batch[i]);
	}
	db_free(db);
	return NULL;
}

/* ---- intake ---- */

/* Its sessions may be older than this process, and have missed what it has not heard. */
static void greet(struct auth *auth, struct link *link)
{
	const struct auth_message changed = {
	        .type = AUTH_CHANGED, .era = identity_era(auth->store)};

	link_answer_type(link, 0, AUTH_HELLO);
	link_answer(link, &changed, NULL);
}

/* One datagram: 0, or -EBADMSG when the link must end. */
static int take_datagram(struct auth *auth, struct link *link, struct slice datagram)
{
	struct auth_account_room unused;
	struct auth_message message;

	if (protocol_decode(datagram, &message, &unused) < 0)
		return -EBADMSG;
	if (!link->greeted) {
		link->greeted = message.type == AUTH_HELLO;
		if (link->greeted)
			greet(auth, link);
		return link->greeted ? 0 : -EBADMSG;
	}
	switch (message.type) {
	case AUTH_LOGIN_START:
		if (logins_answer_at_once(auth->logins, link, &message))
			return 0;
		break;
	case AUTH_LOGIN_STEP:
	case AUTH_LOGIN_NETWORK:
	case AUTH_LOGIN_AGAIN:
	case AUTH_ADMIT:
	case AUTH_SETTLE:
		break;
	case AUTH_LOGIN_CANCEL:
		/* In this order: what a lane has taken is marked before it can be put back. */
		queue_cancel(auth->queue, link, message.number);
		logins_cancel(auth->logins, link, message.number);
		return 0;
	default:
		return -EBADMSG;
	}
	const struct standing standing = logins_standing(auth->logins, link, &message);
	/* A SETTLE has no answer: lost, it stays charged. */
	if (queue_put(auth->queue, link, datagram, &standing) < 0 && message.type != AUTH_SETTLE)
		link_answer_type(link, message.number, AUTH_UNAVAILABLE);
	return 0;
}

static void drop_link(struct auth *auth, struct link *link)
{
	bool found = false;

	pthread_mutex_lock(&auth->lock);
	for (size_t i = 0; i < auth->link_count && !found; i++) {
		if (auth->links[i] == link) {
			auth->links[i] = auth->links[--auth->link_count];
			found = true;
		}
	}
	pthread_mutex_unlock(&auth->lock);
	if (found)
		link_unref(link);
}

static void read_link(struct auth *auth, struct link *link)
{
	uninitialized_ char room[PROTOCOL_DATAGRAM_MAX];
	struct slice datagram;

	for (unsigned i = 0; i < 64; i++) {
		int r = protocol_receive(link->fd, room, &datagram);
		if (r == -EAGAIN)
			return;
		if (r == 1) {
			r = take_datagram(auth, link, datagram);
			explicit_bzero(room, datagram.len); /* it may be a password */
		} else if (r == 0) {
			r = -EPIPE;
		}
		if (r < 0) {
			drop_link(auth, link);
			return;
		}
	}
}

/* The links of this moment; the references are the caller's. */
static size_t ref_links(struct auth *auth, struct link *ret_links[LINKS_MAX])
{
	pthread_mutex_lock(&auth->lock);
	size_t count = auth->link_count;
	for (size_t i = 0; i < count; i++)
		ret_links[i] = link_ref(auth->links[i]);
	pthread_mutex_unlock(&auth->lock);
	return count;
}

/* How long poll() may sleep until then. */
static int sleep_ms(uint64_t until_ms)
{
	uint64_t now = clock_mono_ms();

	if (until_ms == UINT64_MAX)
		return -1;
	if (until_ms <= now)
		return 0;
	uint64_t ms = MIN_OF(until_ms - now, clock_longest_sleep_ms());
	return (int)MIN_OF(ms, (uint64_t)PENALTY_WAIT_MAX_MS);
}

static void *intake(void *arg)
{
	struct auth *auth = arg;
	struct pollfd fds[LINKS_MAX + 1];
	struct link *links[LINKS_MAX];
	size_t count;
	bool ending;

	for (;;) {
		count = ref_links(auth, links);
		ending = auth->ending;
		fds[0] = (struct pollfd){.fd = auth->intake_wake, .events = POLLIN};
		for (size_t i = 0; i < count; i++)
			fds[i + 1] = (struct pollfd){.fd = links[i]->fd, .events = POLLIN};
		if (!ending && poll(fds, count + 1, sleep_ms(queue_put_due(auth->queue))) > 0) {
			uint64_t pokes;
			if (fds[0].revents != 0)
				(void)!read(auth->intake_wake, &pokes, sizeof(pokes));
			for (size_t i = 0; i < count; i++) {
				if (fds[i + 1].revents != 0)
					read_link(auth, links[i]);
			}
		}
		for (size_t i = 0; i < count; i++)
			link_unref(links[i]);
		if (ending)
			break;
	}
	return NULL;
}

/* ---- notices ---- */

/* Forgets, then tells every link. */
static void account_changed(struct auth *auth, uint64_t account)
{
	const struct auth_message changed = {
	        .type = AUTH_CHANGED,
	        .charge = {.account = account},
	        .era = identity_forget(auth->store, account),
	};
	struct link *links[LINKS_MAX];

	size_t count = ref_links(auth, links);
	for (size_t i = 0; i < count; i++) {
		link_answer(links[i], &changed, NULL);
		link_unref(links[i]);
	}
}

static void take_notice(struct auth *auth, struct slice payload)
{
	struct slice rest = payload;
	struct slice kind = slice_until(&rest, ' ');
	uint64_t account = 0;

	if (slice_equal(kind, SLICE("account")) && slice_to_u64(rest, &account) == 0)
		account_changed(auth, account);
	else if (slice_equal(kind, SLICE("plan")))
		account_changed(auth, 0);
}

static void *notices(void *arg)
{
	struct auth *auth = arg;
	struct db *db;
	struct buf payload;
	bool anew;

	if (db_new(&auth->db_settings, &db, NULL) < 0)
		return NULL;
	buf_init(&payload, 8192);
	while (!auth->ending) {
		int r = db_wait_notice(
		        db, "postern", NOTICE_WAIT_MS, auth->notices_wake, &payload, &anew);
		if (r == 1)
			take_notice(auth, buf_slice(&payload));
		else if (r < 0) {
			/* Deaf: what is remembered may be wrong when it hears again. */
			(void)identity_forget(auth->store, 0);
			poll(NULL, 0, REST_MS);
		}
		if (anew)
			account_changed(auth, 0);
	}
	buf_done(&payload);
	db_free(db);
	return NULL;
}

/* ---- life ---- */

static int start_threads(struct auth *auth)
{
	int r = -pthread_create(&auth->intake, NULL, intake, auth);

	auth->intake_runs = r == 0;
	if (r == 0) {
		r = -pthread_create(&auth->notices, NULL, notices, auth);
		auth->notices_run = r == 0;
	}
	while (r == 0 && auth->lane_count < auth->conf->auth_workers) {
		r = -pthread_create(&auth->lanes[auth->lane_count], NULL, lane, auth);
		auth->lane_count += r == 0;
	}
	return r;
}

static int make_logins(struct auth *auth)
{
	const struct logins_settings settings = {
	        .sasl = auth->sasl,
	        .store = auth->store,
	        .penalty = auth->penalty,
	        .outage = &auth->outage,
	        .last_use = auth->last_use,
	        .waiting_max = LOGINS_WAIT_MAX,
	};

	return logins_new(&settings, &auth->logins);
}

int auth_new(const struct auth_settings *settings, struct auth **ret_auth, struct why *why)
{
	struct auth *auth = calloc(1, sizeof(*auth));
	struct db *check;

	why_set(why, "out of memory");
	if (auth == NULL)
		return -ENOMEM;
	auth->conf = conf_ref(settings->conf);
	pthread_mutex_init(&auth->lock, NULL);
	if (settings->database_password != NULL)
		auth->password = strdup(settings->database_password);
	auth->db_settings = (struct db_settings){
	        .conninfo = auth->conf->database,
	        .user = "postern_auth",
	        .password = slice_str(auth->password),
	};
	auth->intake_wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	auth->notices_wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int r = auth->intake_wake < 0 || auth->notices_wake < 0 ? why_errno(why, errno, "eventfd")
	                                                        : 0;
	if (r == 0 && settings->database_password != NULL && auth->password == NULL)
		r = -ENOMEM;
	/* A connection string that cannot be read is told at the start, not at the first login. */
	if (r == 0)
		r = db_new(&auth->db_settings, &check, why);
	if (r == 0) {
		db_free(check);
		r = identity_store_new(&auth->store);
	}
	if (r == 0)
		r = penalty_new(&auth->penalty);
	if (r == 0)
		r = sasl_start(auth->conf->hostname, auth->store, &auth->sasl, why);
	if (r == 0)
		r = last_use_start(&auth->db_settings, &auth->last_use);
	if (r == 0)
		r = make_logins(auth);
	if (r == 0)
		r = queue_new((unsigned)auth->conf->auth_workers, &auth->queue);
	if (r == 0 && (r = start_threads(auth)) < 0)
		why_errno(why, r, "cannot start threads");
	if (r < 0) {
		auth_free(auth);
		return r;
	}
	*ret_auth = auth;
	return 0;
}

void auth_links(struct auth *auth, const int *fds, size_t count)
{
	struct link *old[LINKS_MAX];
	size_t old_count;

	pthread_mutex_lock(&auth->lock);
	old_count = auth->link_count;
	memcpy(old, auth->links, old_count * sizeof(struct link *));
	auth->link_count = 0;
	for (size_t i = 0; i < count; i++) {
		if (auth->link_count == LINKS_MAX)
			close(fds[i]);
		else if (link_new(fds[i], &auth->links[auth->link_count]) == 0)
			auth->link_count++;
	}
	pthread_mutex_unlock(&auth->lock);
	for (size_t i = 0; i < old_count; i++)
		link_unref(old[i]);
	poke(auth->intake_wake);
}

static void join_threads(struct auth *auth)
{
	auth->ending = true;
	if (auth->queue != NULL)
		queue_end(auth->queue);
	poke(auth->intake_wake);
	poke(auth->notices_wake);
	if (auth->intake_runs)
		pthread_join(auth->intake, NULL);
	if (auth->notices_run)
		pthread_join(auth->notices, NULL);
	for (unsigned i = 0; i < auth->lane_count; i++)
		pthread_join(auth->lanes[i], NULL);
}

void auth_free(struct auth *auth)
{
	if (auth == NULL)
		return;
	join_threads(auth);
	queue_free(auth->queue);
	logins_free(auth->logins);
	last_use_stop(auth->last_use);
	for (size_t i = 0; i < auth->link_count; i++)
		link_unref(auth->links[i]);
	sasl_stop(auth->sasl);
	identity_store_free(auth->store);
	penalty_free(auth->penalty);
	if (auth->intake_wake >= 0)
		close(auth->intake_wake);
	if (auth->notices_wake >= 0)
		close(auth->notices_wake);
	if (auth->password != NULL)
		explicit_bzero(auth->password, strlen(auth->password));
	free(auth->password);
	conf_unref(auth->conf);
	pthread_mutex_destroy(&auth->lock);
	free(auth);
}

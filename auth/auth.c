/* SPDX-License-Identifier: ISC */
/* The process `auth`: links, queue and lanes; see auth.h. */
#include "auth/auth.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "auth/limits.h"
#include "auth/sasl.h"
#include "gateway/base/board.h"
#include "gateway/base/clock.h"
#include "gateway/base/list.h"
#include "gateway/base/log.h"
#include "gateway/base/map.h"

#define LINKS_MAX         128
#define QUEUE_MAX         4096 /* of each link */
#define LANES_MAX         64
#define CONVERSATIONS_MAX 20000
#define CONVERSATION_MS   60000
#define NOTICE_WAIT_MS    1000
#define REST_MS           200
#define ANSWER_WAIT_MS    5000
#define CHARGER_STUCK_MS  20

/* Shared by the requests that came over it; closed with the last one. */
struct link {
	_Atomic unsigned refs;
	int fd;
	bool greeted; /* owner: intake */
	_Atomic unsigned queued;
};

/* A request that waits for a lane. */
struct request {
	struct list link_in_queue;
	struct link *link;
	struct buf datagram;
	struct auth_message message; /* points into the datagram */
};

/* A login between two steps. */
struct parked {
	struct {
		struct link *link;
		uint32_t number;
		uint32_t zero;
	} key;
	struct list age;
	struct conversation *conversation;
	struct log_ctx log;
	uint64_t until_ms;
};

struct auth {
	const struct conf *conf;
	struct db_settings db_settings;
	char *password;
	struct identity_store *store;
	struct sasl *sasl;

	pthread_mutex_t lock; /* of all that follows */
	struct link *links[LINKS_MAX];
	size_t link_count;
	/* Charges go first, and one lane takes nothing else: a flood of logins, each a PBKDF2
	 * long, does not hold up messages. */
	struct list charges, logins;
	pthread_cond_t wakeup, charger_wakeup;
	bool has_charger, charger_waits;
	bool watched;               /* a lane waits to see whether the charger is stuck */
	uint64_t charging_since_ms; /* 0: the charger is not with the database */
	struct map parked;
	struct list parked_by_age;
	bool ending;

	int intake_wake; /* eventfd */
	_Atomic bool database_away;
	pthread_t intake, notices;
	pthread_t lanes[LANES_MAX];
	unsigned lane_count;
	bool intake_runs, notices_run;
};

static struct link *link_ref(struct link *link)
{
	atomic_fetch_add(&link->refs, 1);
	return link;
}

static void link_unref(struct link *link)
{
	if (atomic_fetch_sub(&link->refs, 1) > 1)
		return;
	close(link->fd);
	free(link);
}

/*
 * Waits while the socket is full: a loop of `submit` that hands over many logins in one turn
 * reads their answers only after it. One that does not read for long loses them; its requests
 * fail by their own deadline.
 */
static void send_patiently(int fd, struct slice datagram)
{
	struct pollfd room = {.fd = fd, .events = POLLOUT};
	uint64_t give_up_ms = clock_mono_ms() + ANSWER_WAIT_MS;

	while (protocol_send(fd, datagram) == -EAGAIN) {
		uint64_t now = clock_mono_ms();
		if (now >= give_up_ms)
			return;
		(void)!poll(&room, 1, (int)(give_up_ms - now));
	}
}

static void answer(
        struct link *link, const struct auth_message *message, const struct auth_account *account)
{
	struct buf datagram;
	struct auth_message instead = {.type = AUTH_UNAVAILABLE, .number = message->number};

	buf_init(&datagram, PROTOCOL_DATAGRAM_MAX);
	if (protocol_encode(message, account, &datagram) == 0 ||
	        protocol_encode(&instead, NULL, &datagram) == 0)
		send_patiently(link->fd, buf_slice(&datagram));
	buf_wipe(&datagram);
}

static void answer_type(struct link *link, uint32_t number, enum auth_type type)
{
	const struct auth_message message = {.type = type, .number = number};

	answer(link, &message, NULL);
}

/* ---- lanes ---- */

static void request_free(struct request *request)
{
	atomic_fetch_sub(&request->link->queued, 1);
	link_unref(request->link);
	buf_wipe(&request->datagram);
	free(request);
}

static void parked_free(struct parked *parked)
{
	conversation_free(parked->conversation);
	link_unref(parked->key.link);
	free(parked);
}

static struct slice parked_key(const struct parked *parked)
{
	return slice_of(&parked->key, sizeof(parked->key));
}

/* Takes a login out of the table: nobody else has it then. */
static struct parked *unpark(struct auth *auth, struct link *link, uint32_t number)
{
	struct parked wanted = {.key = {.link = link, .number = number}};

	pthread_mutex_lock(&auth->lock);
	struct parked *parked = map_remove(&auth->parked, parked_key(&wanted));
	if (parked != NULL)
		list_remove(&parked->age);
	pthread_mutex_unlock(&auth->lock);
	return parked;
}

static int park(struct auth *auth, struct parked *parked)
{
	parked->until_ms = clock_mono_ms() + CONVERSATION_MS;
	pthread_mutex_lock(&auth->lock);
	int r = auth->parked.count < CONVERSATIONS_MAX
	                ? map_put(&auth->parked, parked_key(parked), parked)
	                : -ENOBUFS;
	if (r == 0)
		list_append(&auth->parked_by_age, &parked->age);
	pthread_mutex_unlock(&auth->lock);
	return r;
}

/* Drops logins whose client went silent. The lock is held. */
static void drop_old_parked(struct auth *auth)
{
	uint64_t now = clock_mono_ms();

	while (!list_is_empty(&auth->parked_by_age)) {
		struct parked *oldest = list_entry(auth->parked_by_age.next, struct parked, age);
		if (oldest->until_ms > now)
			break;
		list_remove(&oldest->age);
		(void)map_remove(&auth->parked, parked_key(oldest));
		parked_free(oldest);
	}
}

/* After a question to the database: `why` it could not tell, or NULL. */
static void note_database(struct auth *auth, const struct why *why)
{
	bool away = why != NULL;

	if (atomic_exchange(&auth->database_away, away) == away)
		return;
	if (away)
		LOG(NULL, EV_DATABASE_AWAY, "why=%s", LOG_VALUE(slice_str(why->text)));
	else
		LOG(NULL, EV_DATABASE_BACK, "");
}

static void log_login(const struct parked *parked, enum event event)
{
	const struct conversation *conversation = parked->conversation;

	if (event == EV_LOGIN_ACCEPTED)
		LOG(&parked->log, event, "account=%s", LOG_VALUE(conversation_login(conversation)));
	else
		LOG(&parked->log, event, "account=%s reason=%s",
		        LOG_VALUE(conversation_login(conversation)),
		        conversation_reason(conversation));
}

/* Answers a step and parks the login if more steps follow. */
static void finish_step(
        struct auth *auth, struct parked *parked, enum sasl_verdict verdict, struct buf *challenge)
{
	struct link *link = link_ref(parked->key.link);
	uint32_t number = parked->key.number;
	struct auth_message message = {.type = AUTH_MORE, .number = number};
	struct identity *identity = conversation_identity(parked->conversation);
	const struct why *away = conversation_away(parked->conversation);

	/* Steps without a look-up say nothing of the database. */
	if (away != NULL || identity != NULL)
		note_database(auth, away);
	switch (verdict) {
	case SASL_VERDICT_MORE:
		message.data = buf_slice(challenge);
		if (park(auth, parked) == 0)
			parked = NULL;
		else
			message.type = AUTH_UNAVAILABLE;
		break;
	case SASL_VERDICT_DONE:
		message.type = AUTH_DONE;
		log_login(parked, EV_LOGIN_ACCEPTED);
		counter_add(CT_LOGINS_ACCEPTED, 1);
		break;
	case SASL_VERDICT_REFUSED:
		message.type = AUTH_REFUSED;
		log_login(parked, EV_LOGIN_REFUSED);
		counter_add(CT_LOGINS_REFUSED, 1);
		break;
	case SASL_VERDICT_MALFORMED:
		message.type = AUTH_MALFORMED;
		log_login(parked, EV_LOGIN_REFUSED);
		break;
	case SASL_VERDICT_UNAVAILABLE:
		message.type = AUTH_UNAVAILABLE;
		break;
	}
	answer(link, &message, message.type == AUTH_DONE ? &identity->account : NULL);
	if (verdict == SASL_VERDICT_DONE)
		conversation_note_used(parked->conversation);
	if (parked != NULL)
		parked_free(parked);
	link_unref(link);
}

static void log_ctx_of(const struct auth_message *message, struct log_ctx *log)
{
	log_ctx_init(log);
	log_ctx_add(log, "sid", message->session);
	log_ctx_add(log, "ip", message->client_address);
	log_ctx_add(log, "mechanism", message->mechanism);
}

static void run_login_start(struct auth *auth, struct request *request, struct db *db)
{
	const struct auth_message *message = &request->message;
	struct parked *parked = calloc(1, sizeof(*parked));
	struct buf challenge;

	int r = parked == NULL
	                ? -ENOMEM
	                : conversation_new(auth->sasl, message->mechanism, &parked->conversation);
	if (r < 0) {
		free(parked);
		answer_type(request->link, message->number,
		        r == -EBADMSG ? AUTH_MALFORMED : AUTH_UNAVAILABLE);
		return;
	}
	parked->key.link = link_ref(request->link);
	parked->key.number = message->number;
	log_ctx_of(message, &parked->log);
	buf_init(&challenge, PROTOCOL_DATAGRAM_MAX / 2);
	enum sasl_verdict verdict = conversation_start(
	        parked->conversation, db, message->has_initial, message->data, &challenge);
	finish_step(auth, parked, verdict, &challenge);
	buf_done(&challenge);
}

static void run_login_step(struct auth *auth, struct request *request, struct db *db)
{
	struct parked *parked = unpark(auth, request->link, request->message.number);
	struct buf challenge;

	if (parked == NULL) {
		answer_type(request->link, request->message.number, AUTH_UNAVAILABLE);
		return;
	}
	buf_init(&challenge, PROTOCOL_DATAGRAM_MAX / 2);
	enum sasl_verdict verdict =
	        conversation_step(parked->conversation, db, request->message.data, &challenge);
	finish_step(auth, parked, verdict, &challenge);
	buf_done(&challenge);
}

/* The first charge with all others of its kind. The lock is held. */
static unsigned take_charges(struct auth *auth, struct request *ret_batch[LIMITS_BATCH_MAX])
{
	enum auth_type type =
	        list_entry(auth->charges.next, struct request, link_in_queue)->message.type;
	unsigned count = 0;

	list_for_each_safe (at, &auth->charges) {
		struct request *request = list_entry(at, struct request, link_in_queue);
		if (request->message.type != type || count == LIMITS_BATCH_MAX)
			continue;
		list_remove(at);
		ret_batch[count++] = request;
	}
	return count;
}

/*
 * Whether lanes of logins may take charges: only when nobody else does. While the
 * charger asks the database the next charges gather, and go in one question; one
 * account's locked row must not hold up the others, though.
 */
static bool charges_are_free(const struct auth *auth)
{
	return !auth->has_charger ||
	       (auth->charging_since_ms != 0 &&
	               clock_mono_ms() - auth->charging_since_ms > CHARGER_STUCK_MS);
}

/* The queue that this lane should serve now, or NULL. The lock is held. */
static struct list *find_work(struct auth *auth, bool charger)
{
	if (!list_is_empty(&auth->charges) && (charger || charges_are_free(auth)))
		return &auth->charges;
	return charger || list_is_empty(&auth->logins) ? NULL : &auth->logins;
}

/* The lock is held. */
static void wait_for_work(struct auth *auth, bool charger)
{
	struct timespec until;

	if (charger || list_is_empty(&auth->charges) || auth->watched) {
		auth->charger_waits |= charger;
		pthread_cond_wait(charger ? &auth->charger_wakeup : &auth->wakeup, &auth->lock);
		return;
	}
	/* One lane looks whether the charger comes back for these. */
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += CHARGER_STUCK_MS * 1000000L;
	until.tv_sec += until.tv_nsec / 1000000000L;
	until.tv_nsec %= 1000000000L;
	auth->watched = true;
	pthread_cond_clockwait(&auth->wakeup, &auth->lock, CLOCK_MONOTONIC, &until);
	auth->watched = false;
}

/* Charges, or one step of a login; 0 at the end. */
static unsigned take_batch(
        struct auth *auth, bool charger, struct request *ret_batch[LIMITS_BATCH_MAX])
{
	struct list *work;
	unsigned count = 0;

	pthread_mutex_lock(&auth->lock);
	if (charger)
		auth->charging_since_ms = 0;
	while ((work = find_work(auth, charger)) == NULL && !auth->ending)
		wait_for_work(auth, charger);
	drop_old_parked(auth);
	if (auth->ending) {
		count = 0;
	} else if (work == &auth->charges) {
		count = take_charges(auth, ret_batch);
		if (charger)
			auth->charging_since_ms = clock_mono_ms();
	} else {
		ret_batch[count++] = list_entry(list_pop(work), struct request, link_in_queue);
	}
	pthread_mutex_unlock(&auth->lock);
	return count;
}

static void run_admits(
        struct auth *auth, struct request *const batch[], unsigned count, struct db *db)
{
	struct admission admissions[LIMITS_BATCH_MAX];
	struct why why = {{0}};

	for (unsigned i = 0; i < count; i++)
		admissions[i].charge = batch[i]->message.charge;
	int r = limits_admit(db, admissions, count, &why);
	/* One that refuses is there. */
	note_database(auth, r < 0 && r != -EPROTO ? &why : NULL);
	for (unsigned i = 0; i < count; i++) {
		admissions[i].answer.number = batch[i]->message.number;
		answer(batch[i]->link, &admissions[i].answer, NULL);
	}
}

static void run_settles(struct request *const batch[], unsigned count, struct db *db)
{
	struct auth_charge charges[LIMITS_BATCH_MAX];

	for (unsigned i = 0; i < count; i++)
		charges[i] = batch[i]->message.charge;
	limits_settle(db, charges, count);
}

/* The first lane of several is the one that takes charges only. */
static bool become_charger(struct auth *auth)
{
	pthread_mutex_lock(&auth->lock);
	bool charger = !auth->has_charger && auth->conf->auth_workers > 1;
	auth->has_charger |= charger;
	pthread_mutex_unlock(&auth->lock);
	return charger;
}

static void *lane(void *arg)
{
	struct auth *auth = arg;
	struct request *batch[LIMITS_BATCH_MAX];
	struct db *db;
	unsigned count;

	if (db_new(&auth->db_settings, &db, NULL) < 0)
		return NULL;
	bool charger = become_charger(auth);
	while ((count = take_batch(auth, charger, batch)) > 0) {
		switch (batch[0]->message.type) {
		case AUTH_LOGIN_START:
			run_login_start(auth, batch[0], db);
			break;
		case AUTH_LOGIN_STEP:
			run_login_step(auth, batch[0], db);
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
		for (unsigned i = 0; i < count; i++)
			request_free(batch[i]);
	}
	db_free(db);
	return NULL;
}

/* ---- intake ---- */

/* PLAIN with a password that was right a moment ago: no queue, no query, no PBKDF2. */
static bool answer_from_memory(
        struct auth *auth, struct link *link, const struct auth_message *message)
{
	struct slice authzid, login, password;
	char normal[LOGIN_MAX + 1], wanted[LOGIN_MAX + 1];

	if (!message->has_initial || !slice_equal_nocase(message->mechanism, SLICE("PLAIN")) ||
	        sasl_split_plain(message->data, &authzid, &login, &password) < 0 ||
	        sasl_normal_login(login, normal) < 0)
		return false;
	if (authzid.len > 0 &&
	        (sasl_normal_login(authzid, wanted) < 0 || strcmp(normal, wanted) != 0))
		return false;
	struct identity *identity = identity_recall(auth->store, slice_str(normal), password);
	if (identity == NULL)
		return false;
	const struct auth_message done = {.type = AUTH_DONE, .number = message->number};
	struct log_ctx log;
	answer(link, &done, &identity->account);
	log_ctx_of(message, &log);
	LOG(&log, EV_LOGIN_ACCEPTED, "account=%s remembered=yes",
	        LOG_VALUE(identity->account.login));
	counter_add(CT_LOGINS_ACCEPTED, 1);
	identity_unref(identity);
	return true;
}

/* A malformed PLAIN never reaches the library, which would call it a temporary failure. */
static bool is_malformed(const struct auth_message *message)
{
	struct slice authzid, login, password;

	return message->type == AUTH_LOGIN_START && message->has_initial &&
	       slice_equal_nocase(message->mechanism, SLICE("PLAIN")) &&
	       sasl_split_plain(message->data, &authzid, &login, &password) < 0;
}

static int enqueue(struct auth *auth, struct link *link, struct slice datagram,
        const struct auth_message *message)
{
	struct auth_account_room unused;
	struct request *request;

	if (atomic_load(&link->queued) >= QUEUE_MAX ||
	        (request = calloc(1, sizeof(*request))) == NULL)
		return -ENOBUFS;
	buf_init(&request->datagram, PROTOCOL_DATAGRAM_MAX);
	if (buf_append_slice(&request->datagram, datagram) < 0 ||
	        protocol_decode(buf_slice(&request->datagram), &request->message, &unused) < 0) {
		buf_wipe(&request->datagram);
		free(request);
		return -ENOMEM;
	}
	request->link = link_ref(link);
	atomic_fetch_add(&link->queued, 1);
	bool is_charge = message->type == AUTH_ADMIT || message->type == AUTH_SETTLE;
	pthread_mutex_lock(&auth->lock);
	list_append(is_charge ? &auth->charges : &auth->logins, &request->link_in_queue);
	if (is_charge && auth->charger_waits) {
		auth->charger_waits = false;
		pthread_cond_signal(&auth->charger_wakeup);
	} else if (!is_charge || !auth->watched) {
		pthread_cond_signal(&auth->wakeup);
	}
	pthread_mutex_unlock(&auth->lock);
	return 0;
}

static void cancel_login(struct auth *auth, struct link *link, uint32_t number)
{
	struct parked *parked = unpark(auth, link, number);

	if (parked != NULL)
		parked_free(parked);
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
			answer_type(link, 0, AUTH_HELLO);
		return link->greeted ? 0 : -EBADMSG;
	}
	switch (message.type) {
	case AUTH_LOGIN_START:
	case AUTH_LOGIN_STEP:
	case AUTH_ADMIT:
		if (is_malformed(&message))
			answer_type(link, message.number, AUTH_MALFORMED);
		else if (!(message.type == AUTH_LOGIN_START &&
		                 answer_from_memory(auth, link, &message)) &&
		         enqueue(auth, link, datagram, &message) < 0)
			answer_type(link, message.number, AUTH_UNAVAILABLE);
		return 0;
	case AUTH_SETTLE:
		/* Lost when the queue is full: stays charged. */
		(void)!enqueue(auth, link, datagram, &message);
		return 0;
	case AUTH_LOGIN_CANCEL:
		cancel_login(auth, link, message.number);
		return 0;
	default:
		return -EBADMSG;
	}
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
	char room[PROTOCOL_DATAGRAM_MAX];
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

static bool is_ending(struct auth *auth)
{
	pthread_mutex_lock(&auth->lock);
	bool ending = auth->ending;
	pthread_mutex_unlock(&auth->lock);
	return ending;
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
		ending = is_ending(auth);
		fds[0] = (struct pollfd){.fd = auth->intake_wake, .events = POLLIN};
		for (size_t i = 0; i < count; i++)
			fds[i + 1] = (struct pollfd){.fd = links[i]->fd, .events = POLLIN};
		if (!ending && poll(fds, count + 1, -1) > 0) {
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

static void poke_intake(struct auth *auth)
{
	const uint64_t one = 1;

	(void)!write(auth->intake_wake, &one, sizeof(one));
}

/* ---- notices ---- */

/* Forgets, then tells every link. */
static void account_changed(struct auth *auth, uint64_t account)
{
	const struct auth_message changed = {.type = AUTH_CHANGED, .charge = {.account = account}};
	struct link *links[LINKS_MAX];

	identity_forget(auth->store, account);
	size_t count = ref_links(auth, links);
	for (size_t i = 0; i < count; i++) {
		answer(links[i], &changed, NULL);
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
	while (!is_ending(auth)) {
		int r = db_wait_notice(db, "postern", NOTICE_WAIT_MS, &payload, &anew);
		if (r == 1)
			take_notice(auth, buf_slice(&payload));
		else if (r < 0) {
			/* Deaf: what is remembered may be wrong by the time the database is back.
			 */
			identity_forget(auth->store, 0);
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

int auth_new(const struct auth_settings *settings, struct auth **ret_auth, struct why *why)
{
	struct auth *auth = calloc(1, sizeof(*auth));
	struct db *check;

	if (auth == NULL)
		return -ENOMEM;
	auth->conf = conf_ref(settings->conf);
	pthread_mutex_init(&auth->lock, NULL);
	pthread_cond_init(&auth->wakeup, NULL);
	pthread_cond_init(&auth->charger_wakeup, NULL);
	list_init(&auth->charges);
	list_init(&auth->logins);
	list_init(&auth->parked_by_age);
	map_init(&auth->parked);
	if (settings->database_password != NULL)
		auth->password = strdup(settings->database_password);
	auth->db_settings = (struct db_settings){
	        .conninfo = auth->conf->database,
	        .user = "postern_auth",
	        .password = auth->password,
	};
	auth->intake_wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int r = auth->intake_wake < 0 ? why_errno(why, errno, "eventfd") : 0;
	if (r == 0 && settings->database_password != NULL && auth->password == NULL)
		r = why_errno(why, ENOMEM, "database password");
	/* A connection string that cannot be read is told at the start, not at the first login. */
	if (r == 0)
		r = db_new(&auth->db_settings, &check, why);
	if (r == 0) {
		db_free(check);
		r = identity_store_new(&auth->store);
	}
	if (r == 0)
		r = sasl_start(auth->conf->hostname, auth->store, &auth->sasl, why);
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
		struct link *link = auth->link_count < LINKS_MAX ? calloc(1, sizeof(*link)) : NULL;
		if (link == NULL) {
			close(fds[i]);
			continue;
		}
		atomic_init(&link->refs, 1);
		link->fd = fds[i];
		auth->links[auth->link_count++] = link;
	}
	pthread_mutex_unlock(&auth->lock);
	for (size_t i = 0; i < old_count; i++)
		link_unref(old[i]);
	poke_intake(auth);
}

static void join_threads(struct auth *auth)
{
	pthread_mutex_lock(&auth->lock);
	auth->ending = true;
	pthread_cond_broadcast(&auth->wakeup);
	pthread_cond_broadcast(&auth->charger_wakeup);
	pthread_mutex_unlock(&auth->lock);
	poke_intake(auth);
	if (auth->intake_runs)
		pthread_join(auth->intake, NULL);
	if (auth->notices_run)
		pthread_join(auth->notices, NULL);
	for (unsigned i = 0; i < auth->lane_count; i++)
		pthread_join(auth->lanes[i], NULL);
}

void auth_free(struct auth *auth)
{
	struct list *link;
	struct parked *parked;
	size_t position = 0;

	if (auth == NULL)
		return;
	join_threads(auth);
	while ((link = list_pop(&auth->charges)) != NULL ||
	        (link = list_pop(&auth->logins)) != NULL)
		request_free(list_entry(link, struct request, link_in_queue));
	while ((parked = map_next(&auth->parked, &position)) != NULL)
		parked_free(parked);
	map_done(&auth->parked);
	for (size_t i = 0; i < auth->link_count; i++)
		link_unref(auth->links[i]);
	sasl_stop(auth->sasl);
	identity_store_free(auth->store);
	if (auth->intake_wake >= 0)
		close(auth->intake_wake);
	if (auth->password != NULL)
		explicit_bzero(auth->password, strlen(auth->password));
	free(auth->password);
	conf_unref(auth->conf);
	pthread_cond_destroy(&auth->wakeup);
	pthread_cond_destroy(&auth->charger_wakeup);
	pthread_mutex_destroy(&auth->lock);
	free(auth);
}

/* SPDX-License-Identifier: ISC */
/* Logins and their steps; see login.h. */
#include "auth/login.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "auth/slow_turns.h"
#include "gateway/base/addr.h"
#include "gateway/base/board.h"
#include "gateway/base/clock.h"
#include "gateway/base/list.h"
#include "gateway/base/log.h"
#include "gateway/base/map.h"

#define WAIT_MS 60000 /* for a client's next word */
#define NO_TURN UINT64_MAX

struct login_key {
	struct link *link;
	uint32_t number;
	uint32_t zero;
};

struct login {
	struct login_key key;
	struct list age; /* in the table */
	struct response_reader reader;
	struct conversation *conversation; /* NULL until a response is worth one */
	const char *reason;                /* NULL: what the conversation says */
	struct penalty_ticket ticket;
	struct log_ctx log;
	char address[ADDR_TEXT];
	uint64_t until_ms;
};

struct logins {
	struct logins_settings settings;
	struct slow_turns *slow_turns;
	pthread_mutex_t lock; /* of all that follows */
	struct map waiting;
	struct list by_age;
};

int logins_new(const struct logins_settings *settings, struct logins **ret_logins)
{
	struct logins *logins = calloc(1, sizeof(*logins));

	if (logins == NULL)
		return -ENOMEM;
	if (slow_turns_new(&logins->slow_turns) < 0) {
		free(logins);
		return -ENOMEM;
	}
	logins->settings = *settings;
	pthread_mutex_init(&logins->lock, NULL);
	map_init(&logins->waiting);
	list_init(&logins->by_age);
	*ret_logins = logins;
	return 0;
}

/* One that has not ended was no try. */
static void login_free(struct logins *logins, struct login *login)
{
	(void)penalty_leave(logins->settings.penalty, &login->ticket, PENALTY_UNTRIED);
	conversation_free(login->conversation);
	link_unref(login->key.link);
	free(login);
}

void logins_free(struct logins *logins)
{
	struct list *link;

	if (logins == NULL)
		return;
	while ((link = list_pop(&logins->by_age)) != NULL)
		login_free(logins, list_entry(link, struct login, age));
	map_done(&logins->waiting);
	slow_turns_free(logins->slow_turns);
	pthread_mutex_destroy(&logins->lock);
	free(logins);
}

/* ---- the table ---- */

static struct slice login_key(const struct login *login)
{
	return slice_of(&login->key, sizeof(login->key));
}

/* The lock is held. */
static void drop(struct logins *logins, struct login *login)
{
	list_remove(&login->age);
	(void)map_remove(&logins->waiting, login_key(login));
	login_free(logins, login);
}

/* Ends logins whose clients went silent, and one if there are too many. The lock is held. */
static void make_room(struct logins *logins)
{
	uint64_t now = clock_mono_ms();
	bool full = logins->waiting.count >= logins->settings.waiting_max;

	while (!list_is_empty(&logins->by_age)) {
		struct login *oldest = list_entry(logins->by_age.next, struct login, age);
		if (!full && oldest->until_ms > now)
			break;
		drop(logins, oldest);
		full = false;
	}
}

/* Lets a login wait for its client: nobody may touch it after that. 0 or -ENOMEM. */
static int let_wait(struct logins *logins, struct login *login)
{
	pthread_mutex_lock(&logins->lock);
	make_room(logins);
	struct login *old = map_get(&logins->waiting, login_key(login));
	if (old != NULL)
		drop(logins, old);
	login->until_ms = clock_mono_ms() + WAIT_MS;
	int r = map_put(&logins->waiting, login_key(login), login);
	if (r == 0)
		list_append(&logins->by_age, &login->age);
	pthread_mutex_unlock(&logins->lock);
	return r;
}

/* Takes a login out of the table, or NULL: nobody else has it then. */
static struct login *take(struct logins *logins, struct link *link, uint32_t number)
{
	struct login wanted = {.key = {.link = link, .number = number}};

	pthread_mutex_lock(&logins->lock);
	struct login *login = map_remove(&logins->waiting, login_key(&wanted));
	if (login != NULL)
		list_remove(&login->age);
	pthread_mutex_unlock(&logins->lock);
	return login;
}

void logins_cancel(struct logins *logins, struct link *link, uint32_t number)
{
	struct login *login = take(logins, link, number);

	if (login != NULL)
		login_free(logins, login);
}

static void log_ctx_of(const struct auth_message *message, struct log_ctx *log)
{
	log_ctx_init(log);
	log_ctx_add(log, "sid", message->session);
	log_ctx_add(log, "ip", message->client_address);
	log_ctx_add(log, "mechanism",
	        message->type == AUTH_LOGIN_NETWORK ? SLICE("network") : message->mechanism);
}

static void log_login(const struct login *login, enum event event)
{
	static const char *const upgraded[] = {
	        [UPGRADE_NONE] = "",
	        [UPGRADE_DONE] = " upgraded=yes",
	        [UPGRADE_FAILED] = " upgraded=no",
	};
	struct slice account = slice_str(login->reader.login);

	if (event == EV_LOGIN_ACCEPTED)
		LOG(&login->log, event, "account=%s%s", LOG_VALUE(account),
		        upgraded[conversation_upgrade(login->conversation)]);
	else
		LOG(&login->log, event, "account=%s reason=%s", LOG_VALUE(account),
		        login->reason != NULL ? login->reason
		                              : conversation_reason(login->conversation));
}

/* ---- what wrong ones cost ---- */

/* How long it may still be kept waiting. */
static uint64_t patience_ms(const struct turn *turn)
{
	return turn->may_wait && turn->waited_ms < PENALTY_WAIT_MAX_MS
	               ? PENALTY_WAIT_MAX_MS - turn->waited_ms
	               : 0;
}

/*
 * Asks for a turn of a try at a login from an address: 0, it has it; ms until it is asked again; or
 * NO_TURN, it would wait too long.
 */
static uint64_t ask_turn(struct logins *logins, struct slice login, struct slice address,
        const struct turn *turn, struct penalty_ticket *ret_ticket)
{
	uint64_t wait = penalty_enter(logins->settings.penalty, login, address, ret_ticket);

	return wait <= patience_ms(turn) ? wait : NO_TURN;
}

/* Told when it begins, so that an admin sees who guesses. */
static void tell_slowed(const struct log_ctx *log, struct slice login, unsigned news)
{
	if ((news & PENALTY_LOGIN_SLOWED) != 0)
		LOG(log, EV_LOGIN_SLOWED, "account=%s", LOG_VALUE(login));
	if ((news & PENALTY_NETWORK_SLOWED) != 0)
		LOG(log, EV_NETWORK_SLOWED, "");
}

static void turn_away(
        struct link *link, uint32_t number, const struct log_ctx *log, struct slice login)
{
	LOG(log, EV_LOGIN_REFUSED, "account=%s reason=too_many_failures", LOG_VALUE(login));
	counter_add(CT_LOGINS_TURNED_AWAY, 1);
	link_answer_type(link, number, AUTH_SLOWED);
}

static enum penalty_outcome outcome_of(enum sasl_verdict verdict)
{
	if (verdict == SASL_VERDICT_DONE)
		return PENALTY_RIGHT;
	if (verdict == SASL_VERDICT_REFUSED)
		return PENALTY_WRONG;
	return PENALTY_UNTRIED;
}

/* ---- steps ---- */

/* Steps without a look-up say nothing of the database. */
static void note_outage(struct logins *logins, const struct conversation *conversation)
{
	const struct why *away = conversation != NULL ? conversation_away(conversation) : NULL;

	if (away != NULL || (conversation != NULL && conversation_identity(conversation) != NULL))
		outage_note(logins->settings.outage, away);
}

static void accept_login(
        struct logins *logins, const struct login *login, struct auth_account *ret_account)
{
	const struct conversation *conversation = login->conversation;
	const struct credential *credential = conversation_credential(conversation);

	identity_account(conversation_identity(conversation), credential,
	        conversation_era(conversation), ret_account);
	last_use_note(logins->settings.last_use, credential->id);
	log_login(login, EV_LOGIN_ACCEPTED);
	counter_add(CT_LOGINS_ACCEPTED, 1);
}

/* Answers a step, and lets the login wait if more steps follow. */
static void finish_step(struct logins *logins, struct login *login, enum sasl_verdict verdict,
        uint64_t waited_ms, struct buf *challenge)
{
	struct link *link = link_ref(login->key.link);
	struct auth_message message = {
	        .type = AUTH_MORE, .number = login->key.number, .waited_ms = (uint32_t)waited_ms};
	const struct conversation *conversation = login->conversation;
	struct auth_account account;

	if (verdict != SASL_VERDICT_MORE)
		tell_slowed(&login->log, slice_str(login->reader.login),
		        penalty_leave(
		                logins->settings.penalty, &login->ticket, outcome_of(verdict)));
	note_outage(logins, conversation);
	switch (verdict) {
	case SASL_VERDICT_MORE:
		message.data = buf_slice(challenge);
		if (let_wait(logins, login) == 0)
			login = NULL;
		else
			message.type = AUTH_UNAVAILABLE;
		break;
	case SASL_VERDICT_DONE:
		message.type = AUTH_DONE;
		accept_login(logins, login, &account);
		break;
	case SASL_VERDICT_REFUSED:
		message.type = AUTH_REFUSED;
		log_login(login, EV_LOGIN_REFUSED);
		counter_add(CT_LOGINS_REFUSED, 1);
		break;
	case SASL_VERDICT_SUSPENDED:
		message.type = AUTH_BLOCKED;
		message.reason = conversation_suspension(conversation);
		log_login(login, EV_LOGIN_REFUSED);
		counter_add(CT_LOGINS_REFUSED, 1);
		break;
	case SASL_VERDICT_MALFORMED:
		message.type = AUTH_MALFORMED;
		log_login(login, EV_LOGIN_REFUSED);
		counter_add(CT_LOGINS_REFUSED, 1);
		break;
	case SASL_VERDICT_UNAVAILABLE:
		message.type = AUTH_UNAVAILABLE;
		break;
	}
	link_answer(link, &message, message.type == AUTH_DONE ? &account : NULL);
	if (login != NULL)
		login_free(logins, login);
	link_unref(link);
}

/* ---- without a password: the address, or TLS, has proven who it is ---- */

/* What the look-up came to: it may not be if there is a reason. */
struct look_up {
	int error; /* with why */
	struct why why;
	struct found found;
	const char *refusal;
	uint64_t waited_ms;
};

static enum auth_type answer_type(const struct look_up *look_up)
{
	if (look_up->error < 0)
		return AUTH_UNAVAILABLE;
	if (look_up->refusal != NULL)
		return AUTH_REFUSED;
	return look_up->found.identity->suspended ? AUTH_BLOCKED : AUTH_DONE;
}

static void log_look_up(const struct auth_message *message, const struct look_up *look_up)
{
	const struct identity *identity = look_up->found.identity;
	struct slice login = identity != NULL ? identity->account.login : SLICE("");
	const char *reason = look_up->refusal != NULL ? look_up->refusal : "suspended";
	struct log_ctx log;

	log_ctx_of(message, &log);
	if (answer_type(look_up) == AUTH_DONE)
		LOG(&log, EV_LOGIN_ACCEPTED, "account=%s", LOG_VALUE(login));
	else
		LOG(&log, EV_LOGIN_REFUSED, "account=%s reason=%s", LOG_VALUE(login), reason);
}

static void answer_look_up(struct logins *logins, struct link *link,
        const struct auth_message *message, const struct look_up *look_up)
{
	const struct found *found = &look_up->found;
	struct auth_message answer = {.type = answer_type(look_up),
	        .number = message->number,
	        .waited_ms = (uint32_t)look_up->waited_ms};
	struct auth_account account = {0};
	bool away = look_up->error < 0 && look_up->error != -ESTALE;

	outage_note(logins->settings.outage, away ? &look_up->why : NULL);
	if (answer.type == AUTH_BLOCKED)
		answer.reason = found->identity->suspended_reason;
	/* What is as it was is no event. */
	bool again = message->type == AUTH_LOGIN_AGAIN && answer.type == AUTH_DONE;
	if (answer.type != AUTH_UNAVAILABLE && !again) {
		log_look_up(message, look_up);
		counter_add(answer.type == AUTH_DONE ? CT_LOGINS_ACCEPTED : CT_LOGINS_REFUSED, 1);
	}
	if (answer.type == AUTH_DONE)
		identity_account(found->identity, found->credential, found->era, &account);
	link_answer(link, &answer, answer.type == AUTH_DONE ? &account : NULL);
	if (answer.type == AUTH_DONE && found->credential != NULL && !again)
		last_use_note(logins->settings.last_use, found->credential->id);
	identity_unref(found->identity);
}

void logins_network(
        struct logins *logins, struct link *link, const struct auth_message *message, struct db *db)
{
	struct look_up look_up = {0};

	look_up.error = identity_fetch_by_network(
	        logins->settings.store, db, message->client_address, &look_up.found, &look_up.why);
	if (look_up.found.identity == NULL)
		look_up.refusal = "unknown_network";
	answer_look_up(logins, link, message, &look_up);
}

/* Whether an authorization id names that account: empty, or its login. */
static bool names(struct slice authzid, struct slice login)
{
	char wanted[LOGIN_MAX + 1], normal[LOGIN_MAX + 1];

	return authzid.len == 0 ||
	       (response_normal_login(authzid, wanted) == 0 &&
	               response_normal_login(login, normal) == 0 && strcmp(wanted, normal) == 0);
}

/* A session that does not know whether what it knows is still so. */
void logins_again(
        struct logins *logins, struct link *link, const struct auth_message *message, struct db *db)
{
	struct identity_store *store = logins->settings.store;
	struct look_up look_up = {0};
	struct found *found = &look_up.found;

	look_up.error = message->credential == 0
	                        ? identity_fetch_by_network(
	                                  store, db, message->client_address, found, &look_up.why)
	                        : identity_fetch_again(store, db, message->data,
	                                  message->credential, found, &look_up.why);
	if (found->identity == NULL || !names(message->data, found->identity->account.login))
		look_up.refusal = message->credential == 0 ? "network_gone" : "credential_gone";
	answer_look_up(logins, link, message, &look_up);
}

static enum penalty_outcome outcome_of_look_up(const struct look_up *look_up)
{
	switch (answer_type(look_up)) {
	case AUTH_DONE:
		return PENALTY_RIGHT;
	case AUTH_REFUSED:
		return PENALTY_WRONG;
	default:
		return PENALTY_UNTRIED;
	}
}

/* RFC 4422, appendix A. Not the library's EXTERNAL: it would compare one name with another. */
static uint64_t start_external(struct logins *logins, struct link *link,
        const struct auth_message *message, const struct turn *turn)
{
	struct penalty_ticket ticket;
	struct look_up look_up = {.waited_ms = turn->waited_ms};
	struct log_ctx log;

	log_ctx_of(message, &log);
	if (message->data.len > 0 && !response_is_name(message->data)) {
		LOG(&log, EV_LOGIN_REFUSED, "account=\"\" reason=malformed");
		counter_add(CT_LOGINS_REFUSED, 1);
		link_answer_type(link, message->number, AUTH_MALFORMED);
		return 0;
	}
	uint64_t wait =
	        ask_turn(logins, message->fingerprint, message->client_address, turn, &ticket);
	if (wait == NO_TURN) {
		turn_away(link, message->number, &log, SLICE(""));
		return 0;
	}
	if (wait > 0)
		return wait;
	look_up.error = identity_fetch_by_certificate(logins->settings.store, turn->db,
	        message->fingerprint, &look_up.found, &look_up.why);
	if (look_up.found.identity == NULL)
		look_up.refusal = "unknown_certificate";
	else if (!names(message->data, look_up.found.identity->account.login))
		look_up.refusal = "authzid";
	tell_slowed(&log, SLICE(""),
	        penalty_leave(logins->settings.penalty, &ticket, outcome_of_look_up(&look_up)));
	answer_look_up(logins, link, message, &look_up);
	return 0;
}

/* ---- from memory ---- */

/* Whether it was right a moment ago, and then answers: no query, no PBKDF2, no penalty. */
static bool answer_from_memory(struct logins *logins, const struct login_key *key,
        const struct response_reader *reader, struct slice address, const struct log_ctx *log)
{
	const struct auth_message done = {.type = AUTH_DONE, .number = key->number};
	const char *mechanism = response_mechanism_name(reader->mechanism);
	struct slice login = slice_str(reader->login);
	const struct credential *credential;
	struct auth_account account;
	uint64_t era;

	if (reader->password.len == 0 || reader->is_nobody || !names(reader->authzid, login))
		return false;
	struct identity *identity =
	        identity_recall(logins->settings.store, login, reader->password, &credential, &era);
	if (identity == NULL)
		return false;
	/* Where it may not be used a lane looks for another, and says what the reason is. */
	bool may_be_used = credential_objection(credential, slice_str(mechanism), address) == NULL;
	if (may_be_used) {
		penalty_right(logins->settings.penalty, login, address);
		identity_account(identity, credential, era, &account);
		link_answer(key->link, &done, &account);
		last_use_note(logins->settings.last_use, credential->id);
		LOG(log, EV_LOGIN_ACCEPTED, "account=%s remembered=yes", LOG_VALUE(login));
		counter_add(CT_LOGINS_ACCEPTED, 1);
	}
	identity_unref(identity);
	return may_be_used;
}

bool logins_answer_at_once(
        struct logins *logins, struct link *link, const struct auth_message *message)
{
	const struct login_key key = {.link = link, .number = message->number};
	struct response_reader reader;
	struct log_ctx log;

	if (!message->has_initial || response_reader_init(&reader, message->mechanism) < 0 ||
	        !response_read(&reader, message->data))
		return false;
	log_ctx_of(message, &log);
	return answer_from_memory(logins, &key, &reader, message->client_address, &log);
}

/* ---- who goes first ---- */

/*
 * What was said so far in the attempt that a START or a STEP is of, and its address. Whether there
 * is one; if not, its answer costs nothing.
 */
static bool recall_attempt(struct logins *logins, struct link *link,
        const struct auth_message *message, struct response_reader *ret_reader,
        char ret_address[ADDR_TEXT])
{
	const struct login wanted = {.key = {.link = link, .number = message->number}};

	if (message->type == AUTH_LOGIN_START) {
		snprintf(ret_address, ADDR_TEXT, "%.*s", SLICE_ARGS(message->client_address));
		return message->has_initial &&
		       response_reader_init(ret_reader, message->mechanism) == 0;
	}
	pthread_mutex_lock(&logins->lock);
	const struct login *login = map_get(&logins->waiting, login_key(&wanted));
	if (login != NULL) {
		*ret_reader = login->reader;
		snprintf(ret_address, ADDR_TEXT, "%s", login->address);
	}
	pthread_mutex_unlock(&logins->lock);
	return login != NULL;
}

static struct standing stand(
        struct logins *logins, enum standing_kind kind, struct slice login, struct slice address)
{
	struct penalty_ticket who = penalty_look(logins->settings.penalty, login, address);

	return (struct standing){
	        .kind = who.takes_turn ? kind : STANDING_FIRST,
	        .network = who.network.tag,
	        .failures = who.failures,
	};
}

struct standing logins_standing(
        struct logins *logins, struct link *link, const struct auth_message *message)
{
	const struct standing first = {.kind = STANDING_FIRST};
	struct response_reader reader;
	char address[ADDR_TEXT];

	if (message->type == AUTH_LOGIN_NETWORK)
		return stand(logins, STANDING_LOOK_UP, SLICE(""), message->client_address);
	if (message->type != AUTH_LOGIN_START && message->type != AUTH_LOGIN_STEP)
		return first;
	if (slice_equal_nocase(message->mechanism, SLICE("EXTERNAL")))
		return stand(
		        logins, STANDING_LOOK_UP, message->fingerprint, message->client_address);
	if (!recall_attempt(logins, link, message, &reader, address) ||
	        !response_read(&reader, message->data) || !reader.guesses)
		return first;
	return stand(logins, reader.password.len > 0 ? STANDING_PASSWORD : STANDING_LOOK_UP,
	        slice_str(reader.login), slice_str(address));
}

/* ---- by SASL ---- */

/* 0; -EBADMSG: no such mechanism, or no address; -ENOMEM. */
static int login_new(
        struct link *link, const struct auth_message *message, struct login **ret_login)
{
	struct response_reader reader;

	if (response_reader_init(&reader, message->mechanism) < 0 ||
	        message->client_address.len >= ADDR_TEXT)
		return -EBADMSG;
	struct login *login = calloc(1, sizeof(*login));
	if (login == NULL)
		return -ENOMEM;
	login->key.link = link_ref(link);
	login->key.number = message->number;
	login->reader = reader;
	snprintf(login->address, sizeof(login->address), "%.*s",
	        SLICE_ARGS(message->client_address));
	log_ctx_of(message, &login->log);
	*ret_login = login;
	return 0;
}

/* Its request is to come again. What began with it begins anew; LOGIN waits for its password. */
static uint64_t come_again(struct logins *logins, struct login *login,
        const struct auth_message *message, uint64_t wait)
{
	(void)penalty_leave(logins->settings.penalty, &login->ticket, PENALTY_UNTRIED);
	if (message->type == AUTH_LOGIN_STEP && let_wait(logins, login) == 0)
		return wait;
	if (message->type == AUTH_LOGIN_STEP) {
		link_answer_type(login->key.link, message->number, AUTH_UNAVAILABLE);
		wait = 0;
	}
	login_free(logins, login);
	return wait;
}

/* Too many others have their passwords checked against slow hashes, and go before. */
static void refuse_busy(struct logins *logins, struct login *login)
{
	login->reason = "busy";
	log_login(login, EV_LOGIN_REFUSED);
	counter_add(CT_LOGINS_TURNED_AWAY, 1);
	tell_slowed(&login->log, slice_str(login->reader.login),
	        penalty_leave(logins->settings.penalty, &login->ticket, PENALTY_BUSY));
	link_answer_type(login->key.link, login->key.number, AUTH_UNAVAILABLE);
	login_free(logins, login);
}

/* The login goes on, and ends or waits for its client. */
static void converse(struct logins *logins, struct login *login, const struct auth_message *message,
        const struct turn *turn)
{
	struct conversation *conversation = login->conversation;
	struct buf challenge;

	buf_init(&challenge, PROTOCOL_DATAGRAM_MAX / 2);
	enum sasl_verdict verdict =
	        message->type == AUTH_LOGIN_START
	                ? conversation_start(conversation, turn->db, message->has_initial,
	                          message->data, &challenge)
	                : conversation_step(conversation, turn->db, message->data, &challenge);
	finish_step(logins, login, verdict, turn->waited_ms, &challenge);
	buf_done(&challenge);
}

/* The same when a turn at a slow hash may have to be waited for: as of logins_start(). */
static uint64_t converse_in_turn(struct logins *logins, struct login *login,
        const struct auth_message *message, const struct turn *turn)
{
	bool slow = login->reader.password.len > 0 &&
	            conversation_is_slow(login->conversation, turn->db, &login->reader);
	uint64_t wait = slow ? slow_turns_take(logins->slow_turns, &login->ticket) : 0;

	if (wait > patience_ms(turn)) {
		refuse_busy(logins, login);
		return 0;
	}
	if (wait > 0)
		return come_again(logins, login, message, wait);
	converse(logins, login, message, turn);
	if (slow)
		slow_turns_end(logins->slow_turns);
	return 0;
}

/* A step that is judged without libsasl2. */
static void end_early(struct logins *logins, struct login *login, enum sasl_verdict verdict,
        const char *reason, const struct turn *turn)
{
	struct buf no_challenge;

	buf_init(&no_challenge, 0);
	login->reason = reason;
	finish_step(logins, login, verdict, turn->waited_ms, &no_challenge);
}

/* Its turn has come: as of logins_start(). */
static uint64_t take_step(struct logins *logins, struct login *login,
        const struct auth_message *message, const struct turn *turn)
{
	if (login->reader.is_nobody && login->reader.guesses) {
		end_early(logins, login, SASL_VERDICT_REFUSED, "malformed_login", turn);
		return 0;
	}
	if (login->conversation == NULL &&
	        conversation_new(logins->settings.sasl, login->reader.mechanism,
	                slice_str(login->address), &login->conversation) < 0) {
		end_early(logins, login, SASL_VERDICT_UNAVAILABLE, NULL, turn);
		return 0;
	}
	return converse_in_turn(logins, login, message, turn);
}

/* When it may begin: 0, then its ticket is open; or as of ask_turn(). */
static uint64_t wait_of_guess(struct logins *logins, struct login *login, const struct turn *turn)
{
	struct slice name = slice_str(login->reader.login), address = slice_str(login->address);
	struct penalty_ticket who = penalty_ticket_of(logins->settings.penalty, name, address);
	uint64_t wait = slow_turns_look(logins->slow_turns, &who);

	/* At the end of its patience it goes on, to be told. */
	if (wait > 0 && wait <= patience_ms(turn))
		return wait;
	return ask_turn(logins, name, address, turn, &login->ticket);
}

/* Takes the step when it is its turn: as of logins_start(). Nobody may touch the login after it. */
static uint64_t go_on(struct logins *logins, struct login *login,
        const struct auth_message *message, bool good, const struct turn *turn)
{
	struct slice name = slice_str(login->reader.login), address = slice_str(login->address);
	uint64_t wait = 0;

	if (!good) {
		end_early(logins, login, SASL_VERDICT_MALFORMED, "malformed", turn);
		return 0;
	}
	if (login->reader.guesses) {
		if (answer_from_memory(logins, &login->key, &login->reader, address, &login->log)) {
			login_free(logins, login);
			return 0;
		}
		wait = wait_of_guess(logins, login, turn);
	}
	if (wait == NO_TURN) {
		turn_away(login->key.link, message->number, &login->log, name);
		login_free(logins, login);
		return 0;
	}
	return wait > 0 ? come_again(logins, login, message, wait)
	                : take_step(logins, login, message, turn);
}

uint64_t logins_start(struct logins *logins, struct link *link, const struct auth_message *message,
        const struct turn *turn)
{
	struct login *login;

	if (slice_equal_nocase(message->mechanism, SLICE("EXTERNAL")))
		return start_external(logins, link, message, turn);
	int r = login_new(link, message, &login);
	if (r < 0) {
		link_answer_type(
		        link, message->number, r == -EBADMSG ? AUTH_MALFORMED : AUTH_UNAVAILABLE);
		return 0;
	}
	bool good = !message->has_initial || response_read(&login->reader, message->data);
	return go_on(logins, login, message, good, turn);
}

uint64_t logins_step(struct logins *logins, struct link *link, const struct auth_message *message,
        const struct turn *turn)
{
	struct login *login = take(logins, link, message->number);

	if (login == NULL) {
		link_answer_type(link, message->number, AUTH_UNAVAILABLE);
		return 0;
	}
	bool good = response_read(&login->reader, message->data);
	return go_on(logins, login, message, good, turn);
}

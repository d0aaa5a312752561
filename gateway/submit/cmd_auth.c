/* SPDX-License-Identifier: ISC */
/*
 * AUTH (RFC 4954). The responses go to the process `auth` as they are; every 535 and 525, and
 * the first challenge of SCRAM, leave at a fixed time after the client's last word (or after the
 * wait that wrong ones before have cost), so that time tells nothing. Whatever
 * else a client makes of it but a login counts too, and ends the connection in the end. And
 * whose an address is, on listeners where that is enough.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/base/encode.h"
#include "gateway/submit/commands.h"

#define RESPONSE_MAX 12288UL
/* More than a look-up takes, whose time tells who exists: the first challenge of SCRAM leaves then.
 */
#define CHALLENGE_MS 10

static void on_answer(
        void *arg, const struct auth_message *answer, const struct auth_account *account);

/* Mechanism and, behind a blank, the initial response. */
static void split(struct slice args, struct slice *ret_mechanism, struct slice *ret_initial)
{
	*ret_initial = args;
	*ret_mechanism = slice_until(ret_initial, ' ');
}

enum reply auth_check(struct session *session, struct slice args)
{
	static const char *const offered[] = {"SCRAM-SHA-256", "PLAIN", "LOGIN"};
	char unused[TLS_FINGERPRINT];
	struct slice mechanism, initial;

	if (session->account != NULL)
		return REPLY_ALREADY_LOGGED_IN;
	if (!conn_is_secure(session->conn))
		return REPLY_AUTH_NEEDS_TLS;
	split(args, &mechanism, &initial);
	for (size_t i = 0; i < ARRAY_LEN(offered); i++) {
		if (slice_equal_nocase(mechanism, slice_str(offered[i])))
			return REPLY_COUNT;
	}
	return slice_equal_nocase(mechanism, SLICE("EXTERNAL")) &&
	                       session_fingerprint(session, unused)
	               ? REPLY_COUNT
	               : REPLY_UNKNOWN_MECHANISM;
}

/* Asks `auth`: the first question of a login, or its next step. */
static void ask(struct session *session, bool has_response, struct slice response)
{
	char ip[ADDR_TEXT], fingerprint[TLS_FINGERPRINT];
	bool shown = session_fingerprint(session, fingerprint);
	const struct auth_message start = {
	        .type = AUTH_LOGIN_START,
	        .mechanism = slice_str(session->mechanism),
	        .client_address = slice_str(addr_format_ip(&session->peer, ip)),
	        .session = slice_str(session->sid),
	        .has_initial = has_response,
	        .data = response,
	        .fingerprint = slice_str(shown ? fingerprint : ""),
	};

	session->auth_asked_ms = clock_mono_ms();
	session_move(session, ST_AUTH_WAIT);
	if (session->call != NULL) {
		auth_call_step(session->call, response);
		return;
	}
	session->call = auth_call_new(session->serving->auth, &start, on_answer, session);
	if (session->call == NULL) {
		session_reply(session, REPLY_LOGIN_UNAVAILABLE, NULL);
		session_move(session, ST_READY);
	}
}

static void end_login(struct session *session)
{
	auth_call_cancel(session->call);
	session->call = NULL;
	session->login_lost = false;
}

/* The last one of a connection is told, and ends it: then the session is gone, and true. */
static bool was_last_failure(struct session *session)
{
	if (++session->failures < session->conf->submission.login_failures)
		return false;
	session_close_with(session, CLOSING_FAILURES, REPLY_TOO_MANY_FAILURES);
	return true;
}

void auth_fail(struct session *session, enum reply reply)
{
	end_login(session);
	session_move(session, ST_READY);
	session_reply(session, reply, NULL);
	(void)was_last_failure(session);
}

/* Decodes a response and passes it on; "=" is an empty one (RFC 4954 4). */
static enum reply pass_on(struct session *session, struct slice text)
{
	struct buf response;

	buf_init(&response, RESPONSE_MAX);
	int r = slice_equal(text, SLICE("=")) ? 0 : base64_decode(text, &response);
	if (r == 0)
		ask(session, true, buf_slice(&response));
	buf_wipe(&response);
	if (r == 0)
		return REPLY_LATER;
	return r == -ENOMEM ? REPLY_LOGIN_UNAVAILABLE : REPLY_BAD_BASE64;
}

enum reply auth_act(struct session *session, struct slice args)
{
	struct slice mechanism, initial;

	split(args, &mechanism, &initial);
	memcpy(session->mechanism, mechanism.ptr, mechanism.len);
	session->mechanism[mechanism.len] = '\0';
	if (initial.len > 0) {
		enum reply reply = pass_on(session, initial);
		if (reply != REPLY_BAD_BASE64)
			return reply;
		auth_fail(session, reply);
		return REPLY_LATER;
	}
	/* All others begin with the client: an empty challenge asks it to. */
	if (!slice_equal_nocase(mechanism, SLICE("LOGIN"))) {
		session_reply(session, REPLY_CHALLENGE, REPLY_ARGS(""));
		session_move(session, ST_AUTH_MORE);
		return REPLY_LATER;
	}
	ask(session, false, SLICE(""));
	return REPLY_LATER;
}

void auth_response(struct session *session, struct slice line)
{
	enum reply reply;

	if (slice_equal(line, SLICE("*"))) {
		reply = REPLY_AUTH_CANCELLED;
	} else if (session->login_lost) {
		reply = REPLY_LOGIN_UNAVAILABLE;
	} else {
		reply = pass_on(session, line);
	}
	if (reply == REPLY_LATER)
		return;
	if (reply == REPLY_AUTH_CANCELLED || reply == REPLY_BAD_BASE64) {
		auth_fail(session, reply);
		return;
	}
	end_login(session);
	session_move(session, ST_READY);
	session_reply(session, reply, NULL);
}

/* The client may not pipeline behind AUTH; true if it did, and the session is gone. */
static bool talked_too_early(struct session *session)
{
	if (!session_has_input(session))
		return false;
	session_close_with(session, CLOSING_PIPELINING, REPLY_PIPELINING);
	return true;
}

/* auth_answer_due() so long after the client's last word, or after it was its turn; at once if that
 * is over. */
static void answer_later(struct session *session, uint64_t delay_ms, uint32_t waited_ms)
{
	uint64_t due = session->auth_asked_ms + waited_ms + delay_ms;
	uint64_t now = clock_mono_ms();

	timer_start(&session->answer_timer, due > now ? due - now : 0);
}

static void say_challenge(struct session *session)
{
	char *text = TAKE(session->challenge);

	session_reply(session, REPLY_CHALLENGE, REPLY_ARGS(text));
	session_move(session, ST_AUTH_MORE);
	free(text);
}

static void challenge(struct session *session, const struct auth_message *more)
{
	struct buf text;

	buf_init(&text, RESPONSE_MAX * 2);
	if (base64_encode(more->data, &text) == 0)
		session->challenge = slice_dup(buf_slice(&text));
	buf_done(&text);
	if (session->challenge == NULL) {
		end_login(session);
		session_move(session, ST_READY);
		session_reply(session, REPLY_LOGIN_UNAVAILABLE, NULL);
	} else if (slice_starts_with(more->data, SLICE("r="))) {
		/* The first one of SCRAM: somebody was looked up for it. */
		answer_later(session, CHALLENGE_MS, more->waited_ms);
	} else {
		say_challenge(session);
	}
}

/* What the login brought, all of it copied; NULL without memory. */
static struct account *copy_account(const struct serving *serving, const struct auth_account *facts)
{
	struct account *account = calloc(1, sizeof(*account));

	if (account == NULL)
		return NULL;
	arena_init(&account->arena, 256U << 10);
	account->facts = *facts;
	account->facts.login = arena_slice(&account->arena, facts->login);
	account->facts.route = arena_slice(&account->arena, facts->route);
	struct slice *senders =
	        arena_alloc(&account->arena, facts->sender_count * sizeof(*senders));
	account->facts.senders = senders;
	account->unsure = recent_since(&serving->changed, 0, facts->era);
	bool whole = account->facts.login.ptr != NULL && account->facts.route.ptr != NULL &&
	             senders != NULL;
	for (uint32_t i = 0; whole && i < facts->sender_count; i++) {
		senders[i] = arena_slice(&account->arena, facts->senders[i]);
		whole = senders[i].ptr != NULL;
	}
	if (whole)
		return account;
	account_free(account);
	return NULL;
}

/* How many sessions an account may have: without a limit of its own half of all, for the others. */
static uint32_t sessions_max(const struct session *session, const struct auth_account *facts)
{
	uint64_t half = MAX_OF(session->conf->submission.connections / 2, 1UL);

	return facts->connections != 0 ? facts->connections
	                               : (uint32_t)MIN_OF(half, (uint64_t)UINT32_MAX);
}

/*
 * The session is that account's from now on. 0; -ENOMEM; -EUSERS when the account has too many
 * sessions, and this one has ended.
 */
static int enter(struct session *session, const struct auth_account *facts)
{
	struct serving *serving = session->serving;

	if (!shares_take_connection(serving->shares, facts->id, sessions_max(session, facts))) {
		session_close_with(session, CLOSING_CONNECTIONS, REPLY_TOO_MANY_CONNECTIONS);
		return -EUSERS;
	}
	session->account = copy_account(serving, facts);
	if (session->account == NULL) {
		shares_give_connection_back(serving->shares, facts->id);
		return -ENOMEM;
	}
	session->refused = false; /* nothing was pipelined behind a login */
	log_ctx_add(&session->log, "account", session->account->facts.login);
	if (!session->has_logged_in)
		slots_log_in(serving->slots, &session->peer);
	session->has_logged_in = true;
	return 0;
}

static void say_refused(struct session *session)
{
	char *reason = TAKE(session->suspended_reason);

	if (reason == NULL)
		session_reply(session, REPLY_LOGIN_REFUSED, NULL);
	else
		session_reply(session, REPLY_ACCOUNT_SUSPENDED,
		        REPLY_ARGS(*reason != '\0' ? ": " : "", reason));
	free(reason);
}

void auth_answer_due(void *arg)
{
	struct session *session = arg;

	if (talked_too_early(session))
		return;
	if (session->challenge != NULL) {
		say_challenge(session);
		session_continue(session);
		return;
	}
	session_move(session, ST_READY);
	say_refused(session);
	if (!was_last_failure(session))
		session_continue(session);
}

static void on_answer(
        void *arg, const struct auth_message *answer, const struct auth_account *account)
{
	struct session *session = arg;
	enum reply reply = REPLY_LOGIN_UNAVAILABLE;

	/* A challenge that still waits is for nothing. */
	timer_stop(&session->answer_timer);
	free(TAKE(session->challenge));
	if (answer->type != AUTH_MORE)
		session->call = NULL;
	/* One command, one reply: the client has the last challenge and will answer it. */
	if (session->state == ST_AUTH_MORE) {
		session->login_lost = true;
		return;
	}
	if (talked_too_early(session))
		return;
	if (answer->type == AUTH_MORE) {
		challenge(session, answer);
		return;
	}
	/* Without memory for the reason it is 454: a 535 would be untrue. */
	if (answer->type == AUTH_BLOCKED)
		session->suspended_reason = slice_dup(answer->reason);
	if (answer->type == AUTH_REFUSED || session->suspended_reason != NULL) {
		answer_later(session, session->conf->submission.refusal_delay, answer->waited_ms);
		return;
	}
	if (answer->type == AUTH_MALFORMED || answer->type == AUTH_SLOWED) {
		session_move(session, ST_READY);
		session_reply(session,
		        answer->type == AUTH_SLOWED ? REPLY_LOGINS_SLOWED : REPLY_BAD_BASE64, NULL);
		if (!was_last_failure(session))
			session_continue(session);
		return;
	}
	if (answer->type == AUTH_DONE && !serving_login_is_stale(session->serving, account)) {
		int r = enter(session, account);
		if (r == -EUSERS)
			return;
		reply = r == 0 ? REPLY_LOGGED_IN : REPLY_LOGIN_UNAVAILABLE;
	}
	session_move(session, ST_READY);
	session_reply(session, reply, NULL);
	session_continue(session);
}

/* ---- who it is, before MAIL ---- */

/* The MAIL that waits gets this reply. */
static void refuse_mail(struct session *session, enum reply reply, const struct reply_args *args)
{
	struct slice input = conn_input(session->conn);

	conn_consume(session->conn, (size_t)slice_find(input, '\n') + 1);
	session->refused = true;
	session_reply(session, reply, args);
}

static void refuse_suspended(struct session *session, struct slice reason)
{
	char text[512];

	snprintf(text, sizeof(text), "%.*s", SLICE_ARGS(reason));
	refuse_mail(session, REPLY_NETWORK_SUSPENDED, REPLY_ARGS(reason.len > 0 ? ": " : "", text));
}

/* Who it still is; what the last login brought is replaced. */
static int stay(struct session *session, const struct auth_account *facts)
{
	struct account *account = copy_account(session->serving, facts);

	if (account == NULL)
		return -ENOMEM;
	account->by_network = session->account->by_network;
	account_free(session->account);
	session->account = account;
	return 0;
}

/* Somebody who has logged in, or was known by his network, is asked about again. */
static void on_again(struct session *session, const struct auth_message *answer,
        const struct auth_account *account, bool stale)
{
	int r = -EAGAIN;

	if (answer->type == AUTH_REFUSED || answer->type == AUTH_BLOCKED) {
		session_close_with(session, CLOSING_ACCOUNT, REPLY_ACCOUNT_CHANGED);
		return;
	}
	if (answer->type == AUTH_DONE && !stale)
		r = stay(session, account);
	session_move(session, ST_READY);
	if (r < 0 && !stale)
		refuse_mail(session, REPLY_TRY_LATER, NULL);
	session_continue(session);
}

static void on_network(struct session *session, const struct auth_message *answer,
        const struct auth_account *account, bool stale)
{
	int r = -EAGAIN;

	if (answer->type == AUTH_DONE && !stale)
		r = enter(session, account);
	if (r == -EUSERS)
		return;
	session_move(session, ST_READY);
	if (answer->type != AUTH_REFUSED)
		session->nobody_at = 0;
	if (r == 0)
		session->account->by_network = true;
	else if (answer->type == AUTH_REFUSED)
		refuse_mail(session, reply_to_nobody(session), NULL);
	else if (answer->type == AUTH_BLOCKED)
		refuse_suspended(session, answer->reason);
	else if (!stale)
		refuse_mail(session, REPLY_TRY_LATER, NULL);
	session_continue(session);
}

static void on_who(void *arg, const struct auth_message *answer, const struct auth_account *account)
{
	struct session *session = arg;

	session->call = NULL;
	/* What is stale is asked again: the line is still there. */
	bool stale = answer->type == AUTH_DONE && serving_login_is_stale(session->serving, account);
	if (session->account != NULL)
		on_again(session, answer, account, stale);
	else
		on_network(session, answer, account, stale);
}

void auth_ask_who(struct session *session)
{
	const struct account *account = session->account;
	char ip[ADDR_TEXT];
	const struct auth_message question = {
	        .type = account != NULL ? AUTH_LOGIN_AGAIN : AUTH_LOGIN_NETWORK,
	        .client_address = slice_str(addr_format_ip(&session->peer, ip)),
	        .session = slice_str(session->sid),
	        .data = account != NULL ? account->facts.login : SLICE(""),
	        .credential = account != NULL ? account->facts.credential : 0,
	};

	session->nobody_at =
	        session->serving->changed.count + 1; /* until the answer says something else */
	session->call = auth_call_new(session->serving->auth, &question, on_who, session);
	if (session->call == NULL) {
		session->nobody_at = 0;
		refuse_mail(session, REPLY_TRY_LATER, NULL);
		session_continue(session);
		return;
	}
	session_move(session, ST_WHO);
}

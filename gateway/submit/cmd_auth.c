/* SPDX-License-Identifier: ISC */
/*
 * AUTH (RFC 4954). The responses go to the process `auth` as they are; every 535 and 525
 * leaves at a fixed time after the client's last word, so that time tells nothing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/base/encode.h"
#include "gateway/submit/commands.h"

#define RESPONSE_MAX 12288UL

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
	struct slice mechanism, initial;

	if (!conn_is_secure(session->conn))
		return REPLY_AUTH_NEEDS_TLS;
	if (session->account != NULL)
		return REPLY_ALREADY_LOGGED_IN;
	split(args, &mechanism, &initial);
	for (size_t i = 0; i < ARRAY_LEN(offered); i++) {
		if (slice_equal_nocase(mechanism, slice_str(offered[i])))
			return REPLY_COUNT;
	}
	return REPLY_UNKNOWN_MECHANISM;
}

/* Asks `auth`: the first question of a login, or its next step. */
static void ask(struct session *session, bool has_response, struct slice response)
{
	char ip[ADDR_TEXT];
	const struct auth_message start = {
	        .type = AUTH_LOGIN_START,
	        .mechanism = slice_str(session->mechanism),
	        .client_address = slice_str(addr_format_ip(&session->peer, ip)),
	        .session = slice_str(session->sid),
	        .has_initial = has_response,
	        .data = response,
	};

	session->auth_asked_ms = clock_mono_ms();
	session_move(session, ST_AUTH_WAIT);
	if (session->call != NULL) {
		auth_call_step(session->call, response);
		return;
	}
	session->stale_login = NOBODY;
	session->call = auth_call_new(session->serving->auth, &start, on_answer, session);
	if (session->call == NULL) {
		session_reply(session, REPLY_LOGIN_UNAVAILABLE, NULL);
		session_move(session, ST_READY);
	}
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
	if (initial.len > 0)
		return pass_on(session, initial);
	/* PLAIN and SCRAM begin with the client: an empty challenge asks it to. */
	if (!slice_equal_nocase(mechanism, SLICE("LOGIN"))) {
		session_reply(session, REPLY_CHALLENGE, REPLY_ARGS(""));
		session_move(session, ST_AUTH_MORE);
		return REPLY_LATER;
	}
	ask(session, false, SLICE(""));
	return REPLY_LATER;
}

static void end_login(struct session *session)
{
	auth_call_cancel(session->call);
	session->call = NULL;
	session->login_lost = false;
}

void auth_response(struct session *session, struct slice line)
{
	enum reply reply;

	if (slice_equal(line, SLICE("*"))) {
		reply = REPLY_AUTH_CANCELLED;
	} else if (session->login_lost) {
		reply = REPLY_LOGIN_UNAVAILABLE;
	} else {
		reply = line.len > RESPONSE_MAX ? REPLY_BAD_BASE64 : REPLY_COUNT;
		if (reply == REPLY_COUNT)
			reply = pass_on(session, line);
	}
	if (reply == REPLY_LATER)
		return;
	end_login(session);
	session_move(session, ST_READY);
	session_reply(session, reply, NULL);
}

static void challenge(struct session *session, struct slice data)
{
	struct buf text;

	buf_init(&text, RESPONSE_MAX * 2);
	int r = base64_encode(data, &text);
	const char *encoded = r == 0 ? buf_str(&text) : NULL;
	if (encoded != NULL) {
		session_reply(session, REPLY_CHALLENGE, REPLY_ARGS(encoded));
		session_move(session, ST_AUTH_MORE);
	} else {
		end_login(session);
		session_move(session, ST_READY);
		session_reply(session, REPLY_LOGIN_UNAVAILABLE, NULL);
	}
	buf_done(&text);
}

/* Keeps what the login brought; everything is copied. 0 or -ENOMEM. */
static int keep_account(struct session *session, const struct auth_account *facts)
{
	struct account *account = calloc(1, sizeof(*account));

	if (account == NULL)
		return -ENOMEM;
	arena_init(&account->arena, 256U << 10);
	account->facts = *facts;
	account->facts.login = arena_slice(&account->arena, facts->login);
	account->facts.route = arena_slice(&account->arena, facts->route);
	struct slice *senders =
	        arena_alloc(&account->arena, facts->sender_count * sizeof(*senders));
	account->facts.senders = senders;
	bool whole = account->facts.login.ptr != NULL && account->facts.route.ptr != NULL &&
	             senders != NULL;
	for (uint32_t i = 0; whole && i < facts->sender_count; i++) {
		senders[i] = arena_slice(&account->arena, facts->senders[i]);
		whole = senders[i].ptr != NULL;
	}
	if (!whole) {
		arena_reset(&account->arena);
		free(account);
		return -ENOMEM;
	}
	session->account = account;
	log_ctx_add(&session->log, "account", account->facts.login);
	return 0;
}

static void drop_account(struct session *session)
{
	struct account *account = TAKE(session->account);

	arena_reset(&account->arena);
	free(account);
}

/* The client may not pipeline behind AUTH; true if it did, and the session is gone. */
static bool talked_too_early(struct session *session)
{
	if (!session_has_input(session))
		return false;
	session_close_with(session, CLOSING_PIPELINING, REPLY_PIPELINING);
	return true;
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

static void refusal_due(void *arg)
{
	struct session *session = arg;

	if (talked_too_early(session))
		return;
	if (++session->failures >= session->conf->submission.login_failures) {
		say_refused(session);
		session_close_with(session, CLOSING_FAILURES, REPLY_TOO_MANY_FAILURES);
		return;
	}
	session_move(session, ST_READY);
	say_refused(session);
	session_continue(session);
}

static void refuse_later(struct session *session)
{
	uint64_t due = session->auth_asked_ms + session->conf->submission.refusal_delay;
	uint64_t now = clock_mono_ms();

	timer_init(&session->refusal, session->serving->loop, refusal_due, session);
	timer_start(&session->refusal, due > now ? due - now : 0);
}

/* Whether the account has changed between two steps: then what the login brings may be old. */
static bool is_stale(const struct session *session, uint64_t account)
{
	return session->stale_login == ANYBODY || session->stale_login == account;
}

static void on_answer(
        void *arg, const struct auth_message *answer, const struct auth_account *account)
{
	struct session *session = arg;
	enum reply reply = REPLY_LOGIN_UNAVAILABLE;

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
		challenge(session, answer->data);
		return;
	}
	if (answer->type == AUTH_REFUSED || answer->type == AUTH_BLOCKED) {
		if (answer->type == AUTH_BLOCKED)
			session->suspended_reason = slice_dup(answer->reason);
		refuse_later(session);
		return;
	}
	if (answer->type == AUTH_MALFORMED)
		reply = REPLY_BAD_BASE64;
	else if (answer->type == AUTH_DONE && !is_stale(session, account->id) &&
	         keep_account(session, account) == 0)
		reply = REPLY_LOGGED_IN;
	if (reply == REPLY_LOGGED_IN && !session->serving->take_login(session->serving, account->id,
	                                        account->connections)) {
		drop_account(session);
		session_close_with(session, CLOSING_CONNECTIONS, REPLY_TOO_MANY_CONNECTIONS);
		return;
	}
	session_move(session, ST_READY);
	session_reply(session, reply, NULL);
	session_continue(session);
}

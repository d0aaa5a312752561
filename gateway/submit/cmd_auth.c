/* SPDX-License-Identifier: ISC */
/*
 * AUTH (RFC 4954). The responses go to the process `auth` as they are; every 535 and 525, and
 * the first challenge of SCRAM, leave at a fixed time after the client's last word (or after the
 * wait that wrong ones before have cost), so that time tells nothing. Whatever
 * else a client makes of it but a login counts too, and ends the connection in the end.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/base/encode.h"
#include "gateway/submit/commands.h"
#include "gateway/submit/who.h"

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
		int r = who_enter(session, account);
		if (r == -EUSERS)
			return;
		reply = r == 0 ? REPLY_LOGGED_IN : REPLY_LOGIN_UNAVAILABLE;
		session->refused &= r < 0; /* nothing was pipelined behind it */
	}
	session_move(session, ST_READY);
	session_reply(session, reply, NULL);
	session_continue(session);
}

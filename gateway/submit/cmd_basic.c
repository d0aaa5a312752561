/* SPDX-License-Identifier: ISC */
/* EHLO, HELO, HELP, NOOP, RSET, QUIT, VRFY, STARTTLS. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "gateway/submit/commands.h"

#define EHLO_MAX 2048

enum reply no_check(struct session *session, struct slice args)
{
	(void)session;
	(void)args;
	return REPLY_COUNT;
}

static enum reply syntax(struct session *session, const char *form)
{
	session_reply(session, REPLY_SYNTAX, REPLY_ARGS(form));
	return REPLY_LATER;
}

enum reply no_args(struct session *session, struct slice args)
{
	return args.len == 0 ? REPLY_COUNT : syntax(session, "no arguments");
}

enum reply helo_check(struct session *session, struct slice args)
{
	return args.len > 0 && args.len <= 255 ? REPLY_COUNT : syntax(session, "EHLO hostname");
}

/* Either greeting ends what was before (RFC 5321 4.1.4). */
static enum reply greet(struct session *session, struct slice name)
{
	session_reset(session);
	session->refused = false;
	arena_reset(&session->arena);
	session->helo = arena_slice(&session->arena, name);
	if (session->helo.ptr == NULL) {
		session->helo = SLICE("");
		session_move(session, ST_START);
		return REPLY_TRY_LATER;
	}
	session_move(session, ST_READY);
	return REPLY_COUNT;
}

enum reply helo_act(struct session *session, struct slice args)
{
	enum reply reply = greet(session, args);

	if (reply != REPLY_COUNT)
		return reply;
	session->esmtp = false;
	session_reply(session, REPLY_HELLO, REPLY_ARGS(session->conf->hostname));
	return REPLY_LATER;
}

enum reply ehlo_act(struct session *session, struct slice args)
{
	enum reply reply = greet(session, args);
	const char *lines[12];
	char size[40], unused[TLS_FINGERPRINT];
	size_t count = 0;
	struct buf out;
	int r = 0;

	if (reply != REPLY_COUNT)
		return reply;
	session->esmtp = true;
	snprintf(size, sizeof(size), "SIZE %" PRIu64, session->conf->submission.message_size);
	lines[count++] = session->conf->hostname;
	lines[count++] = "PIPELINING";
	lines[count++] = size;
	lines[count++] = "8BITMIME";
	lines[count++] = "ENHANCEDSTATUSCODES";
	/*
	 * RFC 4954 4: AUTH is offered when it can be used, STARTTLS when it has not been.
	 * Not in the last line: gsasl 2.2.0 finds them only behind "250-".
	 */
	if (!conn_is_secure(session->conn))
		lines[count++] = "STARTTLS";
	else if (session->account == NULL)
		lines[count++] = session_fingerprint(session, unused)
		                         ? "AUTH SCRAM-SHA-256 PLAIN LOGIN EXTERNAL"
		                         : "AUTH SCRAM-SHA-256 PLAIN LOGIN";
	lines[count++] = "CHUNKING";
	lines[count++] = "SMTPUTF8";

	session_count(session, REPLY_HELLO);
	buf_init(&out, EHLO_MAX);
	for (size_t i = 0; r == 0 && i < count; i++)
		r = reply_write_line(
		        &out, REPLY_HELLO, i + 1 < count ? REPLY_MORE : REPLY_LAST, lines[i]);
	if (r == 0)
		conn_write(session->conn, buf_slice(&out));
	buf_done(&out);
	return r == 0 ? REPLY_LATER : REPLY_TRY_LATER;
}

enum reply help_act(struct session *session, struct slice args)
{
	char verbs[256] = "";
	size_t used = 0;

	(void)args;
	for (size_t i = 0; i < command_count; i++)
		used += (size_t)snprintf(verbs + used, sizeof(verbs) - used, "%s%s",
		        i > 0 ? " " : "", command_table[i].verb);
	session_reply(session, REPLY_HELP, REPLY_ARGS(verbs));
	return REPLY_LATER;
}

enum reply noop_act(struct session *session, struct slice args)
{
	(void)session;
	(void)args;
	return REPLY_OK;
}

enum reply rset_act(struct session *session, struct slice args)
{
	(void)args;
	session_reset(session);
	session->refused = false;
	return REPLY_OK;
}

enum reply quit_act(struct session *session, struct slice args)
{
	(void)args;
	session_close_with(session, CLOSING_QUIT, REPLY_BYE);
	return REPLY_LATER;
}

/* RFC 5321 7.3: nobody learns here which addresses exist. */
enum reply vrfy_act(struct session *session, struct slice args)
{
	(void)args;
	(void)session;
	return REPLY_CANNOT_VERIFY;
}

enum reply starttls_check(struct session *session, struct slice args)
{
	if (args.len > 0)
		return syntax(session, "STARTTLS");
	return conn_is_secure(session->conn) ? REPLY_ALREADY_TLS : REPLY_COUNT;
}

enum reply starttls_act(struct session *session, struct slice args)
{
	(void)args;
	session_reply(session, REPLY_START_TLS, NULL);
	/* RFC 3207 4.2: everything from before is forgotten. */
	session_reset(session);
	session_forget_login(session);
	arena_reset(&session->arena);
	session->helo = SLICE("");
	session_move(session, ST_TLS);
	session_start_tls(session);
	return REPLY_LATER;
}

/* SPDX-License-Identifier: ISC */
/*
 * What is said before mail: the greeting, EHLO, STARTTLS (RFC 3207), the login (RFC 4954). Any
 * other answer than the one that leads on is the host's trouble; a refused login is the upstream's.
 */
#include "gateway/relay/opening.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/encode.h"
#include "gateway/conf/conf.h"
#include "gateway/mail/line.h"
#include "gateway/net/conn.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/sasl_client.h"
#include "gateway/relay/session.h"
#include "gateway/relay/upstream.h"

#define LOGIN_MAX 8192

/*
 * The upstream said something that ends the hope in this host. Of what it says to AUTH people see
 * the codes only: the text may be our command, with the password.
 */
static void describe_reply(struct session *session, const char *what)
{
	const struct peer_reply *reply = &session->reply;
	const char *text = session->state == SESSION_AUTH ? reply->enhanced : reply->text;

	snprintf(session->trouble, sizeof(session->trouble), "%s: %u%s%.300s", what, reply->code,
	        text[0] != '\0' ? " " : "", text);
}

static void trouble_reply(struct session *session, const char *what)
{
	describe_reply(session, what);
	session_trouble(session, session->trouble);
}

static void say(
        struct session *session, enum session_state state, const char *verb, const char *argument)
{
	char line[600];

	int len = snprintf(
	        line, sizeof(line), "%s%s%s\r\n", verb, argument[0] != '\0' ? " " : "", argument);
	assert_bug(len > 2 && len < (int)sizeof(line) &&
	           !line_has_controls(slice_of(line, (size_t)len - 2)));
	session_enter(session, state);
	session->owed++;
	peer_reply_start(&session->reply);
	conn_write(session->conn, slice_of(line, (size_t)len));
}

static void say_ehlo(struct session *session)
{
	/* Nothing that was said before TLS counts after it. */
	session->ehlo = (struct ehlo){0};
	say(session, SESSION_EHLO, "EHLO", session->upstream->relay->conf->hostname);
}

/* ---- login ---- */

void opening_wipe_login(struct session *session)
{
	if (session->password != NULL)
		explicit_bzero(session->password, strlen(session->password));
	free(TAKE(session->password));
	free(TAKE(session->username));
}

static void login(struct job *job)
{
	struct session *session = container_of(job, struct session, job);
	struct buf response;

	buf_init(&response, LOGIN_MAX);
	session->job_result = sasl_client_plain(
	        session->host_name, session->username, session->password, &response, NULL);
	if (session->job_result == 0)
		session->job_result = buf_append_str(&session->room, "AUTH PLAIN ");
	if (session->job_result == 0)
		session->job_result = base64_encode(buf_slice(&response), &session->room);
	if (session->job_result == 0)
		session->job_result = buf_append_str(&session->room, "\r\n");
	buf_wipe(&response);
}

static void have_login(struct job *job)
{
	struct session *session = container_of(job, struct session, job);

	session->job_runs = false;
	session->upstream->relay->busy--;
	opening_wipe_login(session);
	if (session_job_orphaned(session))
		return;
	if (session->job_result < 0) {
		buf_wipe(&session->room);
		session_trouble(session, "the login could not be made");
		return;
	}
	session_enter(session, SESSION_AUTH);
	session->owed++;
	peer_reply_start(&session->reply);
	conn_write(session->conn, buf_slice(&session->room));
	buf_wipe(&session->room);
}

static void start_login(struct session *session)
{
	const struct conf_upstream *settings = session->upstream->settings;

	if (settings->tls != CONF_TLS_VERIFY && settings->tls != CONF_TLS_NONE) {
		session_trouble(session,
		        "a password is only sent to a verified host: set tls = \"verify\"");
		return;
	}
	if (!session->ehlo.auth_plain) {
		session_trouble(session, "the upstream does not offer AUTH PLAIN");
		return;
	}
	session_enter(session, SESSION_AUTH);
	session->username = strdup(settings->username);
	session->password = strdup(session->upstream->password);
	if (session->username == NULL || session->password == NULL ||
	        session_job(session, session->upstream->relay->jobs, login, have_login) < 0) {
		opening_wipe_login(session);
		session_trouble(session, "too much to do");
	}
}

/*
 * The login as such is refused (RFC 4954 6). Other answers of class 5 are this host's trouble, with
 * the command or with itself.
 */
static bool is_login_refused(const struct peer_reply *reply)
{
	return peer_reply_wants_login(reply) || reply->code == 534 ||
	       (reply->code / 100 == 5 && strncmp(reply->enhanced, "5.7.", 4) == 0);
}

static void after_auth(struct session *session)
{
	if (session->reply.code == 235) {
		session_idle(session);
	} else if (is_login_refused(&session->reply) && !upstream_login_refused(session)) {
		describe_reply(session, "the upstream refuses our login");
		upstream_stop(session->upstream, session->host_name, session->trouble);
		session_end(session, session->trouble);
	} else {
		trouble_reply(session, "the login failed");
	}
}

/* ---- TLS ---- */

static void start_tls(struct session *session)
{
	session_enter(session, SESSION_TLS);
	conn_start_tls_client(session->conn, session->upstream->tls, session->host_name);
}

static void after_starttls(struct session *session)
{
	if (session->reply.code != 220)
		trouble_reply(session, "STARTTLS was refused");
	else if (conn_input(session->conn).len > 0)
		/* Said in the clear, to be taken as if it were under TLS (threat: response
		 * injection). */
		session_trouble(session, "the upstream talked before TLS");
	else
		start_tls(session);
}

/* ---- what follows what ---- */

static void after_ehlo(struct session *session)
{
	const struct conf_upstream *settings = session->upstream->settings;

	if (session->reply.code != 250) {
		trouble_reply(session, "EHLO was refused");
		return;
	}
	bool wanted = settings->tls != CONF_TLS_NONE && !session->secure;
	if (wanted && session->ehlo.starttls)
		say(session, SESSION_STARTTLS, "STARTTLS", "");
	else if (wanted && settings->tls != CONF_TLS_OPPORTUNISTIC)
		session_trouble(session, "the upstream does not offer STARTTLS");
	else if (settings->username[0] != '\0')
		start_login(session);
	else
		session_idle(session);
}

void opening_connected(struct session *session)
{
	if (session->upstream->settings->tls_mode == CONF_TLS_IMPLICIT &&
	        session->upstream->tls != NULL)
		start_tls(session);
	else
		session_enter(session, SESSION_GREETING);
}

void opening_secure(struct session *session)
{
	session->secure = true;
	peer_reply_start(&session->reply);
	if (session->upstream->settings->tls_mode == CONF_TLS_IMPLICIT)
		session_enter(session, SESSION_GREETING);
	else
		say_ehlo(session);
}

void opening_reply(struct session *session)
{
	switch (session->state) {
	case SESSION_GREETING:
		if (session->reply.code == 220)
			say_ehlo(session);
		else
			trouble_reply(session, "the upstream does not serve");
		break;
	case SESSION_EHLO:
		after_ehlo(session);
		break;
	case SESSION_STARTTLS:
		after_starttls(session);
		break;
	case SESSION_AUTH:
		if (session->job_runs)
			session_trouble(session, "the upstream talked out of turn");
		else
			after_auth(session);
		break;
	default:
		session_trouble(session, "the upstream talked out of turn");
	}
}

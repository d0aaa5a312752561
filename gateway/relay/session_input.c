/* SPDX-License-Identifier: ISC */
/*
 * What the connection of a session reports. Lines become replies, and each goes to whom it answers;
 * one that answers nothing that was asked is not believed.
 */
#include "gateway/relay/session_input.h"

#include <errno.h>
#include <stdio.h>

#include "gateway/mail/line.h"
#include "gateway/relay/opening.h"
#include "gateway/relay/session.h"
#include "gateway/relay/transaction.h"

/*
 * RFC 5321 3.8: the upstream closes; what it was about to do is not done. To the final dot
 * 421 is a plain refusal, while 221, which is no answer but to QUIT, leaves it in doubt.
 */
static bool is_goodbye(const struct session *session)
{
	return session->reply.code == 221 ||
	       (session->reply.code == 421 && session->state != SESSION_DOT);
}

static void on_reply(struct session *session)
{
	if (session->state >= SESSION_IDLE && is_goodbye(session)) {
		snprintf(session->trouble, sizeof(session->trouble), "%u %.300s",
		        session->reply.code, session->reply.text);
		session_trouble_code(session, session->trouble, session->reply.code);
		return;
	}
	if (session->state < SESSION_IDLE)
		opening_reply(session);
	else if (session->state == SESSION_IDLE)
		session_trouble(session, "the upstream talked out of turn");
	else
		transaction_reply(session);
}

/* Takes a line. 1: a reply is complete; 0: more lines of it follow; -EAGAIN: no line yet; -EBADMSG.
 */
static int take_line(struct session *session)
{
	struct line_reader reader = {.skipping = false};
	struct line line;
	size_t used;

	/* One that is too long ends the session: nothing is skipped here. */
	enum line_found found =
	        line_find(&reader, conn_input(session->conn), PEER_REPLY_LINE_MAX, &line, &used);
	if (found == LINE_TOO_LONG || reader.skipping)
		return -EBADMSG;
	if (found == LINE_NONE)
		return -EAGAIN;
	if (!line.crlf)
		return -EBADMSG;
	int r = peer_reply_line(&session->reply, line.text);
	if (session->state == SESSION_EHLO && session->reply.lines > 1 && line.text.len > 4)
		ehlo_take_line(&session->ehlo, slice_part(line.text, 4, line.text.len));
	conn_consume(session->conn, used);
	return r;
}

static void on_data(void *arg)
{
	struct session *session = arg;
	struct conn *conn = session->conn;
	int r;

	while (session->conn == conn && (r = take_line(session)) != -EAGAIN) {
		if (r < 0) {
			session_out_of_step(session, "the upstream sent a malformed reply");
			return;
		}
		if (r == 0)
			continue;
		session->owed -= session->owed > 0;
		/* Answers to what has not been asked are no answers (RFC 2920 3.1). */
		bool early = session->owed == 0 && conn_input(conn).len > 0;
		/* Before the message has left, such a reply is not believed either. To the final
		 * dot it is: else what has arrived would arrive again. */
		if (!early ||
		        (session->state != SESSION_ENVELOPE && session->state != SESSION_RSET))
			on_reply(session);
		if (early && session->conn == conn) {
			session_out_of_step(session, "the upstream talked before it was asked");
			return;
		}
		/* The TLS of a new connection or a new state reads on by itself. */
		peer_reply_start(&session->reply);
	}
	/* Nor is what begins before, and would end as one when the command has left. */
	if (session->conn == conn && session->owed == 0 && conn_input(conn).len > 0)
		session_out_of_step(session, "the upstream talked before it was asked");
}

static void on_connected(void *arg)
{
	opening_connected(arg);
}

static void on_secure(void *arg)
{
	opening_secure(arg);
}

static void on_drained(void *arg)
{
	struct session *session = arg;

	if (session->state == SESSION_BODY)
		transaction_drained(session);
}

static void on_closed(void *arg, enum conn_end end, const char *text)
{
	struct session *session = arg;
	char words[sizeof(session->trouble)];

	snprintf(words, sizeof(words), "%s: %.300s",
	        session->state == SESSION_CONNECTING ? "cannot connect"
	        : end == CONN_END_TLS                ? "TLS failed"
	                                             : "the connection was lost",
	        text != NULL ? text : "closed");
	session_trouble(session, words);
}

const struct conn_events session_input = {
        .on_connected = on_connected,
        .on_data = on_data,
        .on_drained = on_drained,
        .on_secure = on_secure,
        .on_closed = on_closed,
};

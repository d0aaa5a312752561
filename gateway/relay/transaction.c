/* SPDX-License-Identifier: ISC */
/*
 * One message over a session: MAIL, RCPT and DATA (pipelined where offered,
 * RFC 2920), the content with its dots stuffed, the final dot.
 *
 * What the final dot's reply settles is written to the spool before the next final
 * dot leaves on this connection: a crash repeats one transaction a connection at
 * most, and forgets none.
 */
#include "gateway/relay/transaction.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/board.h"
#include "gateway/conf/conf.h"
#include "gateway/mail/line.h"
#include "gateway/net/conn.h"
#include "gateway/relay/accounts.h"
#include "gateway/relay/attempt.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/session.h"
#include "gateway/relay/task.h"
#include "gateway/relay/upstream.h"

#define BATCH       50     /* RCPT commands whose replies may be outstanding */
#define PIECE       65536  /* of the content */
#define UNSENT_MAX  131072 /* then we wait for the kernel */
#define DIAGNOSTIC  700
#define COMMAND_MAX 32768 /* of a batch: 50 paths of at most 256 octets, and MAIL */
#define REPEATS_MAX 10    /* of a delivery that nobody has answered: one may be what kills them */

static void send_more(struct session *session);
static void pump(struct session *session);

static struct relay *relay_of(struct session *session)
{
	return session->upstream->relay;
}

/* ---- giving the delivery back ---- */

static void give_back(struct session *session)
{
	struct delivery *delivery = TAKE(session->delivery);

	spool_message_done(&session->content);
	/* Left open: nobody said anything of them in a transaction that went well. */
	for (uint32_t i = 0; i < delivery->count; i++) {
		struct result *result = &delivery->attempt->results[delivery->recipients[i]];
		if (result->fate == FATE_OPEN && result->diagnostic != NULL)
			result->fate = FATE_DEFERRED;
	}
	delivery_set_fate(delivery, FATE_DEFERRED, "4.3.0", session->host_name,
	        "the transaction was given up");
	attempt_delivery_done(delivery);
}

/* It was caught out of step: a refusal may have been the answer to another recipient. */
static void forget_refusals(struct delivery *delivery)
{
	for (uint32_t i = 0; i < delivery->count; i++) {
		struct result *result = &delivery->attempt->results[delivery->recipients[i]];
		if (result->fate == FATE_FAILED)
			result->fate = FATE_OPEN;
	}
}

void transaction_lost(struct session *session)
{
	struct delivery *delivery = session->delivery;
	char text[DIAGNOSTIC];

	spool_message_done(&session->content);
	spool_mark_free(TAKE(session->tx.mark));
	session->delivery = NULL;
	if (session->tx.out_of_step)
		forget_refusals(delivery);
	if (relay_of(session)->stopping && !session->tx.in_doubt) {
		attempt_delivery_held(delivery, false);
		return;
	}
	/* A kept connection had died meanwhile, which says nothing of the upstream, or another
	 * host may do better. */
	bool again = session->transactions > 1 || session->tx.elsewhere;
	if (again && !session->tx.mail_answered && delivery->repeats < REPEATS_MAX &&
	        !session->upstream->removed) {
		delivery->repeats++;
		upstream_deliver(session->upstream, delivery);
		return;
	}
	snprintf(text, sizeof(text), "%s%s", session->trouble,
	        session->tx.in_doubt ? " (after the final dot: it may arrive twice)" : "");
	delivery_set_fate(delivery, FATE_DEFERRED, "4.4.2", session->host_name, text);
	attempt_delivery_done(delivery);
}

/*
 * The transaction did not end with a final dot: the upstream must forget it. Its answer
 * shows whether it is in step; until then nothing that it refused is given back.
 */
static void reset(struct session *session)
{
	session_enter(session, SESSION_RSET);
	conn_write(session->conn, SLICE("RSET\r\n"));
	session->owed++;
}

/* ---- replies ---- */

static enum fate fate_of(const struct peer_reply *reply)
{
	return reply->code / 100 == 5 && !peer_reply_wants_login(reply) ? FATE_FAILED
	                                                                : FATE_DEFERRED;
}

static const char *status_of(const struct peer_reply *reply)
{
	if (reply->enhanced[0] != '\0')
		return reply->enhanced;
	return reply->code / 100 == 5 ? "5.0.0" : "4.0.0";
}

static const char *words_of(const struct peer_reply *reply, char text[DIAGNOSTIC])
{
	snprintf(text, DIAGNOSTIC, "%u %.650s", reply->code, reply->text);
	return text;
}

static void refuse_one(struct session *session, uint32_t recipient, enum fate fate)
{
	char text[DIAGNOSTIC];

	attempt_set_fate(session->delivery->attempt, recipient, fate, status_of(&session->reply),
	        session->host_name, words_of(&session->reply, text));
	/* What is taken for temporary says so to the sender as well (RFC 3463 3.1). */
	if (fate != FATE_FAILED)
		session->delivery->attempt->results[recipient].status[0] = '4';
}

/* What the reply says holds for all recipients whose fate is that. */
static void refuse_all(struct session *session, enum fate now)
{
	struct delivery *delivery = session->delivery;

	for (uint32_t i = 0; i < delivery->count; i++)
		if (delivery->attempt->results[delivery->recipients[i]].fate == now)
			refuse_one(session, delivery->recipients[i], fate_of(&session->reply));
}

/*
 * The reply to MAIL says that it wants a login: everything for it waits. This message by its own
 * time, or one whose sender alone is answered so would be the first each time, and the last.
 */
static void stop_upstream(struct session *session)
{
	struct delivery *delivery = session->delivery;
	char text[DIAGNOSTIC];

	refuse_all(session, FATE_OPEN);
	session->delivery = NULL;
	upstream_stop(session->upstream, session->host_name, words_of(&session->reply, text));
	delivery->stopped_it = true;
	attempt_delivery_held(delivery, true);
	session_end(session, text);
}

static void on_mail(struct session *session)
{
	if (session->reply.code / 100 == 2) {
		upstream_takes_mail(session);
		return;
	}
	session->tx.mail_refused = true;
	refuse_all(session, FATE_OPEN);
}

/*
 * RFC 5321 4.5.3.1.10: too many for one transaction. 552 said so once, and may also mean a full
 * mailbox: without a status it is that of the first recipient, who is never one too many.
 */
static bool is_too_many(const struct session *session)
{
	const struct peer_reply *reply = &session->reply;

	if (reply->code != 552)
		return reply->code == 452;
	return reply->enhanced[0] != '\0' ? strcmp(reply->enhanced, "5.5.3") == 0
	                                  : session->tx.accepted > 0;
}

static void on_recipient(struct session *session)
{
	struct delivery *delivery = session->delivery;
	uint32_t recipient = delivery->recipients[session->tx.answered++];
	unsigned code = session->reply.code;

	if (session->tx.mail_refused)
		return;
	if (code / 100 == 2) {
		delivery->attempt->results[recipient].fate = FATE_ACCEPTED;
		session->tx.accepted++;
	} else if (is_too_many(session)) {
		/* The next transaction takes more, if this one took any. */
		bool again = session->tx.accepted > 0;
		session->tx.too_many |= again;
		refuse_one(session, recipient, again ? FATE_OPEN : FATE_DEFERRED);
	} else {
		refuse_one(session, recipient, fate_of(&session->reply));
	}
}

/*
 * Makes the mark that the final dot will call for. The upstream has the message then, and
 * without a mark, or without hearing what it says, it would get it twice.
 */
static int make_mark(struct session *session)
{
	struct delivery *delivery = session->delivery;
	struct attempt *attempt = delivery->attempt;
	struct stored_result *delivered = calloc(session->tx.accepted, sizeof(*delivered));
	uint32_t count = 0;

	if (delivered == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < delivery->count; i++)
		if (attempt->results[delivery->recipients[i]].fate == FATE_ACCEPTED)
			delivered[count++] = (struct stored_result){
			        .recipient = delivery->recipients[i], .outcome = OUTCOME_DELIVERED};
	int r = spool_mark_new(relay_of(session)->spool, attempt->task->entry, delivered, count,
	        &session->tx.mark);
	free(delivered);
	return r;
}

static void send_dot(struct session *session)
{
	session->tx.dot_waits = session->marks > 0;
	if (session->tx.dot_waits)
		return;
	/* Another connection's result cannot be recorded; neither could this one's. */
	if (spool_out_is_failing(relay_of(session)->spool)) {
		session_end(session, "results cannot be recorded now");
		return;
	}
	if (session->tx.accepted > 0 &&
	        (make_mark(session) < 0 || conn_keep_room(session->conn) < 0)) {
		session_end(session, "out of memory");
		return;
	}
	conn_write(session->conn, session->tx.at_line_start ? SLICE(".\r\n") : SLICE("\r\n.\r\n"));
	session_enter(session, SESSION_DOT);
	session->owed++;
}

static void on_data_reply(struct session *session)
{
	if (session->reply.code == 354) {
		session_enter(session, SESSION_BODY);
		session->tx.at_line_start = true;
		if (session->tx.accepted > 0)
			pump(session);
		else
			send_dot(session); /* nothing to send, and only this ends it (RFC 2920 3.1)
			                    */
		return;
	}
	if (session->reply.code / 100 <= 3) {
		session_out_of_step(session, "the upstream did not understand DATA");
		return;
	}
	refuse_all(session, FATE_ACCEPTED);
	reset(session);
}

static bool is_not_understood(unsigned code)
{
	return code == 500 || code == 502 || code == 503;
}

static void on_envelope_reply(struct session *session)
{
	struct transaction *tx = &session->tx;

	/* Else it is about that sender, recipient or message, and for now. */
	if (!tx->mail_answered && peer_reply_wants_login(&session->reply) &&
	        upstream_wants_login(session)) {
		stop_upstream(session);
		return;
	}
	/* RFC 5321 4.2.4: no verdict on the sender, it does not know the command, or knows it not
	 * now. */
	if (!tx->mail_answered && is_not_understood(session->reply.code)) {
		session_out_of_step(session, "the upstream did not understand MAIL");
		return;
	}
	bool is_mail = !tx->mail_answered;
	tx->mail_answered = true;
	/* RFC 5321 4.5.3.2: each command has its time, and not all of a batch the time of one. */
	session_enter(session, SESSION_ENVELOPE);
	if (is_mail)
		on_mail(session);
	else if (tx->answered < tx->sent)
		on_recipient(session);
	else {
		on_data_reply(session);
		return;
	}
	if (tx->answered < tx->sent)
		return;
	if (tx->data_sent)
		return; /* its reply decides */
	if (tx->mail_refused || (tx->sent == session->delivery->count && tx->accepted == 0))
		reset(session);
	else
		send_more(session);
}

static void on_marked(void *arg, int result)
{
	struct session *session = arg;

	relay_of(session)->busy--;
	session->marks--;
	session->mark_failed |= result < 0;
	if (session->finished)
		session_release(session);
	else if (session->mark_failed && session->state == SESSION_BODY)
		session_end(session, "the last result could not be recorded");
	else if (session->tx.dot_waits && session->state == SESSION_BODY)
		send_dot(session);
}

static void record_delivered(struct session *session)
{
	struct delivery *delivery = session->delivery;
	struct attempt *attempt = delivery->attempt;
	char text[DIAGNOSTIC];
	const char *words = arena_str(&attempt->arena, slice_str(words_of(&session->reply, text)));
	const char *host = arena_str(&attempt->arena, slice_str(session->host_name));

	for (uint32_t i = 0; i < delivery->count; i++) {
		uint32_t recipient = delivery->recipients[i];
		struct result *result = &attempt->results[recipient];
		if (result->fate != FATE_ACCEPTED)
			continue;
		LOG(&attempt->log, EV_MESSAGE_DELIVERED, "to=%s upstream=%s host=%s reply=%s",
		        LOG_VALUE(attempt->envelope.recipients[recipient]),
		        session->upstream->settings->name, session->host_name,
		        LOG_VALUE(slice_str(text)));
		result->fate = FATE_DELIVERED;
		result->host = host;
		result->diagnostic = words;
		attempt_tell_history(attempt, recipient, "delivered", NULL);
	}
	session->marks++;
	relay_of(session)->busy++;
	counter_add(CT_RECIPIENTS_DELIVERED, session->tx.accepted);
	spool_mark_write(TAKE(session->tx.mark), on_marked, session);
}

static void on_reset_reply(struct session *session)
{
	/* RSET is never refused: this is the answer to DATA, and what seemed to be that was
	 * another. */
	if (session->reply.code / 100 != 2) {
		session_out_of_step(session, "the upstream did not understand RSET");
		return;
	}
	upstream_transaction_ended(session);
	give_back(session);
	session_idle(session);
}

static void on_dot_reply(struct session *session)
{
	struct delivery *delivery = session->delivery;
	unsigned class = session->reply.code / 100;
	bool again = false;

	if (class == 3) {
		session_out_of_step(session, "the upstream did not understand the final dot");
		return;
	}
	upstream_transaction_ended(session);
	if (session->tx.accepted > 0 && class == 2) {
		record_delivered(session);
		again = session->tx.too_many && !relay_of(session)->stopping &&
		        accounts_hold_reason(relay_of(session)->accounts,
		                delivery->attempt->task->entry) == NULL;
	} else {
		spool_mark_free(TAKE(session->tx.mark));
		refuse_all(session, FATE_ACCEPTED);
	}
	if (again) {
		spool_message_done(&session->content);
		transaction_start(session, delivery);
		return;
	}
	give_back(session);
	session_idle(session);
}

void transaction_reply(struct session *session)
{
	switch (session->state) {
	case SESSION_ENVELOPE:
		on_envelope_reply(session);
		break;
	case SESSION_DOT:
		on_dot_reply(session);
		break;
	case SESSION_RSET:
		on_reset_reply(session);
		break;
	default:
		/* It gave up in mid-message, or is out of step: what it would say next is unknown.
		 */
		snprintf(session->trouble, sizeof(session->trouble), "%u %.300s",
		        session->reply.code, session->reply.text);
		session_out_of_step(session, session->trouble);
	}
}

/* ---- commands ---- */

/* Nothing that came from a client may break a command: it was checked when it came. */
static void append_path(struct buf *out, struct slice path)
{
	assert_bug(!line_has_controls(path));
	(void)!buf_append_str(out, "<");
	(void)!buf_append_slice(out, path);
	(void)!buf_append_str(out, ">");
}

static uint64_t content_size(const struct attempt *attempt)
{
	return buf_len(&attempt->signatures) + attempt->message.stored.header.len +
	       attempt->message.stored.body_size;
}

static void append_mail(struct session *session, struct buf *out)
{
	const struct attempt *attempt = session->delivery->attempt;

	(void)!buf_append_str(out, "MAIL FROM:");
	append_path(out, attempt->envelope.sender);
	if (session->ehlo.has_size)
		(void)!buf_printf(out, " SIZE=%" PRIu64, content_size(attempt));
	if (session->ehlo.eightbitmime && attempt->envelope.body_8bit)
		(void)!buf_append_str(out, " BODY=8BITMIME");
	if (session->ehlo.smtputf8 && attempt->envelope.smtputf8)
		(void)!buf_append_str(out, " SMTPUTF8");
	(void)!buf_append_str(out, "\r\n");
}

static void append_data(struct session *session, struct buf *out)
{
	(void)!buf_append_str(out, "DATA\r\n");
	session->tx.data_sent = true;
	session->owed++;
}

/* Sends the commands that may leave now. All replies to earlier ones are there. */
static void send_more(struct session *session)
{
	struct transaction *tx = &session->tx;
	struct delivery *delivery = session->delivery;
	bool pipelining = session->ehlo.pipelining;
	uint32_t batch = pipelining ? BATCH : 1;
	struct buf commands;
	char *room;

	/* All of it now, so that no command can be cut short. */
	buf_init(&commands, COMMAND_MAX);
	if (buf_reserve(&commands, COMMAND_MAX, &room) < 0) {
		session_end(session, "out of memory");
		return;
	}
	if (!tx->mail_sent) {
		append_mail(session, &commands);
		session->owed++;
		tx->mail_sent = true;
		batch = pipelining ? BATCH : 0;
	} else if (!pipelining && tx->sent == delivery->count) {
		batch = 0;
		append_data(session, &commands);
	}
	for (; batch > 0 && tx->sent < delivery->count; batch--, tx->sent++) {
		(void)!buf_append_str(&commands, "RCPT TO:");
		append_path(&commands,
		        delivery->attempt->envelope.recipients[delivery->recipients[tx->sent]]);
		(void)!buf_append_str(&commands, "\r\n");
		session->owed++;
	}
	if (pipelining && tx->sent == delivery->count)
		append_data(session, &commands);
	conn_write(session->conn, buf_slice(&commands));
	buf_done(&commands);
	session_enter(session, SESSION_ENVELOPE);
}

/* What the upstream never takes, as it said itself in its reply to EHLO, fails here. */
static bool fits(struct session *session)
{
	struct delivery *delivery = session->delivery;
	const struct ehlo *ehlo = &session->ehlo;

	if (ehlo->size > 0 && content_size(delivery->attempt) > ehlo->size) {
		delivery_set_fate(delivery, FATE_FAILED, "5.3.4", session->host_name,
		        "the message is bigger than the upstream takes");
		return false;
	}
	if (delivery->attempt->envelope.smtputf8 && !ehlo->smtputf8) {
		delivery_set_fate(delivery, FATE_FAILED, "5.6.7", session->host_name,
		        "the upstream cannot take addresses with UTF-8");
		return false;
	}
	return true;
}

void transaction_start(struct session *session, struct delivery *delivery)
{
	uint32_t count = 0;

	session->transactions++;
	session->delivery = delivery;
	session->tx = (struct transaction){.at_line_start = true};
	session->content.body_fd = -1;
	session_enter(session, SESSION_ENVELOPE);
	for (uint32_t i = 0; i < delivery->count; i++)
		if (delivery->attempt->results[delivery->recipients[i]].fate == FATE_OPEN)
			delivery->recipients[count++] = delivery->recipients[i];
	delivery->count = count;
	if (fits(session)) {
		send_more(session);
		return;
	}
	give_back(session);
	session_idle(session);
}

/* ---- content ---- */

/* RFC 5321 4.5.2: a dot at the start of a line gets another one. */
static void write_stuffed(struct session *session, struct slice content)
{
	const char *at = content.ptr, *end = content.ptr + content.len, *line = at;

	if (content.len == 0)
		return;
	if (session->tx.at_line_start && *at == '.')
		conn_write(session->conn, SLICE("."));
	/* Line by line: memmem() for two octets takes ten times as long. */
	while ((line = memchr(line, '\n', (size_t)(end - line))) != NULL && ++line < end) {
		if (*line != '.')
			continue;
		conn_write(session->conn, slice_of(at, (size_t)(line - at)));
		conn_write(session->conn, SLICE("."));
		at = line;
	}
	conn_write(session->conn, slice_of(at, (size_t)(end - at)));
	session->tx.at_line_start = end[-1] == '\n';
}

static void read_piece(struct job *job)
{
	struct session *session = container_of(job, struct session, job);
	struct attempt *attempt = session->delivery->attempt;
	char *room;

	/* A handle of its own: several deliveries may send the same body, and again. */
	ssize_t got = session->content.body_fd < 0
	                      ? spool_message_load(attempt->task->relay->spool,
	                                attempt->task->entry, &session->content)
	                      : 0;
	if (got == 0)
		got = buf_reserve(&session->room, PIECE, &room);
	if (got == 0)
		got = spool_message_read(&session->content, room, PIECE);
	if (got > 0)
		buf_added(&session->room, (size_t)got);
	session->job_result = (int)got;
}

static void have_piece(struct job *job)
{
	struct session *session = container_of(job, struct session, job);

	session->job_runs = false;
	relay_of(session)->busy--;
	if (session_job_orphaned(session))
		return;
	if (session->job_result < 0) {
		if (session->job_result == -EBADMSG)
			LOG(&session->delivery->attempt->log, EV_MESSAGE_DAMAGED, "");
		session_end(session, "the message cannot be read now");
		return;
	}
	if (session->job_result == 0) {
		session->tx.part++;
	} else {
		write_stuffed(session, buf_slice(&session->room));
		buf_clear(&session->room);
	}
	pump(session);
}

static struct slice part_in_memory(const struct attempt *attempt, unsigned part)
{
	switch (part) {
	case 0:
		return buf_slice(&attempt->signatures);
	case 1:
		return attempt->message.stored.header;
	default:
		return buf_slice(&attempt->message.body);
	}
}

/* Writes content until the kernel is behind, a worker reads, or the end has come. */
static void pump(struct session *session)
{
	struct transaction *tx = &session->tx;
	const struct attempt *attempt = session->delivery->attempt;

	/* As long as something leaves it is not late. */
	session_enter(session, SESSION_BODY);
	while (tx->part < 3) {
		if (conn_unsent(session->conn) > UNSENT_MAX || session->job_runs)
			return;
		if (tx->part == 2 && attempt->message.stored.body_in_file) {
			if (session_job(session, relay_of(session)->jobs, read_piece, have_piece) <
			        0)
				session_end(session, "too much to do");
			return;
		}
		struct slice part = part_in_memory(attempt, tx->part);
		struct slice piece = slice_part(part, tx->part_used, PIECE);
		write_stuffed(session, piece);
		tx->part_used += piece.len;
		if (tx->part_used == part.len) {
			tx->part++;
			tx->part_used = 0;
		}
	}
	send_dot(session);
}

void transaction_drained(struct session *session)
{
	if (session->tx.part < 3 && session->tx.accepted > 0)
		pump(session);
}

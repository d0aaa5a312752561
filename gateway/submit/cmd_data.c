/* SPDX-License-Identifier: ISC */
/*
 * DATA, and what BDAT (cmd_bdat.c) shares with it: the charge before 354 or the first chunk, the
 * message, the charge for what it has above its declared size, the commit. 250 leaves only from
 * on_stored(): the message is on stable storage then. Everything else gives the charge back.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "gateway/base/board.h"
#include "gateway/base/clock.h"
#include "gateway/base/pack.h"
#include "gateway/mail/address.h"
#include "gateway/submit/commands.h"

struct transaction_context message_context(struct session *session)
{
	return (struct transaction_context){
	        .loop = session->serving->loop,
	        .spool = session->serving->spool,
	        .shares = session->serving->shares,
	        .account = &session->account->facts,
	        .events = &data_spool_events,
	        .arg = session,
	        .hostname = session->conf->hostname,
	        .session = session->sid,
	        .helo = session->helo,
	        .esmtp = session->esmtp,
	        .logged_in = !session->account->by_network,
	        .tls_version = conn_tls_version(session->conn),
	        .tls_cipher = conn_tls_cipher(session->conn),
	        .size_limit = session_size_limit(session),
	        .normalize = session->listener->bare_newline == CONF_NEWLINE_NORMALIZE,
	};
}

static void log_refusal(struct session *session, enum reply reply)
{
	const struct transaction *transaction = session->transaction;

	if (!session_tells_refusal(session))
		return;
	LOG(&session->log, EV_MESSAGE_REFUSED, "qid=%s reply=%s from=%s rcpts=%u size=%" PRIu64,
	        transaction->id_text, reply_name(reply), LOG_VALUE(transaction->envelope.sender),
	        transaction->envelope.recipient_count, transaction->size);
}

/* One of twice the ceiling is still answered in order. */
bool message_is_endless(const struct session *session, uint64_t size)
{
	return size / 2 > session->conf->submission.message_size;
}

void message_cut_off(struct session *session, enum reply reply, const struct reply_args *args)
{
	session_reply(session, reply, args);
	session_close_with(session, CLOSING_ENDLESS, REPLY_COUNT);
}

void message_refuse(struct session *session, enum reply reply, const struct reply_args *args)
{
	log_refusal(session, reply);
	if (session->chunk.left > 0) {
		chunk_discard(session, reply, args);
		return;
	}
	session_reply(session, reply, args);
	session_reset(session);
	session->refused = true;
	session_continue(session);
}

/* What `auth` answered instead of ADMITTED. */
static void refuse_by_limit(struct session *session, const struct auth_message *answer)
{
	const struct auth_limited *limited = &answer->limited;
	char measure[40], per[40], used[24], amount[24], next[CLOCK_TEXT_SIZE];

	if (answer->type == AUTH_BLOCKED) {
		session_close_with(session, CLOSING_ACCOUNT, REPLY_ACCOUNT_CHANGED);
		return;
	}
	if (answer->type != AUTH_LIMITED) {
		message_refuse(session, REPLY_TRY_LATER, NULL);
		return;
	}
	snprintf(measure, sizeof(measure), "%.*s", SLICE_ARGS(limited->measure));
	snprintf(per, sizeof(per), "%.*s", SLICE_ARGS(limited->per));
	snprintf(used, sizeof(used), "%" PRId64, limited->used);
	snprintf(amount, sizeof(amount), "%" PRId64, limited->amount);
	if (!limited->never || slice_equal(limited->measure, SLICE("messages")))
		message_refuse(session, REPLY_LIMIT_REACHED,
		        REPLY_ARGS(measure, per, used, amount,
		                limited->never ? "no time: nothing is allowed"
		                               : clock_iso(limited->next_s, next)));
	else if (slice_equal(limited->measure, SLICE("bytes")))
		message_refuse(session, REPLY_BYTES_OVER_LIMIT, REPLY_ARGS(per, amount));
	else
		message_refuse(
		        session, REPLY_RECIPIENTS_OVER_LIMIT, REPLY_ARGS(measure, per, amount));
}

static int admit(struct session *session, const struct auth_charge *charge, struct slice recipients,
        auth_answer_fn on_answer)
{
	const struct auth_message request = {
	        .type = AUTH_ADMIT, .charge = *charge, .recipients = recipients};

	session->call = auth_call_new(session->serving->auth, &request, on_answer, session);
	return session->call != NULL ? 0 : -ENOMEM;
}

/* Whether the answer lets the message go on; if not, it has been refused. */
static bool is_admitted(struct session *session, const struct auth_message *answer)
{
	session->call = NULL;
	if (answer->type == AUTH_ADMITTED)
		return true;
	refuse_by_limit(session, answer);
	return false;
}

static void on_admitted(
        void *arg, const struct auth_message *answer, const struct auth_account *account)
{
	struct session *session = arg;

	(void)account;
	if (!is_admitted(session, answer))
		return;
	session->transaction->charged = answer->charge;
	if (session->account_changed) {
		session_close_with(session, CLOSING_ACCOUNT, REPLY_ACCOUNT_CHANGED);
		return;
	}
	if (session->transaction->chunked) {
		chunk_begin(session);
		return;
	}
	if (session_has_input(session)) {
		session_close_with(session, CLOSING_PIPELINING, REPLY_PIPELINING);
		return;
	}
	session_reply(session, REPLY_GO_AHEAD, NULL);
	session_move(session, ST_DATA);
}

enum reply data_check(struct session *session, struct slice args)
{
	(void)session;
	if (args.len == 0)
		return REPLY_COUNT;
	session_reply(session, REPLY_SYNTAX, REPLY_ARGS("DATA"));
	return REPLY_LATER;
}

/* As many as fit: the others count as new. */
static void hash_recipients(const struct envelope *envelope, struct buf *out)
{
	struct pack pack = pack_start(out);

	for (uint32_t i = 0; i < envelope->recipient_count; i++)
		pack_u64(&pack, address_hash(envelope->recipients[i]));
}

enum reply message_begin(struct session *session)
{
	const struct transaction *transaction = session->transaction;
	const struct auth_charge charge = {
	        .account = session->account->facts.id,
	        .messages = 1,
	        .recipients = transaction->envelope.recipient_count,
	        .bytes = transaction->declared_size,
	};
	struct buf hashes;

	session_move(session, ST_ADMIT);
	buf_init(&hashes, (size_t)PROTOCOL_HASHES_MAX * PROTOCOL_HASH_SIZE);
	if (session->account->facts.counts_new_recipients)
		hash_recipients(&transaction->envelope, &hashes);
	int r = admit(session, &charge, buf_slice(&hashes), on_admitted);
	buf_done(&hashes);
	if (r == 0)
		return REPLY_LATER;
	session_reset(session);
	return REPLY_TRY_LATER;
}

enum reply data_act(struct session *session, struct slice args)
{
	(void)args;
	return message_begin(session);
}

static void commit(struct session *session)
{
	const struct transaction_context context = message_context(session);

	if (transaction_commit(session->transaction, &context) < 0)
		message_refuse(session, REPLY_TRY_LATER, NULL);
}

static void on_excess_admitted(
        void *arg, const struct auth_message *answer, const struct auth_account *account)
{
	struct session *session = arg;

	(void)account;
	if (!is_admitted(session, answer))
		return;
	/* Given back together; the slots of the two charges are the same but for a moment. */
	session->transaction->charged.bytes += answer->charge.bytes;
	commit(session);
}

void message_finish(struct session *session)
{
	struct transaction *transaction = session->transaction;
	const struct transaction_context context = message_context(session);
	char room[32];

	if (session->account_blocked) {
		session_close_with(session, CLOSING_ACCOUNT, REPLY_ACCOUNT_CHANGED);
		return;
	}
	session_move(session, ST_COMMIT);
	/* Also the client's end waits: what is being stored is answered, whatever it does. */
	conn_pause(session->conn);
	enum reply refusal = transaction_finish(transaction, &context);
	if (refusal != REPLY_COUNT) {
		message_refuse(session, refusal,
		        REPLY_ARGS(transaction_refusal_text(transaction, &context, room)));
		return;
	}
	if (transaction->size <= transaction->declared_size ||
	        !transaction->charged.bytes_counted) {
		commit(session);
		return;
	}
	const struct auth_charge excess = {
	        .account = context.account->id,
	        .bytes = transaction->size - transaction->declared_size,
	};
	if (admit(session, &excess, SLICE(""), on_excess_admitted) < 0)
		message_refuse(session, REPLY_TRY_LATER, NULL);
}

void message_hold(struct session *session)
{
	if (session_hold(session))
		return;
	transaction_refuse(session->transaction, REPLY_SHARE_FULL);
	/* What was dropped is no longer held: else it would take the account's others with it. */
	(void)!session_hold(session);
}

/* It has been refused long ago, and its end does not come. */
static void end_endless(struct session *session)
{
	const struct transaction_context context = message_context(session);
	char room[32];

	enum reply refusal = transaction_judge(session->transaction, &context);
	log_refusal(session, refusal);
	message_cut_off(session, refusal,
	        REPLY_ARGS(transaction_refusal_text(session->transaction, &context, room)));
}

void data_take(struct session *session)
{
	const struct transaction_context context = message_context(session);
	struct slice input = conn_input(session->conn);
	bool end;

	if (input.len == 0)
		return;
	size_t used = transaction_take(session->transaction, &context, input, &end);
	conn_consume(session->conn, used);
	session_message_took(session, used);
	message_hold(session);
	if (end)
		message_finish(session);
	else if (message_is_endless(session, session->transaction->size))
		end_endless(session);
	else if (session->transaction->must_wait)
		session_message_pause(session);
}

static void on_spool_ready(void *arg)
{
	struct session *session = arg;

	session->transaction->must_wait = false;
	if ((S(DATA) | S(CHUNK) | S(BDAT)) & 1U << session->state)
		session_message_resume(session);
}

static void on_stored(void *arg, int result)
{
	struct session *session = arg;
	struct transaction *transaction = session->transaction;
	const struct envelope *envelope = &transaction->envelope;

	transaction->spool = NULL;
	if (result < 0) {
		transaction->committing = false;
		LOG(&session->log, EV_STORE_FAILED, "qid=%s error=\"%s\"", transaction->id_text,
		        strerrordesc_np(-result));
		message_refuse(session, result == -ENOSPC ? REPLY_NO_ROOM : REPLY_NOT_STORED, NULL);
		return;
	}
	session_reply(session, REPLY_QUEUED, REPLY_ARGS(transaction->id_text));
	LOG(&session->log, EV_MESSAGE_ACCEPTED, "qid=%s from=%s rcpts=%u size=%" PRIu64,
	        transaction->id_text, LOG_VALUE(envelope->sender), envelope->recipient_count,
	        envelope->size);
	counter_add(CT_MESSAGES_ACCEPTED, 1);
	counter_add(CT_BYTES_ACCEPTED, envelope->size);
	session->messages++;
	session_reset(session);
	session_continue(session);
}

static void on_gone(void *owned)
{
	holding_free(owned);
}

const struct spool_tx_events data_spool_events = {
        .on_ready = on_spool_ready,
        .on_done = on_stored,
        .on_gone = on_gone,
};

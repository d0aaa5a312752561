/* SPDX-License-Identifier: ISC */
/*
 * DATA and BDAT: the charge before 354 or the first chunk, the message, the charge for what it has
 * above its declared size, the commit. 250 leaves only from on_stored(): the message is on stable
 * storage then. Everything else gives the charge back.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "gateway/base/board.h"
#include "gateway/base/clock.h"
#include "gateway/base/pack.h"
#include "gateway/mail/address.h"
#include "gateway/submit/commands.h"

static struct transaction_context context_of(struct session *session)
{
	return (struct transaction_context){
	        .loop = session->serving->loop,
	        .spool = session->serving->spool,
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

/* A message of twice the ceiling is still answered in order; who sends more is not heard out. */
static bool is_endless(const struct session *session, uint64_t size)
{
	return size / 2 > session->conf->submission.message_size;
}

/* The octets of the chunk that have not come are thrown away before anything is said. */
static void discard(struct session *session, enum reply reply, const struct reply_args *args)
{
	if (is_endless(session, session->chunk_left)) {
		session_reply(session, reply, args);
		session_close_with(session, CLOSING_BAD_CHUNK, REPLY_COUNT);
		return;
	}
	session_count(session, reply);
	session_reset(session);
	/* A chunk out of order excuses no other. */
	session->refused |= reply != REPLY_BAD_SEQUENCE;
	/* Without memory for the reply the octets pass all the same: they must not be run. */
	if (reply_write(&session->chunk_answer, reply, args) < 0)
		conn_fail(session->conn, "out of memory");
	session_move(session, ST_DISCARD);
	session_continue(session);
}

/* Refuses the message: one reply, the charge given back, back to READY. */
static void refuse(struct session *session, enum reply reply, const struct reply_args *args)
{
	const struct transaction *transaction = session->transaction;

	LOG(&session->log, EV_MESSAGE_REFUSED, "qid=%s reply=%s from=%s rcpts=%u size=%" PRIu64,
	        transaction->id_text, reply_name(reply), LOG_VALUE(transaction->envelope.sender),
	        transaction->envelope.recipient_count, transaction->size);
	if (session->chunk_left > 0) {
		discard(session, reply, args);
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
		refuse(session, REPLY_TRY_LATER, NULL);
		return;
	}
	snprintf(measure, sizeof(measure), "%.*s", SLICE_ARGS(limited->measure));
	snprintf(per, sizeof(per), "%.*s", SLICE_ARGS(limited->per));
	snprintf(used, sizeof(used), "%" PRId64, limited->used);
	snprintf(amount, sizeof(amount), "%" PRId64, limited->amount);
	if (!limited->never || slice_equal(limited->measure, SLICE("messages")))
		refuse(session, REPLY_LIMIT_REACHED,
		        REPLY_ARGS(measure, per, used, amount,
		                limited->never ? "no time: nothing is allowed"
		                               : clock_iso(limited->next_s, next)));
	else if (slice_equal(limited->measure, SLICE("bytes")))
		refuse(session, REPLY_BYTES_OVER_LIMIT, REPLY_ARGS(per, amount));
	else
		refuse(session, REPLY_RECIPIENTS_OVER_LIMIT, REPLY_ARGS(measure, per, amount));
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

static void begin_chunk(struct session *session);

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
		begin_chunk(session);
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

/* Asks for the charge, before any of the message is taken. */
static enum reply begin(struct session *session)
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
	return begin(session);
}

static void commit(struct session *session)
{
	const struct transaction_context context = context_of(session);

	if (transaction_commit(session->transaction, &context) < 0)
		refuse(session, REPLY_TRY_LATER, NULL);
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

/* The final dot has come, or the last chunk. */
static void finish(struct session *session)
{
	struct transaction *transaction = session->transaction;
	const struct transaction_context context = context_of(session);
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
		refuse(session, refusal,
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
		refuse(session, REPLY_TRY_LATER, NULL);
}

void data_take(struct session *session)
{
	const struct transaction_context context = context_of(session);
	struct slice input = conn_input(session->conn);
	bool end;

	if (input.len == 0)
		return;
	size_t used = transaction_take(session->transaction, &context, input, &end);
	conn_consume(session->conn, used);
	session_message_took(session, used);
	if (end)
		finish(session);
	else if (session->transaction->must_wait)
		session_message_pause(session);
}

/* ---- BDAT: RFC 3030 ---- */

/* "size [LAST]": 0 or -EINVAL. */
static int parse_chunk(struct slice args, uint64_t *ret_size, bool *ret_last)
{
	struct slice size = slice_until(&args, ' ');
	int r = size.len <= 20 ? slice_to_u64(size, ret_size) : -EINVAL;

	args = slice_trim(args);
	*ret_last = args.len > 0;
	if (r == -ERANGE)
		*ret_size = UINT64_MAX;
	else if (r < 0)
		return -EINVAL;
	return args.len == 0 || slice_equal_nocase(args, SLICE("LAST")) ? 0 : -EINVAL;
}

/* What the line announces; false: its end cannot be known, and the session is gone. */
static bool announce(struct session *session, struct slice args)
{
	if (parse_chunk(args, &session->chunk_size, &session->chunk_last) < 0) {
		session_close_with(session, CLOSING_BAD_CHUNK, REPLY_BAD_CHUNK);
		return false;
	}
	session->chunk_left = session->chunk_size;
	return true;
}

void bdat_refuse(struct session *session, struct slice args, enum reply reply,
        const struct reply_args *reply_args)
{
	if (announce(session, args))
		discard(session, reply, reply_args);
}

enum reply bdat_act(struct session *session, struct slice args)
{
	uint64_t limit = session_size_limit(session);
	char text[24];

	if (!announce(session, args))
		return REPLY_LATER;
	if (session->chunk_size > limit ||
	        session->transaction->size > limit - session->chunk_size) {
		snprintf(text, sizeof(text), "%" PRIu64, limit);
		refuse(session, REPLY_TOO_BIG, REPLY_ARGS(text));
		return REPLY_LATER;
	}
	if (session->state == ST_RCPT) {
		session->transaction->chunked = true;
		dot_init(&session->transaction->dot, true);
		return begin(session);
	}
	begin_chunk(session);
	return REPLY_LATER;
}

static void end_chunk(struct session *session)
{
	const struct transaction_context context = context_of(session);
	char text[32];

	if (session->chunk_last) {
		finish(session);
		return;
	}
	enum reply refusal = transaction_judge(session->transaction, &context);
	if (refusal != REPLY_COUNT) {
		refuse(session, refusal,
		        REPLY_ARGS(transaction_refusal_text(session->transaction, &context, text)));
		return;
	}
	snprintf(text, sizeof(text), "%" PRIu64, session->chunk_size);
	session_reply(session, REPLY_CHUNK_OK, REPLY_ARGS(text));
	session_move(session, ST_BDAT);
	session_continue(session);
}

static void begin_chunk(struct session *session)
{
	session_move(session, ST_CHUNK);
	if (session->chunk_left == 0)
		end_chunk(session);
	else
		session_continue(session);
}

/* Its octets have come: the refusal of it. */
static void end_discard(struct session *session)
{
	conn_write(session->conn, buf_slice(&session->chunk_answer));
	buf_done(&session->chunk_answer);
	session_move(session, session->helo.len > 0 ? ST_READY : ST_START);
	session_continue(session);
}

bool chunk_take(struct session *session)
{
	struct slice input = conn_input(session->conn);

	input.len = MIN_OF(input.len, session->chunk_left);
	if (session->state == ST_CHUNK) {
		const struct transaction_context context = context_of(session);
		transaction_take_chunk(session->transaction, &context, input);
	}
	session->chunk_left -= input.len;
	conn_consume(session->conn, input.len);
	if (input.len > 0)
		session_message_took(session, input.len);
	if (session->chunk_left == 0) {
		if (session->state == ST_CHUNK)
			end_chunk(session);
		else
			end_discard(session);
		return true;
	}
	if (session->state == ST_CHUNK && session->transaction->must_wait)
		session_message_pause(session);
	return false;
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
		refuse(session, result == -ENOSPC ? REPLY_NO_ROOM : REPLY_NOT_STORED, NULL);
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

const struct spool_tx_events data_spool_events = {
        .on_ready = on_spool_ready,
        .on_done = on_stored,
};

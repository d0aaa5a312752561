/* SPDX-License-Identifier: ISC */
/*
 * BDAT (RFC 3030): so many octets of the message as the line says, and the next line behind them,
 * whatever is thought of the chunk. One that is refused is thrown away (DISCARD) before its reply
 * leaves. The charge, the end and the commit of the message are those of DATA (cmd_data.c).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "gateway/submit/commands.h"

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

void chunk_reset(struct chunk *chunk)
{
	buf_done(&chunk->answer);
	chunk->left = chunk->size = 0;
	chunk->last = false;
}

/* What the line announces; false: its end cannot be known, and the session is gone. */
static bool announce(struct session *session, struct slice args)
{
	if (parse_chunk(args, &session->chunk.size, &session->chunk.last) < 0) {
		session_close_with(session, CLOSING_BAD_CHUNK, REPLY_BAD_CHUNK);
		return false;
	}
	session->chunk.left = session->chunk.size;
	return true;
}

void chunk_discard(struct session *session, enum reply reply, const struct reply_args *args)
{
	if (message_is_endless(session, session->chunk.left)) {
		message_cut_off(session, reply, args);
		return;
	}
	session_count(session, reply);
	session_reset(session);
	/* A chunk out of order excuses no other. */
	session->refused |= reply != REPLY_BAD_SEQUENCE;
	/* Without memory for the reply the octets pass all the same: they must not be run. */
	if (reply_write(&session->chunk.answer, reply, args) < 0)
		conn_fail(session->conn, "out of memory");
	session_move(session, ST_DISCARD);
	session_continue(session);
}

void bdat_refuse(struct session *session, struct slice args, enum reply reply,
        const struct reply_args *reply_args)
{
	if (announce(session, args))
		chunk_discard(session, reply, reply_args);
}

static void end_chunk(struct session *session)
{
	const struct transaction_context context = message_context(session);
	char text[32];

	if (session->chunk.last) {
		message_finish(session);
		return;
	}
	enum reply refusal = transaction_judge(session->transaction, &context);
	if (refusal != REPLY_COUNT) {
		message_refuse(session, refusal,
		        REPLY_ARGS(transaction_refusal_text(session->transaction, &context, text)));
		return;
	}
	snprintf(text, sizeof(text), "%" PRIu64, session->chunk.size);
	session_reply(session, REPLY_CHUNK_OK, REPLY_ARGS(text));
	session_move(session, ST_BDAT);
	session_continue(session);
}

void chunk_begin(struct session *session)
{
	session_move(session, ST_CHUNK);
	if (session->chunk.left == 0)
		end_chunk(session);
	else
		session_continue(session);
}

enum reply bdat_act(struct session *session, struct slice args)
{
	uint64_t limit = session_size_limit(session);
	char text[24];

	if (!announce(session, args))
		return REPLY_LATER;
	if (session->chunk.size > limit ||
	        session->transaction->size > limit - session->chunk.size) {
		snprintf(text, sizeof(text), "%" PRIu64, limit);
		message_refuse(session, REPLY_TOO_BIG, REPLY_ARGS(text));
		return REPLY_LATER;
	}
	if (session->state == ST_RCPT) {
		session->transaction->chunked = true;
		dot_init(&session->transaction->dot, true);
		return message_begin(session);
	}
	chunk_begin(session);
	return REPLY_LATER;
}

/* Its octets have come: the refusal of it. */
static void end_discard(struct session *session)
{
	conn_write(session->conn, buf_slice(&session->chunk.answer));
	chunk_reset(&session->chunk);
	session_move(session, session->helo.len > 0 ? ST_READY : ST_START);
	session_continue(session);
}

bool chunk_take(struct session *session)
{
	struct slice input = conn_input(session->conn);

	input.len = MIN_OF(input.len, session->chunk.left);
	if (session->state == ST_CHUNK) {
		const struct transaction_context context = message_context(session);
		transaction_take_chunk(session->transaction, &context, input);
		message_hold(session);
	}
	session->chunk.left -= input.len;
	conn_consume(session->conn, input.len);
	if (input.len > 0)
		session_message_took(session, input.len);
	if (session->chunk.left == 0) {
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

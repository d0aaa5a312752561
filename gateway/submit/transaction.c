/* SPDX-License-Identifier: ISC */
/*
 * From DATA to the journal: dots removed, header captured and judged at its end,
 * then the body goes through the DKIM body hash into the spool as it comes. After a
 * refusal the rest is read to the real end and thrown away.
 */
#include "gateway/submit/transaction.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/mail/sender_right.h"

#define ENVELOPE_TEXTS_MAX (32U << 20)
/* Octets of an envelope, and those of them for recipients, each with its length in front. */
#define ENVELOPE_MAX    (RECORD_ENVELOPE_MAX / 2)
#define RECIPIENTS_MAX  (ENVELOPE_MAX - (64U << 10))
#define HEADER_ROOM     (HEADER_MAX + CONN_INPUT_ROOM)
#define CONN_INPUT_ROOM 16384

int transaction_new(struct shares *shares, uint64_t account, struct transaction **ret_transaction)
{
	struct transaction *transaction = calloc(1, sizeof(*transaction));

	if (transaction == NULL)
		return -ENOMEM;
	transaction->held = holding_new(shares, account);
	if (transaction->held == NULL) {
		free(transaction);
		return -ENOMEM;
	}
	arena_init(&transaction->arena, ENVELOPE_TEXTS_MAX);
	buf_init(&transaction->header, HEADER_ROOM);
	dot_init(&transaction->dot, false);
	newline_init(&transaction->newline);
	transaction->refusal = REPLY_COUNT;
	transaction->id = id_new();
	id_format(&transaction->id, transaction->id_text);
	*ret_transaction = transaction;
	return 0;
}

void transaction_free(struct transaction *transaction)
{
	uint8_t unused[DKIM_HASH_SIZE];

	if (transaction == NULL)
		return;
	spool_tx_abort(transaction->spool);
	if (transaction->hashing)
		dkim_body_done(&transaction->body_hash, unused);
	buf_done(&transaction->header);
	free(transaction->envelope.recipients);
	arena_reset(&transaction->arena);
	holding_free(transaction->held);
	free(transaction);
}

int transaction_add_recipient(struct transaction *transaction, struct slice path)
{
	struct envelope *envelope = &transaction->envelope;
	uint32_t octets = 4 + (uint32_t)path.len;

	if (octets > RECIPIENTS_MAX - transaction->recipient_octets)
		return -E2BIG;
	if (envelope->recipient_count == transaction->recipient_room) {
		uint32_t room =
		        transaction->recipient_room == 0 ? 4 : transaction->recipient_room * 2;
		struct slice *more =
		        realloc(envelope->recipients, room * sizeof(*envelope->recipients));
		if (more == NULL)
			return -ENOMEM;
		envelope->recipients = more;
		transaction->recipient_room = room;
	}
	struct slice kept = arena_slice(&transaction->arena, path);
	if (kept.ptr == NULL)
		return -ENOMEM;
	envelope->recipients[envelope->recipient_count++] = kept;
	transaction->recipient_octets += octets;
	return 0;
}

static void refuse(struct transaction *transaction, enum reply reply)
{
	/* The first reason is the one to tell. */
	if (transaction->refusal == REPLY_COUNT)
		transaction->refusal = reply;
}

bool account_may_send_as(const struct auth_account *account, const struct mailbox *mailbox)
{
	for (uint32_t i = 0; i < account->sender_count; i++) {
		if (sender_right_covers(account->senders[i], mailbox))
			return true;
	}
	return false;
}

struct rights {
	const struct auth_account *account;
	bool all_owned;
};

static void check_right(void *arg, const struct mailbox *mailbox)
{
	struct rights *rights = arg;

	rights->all_owned = rights->all_owned && account_may_send_as(rights->account, mailbox);
}

static enum reply reply_for_header(enum header_fault fault)
{
	switch (fault) {
	case HEADER_FINE:
		return REPLY_COUNT;
	case HEADER_TOO_BIG:
		return REPLY_HEADER_TOO_BIG;
	case HEADER_UTF8_ADDRESS:
		return REPLY_UTF8_ADDRESS;
	case HEADER_LOOP:
		return REPLY_LOOP;
	case HEADER_MALFORMED:
	case HEADER_FROM_BAD:
	case HEADER_SENDER_BAD:
	case HEADER_REPEATED:
		break;
	}
	return REPLY_BAD_HEADER;
}

struct search {
	struct slice address;
	bool found;
};

/* As rights are compared: ASCII case does not matter. */
static void compare(void *arg, const struct mailbox *mailbox)
{
	struct search *search = arg;

	search->found = search->found || slice_equal_nocase(mailbox->text, search->address);
}

/*
 * Who really sent it (RFC 6409 8.1), where the plan wants that told and From does not: the
 * login, if that is an address of its own. Empty: no field is added.
 */
static struct slice sender_to_add(
        const struct auth_account *account, bool smtputf8, const struct header_facts *facts)
{
	struct search search = {.address = account->login};
	struct mailbox login;

	if (!account->add_sender || facts->has_sender ||
	        mailbox_parse(account->login, &login) < 0 || (login.is_utf8 && !smtputf8) ||
	        !account_may_send_as(account, &login))
		return SLICE("");
	return address_list_parse(facts->from, compare, &search) > 0 && search.found
	               ? SLICE("")
	               : account->login;
}

/* Writes the final header block over the captured one. */
static int fix_header(struct transaction *transaction, const struct transaction_context *context,
        struct slice block, const struct header_facts *facts)
{
	char date[CLOCK_TEXT_SIZE], message_id[ID_TEXT + 300];
	int64_t now = clock_wall_s();
	struct buf received, fixed;
	const struct trace trace = {
	        .helo = context->helo,
	        .hostname = context->hostname,
	        .id = transaction->id_text,
	        .tls_version = context->tls_version,
	        .tls_cipher = context->tls_cipher,
	        .esmtp = context->esmtp,
	        .logged_in = context->logged_in,
	        .smtputf8 = transaction->envelope.smtputf8,
	        .wall_s = now,
	};

	buf_init(&received, 4096);
	buf_init(&fixed, HEADER_MAX + 8192);
	snprintf(
	        message_id, sizeof(message_id), "<%s@%s>", transaction->id_text, context->hostname);
	int r = trace_write(&trace, &received);
	const struct header_additions additions = {
	        .received = buf_slice(&received),
	        .date = facts->has_date ? NULL : clock_rfc5322(now, date),
	        .message_id = facts->has_message_id ? NULL : message_id,
	        .sender = sender_to_add(context->account, transaction->envelope.smtputf8, facts),
	};
	if (r == 0)
		r = header_fix(block, &additions, &fixed);
	buf_done(&received);
	if (r < 0) {
		buf_done(&fixed);
		return r;
	}
	buf_done(&transaction->header);
	transaction->header = fixed;
	return 0;
}

/* The header is complete: `block` is its fields. Judges it and opens the spool. */
static void finish_header(struct transaction *transaction,
        const struct transaction_context *context, struct slice block)
{
	struct rights rights = {.account = context->account, .all_owned = true};
	struct envelope *envelope = &transaction->envelope;
	struct header_facts facts;

	transaction->header_done = true;
	enum header_fault fault =
	        header_check(block, envelope->smtputf8, check_right, &rights, &facts);
	if (fault != HEADER_FINE) {
		transaction->refusal_text = header_fault_text(fault);
		refuse(transaction, reply_for_header(fault));
		return;
	}
	if (!rights.all_owned) {
		refuse(transaction, REPLY_FROM_NOT_YOURS);
		return;
	}
	envelope->from_domain = arena_slice(&transaction->arena, facts.from_domain);
	int r = envelope->from_domain.ptr == NULL ? -ENOMEM
	                                          : fix_header(transaction, context, block, &facts);
	if (r == 0)
		r = dkim_body_init(&transaction->body_hash);
	transaction->hashing = r == 0;
	uint64_t size =
	        transaction->declared_size != 0 ? transaction->declared_size : context->size_limit;
	if (r == 0) {
		transaction->body_held = holding_new(context->shares, context->account->id);
		r = transaction->body_held != NULL ? 0 : -ENOMEM;
	}
	if (r == 0 && (r = spool_tx_new(context->spool, context->loop, transaction->id, size,
	                       context->events, context->arg, transaction->body_held,
	                       &transaction->spool)) < 0)
		holding_free(transaction->body_held);
	if (r < 0)
		refuse(transaction, REPLY_TRY_LATER);
}

static void take_body(struct transaction *transaction, struct slice octets)
{
	if (octets.len == 0 || transaction->spool == NULL)
		return;
	dkim_body_update(&transaction->body_hash, octets);
	transaction->body_size += octets.len;
	if (spool_tx_write(transaction->spool, octets) == SPOOL_WAIT)
		transaction->must_wait = true;
}

/* Where the header ends in what was captured: the offset of the body, 0 if not yet. */
static size_t find_body(struct slice captured, size_t searched)
{
	if (slice_starts_with(captured, SLICE("\r\n")))
		return 2;
	size_t from = searched > 3 ? searched - 3 : 0;
	const char *end = captured.len - from < 4
	                          ? NULL
	                          : memmem(captured.ptr + from, captured.len - from, "\r\n\r\n", 4);
	return end != NULL ? (size_t)(end - captured.ptr) + 4 : 0;
}

static void take_header(struct transaction *transaction, const struct transaction_context *context,
        struct slice octets)
{
	size_t searched = buf_len(&transaction->header);
	struct slice all;

	int r = buf_append_slice(&transaction->header, octets);
	if (r < 0) {
		refuse(transaction, r == -ENOBUFS ? REPLY_HEADER_TOO_BIG : REPLY_TRY_LATER);
		return;
	}
	all = buf_slice(&transaction->header);
	size_t body = find_body(all, searched);
	if (body == 0 && all.len > HEADER_MAX)
		refuse(transaction, REPLY_HEADER_TOO_BIG);
	if (body == 0 || transaction->refusal != REPLY_COUNT)
		return;
	/* What follows it in these octets is body; finish_header() replaces the buffer. */
	struct slice rest = slice_part(octets, octets.len - (all.len - body), octets.len);
	finish_header(transaction, context, slice_of(all.ptr, body - 2));
	if (transaction->refusal == REPLY_COUNT)
		take_body(transaction, rest);
}

struct taking {
	struct transaction *transaction;
	const struct transaction_context *context;
};

static void take_content(void *arg, struct slice octets)
{
	struct taking *taking = arg;
	struct transaction *transaction = taking->transaction;

	transaction->size += octets.len;
	if (transaction->size > taking->context->size_limit)
		refuse(transaction, REPLY_TOO_BIG);
	if (transaction->refusal != REPLY_COUNT)
		return;
	if (transaction->header_done)
		take_body(transaction, octets);
	else
		take_header(transaction, taking->context, octets);
}

/* What the dot decoder has found, where line ends may be bare. */
static void take_bare(void *arg, struct slice octets)
{
	struct taking *taking = arg;

	newline_take(&taking->transaction->newline, octets, take_content, taking);
}

/* What is refused needs neither memory nor the spool. */
static void drop_if_refused(struct transaction *transaction)
{
	if (transaction->refusal == REPLY_COUNT)
		return;
	buf_done(&transaction->header);
	spool_tx_abort(TAKE(transaction->spool));
	transaction->must_wait = false;
}

void transaction_refuse(struct transaction *transaction, enum reply reply)
{
	refuse(transaction, reply);
	drop_if_refused(transaction);
}

/* Octets of the body that are in memory, at most. */
static uint64_t body_memory(const struct transaction *transaction)
{
	return MIN_OF(transaction->body_size, (uint64_t)SPOOL_TX_MEMORY_MAX);
}

enum holding_answer transaction_hold(struct transaction *transaction, struct disk_room disk)
{
	const struct held own = {
	        .memory = transaction->recipient_octets +
	                  transaction->recipient_room * sizeof(struct slice) +
	                  buf_len(&transaction->header),
	};

	enum holding_answer answer = holding_set(transaction->held, own, disk);
	if (transaction->spool == NULL)
		return answer;
	/* That of the last one counts: it knows both. */
	const struct held body = {
	        .memory = body_memory(transaction),
	        .disk = spool_tx_disk(transaction->spool),
	};
	return holding_set(transaction->body_held, body, disk);
}

size_t transaction_take(struct transaction *transaction, const struct transaction_context *context,
        struct slice input, bool *ret_end)
{
	struct taking taking = {transaction, context};

	size_t used = dot_decode(&transaction->dot, input,
	        context->normalize ? take_bare : take_content, &taking, ret_end);
	drop_if_refused(transaction);
	return used;
}

void transaction_take_chunk(struct transaction *transaction,
        const struct transaction_context *context, struct slice input)
{
	struct taking taking = {transaction, context};
	bool unused;

	if (context->normalize)
		newline_take(&transaction->newline, input, take_content, &taking);
	else
		dot_decode(&transaction->dot, input, take_content, &taking, &unused);
	drop_if_refused(transaction);
}

enum reply transaction_judge(
        struct transaction *transaction, const struct transaction_context *context)
{
	unsigned faults =
	        context->normalize ? transaction->newline.faults : transaction->dot.faults;

	/* What is wrong with the octets goes before what they seem to say. */
	if ((faults & (DOT_BARE_CR | DOT_BARE_LF | DOT_NUL)) != 0)
		transaction->refusal = REPLY_BARE_LINE_END;
	else if ((faults & DOT_LONG_LINE) != 0)
		refuse(transaction, REPLY_TEXT_LINE_TOO_LONG);
	return transaction->refusal;
}

enum reply transaction_finish(
        struct transaction *transaction, const struct transaction_context *context)
{
	struct taking taking = {transaction, context};

	if (transaction->chunked && context->normalize)
		newline_finish(&transaction->newline, take_content, &taking);
	else if (transaction->chunked)
		dot_finish(&transaction->dot, take_content, &taking);
	/* A message without an empty line is all header. */
	if (!transaction->header_done && transaction->refusal == REPLY_COUNT)
		finish_header(transaction, context, buf_slice(&transaction->header));
	return transaction_judge(transaction, context);
}

int transaction_commit(struct transaction *transaction, const struct transaction_context *context)
{
	struct envelope *envelope = &transaction->envelope;
	struct buf octets;

	envelope->account = context->account->id;
	envelope->login = context->account->login;
	envelope->route = context->account->route;
	envelope->sign_required = context->account->sign_required;
	envelope->session = slice_str(context->session);
	envelope->size = transaction->size;
	dkim_body_done(&transaction->body_hash, envelope->body_hash);
	transaction->hashing = false;
	buf_init(&octets, ENVELOPE_MAX);
	int r = envelope_encode(envelope, &octets);
	if (r == 0) {
		const struct spool_commit commit = {
		        .account = envelope->account,
		        .accepted_us = clock_wall_us(),
		        .recipients = envelope->recipient_count,
		        .envelope = buf_slice(&octets),
		        .header = buf_slice(&transaction->header),
		};
		/* The spool has copies of these, however long that takes and whoever waits for it.
		 */
		const struct held body = {
		        .memory = body_memory(transaction) + buf_len(&octets) +
		                  buf_len(&transaction->header),
		        .disk = spool_tx_disk(transaction->spool),
		};
		(void)!holding_set(transaction->body_held, body, (struct disk_room){0});
		transaction->committing = true;
		spool_tx_commit(transaction->spool, &commit);
	}
	buf_done(&octets);
	return r;
}

const char *transaction_refusal_text(const struct transaction *transaction,
        const struct transaction_context *context, char room[32])
{
	if (transaction->refusal == REPLY_TOO_BIG) {
		snprintf(room, 32, "%" PRIu64, context->size_limit);
		return room;
	}
	return transaction->refusal_text != NULL ? transaction->refusal_text : "";
}

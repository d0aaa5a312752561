/* SPDX-License-Identifier: ISC */
/* MAIL and RCPT: who sends to whom, and whether the account may. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "gateway/mail/param.h"
#include "gateway/mail/path.h"
#include "gateway/submit/commands.h"

struct mail_args {
	struct mailbox sender;
	uint64_t size;
	bool body_8bit, smtputf8;
};

static enum reply say(struct session *session, enum reply reply, const char *text)
{
	session_reply(session, reply, REPLY_ARGS(text));
	return REPLY_LATER;
}

/* The ceiling, or what the plan sets below it. */
static uint64_t recipient_limit(const struct session *session)
{
	uint64_t limit = session->conf->submission.recipients;
	uint64_t plan = session->account->facts.recipients;

	return plan != 0 && plan < limit ? plan : limit;
}

static enum reply unknown_parameter(struct session *session, struct slice key)
{
	char name[48];

	snprintf(name, sizeof(name), "%.*s", (int)MIN_OF(key.len, sizeof(name) - 1), key.ptr);
	return say(session, REPLY_UNKNOWN_PARAMETER, name);
}

static enum reply take_size(struct session *session, struct slice value, struct mail_args *args)
{
	int r = value.len <= 20 ? slice_to_u64(value, &args->size) : -EINVAL;

	if (r == -EINVAL)
		return say(session, REPLY_SYNTAX, "SIZE=octets");
	if (r == -ERANGE)
		args->size = UINT64_MAX;
	return REPLY_COUNT;
}

static enum reply take_body(struct session *session, struct slice value, struct mail_args *args)
{
	args->body_8bit = slice_equal_nocase(value, SLICE("8BITMIME"));
	return args->body_8bit || slice_equal_nocase(value, SLICE("7BIT"))
	               ? REPLY_COUNT
	               : say(session, REPLY_SYNTAX, "BODY=7BIT or BODY=8BITMIME");
}

static enum reply take_smtputf8(struct session *session, struct slice value, struct mail_args *args)
{
	args->smtputf8 = true;
	return value.ptr == NULL ? REPLY_COUNT : say(session, REPLY_SYNTAX, "SMTPUTF8");
}

/* RFC 4954 5: looked at and never passed on; we know who it is. */
static enum reply take_auth(struct session *session, struct slice value, struct mail_args *args)
{
	(void)args;
	return value.ptr != NULL && xtext_is_valid(value)
	               ? REPLY_COUNT
	               : say(session, REPLY_SYNTAX, "AUTH=<> or AUTH=xtext");
}

static const struct {
	const char *key;
	enum reply (*take)(struct session *session, struct slice value, struct mail_args *args);
} mail_parameters[] = {
        {"SIZE", take_size},
        {"BODY", take_body},
        {"SMTPUTF8", take_smtputf8},
        {"AUTH", take_auth},
};

/* One parameter of MAIL; `seen` has a bit for each that came before. */
static enum reply take_parameter(
        struct session *session, const struct param *param, struct mail_args *args, unsigned *seen)
{
	for (unsigned i = 0; i < ARRAY_LEN(mail_parameters); i++) {
		if (!slice_equal_nocase(param->key, slice_str(mail_parameters[i].key)))
			continue;
		if ((*seen & 1U << i) != 0)
			return say(session, REPLY_SYNTAX, "each parameter once");
		*seen |= 1U << i;
		return mail_parameters[i].take(session, param->value, args);
	}
	return unknown_parameter(session, param->key);
}

static enum reply parse_mail(struct session *session, struct slice text, struct mail_args *args)
{
	struct param param;
	unsigned seen = 0;
	enum reply reply;
	int r;

	*args = (struct mail_args){0};
	if (!slice_starts_with_nocase(text, SLICE("FROM:")))
		return say(session, REPLY_SYNTAX, "MAIL FROM:<address>");
	text = slice_trim(slice_part(text, 5, text.len));
	if (path_parse(&text, &args->sender) < 0)
		return REPLY_BAD_ADDRESS;
	while ((r = param_next(&text, &param)) == 1) {
		reply = take_parameter(session, &param, args, &seen);
		if (reply != REPLY_COUNT)
			return reply;
	}
	return r == 0 ? REPLY_COUNT : say(session, REPLY_SYNTAX, "MAIL FROM:<address> KEY=value");
}

static bool may_send_as(const struct session *session, const struct mailbox *sender)
{
	/* The null sender: notifications, counted to the account like all else. */
	return sender->text.len == 0 || account_may_send_as(&session->account->facts, sender);
}

/* Whether the spool has room for one more, of any size. */
static enum reply check_room(struct session *session)
{
	int r = spool_in_has_room(session->serving->spool, session->conf->submission.message_size);

	if (r == 0)
		return REPLY_COUNT;
	enum reply reply = r == -ENOSPC ? REPLY_NO_ROOM : REPLY_NOT_STORED;
	if (session_tells_refusal(session))
		LOG(&session->log, EV_MESSAGE_REFUSED, "reply=%s", reply_name(reply));
	return reply;
}

enum reply mail_check(struct session *session, struct slice text)
{
	struct mail_args args;
	char limit[24];

	enum reply reply = parse_mail(session, text, &args);

	if (reply != REPLY_COUNT)
		return reply;
	if (args.sender.is_utf8 && !args.smtputf8)
		return REPLY_UTF8_ADDRESS;
	if (!may_send_as(session, &args.sender)) {
		if (session_tells_refusal(session))
			LOG(&session->log, EV_MESSAGE_REFUSED, "reply=%s from=%s",
			        reply_name(REPLY_SENDER_NOT_YOURS), LOG_VALUE(args.sender.text));
		return REPLY_SENDER_NOT_YOURS;
	}
	if (args.size > session_size_limit(session)) {
		snprintf(limit, sizeof(limit), "%" PRIu64, session_size_limit(session));
		return say(session, REPLY_TOO_BIG, limit);
	}
	return check_room(session);
}

enum reply mail_act(struct session *session, struct slice text)
{
	struct mail_args args;
	struct transaction *transaction;
	enum reply reply = parse_mail(session, text, &args);

	assert_bug(reply == REPLY_COUNT);
	if (transaction_new(session->serving->shares, session->account->facts.id, &transaction) < 0)
		return REPLY_TRY_LATER;
	transaction->envelope.sender = arena_slice(&transaction->arena, args.sender.text);
	transaction->envelope.body_8bit = args.body_8bit;
	transaction->envelope.smtputf8 = args.smtputf8;
	transaction->declared_size = args.size;
	if (transaction->envelope.sender.ptr == NULL) {
		transaction_free(transaction);
		return REPLY_TRY_LATER;
	}
	session->transaction = transaction;
	session_move(session, ST_MAIL);
	return REPLY_SENDER_OK;
}

static enum reply parse_rcpt(
        struct session *session, struct slice text, struct mailbox *ret_recipient)
{
	struct param param;

	if (!slice_starts_with_nocase(text, SLICE("TO:")))
		return say(session, REPLY_SYNTAX, "RCPT TO:<address>");
	text = slice_trim(slice_part(text, 3, text.len));
	if (path_parse(&text, ret_recipient) < 0 || ret_recipient->text.len == 0)
		return REPLY_BAD_RECIPIENT;
	int r = param_next(&text, &param);
	if (r < 0)
		return say(session, REPLY_SYNTAX, "RCPT TO:<address>");
	return r == 0 ? REPLY_COUNT : unknown_parameter(session, param.key);
}

static enum reply too_many(struct session *session, uint64_t limit)
{
	char text[24];

	snprintf(text, sizeof(text), "%" PRIu64, limit);
	return say(session, REPLY_TOO_MANY_RECIPIENTS, text);
}

enum reply rcpt_check(struct session *session, struct slice text)
{
	struct mailbox recipient;
	enum reply reply = parse_rcpt(session, text, &recipient);

	if (reply != REPLY_COUNT)
		return reply;
	if (recipient.is_utf8 && !session->transaction->envelope.smtputf8)
		return REPLY_UTF8_ADDRESS;
	if (session->transaction->envelope.recipient_count >= recipient_limit(session))
		return too_many(session, recipient_limit(session));
	return REPLY_COUNT;
}

enum reply rcpt_act(struct session *session, struct slice text)
{
	struct mailbox recipient;
	enum reply reply = parse_rcpt(session, text, &recipient);

	assert_bug(reply == REPLY_COUNT);
	if (!session_hold(session))
		return REPLY_SHARE_FULL;
	int r = transaction_add_recipient(session->transaction, recipient.text);
	if (r == -E2BIG)
		return too_many(session, session->transaction->envelope.recipient_count);
	if (r < 0)
		return REPLY_TRY_LATER;
	session_move(session, ST_RCPT);
	return REPLY_RECIPIENT_OK;
}

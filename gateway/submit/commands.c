/* SPDX-License-Identifier: ISC */
/* The command table and its dispatcher; see commands.h. */
#include "gateway/submit/commands.h"

#define ANY_COMMAND (S(START) | S(READY) | S(MAIL) | S(RCPT) | S(BDAT))

const struct command command_table[] = {
        /* verb       check           act           states                        flags */
        {"EHLO", helo_check, ehlo_act, ANY_COMMAND, NOTHING_BEHIND},
        {"HELO", helo_check, helo_act, ANY_COMMAND, NOTHING_BEHIND},
        {"STARTTLS", starttls_check, starttls_act, S(START) | S(READY), NOTHING_BEHIND},
        {"AUTH", auth_check, auth_act, S(READY), NOTHING_BEHIND},
        {"MAIL", mail_check, mail_act, S(READY), NEED_AUTH | BEGINS},
        {"RCPT", rcpt_check, rcpt_act, S(MAIL) | S(RCPT), NEED_AUTH | NEEDS_ENVELOPE},
        {"DATA", data_check, data_act, S(RCPT), NEED_AUTH | NOTHING_BEHIND | NEEDS_ENVELOPE},
        {"BDAT", no_check, bdat_act, S(RCPT) | S(BDAT), NEED_AUTH | NEEDS_ENVELOPE},
        {"RSET", no_args, rset_act, ANY_COMMAND, 0},
        {"NOOP", no_check, noop_act, ANY_COMMAND, 0},
        {"VRFY", no_check, vrfy_act, ANY_COMMAND, NEED_AUTH},
        {"HELP", no_check, help_act, ANY_COMMAND, 0},
        {"QUIT", no_args, quit_act, ANY_COMMAND, 0},
};
const size_t command_count = ARRAY_LEN(command_table);

static const struct command *find(struct slice verb)
{
	for (size_t i = 0; i < command_count; i++) {
		if (slice_equal_nocase(verb, slice_str(command_table[i].verb)))
			return &command_table[i];
	}
	return NULL;
}

/* Browsers and scanners: no point in going on with them. */
static bool is_http(struct slice verb)
{
	static const char *const verbs[] = {
	        "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE", "PATCH", "TRACE"};

	for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
		if (slice_equal(verb, slice_str(verbs[i])))
			return true;
	}
	return false;
}

/* What a client that is out of step should do. */
static const char *hint(const struct session *session, const struct command *command)
{
	if (session->state == ST_START)
		return "EHLO first";
	if (session->state == ST_BDAT)
		return "BDAT or RSET";
	if (command->act == rcpt_act)
		return "MAIL first";
	if (command->act == data_act || command->act == bdat_act)
		return session->state == ST_MAIL ? "no valid recipients" : "MAIL and RCPT first";
	return "a transaction is open; RSET ends it";
}

enum reply reply_to_nobody(const struct session *session)
{
	return conn_is_secure(session->conn) ? REPLY_NEED_LOGIN : REPLY_NEED_TLS_FIRST;
}

static enum reply not_permitted(const struct session *session, const struct command *command)
{
	return (command->flags & NEED_AUTH) == 0 || session->account != NULL
	               ? REPLY_COUNT
	               : reply_to_nobody(session);
}

/* A command that does not belong here. */
static enum reply out_of_order(const struct session *session, const struct command *command)
{
	return (command->flags & NEEDS_ENVELOPE) != 0 &&
	                       (session->refused || session->state == ST_MAIL)
	               ? REPLY_BEHIND_REFUSAL
	               : REPLY_BAD_SEQUENCE;
}

static void say(struct session *session, const struct command *command, struct slice args,
        enum reply reply, const struct reply_args *reply_args)
{
	if (command->act == bdat_act)
		bdat_refuse(session, args, reply, reply_args);
	else
		session_reply(session, reply, reply_args);
}

/* Where it belongs. */
static void run(
        struct session *session, const struct command *command, struct slice args, enum reply reply)
{
	if (reply == REPLY_COUNT)
		reply = command->check(session, args);
	if (reply == REPLY_COUNT)
		reply = command->act(session, args);
	if ((command->flags & BEGINS) != 0)
		session->refused = session->state != ST_MAIL;
	if (reply != REPLY_LATER)
		say(session, command, args, reply, NULL);
}

void command_run(struct session *session, struct slice line)
{
	struct slice args = line;
	struct slice verb = slice_until(&args, ' ');
	const struct command *command = find(verb);

	args = slice_trim(args);
	if (command == NULL) {
		if (is_http(verb))
			session_close_with(session, CLOSING_NOT_SMTP, REPLY_NOT_SMTP);
		else
			session_reply(session, REPLY_UNKNOWN_COMMAND, NULL);
		return;
	}
	if ((command->flags & NOTHING_BEHIND) != 0 && session_has_input(session)) {
		session_close_with(session, CLOSING_PIPELINING, REPLY_PIPELINING);
		return;
	}
	enum reply reply = not_permitted(session, command);
	/* A client that has not logged in learns that first, whatever else is wrong. */
	bool order_first = reply == REPLY_COUNT ||
	                   (session->state == ST_START && (command->flags & BEGINS) == 0);
	if ((command->states & 1U << session->state) != 0)
		run(session, command, args, reply);
	else if (order_first)
		say(session, command, args, out_of_order(session, command),
		        REPLY_ARGS(hint(session, command)));
	else
		say(session, command, args, reply, NULL);
}

/* SPDX-License-Identifier: ISC */
/* The commands of the server: one table, one dispatcher. The loop's thread only. */
#pragma once

#include "gateway/submit/session.h"

/*
 * `check` only looks; `act` does. Each returns the reply of the command, REPLY_LATER when
 * it has been written or comes later, REPLY_COUNT from `check` for "go on". `args` is what
 * follows the verb.
 */
typedef enum reply (*command_fn)(struct session *session, struct slice args);

enum command_flags {
	NEED_AUTH = 1,      /* by a login, which needs TLS, or by its network */
	NOTHING_BEHIND = 2, /* the reply must be awaited: what is behind ends the session */
	BEGINS = 4,         /* a transaction; who is nobody learns that even before EHLO */
	NEEDS_ENVELOPE = 8, /* may have been pipelined behind a transaction that was refused */
};

struct command {
	const char *verb;
	command_fn check, act;
	unsigned states;
	unsigned flags;
};

extern const struct command command_table[];
extern const size_t command_count;

/* Runs one command line (without its line end). */
void command_run(struct session *session, struct slice line);

/* What a client that is nobody hears to a command that needs a login. */
enum reply reply_to_nobody(const struct session *session);

/* cmd_basic.c */
enum reply no_check(struct session *session, struct slice args);
enum reply no_args(struct session *session, struct slice args);
enum reply helo_check(struct session *session, struct slice args);
enum reply helo_act(struct session *session, struct slice args);
enum reply ehlo_act(struct session *session, struct slice args);
enum reply help_act(struct session *session, struct slice args);
enum reply noop_act(struct session *session, struct slice args);
enum reply rset_act(struct session *session, struct slice args);
enum reply quit_act(struct session *session, struct slice args);
enum reply vrfy_act(struct session *session, struct slice args);
enum reply starttls_check(struct session *session, struct slice args);
enum reply starttls_act(struct session *session, struct slice args);

/* cmd_auth.c */
enum reply auth_check(struct session *session, struct slice args);
enum reply auth_act(struct session *session, struct slice args);
/* The client's next response, in AUTH_MORE. */
void auth_response(struct session *session, struct slice line);
/* The time of an answer that waited has come: the session's answer_timer. */
void auth_answer_due(void *arg);
/* Ends what the client began with AUTH by this reply, as its own doing; the session may be gone. */
void auth_fail(struct session *session, enum reply reply);

/* cmd_mail.c */
enum reply mail_check(struct session *session, struct slice text);
enum reply mail_act(struct session *session, struct slice text);
enum reply rcpt_check(struct session *session, struct slice text);
enum reply rcpt_act(struct session *session, struct slice text);

/* cmd_data.c */
enum reply data_check(struct session *session, struct slice args);
enum reply data_act(struct session *session, struct slice args);
/* Input in DATA. */
void data_take(struct session *session);
extern const struct spool_tx_events data_spool_events;

/* cmd_data.c, of a message that comes by DATA or by BDAT */
struct transaction_context message_context(struct session *session);
/* Asks for the charge, before any of the message is taken. */
enum reply message_begin(struct session *session);
/* Refuses it: one reply, the charge given back, back to READY. The session may be gone. */
void message_refuse(struct session *session, enum reply reply, const struct reply_args *args);
/* After octets of it: refuses it if the account's messages hold too much. */
void message_hold(struct session *session);
/* Whether so much, of a message or of a chunk, is more than is heard out. */
bool message_is_endless(const struct session *session, uint64_t size);
/* Says this, and ends the session without hearing the rest. */
void message_cut_off(struct session *session, enum reply reply, const struct reply_args *args);
/* The final dot has come, or the last chunk. The session may be gone. */
void message_finish(struct session *session);

/* cmd_bdat.c */
enum reply bdat_act(struct session *session, struct slice args);
/* Refuses a BDAT that does not belong here, and what it announces. The session may be gone. */
void bdat_refuse(struct session *session, struct slice args, enum reply reply,
        const struct reply_args *reply_args);
/* The message has been charged: its first chunk may come. */
void chunk_begin(struct session *session);
/* The rest of the chunk is thrown away, then this is said; the transaction is gone. */
void chunk_discard(struct session *session, enum reply reply, const struct reply_args *args);
/* Input in CHUNK and DISCARD: whether the chunk has ended. The session may be gone. */
bool chunk_take(struct session *session);

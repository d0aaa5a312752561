/* SPDX-License-Identifier: ISC */
/*
 * One client connection. Its legal paths:
 *
 *   TLS ─► START ─EHLO─► READY ─MAIL─► MAIL ─RCPT─► RCPT ─DATA─► ADMIT ─354─► DATA
 *    ▲        │            │ ▲                                     │            │
 *    └STARTTLS┴────────────┘ └──────────── RSET, EHLO, refusals ◄──┴── COMMIT ◄─┘
 *                          READY ─AUTH─► AUTH_WAIT ◄──► AUTH_MORE ─► READY
 *                          READY ─MAIL─► WHO ─► READY, and the MAIL again
 *                          RCPT ─BDAT─► ADMIT ─► CHUNK ◄─BDAT─► BDAT;  CHUNK ─LAST─► COMMIT
 *                          any BDAT that is refused ─► DISCARD ─► READY
 *
 * states[] in session.c is that drawing as a table; commands.c tells what each
 * command needs. The loop's thread only.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "auth/protocol.h"
#include "gateway/base/addr.h"
#include "gateway/base/arena.h"
#include "gateway/base/list.h"
#include "gateway/base/log.h"
#include "gateway/base/recent.h"
#include "gateway/conf/conf.h"
#include "gateway/mail/line.h"
#include "gateway/mail/reply.h"
#include "gateway/net/conn.h"
#include "gateway/net/timer.h"
#include "gateway/spool/spool.h"
#include "gateway/submit/auth_link.h"
#include "gateway/submit/pace.h"
#include "gateway/submit/shares.h"
#include "gateway/submit/slots.h"
#include "gateway/submit/transaction.h"

enum session_state {
	ST_TLS,       /* handshake */
	ST_START,     /* no EHLO yet, or forgotten at STARTTLS */
	ST_READY,     /* between transactions */
	ST_AUTH_WAIT, /* `auth` thinks */
	ST_AUTH_MORE, /* the client's next response */
	ST_WHO,       /* before MAIL, `auth` looks who the client is, or whether he still is */
	ST_MAIL,      /* a sender, no recipient yet */
	ST_RCPT,      /* at least one recipient */
	ST_ADMIT,     /* `auth` charges the limits, before 354 */
	ST_DATA,      /* the message comes */
	ST_CHUNK,     /* a chunk of the message comes */
	ST_BDAT,      /* between two chunks */
	ST_DISCARD,   /* the rest of a chunk is thrown away, then its refusal is said */
	ST_COMMIT,    /* charged for its true size, then stored */
	ST_CLOSED,
	ST_COUNT
};

#define S(state) (1U << ST_##state)

enum closing {
#define CLOSING(id, name) CLOSING_##id,
#include "gateway/submit/closing.def"
#undef CLOSING
};

/* What the sessions of one loop share. */
struct serving {
	struct loop *loop;
	struct auth_link *auth;
	struct spool_in *spool;
	struct slots *slots;     /* of all loops */
	struct shares *shares;   /* likewise */
	const struct conf *conf; /* of new sessions */
	struct tls_server *tls;  /* likewise */
	struct list sessions;
	struct list lingering;   /* those that have ended, until their connections are gone */
	struct recent changed;   /* accounts, by era; 0: maybe all */
	struct session *running; /* whose input is being read */
	bool stopping;
	void (*on_session_ended)(struct serving *serving);
};

/* Who the session is: shared by nobody, dropped with it. */
struct account {
	struct auth_account facts;
	struct arena arena;
	bool by_network; /* because of its address: it has not logged in */
	bool unsure;     /* something of it may have changed: before the next message it is asked */
};

/*
 * What a BDAT has announced. It is not the transaction's: when that is refused, and gone, `left`
 * still says how much of the input is no command.
 */
struct chunk {
	uint64_t left;     /* octets that have not come */
	uint64_t size;     /* in all */
	bool last;         /* it ends the message */
	struct buf answer; /* while it is thrown away: what is said then */
};

/* There is none. */
void chunk_reset(struct chunk *chunk);

struct session {
	struct list link; /* in serving->sessions, once it has ended in serving->lingering */
	struct serving *serving;
	const struct conf *conf;
	struct tls_server *tls;
	const struct conf_listener *listener; /* of the conf */
	struct conn *conn;
	struct addr peer;
	char sid[9];
	struct log_ctx log;
	uint64_t opened_ms;

	enum session_state state;
	struct timer timer; /* of the state, and of login_timeout before the login */
	struct arena arena; /* helo */
	struct slice helo;
	bool esmtp; /* EHLO, not HELO */
	struct line_reader lines;
	uint64_t turn;      /* of the loop, in which */
	unsigned turn_left; /* so many lines may still be run */
	struct chunk chunk;
	unsigned errors;    /* of protocol, since the last message */
	unsigned fruitless; /* replies since the last that led on: session_count() */
	unsigned refusals;  /* of messages, and how many of them before the last that was taken */
	unsigned refusals_before;
	bool refused; /* the last transaction, or its MAIL: what was pipelined behind is no error */
	bool replies_wait;    /* so many that no command is run until they have left */
	bool account_changed; /* the account was changed: it ends after this command */
	bool account_blocked; /* may send no more, in mid-message: its last deadline runs */

	struct account *account; /* NULL: nobody yet */
	bool has_logged_in;      /* once: slots_log_in() has been called */
	uint64_t nobody_at; /* its address was nobody's before this change, from 1; 0: unknown */
	unsigned failures;
	struct auth_call *call;    /* a login, who it is, or an admission */
	struct auth_call *check;   /* whether the account may send, in mid-message */
	struct timer answer_timer; /* of a 535, a 525 or a challenge that waits for its time */
	char *challenge;           /* of SCRAM, in base64 */
	char *suspended_reason;    /* of the 525; NULL: 535 */
	uint64_t auth_asked_ms;
	bool login_lost; /* `auth` has gone while the client was to answer: told at its answer */
	char mechanism[32];

	struct transaction *transaction;
	struct pace pace; /* of the message that comes */
	unsigned messages;
};

/*
 * Takes the descriptor over, and the slot that was taken for the peer: that is given back with the
 * descriptor, up to some seconds after the session has ended. `listener` is where in the
 * configuration's. 0, or -errno: then the slot is still the caller's.
 */
int session_new(
        struct serving *serving, int fd, const struct addr *peer, size_t listener) must_check;

/* Says the reply (or nothing: REPLY_COUNT), then ends it in order. */
void session_close_with(struct session *session, enum closing why, enum reply reply);

/* The only way to another state. */
void session_move(struct session *session, enum session_state to);

void session_reply(struct session *session, enum reply reply, const struct reply_args *args);

/* A message is refused: whether the log gets a line of it. */
bool session_tells_refusal(struct session *session);

/* What a reply says of the client: to be called for each that session_reply() does not write. */
void session_count(struct session *session, enum reply reply);

/*
 * While a message comes. Octets of it have come: its deadline moves on (pace.h). While the spool
 * takes no more nothing is read, and that is no fault of the client.
 */
void session_message_took(struct session *session, uint64_t octets);
void session_message_pause(struct session *session);
void session_message_resume(struct session *session);

/*
 * Counts what the transaction holds by now. False when the account's messages have more than its
 * share, which the log has been told; true of a transaction that has been refused.
 */
bool session_hold(struct session *session) must_check;

/* Octets of the largest message once logged in: the ceiling, or what the plan sets below it. */
uint64_t session_size_limit(const struct session *session);

/* Whether the client has sent something that it should not have sent yet. */
bool session_has_input(const struct session *session);

/* Goes on with what has come, at the end of the turn. */
void session_continue(struct session *session);

/* Drops the transaction, gives back what it was charged, back to READY or START. */
void session_reset(struct session *session);

/* Starts the handshake, in ST_TLS. */
void session_start_tls(struct session *session);

/* The certificate that the client has shown, if it was asked for; false: none. */
bool session_fingerprint(const struct session *session, char ret_text[TLS_FINGERPRINT]);

/* It is nobody again: at STARTTLS. */
void session_forget_login(struct session *session);

/* At a stop: between two commands it ends now, else soon. */
void session_stop(struct session *session);

/*
 * An account has changed (0: any). Its sessions end with 421, but those that know of it: between
 * two commands now, else after the command; a message that is coming ends early only if the
 * account may send no more.
 */
void sessions_account_changed(struct serving *serving, uint64_t account, uint64_t era);

/* At the end of the process, when the loop has stopped: cuts off what lingers. */
void sessions_cut_off(struct serving *serving);

/* Whether a change is missing in what a login has brought. */
bool serving_login_is_stale(const struct serving *serving, const struct auth_account *account);

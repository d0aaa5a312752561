/* SPDX-License-Identifier: ISC */
/*
 * One connection to an upstream, from setting out to a host to its end.
 *
 *     session_host.h   to which host and address it goes, and when on to the next
 *     session_input.h  what comes over it, and to whom that goes
 *     opening.h        what is said before mail
 *     transaction.h    one message; then it is idle, and may get another
 *
 * The loop's thread only, but for what belongs to its job while that runs.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/list.h"
#include "gateway/mail/ehlo.h"
#include "gateway/mail/reply.h"
#include "gateway/net/jobs.h"
#include "gateway/net/loop.h"
#include "gateway/net/timer.h"
#include "gateway/relay/lookup.h"
#include "gateway/relay/transaction.h"
#include "gateway/spool/spool.h"

struct conn;
struct delivery;
struct upstream;

enum session_state {
	SESSION_RESOLVING,
	SESSION_CONNECTING,
	SESSION_GREETING,
	SESSION_EHLO,
	SESSION_STARTTLS,
	SESSION_TLS,
	SESSION_AUTH,
	SESSION_IDLE,
	SESSION_ENVELOPE, /* MAIL, RCPT, DATA */
	SESSION_BODY,
	SESSION_DOT,  /* the final dot is sent */
	SESSION_RSET, /* after a transaction that did not end by itself */
	SESSION_CLOSED,
};

struct session {
	struct list link;   /* in upstream.idle */
	struct list member; /* in upstream.sessions */
	struct upstream *upstream;
	unsigned generation;
	bool uncounted; /* its host is none of the upstream any more */
	enum session_state state;
	struct conn *conn;
	struct timer timer;
	struct defer later; /* going to a host, or freeing it */
	char trouble[400];  /* why it ends, or why the last host did not serve */
	struct job job;     /* the login, a piece of a body */
	bool job_runs, finished;
	int job_result;
	struct buf room; /* owner: the job: the login's command, a piece of a body */

	/* ---- session_host.c ---- */

	size_t host, addr;         /* that it uses */
	bool is_probe;             /* of this host: it goes to no other, and no mail waits for it */
	uint64_t since_ms;         /* when it set out to the host */
	uint64_t address_since_ms; /* and to this address of it */
	char *host_name;           /* copies, because a reload may come */
	struct addresses addresses;
	bool waits_for_name;

	/* ---- session_input.c ---- */

	struct peer_reply reply;
	unsigned owed; /* replies to the commands that were sent; the greeting is one */

	/* ---- opening.c ---- */

	struct ehlo ehlo; /* what it can */
	bool secure;
	char *username, *password; /* for the login; copies, because a reload may come */

	/* ---- transaction.c ---- */

	uint64_t transactions; /* begun */
	unsigned marks;        /* not yet written */
	bool mark_failed;
	bool served;               /* a transaction has ended in order */
	struct delivery *delivery; /* of the transaction that runs, or NULL */
	struct transaction tx;
	struct spool_message content; /* a body in a file; owner: the job while it runs */
};

/* Opens a connection to that host or a later one, for what waits. 0 or -ENOMEM. */
int session_start(struct upstream *upstream, size_t host) must_check;
/* Opens one to that host alone, to see whether it serves again. 0 or -ENOMEM. */
int session_probe(struct upstream *upstream, size_t host) must_check;
/* Says QUIT and goes. Only when idle. */
void session_quit(struct session *session);
/* Ends it now; a delivery that it has comes back, deferred or to be repeated. */
void session_end(struct session *session, const char *text);

/* ---- for the files named above ---- */

/* The only way to another state, or to wait anew in the same one; see states[] in session.c. */
void session_enter(struct session *session, enum session_state to);
/* All that comes before mail is said; or the transaction is over, the connection lives. */
void session_idle(struct session *session);
/* Something is wrong with the connection, whatever it was doing: before it is ready it goes on to
 * another address or host, else it ends. */
void session_trouble(struct session *session, const char *text);
/* The same; `code` is of the reply that says so, or 0. */
void session_trouble_code(struct session *session, const char *text, unsigned code);
/* The same; what it said in this transaction is not believed, its refusals neither. */
void session_out_of_step(struct session *session, const char *text);
/* Runs `run` on one of these workers, then `done`; -EAGAIN when they are swamped. */
int session_job(struct session *session, struct jobs *jobs, void (*run)(struct job *),
        void (*done)(struct job *)) must_check;
/* In `done`: whether the session has ended meanwhile; then it is freed. */
bool session_job_orphaned(struct session *session);
/* Frees it when nothing can call it any more. */
void session_release(struct session *session);

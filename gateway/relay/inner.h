/* SPDX-License-Identifier: ISC */
/*
 * What the files of this folder share. The loop's thread only, but for what the
 * comments call a worker's.
 *
 * A message's attempt (attempt.c) loads and signs it on a worker, splits its
 * recipients by route into deliveries, and gives each to its upstream (upstream.c),
 * which has a session (session.c) carry it (transaction.c). When all deliveries
 * have come back, the outcome (outcome.c) is recorded and the attempt ends.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/arena.h"
#include "gateway/base/buf.h"
#include "gateway/base/list.h"
#include "gateway/base/log.h"
#include "gateway/conf/conf.h"
#include "gateway/mail/ehlo.h"
#include "gateway/mail/envelope.h"
#include "gateway/mail/reply.h"
#include "gateway/net/conn.h"
#include "gateway/net/jobs.h"
#include "gateway/net/loop.h"
#include "gateway/net/timer.h"
#include "gateway/relay/accounts.h"
#include "gateway/relay/bounce_limit.h"
#include "gateway/relay/history.h"
#include "gateway/relay/keys.h"
#include "gateway/relay/relay.h"
#include "gateway/relay/task.h"
#include "gateway/spool/spool.h"

#define NO_MEMORY_WAIT_MS 5000
#define HOSTS_MAX         32
#define HOST_ADDRS_MAX    8
#define RESOLVE_KEEP_MS   60000
#define RESUME_MS         600000 /* a stopped upstream is tried again */
#define STOP_WAIT_MS      10000

struct control;
struct notices;
struct session;

struct relay {
	const struct conf *conf;
	struct loop *loop;
	struct jobs *jobs; /* disk, signatures, SASL */
	struct spool_out *spool;
	struct keys *keys;
	struct accounts *accounts;
	struct notices *notices; /* tells keys and accounts */
	struct history *history;
	struct control *control;
	struct bounce_limit bounces, delays; /* that accounts have got */
	struct scheduler scheduler;
	struct list upstreams;
	struct list lookups;   /* of hosts' names, in flight */
	struct list routeless; /* tasks whose route is not configured */
	struct defer dispatch;
	/* Attempts; and those of them that are loaded and signed, which have no upstream yet. Of
	 * the others each upstream bounds its own, so that none keeps mail from another. */
	size_t running, preparing;
	size_t busy; /* jobs and marks that will call back */
	int wake_fd;
	struct watch *wake;
	bool stopping;
	struct timer stop_check, stop_limit;
	void (*on_stopped)(void *arg);
	void *on_stopped_arg;
};

/* Starts attempts at the end of this turn. */
void relay_dispatch_soon(struct relay *relay);

/* The upstream of that name, or NULL. */
struct upstream *relay_find_upstream(struct relay *relay, struct slice name);

/* ---- what became of a recipient ---- */

enum fate {
	FATE_OPEN,      /* not tried in this attempt, or to be tried again at once */
	FATE_ACCEPTED,  /* RCPT was accepted: what the final dot says holds for it */
	FATE_DELIVERED, /* settled */
	FATE_FAILED,
	FATE_DEFERRED,
};

struct result {
	enum fate fate;
	bool expired;              /* failed, because it was tried for too long */
	char status[12];           /* "5.1.1" */
	struct upstream *upstream; /* that it goes to, or NULL */
	const char *host;          /* in the attempt's arena, or NULL */
	const char *diagnostic;    /* printable; in the arena */
};

/* ---- attempt.c ---- */

/* The recipients of a message that go to one upstream. */
struct delivery {
	struct list link; /* in upstream.waiting */
	struct attempt *attempt;
	struct upstream *upstream;
	uint32_t *recipients; /* numbers */
	uint32_t count;
	unsigned repeats;  /* before MAIL was answered the connection died: how often so far */
	bool held, frozen; /* came back untried: waits for the upstream */
	bool stopped_it;   /* the answer to it stopped the upstream */
};

struct attempt {
	struct job job;
	struct task *task;
	struct log_ctx log;
	struct spool_message message;
	bool loaded, handed_over;
	struct arena arena;
	struct envelope envelope;
	struct slice
	        message_id;    /* of the header; read when history does not know the message yet */
	struct buf signatures; /* DKIM-Signature fields */
	struct keyset *keyset; /* or NULL: not asked yet */
	struct key_wait key_wait;
	struct result *results; /* one a recipient of the message */
	struct delivery *deliveries;
	uint32_t delivery_count, open;
	bool route_unknown;    /* of some recipients */
	uint64_t hour_left_ms; /* a bounce, and its account has got enough for so long; or 0 */
	int error;
	struct why why;
};

/* Whether its envelope was read: each recipient of the entry is in it. */
static inline bool attempt_is_readable(const struct attempt *attempt)
{
	return attempt->envelope.recipient_count > 0;
}

/* Begins with a task that was taken from the scheduler. */
void attempt_start(struct task *task);

/* A delivery has come back: every recipient of it has a fate. */
void attempt_delivery_done(struct delivery *delivery);

/* The upstream cannot take it now: the message waits for it, unloaded; frozen: without ageing. */
void attempt_delivery_held(struct delivery *delivery, bool frozen);

/* Sets the fate of one recipient; texts are copied. */
void attempt_set_fate(struct attempt *attempt, uint32_t recipient, enum fate fate,
        const char *status, const char *host, const char *diagnostic);

/* The same for all recipients of the delivery that are still open. */
void delivery_set_fate(struct delivery *delivery, enum fate fate, const char *status,
        const char *host, const char *diagnostic);

/* History gets the result of a recipient under this name (see table delivery), with the id of the
 * bounce or notice that tells the sender, or NULL. */
void attempt_tell_history(struct attempt *attempt, uint32_t recipient, const char *outcome,
        const struct message_id *notice);

/* ---- outcome.c ---- */

/* Records failures and what is left to do; the attempt is freed, its task maybe too. */
void outcome_record(struct attempt *attempt);

/* ---- upstream.c ---- */

/* What the name of a host was found to be. */
struct addresses {
	struct addr at[HOST_ADDRS_MAX];
	size_t count;
};

struct host {
	char *name; /* as configured, without port: what its certificate must name */
	uint16_t port;
	struct addresses addresses;
	bool is_address;      /* its name is one: never looked up */
	uint64_t resolved_ms; /* 0: never */
	/* Its breaker: open from a failure until a transaction has ended. It rests, then one
	 * connection probes it, which carries one message after the other. */
	bool is_open;
	uint64_t rest_ms; /* the last rest's length; 0: it has served since */
	uint64_t failed_ms, rests_until_ms;
	bool probed;       /* by a connection that has not served yet */
	size_t broken_off; /* so many times at its addresses, since it served */
	/* Under these settings: */
	bool login_works; /* it was ready once, and has not refused it since */
	bool takes_mail;  /* it has accepted a sender */
};

struct upstream {
	struct list link;
	struct relay *relay;
	const struct conf *conf; /* that `settings` is part of */
	const struct conf_upstream *settings;
	char *password;
	struct tls_client *tls; /* NULL: never TLS */
	struct host hosts[HOSTS_MAX];
	size_t host_count;
	unsigned generation; /* of the settings: sessions of older ones are not kept */
	struct list waiting; /* deliveries without a session */
	size_t waiting_count;
	struct list sessions;       /* all of them */
	struct list idle;           /* those without work */
	size_t session_count;       /* without those that have ended, or have no host of it now */
	size_t connecting, probing; /* of these: on their way to be ready, for mail or as probes */
	struct list held;           /* tasks that wait for it */
	struct defer catch_up;
	size_t coming; /* of these: woken, and not yet here with a delivery */
	bool removed, stopped, down;
	struct timer resume;   /* tries it again when it is stopped */
	struct timer rest;     /* the first rest of a host ends */
	struct timer patience; /* with who tries a new login */
	uint64_t tried_ms;     /* when the last connection set out */
};

/* All of a reload that can fail. 0 or -errno with the reason. The password is copied. */
int upstream_new(struct relay *relay, const struct conf *conf, const struct conf_upstream *settings,
        struct slice password, struct upstream **ret_upstream, struct why *why) must_check;

/* Puts the settings of a fresh one of the same name in force; the fresh one is freed. */
void upstream_renew(struct upstream *upstream, struct upstream *fresh);

/* No session is left. */
void upstream_free(struct upstream *upstream);

/* Takes a delivery; it comes back through attempt_delivery_done() or _held(). */
void upstream_deliver(struct upstream *upstream, struct delivery *delivery);

/* Sessions for what waits, as far as they are allowed and can be had: also when a probe has found
 * a host ready. */
void upstream_serve(struct upstream *upstream);

/* The task waits for it, for its time at most; frozen: without ageing. */
void upstream_hold(struct upstream *upstream, struct task *task, bool frozen);

/* Tries it again although it was stopped or down. */
void upstream_resume(struct upstream *upstream);

/* It is not configured any more: what waits is deferred, sessions end. */
void upstream_remove(struct upstream *upstream);

/* The first host from `from` on whose breaker is closed, or host_count. */
size_t upstream_choose_host(const struct upstream *upstream, size_t from);

/* A task that an upstream has woken has a delivery for it now, or will not have one. */
void upstream_task_came(struct task *task);

/* From its sessions: one is ready. */
void upstream_session_ready(struct session *session);
/* MAIL was accepted. */
void upstream_takes_mail(struct session *session);
/* A transaction came to the end of its dialogue, however it ended: the host serves. */
void upstream_transaction_ended(struct session *session);
/* Whether another address or another host could be tried in place of what this session has. */
bool upstream_has_other_way(const struct session *session);
/*
 * The host of one broke off in a transaction, maybe with the code of a reply (else 0). If it has
 * ended none on this session its next address is tried, or it rests, if there is another host, it
 * said that it does not serve, or it has rested and not served since. Whether mail could go another
 * way at once.
 */
bool upstream_session_broke_off(struct session *session, unsigned code);
/* A host did not serve a session that set out to it at `since_ms`. */
void upstream_host_failed(
        struct upstream *upstream, size_t index, uint64_t since_ms, const char *text);
/* It has ended. */
void upstream_session_ended(struct session *session, bool was_connecting);

/* From a session that is idle: the next delivery, or NULL. */
struct delivery *upstream_next_delivery(struct upstream *upstream);

/* From a session whose host refuses our login: whether another host has accepted it, so that this
 * one alone does not serve. */
bool upstream_login_refused(struct session *session);

/* From a session whose host wants a login: whether that is so of all mail; else of one sender. */
bool upstream_wants_login(const struct session *session);

/* From a session: the upstream refuses our login. Its mail waits and does not age. */
void upstream_stop(struct upstream *upstream, const char *host, const char *text);

/* The gateway stops: only final dots that were sent are waited for. */
void upstream_shut(struct upstream *upstream);

/* ---- lookup.c ---- */

/*
 * Looks up a host's name unless that is being done, for whichever upstream and settings; all
 * sessions that wait for it go on by session_resolved(). 0, -ENOMEM, or -EAGAIN when there can be
 * no more threads.
 */
int lookup_start(struct relay *relay, const struct host *host) must_check;

/* Nobody waits for those in flight any more. The loop does not run again. */
void lookups_abandon(struct relay *relay);

/* ---- session.c, transaction.c: one connection ---- */

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
	enum session_state state;
	struct conn *conn;
	struct timer timer;
	struct defer later;        /* going to a host, or freeing it */
	size_t host, addr;         /* that it uses */
	bool is_probe;             /* of this host: it goes to no other, and no mail waits for it */
	bool uncounted;            /* its host is none of the upstream any more */
	uint64_t since_ms;         /* when it set out to the host */
	uint64_t address_since_ms; /* and to this address of it */
	char *host_name;           /* copies, because a reload may come */
	struct addresses addresses;
	bool waits_for_name;
	struct job job; /* the login, a piece of a body */
	bool job_runs, finished;
	int job_result;
	struct buf room;           /* owner: the job: the login's command, a piece of a body */
	char *username, *password; /* for the login; copies, because a reload may come */
	struct ehlo ehlo;
	struct peer_reply reply;
	unsigned owed; /* replies to the commands that were sent; the greeting is one */
	bool secure;
	char trouble[400];     /* why it ends, or why the last host did not serve */
	uint64_t transactions; /* begun */
	unsigned marks;        /* not yet written */
	bool mark_failed;
	bool served; /* a transaction has ended in order */

	struct delivery *delivery; /* of the transaction that runs, or NULL */
	struct transaction {
		uint32_t sent, answered, accepted; /* of its recipients */
		bool mail_sent, mail_answered, mail_refused, data_sent;
		bool too_many;  /* recipients for one transaction */
		bool dot_waits; /* for the mark of the last one */
		bool in_doubt;  /* the connection was lost after the final dot */
		bool elsewhere; /* another host or address may take it at once */
		/* It said what was no answer: which of its answers was to what is not known. */
		bool out_of_step;
		unsigned part; /* of the content: signatures, header, body */
		size_t part_used;
		bool at_line_start;
		/* That its recipients are delivered: made before the final dot leaves. */
		struct spool_mark *mark;
	} tx;
	struct spool_message content; /* a body in a file; owner: the job while it runs */
};

/* Opens a connection to that host or a later one, for what waits. 0 or -ENOMEM. */
int session_start(struct upstream *upstream, size_t host) must_check;
/* Opens one to that host alone, to see whether it serves again. 0 or -ENOMEM. */
int session_probe(struct upstream *upstream, size_t host) must_check;
/* The addresses of its host are known now, or why they are not: `text`. */
void session_resolved(struct session *session, const char *text);
/* Says QUIT and goes. Only when idle. */
void session_quit(struct session *session);
/* Ends it now; a delivery that it has comes back, deferred or to be repeated. */
void session_end(struct session *session, const char *text);
/* The same; what it said in this transaction is not believed, its refusals neither. */
void session_out_of_step(struct session *session, const char *text);

/* Tells that the address it has does not serve. */
void session_log_address(const struct session *session);

/* For transaction.c. */
const char *session_host(const struct session *session);
/* The transaction is over, the connection lives. */
void session_idle(struct session *session);
/* The only way to another state, or to wait anew in the same one; see states[] in session.c. */
void session_enter(struct session *session, enum session_state to);
/* Runs `run` on one of these workers, then `done`; -EAGAIN when they are swamped. */
int session_job(struct session *session, struct jobs *jobs, void (*run)(struct job *),
        void (*done)(struct job *)) must_check;
/* In `done`: whether the session has ended meanwhile; then it is freed. */
bool session_job_orphaned(struct session *session);
/* Frees it when nothing can call it any more. */
void session_release(struct session *session);

/* A session that is idle gets work. */
void transaction_start(struct session *session, struct delivery *delivery);
void transaction_reply(struct session *session);
void transaction_drained(struct session *session);
/* The connection is gone: the delivery goes back. */
void transaction_lost(struct session *session);

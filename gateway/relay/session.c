/* SPDX-License-Identifier: ISC */
/*
 * The life of a session: its states and how long each may last, its trouble, its jobs, its end.
 *
 * It begins on its way to a host (session_host.c) that greets it and lets it in (opening.c). Then
 * it carries one transaction after the other (transaction.c), and is idle between them.
 */
#include "gateway/relay/session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/conf/conf.h"
#include "gateway/net/conn.h"
#include "gateway/relay/opening.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/session_host.h"
#include "gateway/relay/transaction.h"
#include "gateway/relay/upstream.h"

#define ROOM_MAX         65536
#define TRANSACTIONS_MAX 1000 /* on one connection: upstreams restart too */

/* ---- states ---- */

#define S(state) (1U << SESSION_##state)

/* Before it is ready: on to the next host, or the end. */
#define NOT_YET (S(RESOLVING) | S(CLOSED))

static const struct {
	unsigned successors;
	size_t timeout;   /* offset in struct conf_upstream */
	const char *name; /* what is waited for */
} states[] = {
#define T(field) offsetof(struct conf_upstream, field)
        [SESSION_RESOLVING] = {NOT_YET | S(CONNECTING), T(connect_timeout), "name"},
        [SESSION_CONNECTING] = {NOT_YET | S(CONNECTING) | S(GREETING) | S(TLS), T(connect_timeout),
                "connection"},
        [SESSION_GREETING] = {NOT_YET | S(EHLO), T(greeting_timeout), "greeting"},
        [SESSION_EHLO] = {NOT_YET | S(STARTTLS) | S(AUTH) | S(IDLE), T(command_timeout), "EHLO"},
        [SESSION_STARTTLS] = {NOT_YET | S(TLS), T(command_timeout), "STARTTLS"},
        [SESSION_TLS] = {NOT_YET | S(GREETING) | S(EHLO), T(connect_timeout), "TLS"},
        [SESSION_AUTH] = {NOT_YET | S(AUTH) | S(IDLE), T(command_timeout), "AUTH"},
        [SESSION_IDLE] = {S(ENVELOPE) | S(CLOSED), T(idle_timeout), "work"},
        [SESSION_ENVELOPE] = {S(ENVELOPE) | S(BODY) | S(RSET) | S(IDLE) | S(CLOSED),
                T(command_timeout), "MAIL, RCPT or DATA"},
        [SESSION_BODY] = {S(BODY) | S(DOT) | S(CLOSED), T(command_timeout), "room for the message"},
        [SESSION_DOT] = {S(ENVELOPE) | S(IDLE) | S(CLOSED), T(data_timeout), "final dot"},
        [SESSION_RSET] = {S(IDLE) | S(CLOSED), T(command_timeout), "RSET"},
        [SESSION_CLOSED] = {0, 0, "closed"},
#undef T
};

static uint64_t patience(const struct session *session)
{
	uint64_t timeout;

	memcpy(&timeout, (const char *)session->upstream->settings + states[session->state].timeout,
	        sizeof(timeout));
	return session_host_patience(session, timeout);
}

void session_enter(struct session *session, enum session_state to)
{
	assert_bug((states[session->state].successors & 1U << to) != 0);
	session->state = to;
	if (to == SESSION_CLOSED)
		timer_stop(&session->timer);
	else
		timer_start(&session->timer, patience(session));
}

/* ---- ending ---- */

static void free_now(struct defer *later)
{
	struct session *session = container_of(later, struct session, later);

	list_remove(&session->member);
	timer_stop(&session->timer);
	buf_wipe(&session->room);
	opening_wipe_login(session);
	free(session->host_name);
	free(session);
}

void session_release(struct session *session)
{
	if (!session->finished || session->job_runs || session->marks > 0)
		return;
	session->later.run = free_now;
	loop_defer(session->upstream->relay->loop, &session->later);
}

static void finish(struct session *session, bool was_connecting)
{
	session->finished = true;
	if (session->delivery != NULL)
		transaction_lost(session);
	upstream_session_ended(session, was_connecting);
	session_release(session);
}

void session_end(struct session *session, const char *text)
{
	bool was_connecting = session->state < SESSION_IDLE;

	if (session->state == SESSION_CLOSED)
		return;
	if (text != session->trouble)
		snprintf(session->trouble, sizeof(session->trouble), "%s", text);
	session->tx.in_doubt = session->state == SESSION_DOT;
	/* It is in the list of sessions until this turn's end, in which the look-up may end too. */
	session->waits_for_name = false;
	session_enter(session, SESSION_CLOSED);
	loop_defer_cancel(&session->later);
	list_remove(&session->link);
	conn_free(TAKE(session->conn));
	/* A job may be reading the message: the delivery goes back when it is done. */
	if (!session->job_runs || was_connecting)
		finish(session, was_connecting);
}

void session_quit(struct session *session)
{
	conn_write(session->conn, SLICE("QUIT\r\n"));
	conn_close_when_sent(TAKE(session->conn));
	session_end(session, "closed");
}

/* ---- jobs ---- */

int session_job(struct session *session, struct jobs *jobs, void (*run)(struct job *),
        void (*done)(struct job *))
{
	struct relay *relay = session->upstream->relay;

	session->job = (struct job){.loop = relay->loop, .run = run, .done = done};
	int r = jobs_submit(jobs, &session->job);
	if (r < 0)
		return r;
	session->job_runs = true;
	relay->busy++;
	return 0;
}

bool session_job_orphaned(struct session *session)
{
	if (session->state != SESSION_CLOSED)
		return false;
	if (!session->finished)
		finish(session, false);
	else
		session_release(session);
	return true;
}

/* ---- trouble ---- */

void session_trouble_code(struct session *session, const char *text, unsigned code)
{
	if (text != session->trouble)
		snprintf(session->trouble, sizeof(session->trouble), "%s", text);
	if (session->state < SESSION_IDLE) {
		session_host_failed(session);
		return;
	}
	session->tx.elsewhere =
	        session->delivery != NULL && upstream_session_broke_off(session, code);
	session_end(session, session->trouble);
}

void session_trouble(struct session *session, const char *text)
{
	session_trouble_code(session, text, 0);
}

void session_out_of_step(struct session *session, const char *text)
{
	session->tx.out_of_step = true;
	session_trouble(session, text);
}

static void on_timeout(void *arg)
{
	struct session *session = arg;
	char text[100];

	if (session->state == SESSION_IDLE) {
		session_quit(session);
		return;
	}
	snprintf(text, sizeof(text), "the upstream did not answer in time (%s)",
	        states[session->state].name);
	session_trouble(session, text);
}

/* ---- between transactions ---- */

void session_idle(struct session *session)
{
	struct upstream *upstream = session->upstream;
	struct delivery *delivery;

	bool is_new = session->state < SESSION_IDLE, unasked = false;

	if (is_new) {
		/* Host, TLS and login are all of one configuration: others end when it changes. */
		assert_bug(session->generation == upstream->generation);
		session_host_prefer(session);
		upstream_session_ready(session);
		/* Probes are not counted while they are on their way. */
		unasked = upstream->session_count - upstream->probing >
		          upstream->settings->connections;
	}
	session_enter(session, SESSION_IDLE);
	if (unasked || session->generation != upstream->generation || session->mark_failed ||
	        session->transactions >= TRANSACTIONS_MAX || upstream->relay->stopping) {
		session_quit(session);
		return;
	}
	delivery = upstream_next_delivery(upstream);
	if (delivery != NULL)
		transaction_start(session, delivery);
	else
		list_prepend(&upstream->idle, &session->link);
	if (is_new)
		upstream_serve(upstream);
}

/* ---- beginning ---- */

static int open_session(struct upstream *upstream, size_t host, bool is_probe)
{
	struct session *session = calloc(1, sizeof(*session));

	if (session == NULL)
		return -ENOMEM;
	session->upstream = upstream;
	session->generation = upstream->generation;
	session->host = host;
	session->is_probe = is_probe;
	timer_init(&session->timer, upstream->relay->loop, on_timeout, session);
	buf_init(&session->room, ROOM_MAX);
	list_append(&upstream->sessions, &session->member);
	upstream->session_count++;
	session->later.run = session_host_step;
	loop_defer(upstream->relay->loop, &session->later);
	return 0;
}

int session_start(struct upstream *upstream, size_t host)
{
	int r = open_session(upstream, host, false);

	upstream->connecting += r == 0;
	return r;
}

int session_probe(struct upstream *upstream, size_t host)
{
	int r = open_session(upstream, host, true);

	upstream->probing += r == 0;
	return r;
}

/* SPDX-License-Identifier: ISC */
/*
 * A connection to an upstream, from looking up its host to being ready for a
 * transaction: greeting, EHLO, STARTTLS, login. A host that does not get that far
 * makes way for the next one.
 */
#include "gateway/relay/session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/base/encode.h"
#include "gateway/base/log.h"
#include "gateway/conf/conf.h"
#include "gateway/mail/line.h"
#include "gateway/net/conn.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/sasl_client.h"
#include "gateway/relay/transaction.h"
#include "gateway/relay/upstream.h"

/* Output that may wait: a batch of RCPT commands and a piece of a body fit well. */
#define OUTPUT_MAX       (1U << 20)
#define LOGIN_MAX        8192
#define ROOM_MAX         65536
#define RESOLVE_KEEP_MS  60000
#define TRANSACTIONS_MAX 1000 /* on one connection: upstreams restart too */
/*
 * From setting out to an address to being ready, while another host could be tried instead; and
 * for all addresses of a host. Then there is time for the next host within 10 s.
 */
#define HURRY_MS      4000
#define HURRY_HOST_MS 7000

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

/* Whether mail could go to another host if this one does not serve. */
static bool may_fail_over(const struct session *session)
{
	const struct upstream *upstream = session->upstream;

	return upstream_choose_host(upstream, session->is_probe ? 0 : session->host + 1) <
	       upstream->host_count;
}

static uint64_t patience(const struct session *session, enum session_state state)
{
	uint64_t timeout, now = clock_mono_ms(), until = session->address_since_ms + HURRY_MS;

	memcpy(&timeout, (const char *)session->upstream->settings + states[state].timeout,
	        sizeof(timeout));
	/* A host that is silent at the first MAIL does not serve either. */
	if (state == SESSION_ENVELOPE && !session->served && !session->tx.mail_answered &&
	        upstream_has_other_way(session))
		return MIN_OF(timeout, (uint64_t)HURRY_MS);
	if (state >= SESSION_IDLE || !may_fail_over(session))
		return timeout;
	until = MIN_OF(until, session->since_ms + HURRY_HOST_MS);
	return MIN_OF(timeout, now < until ? until - now : 0);
}

void session_enter(struct session *session, enum session_state to)
{
	assert_bug((states[session->state].successors & 1U << to) != 0);
	session->state = to;
	if (to == SESSION_CLOSED)
		timer_stop(&session->timer);
	else
		timer_start(&session->timer, patience(session, to));
}

/* ---- ending ---- */

static void wipe_login(struct session *session)
{
	if (session->password != NULL)
		explicit_bzero(session->password, strlen(session->password));
	free(TAKE(session->password));
	free(TAKE(session->username));
}

static void free_now(struct defer *later)
{
	struct session *session = container_of(later, struct session, later);

	list_remove(&session->member);
	timer_stop(&session->timer);
	buf_wipe(&session->room);
	wipe_login(session);
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

void session_quit(struct session *session)
{
	conn_write(session->conn, SLICE("QUIT\r\n"));
	conn_close_when_sent(TAKE(session->conn));
	session_end(session, "closed");
}

const char *session_host(const struct session *session)
{
	return session->host_name;
}

/* A login takes too long and keeps this session: another tries the next host. */
static void make_way(struct session *session)
{
	struct upstream *upstream = session->upstream;

	/* Without memory for it: the mail is deferred. */
	if (upstream_choose_host(upstream, session->host) < upstream->host_count)
		(void)!session_start(upstream, session->host);
	session_end(session, session->trouble);
}

static void next_address(struct session *session)
{
	session->addr++;
	session->address_since_ms = clock_mono_ms();
}

void session_log_address(const struct session *session)
{
	char address[ADDR_TEXT];

	LOG(NULL, EV_UPSTREAM_FAILED, "upstream=%s host=%s address=%s why=%s",
	        session->upstream->settings->name, session_host(session),
	        addr_format(&session->addresses.at[session->addr], address),
	        LOG_VALUE(slice_str(session->trouble)));
}

/* It did not get as far as being ready: the next address of the host, or the next host. */
static void host_failed(struct session *session)
{
	/* A login that is being made keeps this session. */
	bool more = session->conn != NULL && session->addr + 1 < session->addresses.count &&
	            !session->job_runs;

	conn_free(TAKE(session->conn));
	timer_stop(&session->timer);
	session->waits_for_name = false;
	if (more) {
		session_log_address(session);
		next_address(session);
		session_enter(session, SESSION_RESOLVING);
		loop_defer(session->upstream->relay->loop, &session->later);
		return;
	}
	upstream_host_failed(session->upstream, session->host, session->since_ms, session->trouble);
	if (session->is_probe) {
		session_end(session, session->trouble);
		return;
	}
	session->host++;
	session->addr = 0;
	session->since_ms = session->address_since_ms = clock_mono_ms();
	if (session->job_runs) {
		make_way(session);
		return;
	}
	/* Not from here: the next one may fail at once as well. */
	session_enter(session, SESSION_RESOLVING);
	loop_defer(session->upstream->relay->loop, &session->later);
}

/*
 * Something is wrong with the connection, whatever it was doing. `code`: of the reply that says
 * so, or 0.
 */
static void trouble_code(struct session *session, const char *text, unsigned code)
{
	if (text != session->trouble)
		snprintf(session->trouble, sizeof(session->trouble), "%s", text);
	if (session->state < SESSION_IDLE) {
		host_failed(session);
		return;
	}
	session->tx.elsewhere =
	        session->delivery != NULL && upstream_session_broke_off(session, code);
	session_end(session, session->trouble);
}

static void trouble(struct session *session, const char *text)
{
	trouble_code(session, text, 0);
}

/*
 * The upstream said something that ends the hope in this host. Of what it says to AUTH people see
 * the codes only: the text may be our command, with the password.
 */
static void describe_reply(struct session *session, const char *what)
{
	const struct peer_reply *reply = &session->reply;
	const char *text = session->state == SESSION_AUTH ? reply->enhanced : reply->text;

	snprintf(session->trouble, sizeof(session->trouble), "%s: %u%s%.300s", what, reply->code,
	        text[0] != '\0' ? " " : "", text);
}

static void trouble_reply(struct session *session, const char *what)
{
	describe_reply(session, what);
	host_failed(session);
}

void session_out_of_step(struct session *session, const char *text)
{
	session->tx.out_of_step = true;
	trouble(session, text);
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
	trouble(session, text);
}

/* ---- greeting, EHLO, STARTTLS, AUTH ---- */

static void say(
        struct session *session, enum session_state state, const char *verb, const char *argument)
{
	char line[600];

	int len = snprintf(
	        line, sizeof(line), "%s%s%s\r\n", verb, argument[0] != '\0' ? " " : "", argument);
	assert_bug(len > 2 && len < (int)sizeof(line) &&
	           !line_has_controls(slice_of(line, (size_t)len - 2)));
	session_enter(session, state);
	session->owed++;
	peer_reply_start(&session->reply);
	conn_write(session->conn, slice_of(line, (size_t)len));
}

static void say_ehlo(struct session *session)
{
	/* Nothing that was said before TLS counts after it. */
	session->ehlo = (struct ehlo){0};
	say(session, SESSION_EHLO, "EHLO", session->upstream->relay->conf->hostname);
}

/* Where the addresses before it did not serve, the next session need not try them first. */
static void prefer_address(struct session *session)
{
	struct upstream *upstream = session->upstream;
	struct host *host = &upstream->hosts[session->host];
	const struct addr *good = &session->addresses.at[session->addr];

	if (session->addr == 0)
		return;
	for (size_t i = 1; i < host->addresses.count; i++)
		if (addr_same_ip(&host->addresses.at[i], good)) {
			host->addresses.at[i] = host->addresses.at[0];
			host->addresses.at[0] = *good;
		}
}

void session_idle(struct session *session)
{
	struct upstream *upstream = session->upstream;
	struct delivery *delivery;

	bool is_new = session->state < SESSION_IDLE, unasked = false;

	if (is_new) {
		/* Host, TLS and login are all of one configuration: others end when it changes. */
		assert_bug(session->generation == upstream->generation);
		prefer_address(session);
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

static void login(struct job *job)
{
	struct session *session = container_of(job, struct session, job);
	struct buf response;

	buf_init(&response, LOGIN_MAX);
	session->job_result = sasl_client_plain(
	        session->host_name, session->username, session->password, &response, NULL);
	if (session->job_result == 0)
		session->job_result = buf_append_str(&session->room, "AUTH PLAIN ");
	if (session->job_result == 0)
		session->job_result = base64_encode(buf_slice(&response), &session->room);
	if (session->job_result == 0)
		session->job_result = buf_append_str(&session->room, "\r\n");
	buf_wipe(&response);
}

static void have_login(struct job *job)
{
	struct session *session = container_of(job, struct session, job);

	session->job_runs = false;
	session->upstream->relay->busy--;
	wipe_login(session);
	if (session_job_orphaned(session))
		return;
	if (session->job_result < 0) {
		trouble(session, "the login could not be made");
		return;
	}
	session_enter(session, SESSION_AUTH);
	session->owed++;
	peer_reply_start(&session->reply);
	conn_write(session->conn, buf_slice(&session->room));
	buf_wipe(&session->room);
}

static void start_login(struct session *session)
{
	const struct conf_upstream *settings = session->upstream->settings;

	if (settings->tls != CONF_TLS_VERIFY && settings->tls != CONF_TLS_NONE) {
		trouble(session,
		        "a password is only sent to a verified host: set tls = \"verify\"");
		return;
	}
	if (!session->ehlo.auth_plain) {
		trouble(session, "the upstream does not offer AUTH PLAIN");
		return;
	}
	session_enter(session, SESSION_AUTH);
	session->username = strdup(settings->username);
	session->password = strdup(session->upstream->password);
	if (session->username == NULL || session->password == NULL ||
	        session_job(session, session->upstream->relay->jobs, login, have_login) < 0)
		trouble(session, "too much to do");
}

static void after_ehlo(struct session *session)
{
	const struct conf_upstream *settings = session->upstream->settings;

	if (session->reply.code != 250) {
		trouble_reply(session, "EHLO was refused");
		return;
	}
	bool wanted = settings->tls != CONF_TLS_NONE && !session->secure;
	if (wanted && session->ehlo.starttls)
		say(session, SESSION_STARTTLS, "STARTTLS", "");
	else if (wanted && settings->tls != CONF_TLS_OPPORTUNISTIC)
		trouble(session, "the upstream does not offer STARTTLS");
	else if (settings->username[0] != '\0')
		start_login(session);
	else
		session_idle(session);
}

static void start_tls(struct session *session)
{
	session_enter(session, SESSION_TLS);
	conn_start_tls_client(session->conn, session->upstream->tls, session_host(session));
}

static void after_starttls(struct session *session)
{
	if (session->reply.code != 220)
		trouble_reply(session, "STARTTLS was refused");
	else if (conn_input(session->conn).len > 0)
		/* Said in the clear, to be taken as if it were under TLS (threat: response
		 * injection). */
		trouble(session, "the upstream talked before TLS");
	else
		start_tls(session);
}

/*
 * The login as such is refused (RFC 4954 6). Other answers of class 5 are this host's trouble, with
 * the command or with itself.
 */
static bool is_login_refused(const struct peer_reply *reply)
{
	return peer_reply_wants_login(reply) || reply->code == 534 ||
	       (reply->code / 100 == 5 && strncmp(reply->enhanced, "5.7.", 4) == 0);
}

static void after_auth(struct session *session)
{
	if (session->reply.code == 235) {
		session_idle(session);
	} else if (is_login_refused(&session->reply) && !upstream_login_refused(session)) {
		describe_reply(session, "the upstream refuses our login");
		upstream_stop(session->upstream, session_host(session), session->trouble);
		session_end(session, session->trouble);
	} else {
		trouble_reply(session, "the login failed");
	}
}

/*
 * RFC 5321 3.8: the upstream closes; what it was about to do is not done. To the final dot
 * 421 is a plain refusal, while 221, which is no answer but to QUIT, leaves it in doubt.
 */
static bool is_goodbye(const struct session *session)
{
	return session->reply.code == 221 ||
	       (session->reply.code == 421 && session->state != SESSION_DOT);
}

static void on_reply(struct session *session)
{
	if (session->state >= SESSION_IDLE && is_goodbye(session)) {
		snprintf(session->trouble, sizeof(session->trouble), "%u %.300s",
		        session->reply.code, session->reply.text);
		trouble_code(session, session->trouble, session->reply.code);
		return;
	}
	switch (session->state) {
	case SESSION_GREETING:
		if (session->reply.code == 220)
			say_ehlo(session);
		else
			trouble_reply(session, "the upstream does not serve");
		break;
	case SESSION_EHLO:
		after_ehlo(session);
		break;
	case SESSION_STARTTLS:
		after_starttls(session);
		break;
	case SESSION_AUTH:
		if (session->job_runs)
			trouble(session, "the upstream talked out of turn");
		else
			after_auth(session);
		break;
	case SESSION_ENVELOPE:
	case SESSION_BODY:
	case SESSION_DOT:
	case SESSION_RSET:
		transaction_reply(session);
		break;
	default:
		trouble(session, "the upstream talked out of turn");
	}
}

/* Takes a line from the input. 1: a reply is complete; 0: not yet; -EBADMSG. */
static int take_line(struct session *session)
{
	struct line_reader reader = {.skipping = false};
	struct line line;
	size_t used;

	/* One that is too long ends the session: nothing is skipped here. */
	enum line_found found =
	        line_find(&reader, conn_input(session->conn), PEER_REPLY_LINE_MAX, &line, &used);
	if (found == LINE_TOO_LONG || reader.skipping)
		return -EBADMSG;
	if (found == LINE_NONE)
		return -EAGAIN;
	if (!line.crlf)
		return -EBADMSG;
	int r = peer_reply_line(&session->reply, line.text);
	if (session->state == SESSION_EHLO && session->reply.lines > 1 && line.text.len > 4)
		ehlo_take_line(&session->ehlo, slice_part(line.text, 4, line.text.len));
	conn_consume(session->conn, used);
	return r;
}

static void on_data(void *arg)
{
	struct session *session = arg;
	struct conn *conn = session->conn;
	int r;

	while (session->conn == conn && (r = take_line(session)) != -EAGAIN) {
		if (r < 0) {
			session_out_of_step(session, "the upstream sent a malformed reply");
			return;
		}
		if (r == 0)
			continue;
		session->owed -= session->owed > 0;
		/* Answers to what has not been asked are no answers (RFC 2920 3.1). */
		bool early = session->owed == 0 && conn_input(conn).len > 0;
		/* Before the message has left, such a reply is not believed either. To the final
		 * dot it is: else what has arrived would arrive again. */
		if (!early ||
		        (session->state != SESSION_ENVELOPE && session->state != SESSION_RSET))
			on_reply(session);
		if (early && session->conn == conn) {
			session_out_of_step(session, "the upstream talked before it was asked");
			return;
		}
		/* The TLS of a new connection or a new state reads on by itself. */
		peer_reply_start(&session->reply);
	}
	/* Nor is what begins before, and would end as one when the command has left. */
	if (session->conn == conn && session->owed == 0 && conn_input(conn).len > 0)
		session_out_of_step(session, "the upstream talked before it was asked");
}

static void on_secure(void *arg)
{
	struct session *session = arg;

	session->secure = true;
	peer_reply_start(&session->reply);
	if (session->upstream->settings->tls_mode == CONF_TLS_IMPLICIT)
		session_enter(session, SESSION_GREETING);
	else
		say_ehlo(session);
}

static void on_drained(void *arg)
{
	struct session *session = arg;

	if (session->state == SESSION_BODY)
		transaction_drained(session);
}

static void on_connected(void *arg)
{
	struct session *session = arg;

	if (session->upstream->settings->tls_mode == CONF_TLS_IMPLICIT &&
	        session->upstream->tls != NULL)
		start_tls(session);
	else
		session_enter(session, SESSION_GREETING);
}

/* ---- hosts and addresses ---- */

static void on_closed(void *arg, enum conn_end end, const char *text)
{
	struct session *session = arg;
	char words[sizeof(session->trouble)];

	snprintf(words, sizeof(words), "%s: %.300s",
	        session->state == SESSION_CONNECTING ? "cannot connect"
	        : end == CONN_END_TLS                ? "TLS failed"
	                                             : "the connection was lost",
	        text != NULL ? text : "closed");
	trouble(session, words);
}

static void connect_next(struct session *session)
{
	static const struct conn_events events = {
	        .on_connected = on_connected,
	        .on_data = on_data,
	        .on_drained = on_drained,
	        .on_secure = on_secure,
	        .on_closed = on_closed,
	};
	char text[120];
	int r;

	session_enter(session, SESSION_CONNECTING);
	session->secure = false;
	session->owed = 1; /* the greeting */
	peer_reply_start(&session->reply);
	/* One to which there is no way fails at once. */
	while ((r = conn_connect(session->upstream->relay->loop,
	                &session->addresses.at[session->addr], OUTPUT_MAX, &events, session,
	                &session->conn)) < 0 &&
	        session->addr + 1 < session->addresses.count)
		session->addr++;
	if (r < 0) {
		snprintf(text, sizeof(text), "cannot connect: %s", strerrordesc_np(-r));
		trouble(session, text);
	}
}

void session_resolved(struct session *session, const char *text)
{
	const struct host *host = &session->upstream->hosts[session->host];

	session->waits_for_name = false;
	if (text != NULL) {
		trouble(session, text);
		return;
	}
	session->addresses = host->addresses;
	connect_next(session);
}

/* Goes to the next host that may be tried, or gives up. */
static void try_host(struct session *session)
{
	struct upstream *upstream = session->upstream;

	if (!session->is_probe)
		session->host = upstream_choose_host(upstream, session->host);
	if (session->host >= upstream->host_count) {
		if (session->trouble[0] == '\0')
			snprintf(session->trouble, sizeof(session->trouble), "no host to try");
		session_end(session, session->trouble);
		return;
	}
	const struct host *host = &upstream->hosts[session->host];
	free(session->host_name);
	session->host_name = strdup(host->name);
	session->addresses = host->addresses;
	session->addr = 0;
	session->since_ms = session->address_since_ms = clock_mono_ms();
	session_enter(session, SESSION_RESOLVING);
	if (session->host_name == NULL) {
		trouble(session, "out of memory");
		return;
	}
	if (host->is_address ||
	        (host->resolved_ms != 0 && host->resolved_ms + RESOLVE_KEEP_MS > clock_mono_ms())) {
		connect_next(session);
		return;
	}
	session->waits_for_name = true;
	if (lookup_start(upstream->relay, host) < 0)
		trouble(session, "too much to do");
}

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

static void host_step(struct defer *later)
{
	struct session *session = container_of(later, struct session, later);

	if (session->addr == 0)
		try_host(session);
	else
		connect_next(session);
}

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
	session->later.run = host_step;
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

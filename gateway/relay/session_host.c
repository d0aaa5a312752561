/* SPDX-License-Identifier: ISC */
/*
 * The host of a session: names become addresses, and an address or a host that does not serve makes
 * way for the next one, in time.
 */
#include "gateway/relay/session_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/base/log.h"
#include "gateway/conf/conf.h"
#include "gateway/net/conn.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/session_input.h"
#include "gateway/relay/upstream.h"

/* Output that may wait: a batch of RCPT commands and a piece of a body fit well. */
#define OUTPUT_MAX      (1U << 20)
#define RESOLVE_KEEP_MS 60000
/*
 * From setting out to an address to being ready, while another host could be tried instead; and
 * for all addresses of a host. Then there is time for the next host within 10 s.
 */
#define HURRY_MS      4000
#define HURRY_HOST_MS 7000

/* ---- going there ---- */

static void connect_next(struct session *session)
{
	char text[120];
	int r;

	session_enter(session, SESSION_CONNECTING);
	session->secure = false;
	session->owed = 1; /* the greeting */
	peer_reply_start(&session->reply);
	/* One to which there is no way fails at once. */
	while ((r = conn_connect(session->upstream->relay->loop,
	                &session->addresses.at[session->addr], OUTPUT_MAX, &session_input, session,
	                &session->conn)) < 0 &&
	        session->addr + 1 < session->addresses.count)
		session->addr++;
	if (r < 0) {
		snprintf(text, sizeof(text), "cannot connect: %s", strerrordesc_np(-r));
		session_trouble(session, text);
	}
}

void session_resolved(struct session *session, const char *text)
{
	const struct host *host = &session->upstream->hosts[session->host];

	session->waits_for_name = false;
	if (text != NULL) {
		session_trouble(session, text);
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
		session_trouble(session, "out of memory");
		return;
	}
	if (host->is_address ||
	        (host->resolved_ms != 0 && host->resolved_ms + RESOLVE_KEEP_MS > clock_mono_ms())) {
		connect_next(session);
		return;
	}
	session->waits_for_name = true;
	if (lookup_start(upstream->relay, host) < 0)
		session_trouble(session, "too much to do");
}

void session_host_step(struct defer *later)
{
	struct session *session = container_of(later, struct session, later);

	if (session->addr == 0)
		try_host(session);
	else
		connect_next(session);
}

/* ---- how long it may take ---- */

/* Whether mail could go to another host if this one does not serve. */
static bool may_fail_over(const struct session *session)
{
	const struct upstream *upstream = session->upstream;

	return upstream_choose_host(upstream, session->is_probe ? 0 : session->host + 1) <
	       upstream->host_count;
}

uint64_t session_host_patience(const struct session *session, uint64_t timeout)
{
	uint64_t now = clock_mono_ms(), until = session->address_since_ms + HURRY_MS;

	/* A host that is silent at the first MAIL does not serve either. */
	if (session->state == SESSION_ENVELOPE && !session->served && !session->tx.mail_answered &&
	        upstream_has_other_way(session))
		return MIN_OF(timeout, (uint64_t)HURRY_MS);
	if (session->state >= SESSION_IDLE || !may_fail_over(session))
		return timeout;
	until = MIN_OF(until, session->since_ms + HURRY_HOST_MS);
	return MIN_OF(timeout, now < until ? until - now : 0);
}

/* ---- whether it serves ---- */

void session_host_prefer(struct session *session)
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

void session_log_address(const struct session *session)
{
	char address[ADDR_TEXT];

	LOG(NULL, EV_UPSTREAM_FAILED, "upstream=%s host=%s address=%s why=%s",
	        session->upstream->settings->name, session->host_name,
	        addr_format(&session->addresses.at[session->addr], address),
	        LOG_VALUE(slice_str(session->trouble)));
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

void session_host_failed(struct session *session)
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

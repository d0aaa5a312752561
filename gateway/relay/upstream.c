/* SPDX-License-Identifier: ISC */
/*
 * An upstream: its hosts and how they fare, its sessions, and what waits for it.
 *
 * A host that did not serve gets no mail until a transaction has ended there in order: it rests,
 * for a growing time, then one connection probes it and carries what comes. While there is no host
 * to try, mail is deferred at once; the first session that works again wakes it.
 */
#include "gateway/relay/upstream.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/base/log.h"
#include "gateway/conf/conf.h"
#include "gateway/net/tls.h"
#include "gateway/relay/accounts.h"
#include "gateway/relay/attempt.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/session.h"
#include "gateway/relay/session_host.h"
#include "gateway/relay/task.h"
#include "gateway/relay/transaction.h"

#define HOST_REST_MS     1000 /* after the first failure; doubles */
#define HOST_REST_MAX_MS 60000
#define RESUME_MS        600000 /* a stopped upstream is tried again */
/* Who tries a new login has so long to himself: one that is silent must not hold up all mail. */
#define TRY_MS 4000
/* Deliveries that wait for a session, loaded and signed, while others are prepared. */
#define WAITING_MAX 100

static void probe_hosts(void *arg);
static void catch_up(struct defer *defer);

static void on_resume(void *arg)
{
	upstream_resume(arg);
}

static void catch_up_soon(struct upstream *upstream)
{
	loop_defer(upstream->relay->loop, &upstream->catch_up);
}

static void on_patience_over(void *arg)
{
	catch_up_soon(arg);
}

static void wipe_password(struct upstream *upstream)
{
	if (upstream->password != NULL)
		explicit_bzero(upstream->password, strlen(upstream->password));
	free(upstream->password);
	upstream->password = NULL;
}

static void free_hosts(struct upstream *upstream)
{
	for (size_t i = 0; i < upstream->host_count; i++)
		free(upstream->hosts[i].name);
	upstream->host_count = 0;
}

static int read_hosts(const struct conf_upstream *settings, struct upstream *upstream)
{
	for (size_t i = 0; i < settings->hosts_count && i < HOSTS_MAX; i++) {
		struct host host = {0};
		struct slice name;
		int r = addr_split(slice_str(settings->hosts[i]), &name, &host.port);
		if (r < 0)
			return r;
		host.name = slice_dup(name);
		if (host.name == NULL)
			return -ENOMEM;
		host.is_address =
		        addr_parse(slice_str(settings->hosts[i]), &host.addresses.at[0]) == 0;
		host.addresses.count = host.is_address;
		upstream->hosts[upstream->host_count++] = host;
	}
	return 0;
}

static int make_tls(
        const struct conf_upstream *settings, struct tls_client **ret_tls, struct why *why)
{
	*ret_tls = NULL;
	if (settings->tls == CONF_TLS_NONE)
		return 0;
	return tls_client_new(settings->tls == CONF_TLS_VERIFY ? TLS_CHECK_NAME : TLS_CHECK_NONE,
	        settings->ca_file, ret_tls, why);
}

int upstream_new(struct relay *relay, const struct conf *conf, const struct conf_upstream *settings,
        struct slice password, struct upstream **ret_upstream, struct why *why)
{
	struct upstream *upstream = calloc(1, sizeof(*upstream));

	why_set(why, "upstream %s: out of memory", settings->name);
	if (upstream == NULL)
		return -ENOMEM;
	upstream->relay = relay;
	upstream->conf = conf_ref(conf);
	upstream->settings = settings;
	list_init(&upstream->waiting);
	list_init(&upstream->sessions);
	list_init(&upstream->idle);
	list_init(&upstream->held);
	timer_init(&upstream->resume, relay->loop, on_resume, upstream);
	timer_init(&upstream->rest, relay->loop, probe_hosts, upstream);
	timer_init(&upstream->patience, relay->loop, on_patience_over, upstream);
	upstream->catch_up.run = catch_up;
	upstream->password = slice_dup(password);
	int r = upstream->password != NULL ? make_tls(settings, &upstream->tls, why) : -ENOMEM;
	if (r == 0)
		r = read_hosts(settings, upstream);
	if (r < 0) {
		upstream_free(upstream);
		return r;
	}
	*ret_upstream = upstream;
	return 0;
}

static struct session *pop_idle(struct upstream *upstream)
{
	struct list *link = list_pop(&upstream->idle);

	return link == NULL ? NULL : list_entry(link, struct session, link);
}

static void quit_idle(struct upstream *upstream)
{
	struct session *session;

	while ((session = pop_idle(upstream)) != NULL)
		session_quit(session);
}

/* Whether the host of one that has connected is still configured. */
static bool has_host_of(const struct upstream *upstream, const struct session *session)
{
	uint16_t port = addr_port(&session->addresses.at[session->addr]);

	for (size_t i = 0; i < upstream->host_count; i++)
		if (upstream->hosts[i].port == port &&
		        strcmp(upstream->hosts[i].name, session->host_name) == 0)
			return true;
	return false;
}

/*
 * Sessions of former settings: those that have no message end, or the next mail would go to the
 * old host or without the new TLS, or wait for a host that it will not go to. The others end with
 * their message, and take the place of a new one only where both are for the same host.
 */
static void end_former_sessions(struct upstream *upstream)
{
	quit_idle(upstream);
	list_for_each_safe (at, &upstream->sessions) {
		struct session *session = list_entry(at, struct session, member);
		if (session->generation == upstream->generation || session->finished)
			continue;
		if (session->state < SESSION_IDLE) {
			session_end(session, "the upstream was configured anew");
		} else if (!session->uncounted && !has_host_of(upstream, session)) {
			session->uncounted = true;
			upstream->session_count--;
		}
	}
}

void upstream_renew(struct upstream *upstream, struct upstream *fresh)
{
	upstream->generation++;
	wipe_password(upstream);
	upstream->password = TAKE(fresh->password);
	tls_client_unref(upstream->tls);
	upstream->tls = TAKE(fresh->tls);
	upstream->settings = fresh->settings;
	conf_unref(upstream->conf);
	upstream->conf = conf_ref(fresh->conf);
	free_hosts(upstream);
	memcpy(upstream->hosts, fresh->hosts, sizeof(upstream->hosts));
	upstream->host_count = fresh->host_count;
	fresh->host_count = 0;
	/* Nobody has tried the new hosts. */
	upstream->removed = upstream->down = false;
	upstream_free(fresh);
	end_former_sessions(upstream);
	upstream_serve(upstream);
}

void upstream_free(struct upstream *upstream)
{
	if (upstream == NULL)
		return;
	assert_bug(list_is_empty(&upstream->sessions));
	timer_stop(&upstream->resume);
	timer_stop(&upstream->rest);
	timer_stop(&upstream->patience);
	loop_defer_cancel(&upstream->catch_up);
	wipe_password(upstream);
	free_hosts(upstream);
	tls_client_unref(upstream->tls);
	conf_unref(upstream->conf);
	free(upstream);
}

/* ---- what waits ---- */

static struct delivery *pop_waiting(struct upstream *upstream)
{
	struct list *link = list_pop(&upstream->waiting);

	if (link == NULL)
		return NULL;
	upstream->waiting_count--;
	return list_entry(link, struct delivery, link);
}

/* All but so many of those that have waited longest. */
static void defer_waiting(struct upstream *upstream, size_t but, const char *text)
{
	while (upstream->waiting_count > but) {
		struct delivery *delivery =
		        list_entry(upstream->waiting.prev, struct delivery, link);
		list_remove(&delivery->link);
		upstream->waiting_count--;
		delivery_set_fate(delivery, FATE_DEFERRED, "4.4.1", NULL, text);
		attempt_delivery_done(delivery);
	}
}

/* There is no host to try. What is held stays so, and has its attempt when its time has come. */
static void go_down(struct upstream *upstream, size_t but, const char *text)
{
	upstream->down = true;
	defer_waiting(upstream, but, text);
}

static void hold_waiting(struct upstream *upstream, bool frozen)
{
	struct delivery *delivery;

	while ((delivery = pop_waiting(upstream)) != NULL)
		attempt_delivery_held(delivery, frozen);
}

/* The next that may leave now: the account of one may have been suspended while it waited. */
static struct delivery *next_waiting(struct upstream *upstream)
{
	struct delivery *delivery;

	while ((delivery = pop_waiting(upstream)) != NULL &&
	        accounts_hold_reason(upstream->relay->accounts, delivery->attempt->task->entry) !=
	                NULL)
		attempt_delivery_held(delivery, true);
	return delivery;
}

/* Whether a host other than this one has accepted the login of these settings. */
static bool login_works(const struct upstream *upstream, const struct host *but)
{
	for (size_t i = 0; i < upstream->host_count; i++)
		if (&upstream->hosts[i] != but && upstream->hosts[i].login_works)
			return true;
	return false;
}

/*
 * Whether one more connection may set out. With a login one tries it first: a wrong password is
 * wrong once, and not as often as would make the upstream shut us out.
 */
static bool may_set_out(struct upstream *upstream)
{
	uint64_t now = clock_mono_ms();

	if (upstream->connecting + upstream->probing == 0 ||
	        upstream->settings->username[0] == '\0' || login_works(upstream, NULL) ||
	        now >= upstream->tried_ms + TRY_MS) {
		upstream->tried_ms = now;
		return true;
	}
	timer_start(&upstream->patience, upstream->tried_ms + TRY_MS - now);
	return false;
}

void upstream_serve(struct upstream *upstream)
{
	struct delivery *delivery;
	bool no_way = upstream_choose_host(upstream, 0) == upstream->host_count;

	if (upstream->relay->stopping)
		return;
	while (!list_is_empty(&upstream->idle) && (delivery = next_waiting(upstream)) != NULL)
		transaction_start(pop_idle(upstream), delivery);
	while (!no_way && upstream->connecting < upstream->waiting_count &&
	        upstream->session_count - upstream->probing < upstream->settings->connections &&
	        may_set_out(upstream))
		no_way = session_start(upstream, 0) < 0;
	probe_hosts(upstream);
	/* A probe may take long, and serves one delivery when it is ready: no more wait for it. */
	if (no_way && upstream->session_count == upstream->probing &&
	        upstream->waiting_count > upstream->probing)
		go_down(upstream, upstream->probing, "no host of the upstream can be reached now");
}

/* So many may wait for a session; the tasks of others are held, unloaded. */
static size_t room_to_wait(const struct upstream *upstream)
{
	return MIN_OF(2 * upstream->settings->connections, (uint64_t)WAITING_MAX);
}

void upstream_deliver(struct upstream *upstream, struct delivery *delivery)
{
	if (upstream->stopped || upstream->relay->stopping) {
		attempt_delivery_held(delivery, true);
		return;
	}
	if (upstream->waiting_count >= room_to_wait(upstream)) {
		/* Held, it ages, and what has been held for long has had its attempt. */
		if (upstream->down || delivery->attempt->task->overdue)
			delivery_set_fate(delivery, FATE_DEFERRED, "4.4.5", NULL,
			        "all connections to the upstream are busy");
		attempt_delivery_held(delivery, false);
		return;
	}
	list_append(&upstream->waiting, &delivery->link);
	upstream->waiting_count++;
	upstream_serve(upstream);
}

/* Wakes of what is held as many as there is room for, so that each is loaded and signed once. */
static void wake_held(struct upstream *upstream)
{
	struct list *link;

	while (!upstream->down && !upstream->stopped &&
	        upstream->waiting_count + upstream->coming < room_to_wait(upstream) &&
	        (link = list_pop(&upstream->held)) != NULL) {
		struct task *task = list_entry(link, struct task, link);
		task->coming_to = upstream;
		upstream->coming++;
		task_wake(task);
	}
}

static void catch_up(struct defer *defer)
{
	struct upstream *upstream = container_of(defer, struct upstream, catch_up);

	if (upstream->relay->stopping)
		return;
	upstream_serve(upstream);
	wake_held(upstream);
}

void upstream_hold(struct upstream *upstream, struct task *task, bool frozen)
{
	task_hold(task, &upstream->held, frozen);
	/* It may have got ready, or have nobody who probes it, since the delivery came back. */
	catch_up_soon(upstream);
}

void upstream_task_came(struct task *task)
{
	struct upstream *upstream = TAKE(task->coming_to);

	if (upstream == NULL)
		return;
	upstream->coming--;
	/* It may have gone elsewhere, and nobody else would wake the next. */
	catch_up_soon(upstream);
}

struct delivery *upstream_next_delivery(struct upstream *upstream)
{
	struct delivery *delivery =
	        upstream->stopped || upstream->relay->stopping ? NULL : next_waiting(upstream);

	catch_up_soon(upstream);
	return delivery;
}

/* ---- hosts ---- */

size_t upstream_choose_host(const struct upstream *upstream, size_t from)
{
	while (from < upstream->host_count && upstream->hosts[from].is_open)
		from++;
	return from;
}

/*
 * Probes hosts whose rest is over, and comes back when the next one's is. Only as long as there
 * is mail: the next delivery begins anew.
 */
static void probe_hosts(void *arg)
{
	struct upstream *upstream = arg;
	uint64_t now = clock_mono_ms(), next = UINT64_MAX;

	if (upstream->stopped || upstream->removed || upstream->relay->stopping ||
	        (upstream->session_count == 0 && upstream->waiting_count == 0 &&
	                list_is_empty(&upstream->held)))
		return;
	for (size_t i = 0; i < upstream->host_count; i++) {
		struct host *host = &upstream->hosts[i];
		if (!host->is_open || host->probed)
			continue;
		if (host->rests_until_ms > now)
			next = MIN_OF(next, host->rests_until_ms);
		else if (may_set_out(upstream))
			host->probed = session_probe(upstream, i) == 0;
	}
	if (next != UINT64_MAX)
		timer_start(&upstream->rest, next - now);
}

void upstream_host_failed(
        struct upstream *upstream, size_t index, uint64_t since_ms, const char *text)
{
	struct host *host = &upstream->hosts[index];

	host->resolved_ms = 0;
	/* Connections that were there when it failed fail with it: that is one failure. */
	if (host->rest_ms == 0)
		host->rest_ms = HOST_REST_MS;
	else if (since_ms > host->failed_ms)
		host->rest_ms = MIN_OF(2 * host->rest_ms, (uint64_t)HOST_REST_MAX_MS);
	if (!host->is_open || since_ms > host->failed_ms) {
		host->failed_ms = clock_mono_ms();
		host->rests_until_ms = host->failed_ms + host->rest_ms;
	}
	host->is_open = true;
	LOG(NULL, EV_UPSTREAM_FAILED, "upstream=%s host=%s port=%u why=%s",
	        upstream->settings->name, host->name, host->port, LOG_VALUE(slice_str(text)));
}

/* ---- its sessions ---- */

/* Its host, unless that is one of older settings. */
static struct host *host_of(const struct session *session)
{
	struct upstream *upstream = session->upstream;

	return session->generation == upstream->generation && session->host < upstream->host_count
	               ? &upstream->hosts[session->host]
	               : NULL;
}

/* It is ready, or will never be. */
static void on_its_way_no_more(struct session *session)
{
	if (session->is_probe)
		session->upstream->probing--;
	else
		session->upstream->connecting--;
}

void upstream_session_ready(struct session *session)
{
	struct upstream *upstream = session->upstream;
	struct host *host = host_of(session);

	on_its_way_no_more(session);
	if (host != NULL)
		host->login_works = true;
	if (!upstream->down)
		return;
	upstream->down = false;
	LOG(NULL, EV_UPSTREAM_RESUMED, "upstream=%s", upstream->settings->name);
	catch_up_soon(upstream);
}

void upstream_takes_mail(struct session *session)
{
	struct host *host = host_of(session);

	if (host != NULL)
		host->takes_mail = true;
}

bool upstream_wants_login(const struct session *session)
{
	const struct host *host = host_of(session);

	return session->upstream->settings->username[0] == '\0' && host != NULL &&
	       !host->takes_mail;
}

void upstream_transaction_ended(struct session *session)
{
	struct host *host = host_of(session);

	session->served = true;
	/* Others that were there when it failed say nothing of whether it serves again. */
	if (host == NULL || (host->is_open && session->since_ms <= host->failed_ms))
		return;
	if (host->is_open)
		catch_up_soon(session->upstream);
	host->is_open = host->probed = false;
	host->rest_ms = host->broken_off = 0;
}

static bool has_other_host(const struct session *session)
{
	const struct upstream *upstream = session->upstream;

	for (size_t i = 0; i < upstream->host_count; i++)
		if (i != session->host && !upstream->hosts[i].is_open)
			return true;
	return false;
}

bool upstream_has_other_way(const struct session *session)
{
	const struct host *host = host_of(session);

	return host != NULL &&
	       (has_other_host(session) || host->broken_off + 1 < session->addresses.count);
}

/* The next session tries it last. */
static void put_last(struct host *host, const struct addr *address)
{
	struct addresses *addresses = &host->addresses;
	struct addr bad = *address;

	for (size_t i = 0; i + 1 < addresses->count; i++)
		if (addr_same_ip(&addresses->at[i], &bad)) {
			memmove(&addresses->at[i], &addresses->at[i + 1],
			        (addresses->count - i - 1) * sizeof(bad));
			addresses->at[addresses->count - 1] = bad;
			return;
		}
}

bool upstream_session_broke_off(struct session *session, unsigned code)
{
	struct host *host = host_of(session);

	if (host == NULL || session->served)
		return false;
	put_last(host, &session->addresses.at[session->addr]);
	if (++host->broken_off < session->addresses.count) {
		session_log_address(session);
		return true;
	}
	host->broken_off = 0;
	bool other_way = has_other_host(session);
	if (other_way || code == 421 || host->is_open)
		upstream_host_failed(
		        session->upstream, session->host, session->since_ms, session->trouble);
	return other_way;
}

void upstream_session_ended(struct session *session, bool was_connecting)
{
	struct upstream *upstream = session->upstream;
	struct host *host = host_of(session);

	if (!session->uncounted)
		upstream->session_count--;
	if (was_connecting)
		on_its_way_no_more(session);
	if (session->is_probe && host != NULL) {
		host->probed = false;
		/* It was ready, and there was nothing that it could carry. */
		host->is_open &= was_connecting || session->transactions > 0;
	}
	/* A probe that has failed says nothing of the other hosts. */
	if (was_connecting && session->generation == upstream->generation &&
	        upstream->session_count == 0 && !upstream->stopped &&
	        (!session->is_probe || upstream_choose_host(upstream, 0) == upstream->host_count))
		go_down(upstream, 0, session->trouble);
	upstream_serve(upstream);
	catch_up_soon(upstream);
}

bool upstream_login_refused(struct session *session)
{
	struct host *host = host_of(session);

	if (host != NULL)
		host->login_works = false;
	return login_works(session->upstream, host);
}

void upstream_stop(struct upstream *upstream, const char *host, const char *text)
{
	if (upstream->stopped)
		return;
	upstream->stopped = true;
	LOG(NULL, EV_UPSTREAM_STOPPED, "upstream=%s host=%s reply=%s", upstream->settings->name,
	        host, LOG_VALUE(slice_str(text)));
	timer_start(&upstream->resume, RESUME_MS);
	hold_waiting(upstream, true);
}

void upstream_resume(struct upstream *upstream)
{
	timer_stop(&upstream->resume);
	for (size_t i = 0; i < upstream->host_count; i++)
		upstream->hosts[i].rests_until_ms = 0;
	if (upstream->stopped)
		LOG(NULL, EV_UPSTREAM_RESUMED, "upstream=%s", upstream->settings->name);
	upstream->stopped = upstream->down = false;
	catch_up_soon(upstream);
}

void upstream_remove(struct upstream *upstream)
{
	upstream->removed = true;
	upstream->generation++;
	timer_stop(&upstream->resume);
	timer_stop(&upstream->rest);
	upstream->stopped = false;
	defer_waiting(upstream, 0, "the route of this mail is not configured any more");
	end_former_sessions(upstream);
	task_wake_all(&upstream->held);
}

void upstream_shut(struct upstream *upstream)
{
	timer_stop(&upstream->resume);
	timer_stop(&upstream->rest);
	timer_stop(&upstream->patience);
	hold_waiting(upstream, false);
	quit_idle(upstream);
	list_for_each_safe (at, &upstream->sessions) {
		struct session *session = list_entry(at, struct session, member);
		if (session->state != SESSION_DOT)
			session_end(session, "the gateway stops");
	}
}

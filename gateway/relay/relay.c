/* SPDX-License-Identifier: ISC */
/* The process `relay`: what holds its parts together; see relay.h. */
#include "gateway/relay/relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gateway/base/log.h"
#include "gateway/conf/option.h"
#include "gateway/net/jobs.h"
#include "gateway/relay/accounts.h"
#include "gateway/relay/attempt.h"
#include "gateway/relay/control.h"
#include "gateway/relay/history.h"
#include "gateway/relay/keys.h"
#include "gateway/relay/lookup.h"
#include "gateway/relay/notices.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/sasl_client.h"
#include "gateway/relay/session.h"
#include "gateway/relay/task.h"
#include "gateway/relay/upstream.h"
#include "gateway/spool/spool.h"

#define WORKERS       4
#define JOBS_MAX      8192
#define PREPARING_MAX 64 /* enough to keep workers and connections busy */
#define STOP_CHECK_MS 10
#define STOP_WAIT_MS  10000

/* ---- the queue ---- */

static void dispatch(struct defer *defer)
{
	struct relay *relay = container_of(defer, struct relay, dispatch);
	struct task *task;

	while (!relay->stopping && !spool_out_is_failing(relay->spool) &&
	        relay->preparing < PREPARING_MAX &&
	        (task = scheduler_take(&relay->scheduler)) != NULL)
		if (!accounts_hold(relay->accounts, task))
			attempt_start(task);
}

void relay_dispatch_soon(struct relay *relay)
{
	loop_defer(relay->loop, &relay->dispatch);
}

static void on_entry(void *arg, struct spool_entry *entry)
{
	task_begin(arg, entry);
}

static void on_alarm(void *arg, const char *text)
{
	(void)arg;
	LOG(NULL, EV_SPOOL_ALARM, "what=%s", LOG_VALUE(slice_str(text)));
}

static void on_recovered(void *arg)
{
	relay_dispatch_soon(arg);
}

static void on_wake(void *arg, unsigned events)
{
	struct relay *relay = arg;
	uint64_t count;

	(void)events;
	if (read(relay->wake_fd, &count, sizeof(count)) > 0)
		spool_out_follow(relay->spool);
}

/* ---- upstreams ---- */

struct upstream *relay_find_upstream(struct relay *relay, struct slice name)
{
	list_for_each (at, &relay->upstreams) {
		struct upstream *upstream = list_entry(at, struct upstream, link);
		if (!upstream->removed && slice_equal(slice_str(upstream->settings->name), name))
			return upstream;
	}
	return NULL;
}

static struct upstream *find_any(struct relay *relay, const char *name)
{
	list_for_each (at, &relay->upstreams) {
		struct upstream *upstream = list_entry(at, struct upstream, link);
		if (strcmp(upstream->settings->name, name) == 0)
			return upstream;
	}
	return NULL;
}

static void put_in_force(struct relay *relay, struct upstream *fresh)
{
	struct upstream *known = find_any(relay, fresh->settings->name);

	/* Also that a password goes to whoever answers there, if there is one and TLS is off. */
	if (fresh->settings->tls != CONF_TLS_VERIFY)
		LOG(NULL, EV_UPSTREAM_UNPROTECTED, "upstream=%s tls=%s login=%s",
		        fresh->settings->name, option_word(OPTION_TLS_POLICY, fresh->settings->tls),
		        fresh->settings->username[0] != '\0' ? "yes" : "no");
	if (known != NULL)
		upstream_renew(known, fresh);
	else
		list_append(&relay->upstreams, &fresh->link);
}

/* All upstreams are made before the first one changes anything. */
static int configure(struct relay *relay, const struct conf *conf, const struct slice *passwords,
        size_t password_count, struct why *why)
{
	struct list fresh, *link;
	int r = 0;

	list_init(&fresh);
	for (size_t i = 0; r == 0 && i < conf->upstream_count; i++) {
		struct slice password = i < password_count ? passwords[i] : SLICE("");
		struct upstream *upstream;
		r = upstream_new(relay, conf, &conf->upstreams[i], password, &upstream, why);
		if (r == 0)
			list_append(&fresh, &upstream->link);
	}
	while ((link = list_pop(&fresh)) != NULL) {
		struct upstream *upstream = list_entry(link, struct upstream, link);
		if (r == 0)
			put_in_force(relay, upstream);
		else
			upstream_free(upstream);
	}
	if (r < 0)
		return r;
	conf_unref(relay->conf);
	relay->conf = conf_ref(conf);
	return 0;
}

int relay_reload(struct relay *relay, const struct conf *conf, const struct slice *passwords,
        size_t password_count, struct why *why)
{
	int r = configure(relay, conf, passwords, password_count, why);
	if (r < 0)
		return r;
	list_for_each (at, &relay->upstreams) {
		struct upstream *upstream = list_entry(at, struct upstream, link);
		if (conf_find_upstream(conf, upstream->settings->name) == NULL)
			upstream_remove(upstream);
		else
			upstream_resume(upstream);
	}
	task_wake_all(&relay->routeless);
	return 0;
}

/* ---- life ---- */

static int open_spool(struct relay *relay, struct why *why)
{
	static const struct spool_out_events events = {
	        .on_entry = on_entry, .on_alarm = on_alarm, .on_recovered = on_recovered};
	const struct spool_out_settings settings = {
	        .path = relay->conf->spool,
	        .ops = &file_system,
	        .loop = relay->loop,
	        .jobs = relay->jobs,
	        .user_size = sizeof(struct task),
	        .events = &events,
	        .arg = relay,
	};

	return spool_out_open(&settings, &relay->spool, why);
}

/* What comes from the database. */
static int start_asking(struct relay *relay, const struct relay_settings *settings, struct why *why)
{
	const struct keys_settings keys = {
	        .loop = relay->loop,
	        .database = settings->conf->database,
	        .password = settings->database_password,
	};
	struct notices_settings notices = {
	        .database = settings->conf->database,
	        .password = settings->database_password,
	};

	int r = keys_new(&keys, &relay->keys, why);
	if (r < 0)
		return r;
	r = accounts_new(relay->loop, &relay->accounts);
	notices.keys = relay->keys;
	notices.accounts = relay->accounts;
	if (r == 0)
		r = notices_new(&notices, &relay->notices);
	return r == 0 ? 0 : why_errno(why, r, "cannot listen to the database");
}

static int start(struct relay *relay, const struct relay_settings *settings, struct why *why)
{
	const struct history_settings history = {
	        .database = settings->conf->database,
	        .password = settings->database_password,
	        .spool = settings->conf->spool,
	};

	int r = sasl_client_prepare(why);
	if (r == 0)
		r = jobs_new(WORKERS, JOBS_MAX, &relay->jobs);
	if (r == 0)
		r = start_asking(relay, settings, why);
	if (r == 0)
		r = configure(
		        relay, settings->conf, settings->passwords, settings->password_count, why);
	if (r == 0)
		r = open_spool(relay, why);
	/* A predecessor has left the spool, so that its run is not taken for one that died. */
	if (r == 0)
		r = history_new(&history, &relay->history, why);
	if (r == 0)
		r = watch_new(relay->loop, relay->wake_fd, on_wake, relay, &relay->wake);
	if (r == 0 && settings->control_fd >= 0)
		r = control_new(relay, settings->control_fd, &relay->control);
	if (r < 0)
		return r;
	watch_set(relay->wake, WATCH_READ);
	spool_out_follow(relay->spool);
	return 0;
}

int relay_new(const struct relay_settings *settings, struct relay **ret_relay, struct why *why)
{
	struct relay *relay = calloc(1, sizeof(*relay));

	why_set(why, "out of memory");
	if (relay == NULL)
		return -ENOMEM;
	relay->loop = settings->main_loop;
	relay->wake_fd = settings->wake_fd;
	relay->dispatch.run = dispatch;
	scheduler_init(&relay->scheduler);
	list_init(&relay->upstreams);
	list_init(&relay->lookups);
	list_init(&relay->routeless);
	int r = start(relay, settings, why);
	if (r < 0) {
		relay_free(relay);
		return r;
	}
	*ret_relay = relay;
	return 0;
}

static bool has_sessions(struct relay *relay)
{
	list_for_each (at, &relay->upstreams) {
		struct upstream *upstream = list_entry(at, struct upstream, link);
		if (!list_is_empty(&upstream->sessions))
			return true;
	}
	return false;
}

/* Jobs and marks end by themselves soon, in no order worth telling each other of. */
static void check_stop(void *arg)
{
	struct relay *relay = arg;

	if (has_sessions(relay) || relay->running > 0 || relay->busy > 0 ||
	        spool_out_is_busy(relay->spool)) {
		timer_start(&relay->stop_check, STOP_CHECK_MS);
		return;
	}
	timer_stop(&relay->stop_limit);
	relay->on_stopped(relay->on_stopped_arg);
}

/*
 * Replies to final dots that have not come by now are not waited for, nor marks that
 * the disk does not take: whoever comes next needs the lock.
 */
static void end_waiting(void *arg)
{
	struct relay *relay = arg;

	spool_out_give_up(relay->spool);
	timer_start(&relay->stop_limit, STOP_CHECK_MS);

	list_for_each (at, &relay->upstreams) {
		struct upstream *upstream = list_entry(at, struct upstream, link);
		list_for_each_safe (member, &upstream->sessions)
			session_end(
			        list_entry(member, struct session, member), "the gateway stops");
	}
}

void relay_stop(struct relay *relay, void (*on_stopped)(void *arg), void *arg)
{
	relay->stopping = true;
	relay->on_stopped = on_stopped;
	relay->on_stopped_arg = arg;
	watch_set(relay->wake, 0);
	control_free(TAKE(relay->control));
	list_for_each (at, &relay->upstreams)
		upstream_shut(list_entry(at, struct upstream, link));
	timer_init(&relay->stop_check, relay->loop, check_stop, relay);
	timer_init(&relay->stop_limit, relay->loop, end_waiting, relay);
	timer_start(&relay->stop_limit, STOP_WAIT_MS);
	timer_start(&relay->stop_check, 0);
}

void relay_free(struct relay *relay)
{
	struct spool_entry *entry;
	struct list *link;
	size_t position = 0;

	if (relay == NULL)
		return;
	control_free(relay->control);
	watch_free(relay->wake);
	if (relay->wake_fd >= 0)
		close(relay->wake_fd);
	if (relay->spool != NULL) {
		while ((entry = spool_out_next(relay->spool, &position)) != NULL)
			if (task_of(entry) != NULL)
				task_end(task_of(entry));
		spool_out_close(relay->spool);
	}
	while ((link = list_pop(&relay->upstreams)) != NULL)
		upstream_free(list_entry(link, struct upstream, link));
	notices_free(relay->notices);
	accounts_free(relay->accounts);
	keys_free(relay->keys);
	history_free(relay->history);
	jobs_free(relay->jobs);
	lookups_abandon(relay);
	loop_defer_cancel(&relay->dispatch);
	scheduler_done(&relay->scheduler);
	if (relay->conf != NULL)
		conf_unref(relay->conf);
	free(relay);
}

/* SPDX-License-Identifier: ISC */
/*
 * The process `submit`: its loops, who may connect, reload and stop; see submit.h.
 *
 * The main loop accepts and hands descriptors round to all loops, itself included.
 * Everything that concerns another loop goes there as a post.
 */
#include "gateway/submit/submit.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "gateway/base/board.h"
#include "gateway/base/clock.h"
#include "gateway/mail/reply.h"
#include "gateway/net/listener.h"
#include "gateway/submit/networks_file.h"
#include "gateway/submit/proxied.h"
#include "gateway/submit/session.h"
#include "gateway/submit/shares.h"
#include "gateway/submit/slots.h"

#define LISTENERS_MAX 64
#define DRAIN_MS      5000
#define WAITING_LEAST 16UL /* behind proxies, for a header */
#define WAITING_MOST  1024UL

/* One loop and its sessions. */
struct server {
	struct serving serving; /* first: sessions lead back here */
	struct submit *submit;
	pthread_t thread;
	bool has_thread; /* the main loop has none of its own */
	struct timer drain;
	bool drained;
};

struct listening {
	struct submit *submit;
	struct listener *listener;
	size_t in_conf; /* which listener of the configuration it is of */
};

struct submit {
	struct loop *main_loop;
	struct spool_in *spool;
	int wake_fd;
	struct server servers[CONF_LOOPS_MAX];
	unsigned server_count, next_server;
	struct listening listeners[LISTENERS_MAX];
	size_t listener_count;

	struct slots *slots;
	struct networks_file *networks;
	struct shares *shares;

	/* owner: main loop */
	const struct conf *conf;
	struct slot_limits limits;
	struct proxied_waiting proxied;
	uint64_t refused_told_ms; /* the last time that the log told of it; 0: never */
	unsigned draining;
	void (*on_stopped)(void *arg);
	void *arg;
};

/* A message to a server's loop. */
struct order {
	struct post post;
	struct server *server;
	int fd; /* a newcomer, or a link to `auth` */
	struct addr peer;
	size_t listener;
	const struct conf *conf;
	struct tls_server *tls;
};

static int order_new(struct server *server, void (*run)(struct post *post), struct order **ret)
{
	struct order *order = calloc(1, sizeof(*order));

	if (order == NULL)
		return -ENOMEM;
	order->server = server;
	order->fd = -1;
	order->post.run = run;
	*ret = order;
	return 0;
}

static void order_send(struct order *order)
{
	loop_post(order->server->serving.loop, &order->post);
}

/* ---- who may connect ---- */

static bool has_proxies(const struct conf *conf)
{
	bool any = false;

	for (size_t i = 0; i < conf->listener_count; i++)
		any |= conf->listeners[i].proxies_count > 0;
	return any;
}

/*
 * As many connections as the configuration allows, or the descriptors of this process: one each, a
 * quarter as many for messages that go to files of their own, behind proxies another quarter, up to
 * a maximum, for those that wait for a header, and what the process itself needs.
 */
static void set_slots(struct submit *submit)
{
	const struct conf_submission *wanted = &submit->conf->submission;
	uint64_t own = 32 + submit->listener_count + 8UL * submit->server_count;
	uint64_t waiting = has_proxies(submit->conf) ? WAITING_LEAST : 0;
	if (waiting > 0)
		waiting = MIN_OF(MAX_OF(wanted->connections / 4, waiting), WAITING_MOST);
	uint64_t need = own + wanted->connections + wanted->connections / 4 + waiting;
	struct rlimit files;

	submit->limits = (struct slot_limits){
	        .connections = wanted->connections,
	        .connections_per_address = wanted->connections_per_address,
	};
	submit->proxied.most = waiting;
	if (getrlimit(RLIMIT_NOFILE, &files) < 0 || files.rlim_cur >= need)
		return;
	uint64_t left = files.rlim_cur > own + 1 ? files.rlim_cur - own : 2;
	waiting = MIN_OF(waiting, left / 6);
	submit->proxied.most = MAX_OF(waiting, 1UL);
	submit->limits.connections = MIN_OF((left - waiting) * 4 / 5, wanted->connections);
	LOG(NULL, EV_DESCRIPTORS_FEW, "have=%" PRIu64 " need=%" PRIu64 " connections=%" PRIu64,
	        (uint64_t)files.rlim_cur, need, submit->limits.connections);
}

/* An account leaves half of the connections to others. */
static void set_limits(struct submit *submit)
{
	set_slots(submit);
	uint64_t half = MAX_OF(submit->limits.connections / 2, 1UL);
	const struct shares_limits each = {
	        .connections = half,
	        .memory = submit->conf->submission.account_memory,
	};
	shares_set_limits(submit->shares, &each);
}

static void tell_refused(struct submit *submit, const struct addr *peer, enum slot_answer answer)
{
	static const char *const limits[] = {
	        [SLOT_ADDRESS_FULL] = "address",
	        [SLOT_STRANGERS_FULL] = "strangers",
	        [SLOT_ALL_FULL] = "all",
	        [SLOT_NO_MEMORY] = "memory",
	};
	char ip[ADDR_TEXT];

	counter_add(CT_CONNECTIONS_REFUSED, 1);
	if (log_is_due(&submit->refused_told_ms))
		LOG(NULL, EV_CONNECTIONS_REFUSED, "ip=%s limit=%s", addr_format_ip(peer, ip),
		        limits[answer]);
}

/* One line in the clear, without waiting: a newcomer that must go again. */
static void turn_away(int fd, enum conf_tls_mode tls)
{
	struct buf line;

	buf_init(&line, 512);
	if (tls == CONF_TLS_STARTTLS && reply_write(&line, REPLY_TOO_MANY_CONNECTIONS, NULL) == 0)
		(void)!send(fd, buf_slice(&line).ptr, buf_len(&line), MSG_DONTWAIT | MSG_NOSIGNAL);
	buf_done(&line);
	close(fd);
}

static void run_newcomer(struct post *post)
{
	struct order *order = container_of(post, struct order, post);
	struct server *server = order->server;

	if (server->serving.stopping) {
		close(order->fd);
		slots_give_back(server->submit->slots, &order->peer, false);
	} else if (session_new(&server->serving, order->fd, &order->peer, order->listener) < 0) {
		slots_give_back(server->submit->slots, &order->peer, false);
	}
	free(order);
}

/* Somebody has come; or the proxy that has come speaks for him. */
static void admit(void *arg, int fd, const struct addr *peer)
{
	struct listening *listening = arg;
	struct submit *submit = listening->submit;
	struct server *server = &submit->servers[submit->next_server++ % submit->server_count];
	struct order *order;

	enum slot_answer answer = slots_take(submit->slots, &submit->limits, peer);
	if (answer == SLOT_TAKEN && order_new(server, run_newcomer, &order) == 0) {
		order->fd = fd;
		order->peer = *peer;
		order->listener = listening->in_conf;
		order_send(order);
		return;
	}
	if (answer == SLOT_TAKEN) {
		slots_give_back(submit->slots, peer, false);
		answer = SLOT_NO_MEMORY;
	}
	tell_refused(submit, peer, answer);
	turn_away(fd, submit->conf->listeners[listening->in_conf].tls);
}

static void on_accept(void *arg, int fd, const struct addr *peer)
{
	struct listening *listening = arg;
	struct submit *submit = listening->submit;
	const struct conf_listener *listener = &submit->conf->listeners[listening->in_conf];

	if (listener->proxies_count > 0)
		proxied_take(&submit->proxied, listener, fd, peer, admit, listening);
	else
		admit(listening, fd, peer);
}

/* ---- servers ---- */

static void run_all_gone(struct post *post)
{
	struct order *order = container_of(post, struct order, post);
	struct submit *submit = order->server->submit;

	free(order);
	if (--submit->draining == 0)
		submit->on_stopped(submit->arg);
}

/* The last session of a stopping server has ended: tell the main loop, once. */
static void check_drained(struct server *server)
{
	struct order *order;

	if (!server->serving.stopping || server->drained ||
	        !list_is_empty(&server->serving.sessions))
		return;
	server->drained = true;
	timer_stop(&server->drain);
	/* Without memory for this the supervisor's deadline ends us. */
	if (order_new(server, run_all_gone, &order) == 0)
		loop_post(server->submit->main_loop, &order->post);
}

static void on_session_ended(struct serving *serving)
{
	check_drained(container_of(serving, struct server, serving));
}

static void on_changed(void *arg, uint64_t account, uint64_t era)
{
	struct server *server = arg;

	sessions_account_changed(&server->serving, account, era);
}

static void on_drain_end(void *arg)
{
	struct server *server = arg;

	list_for_each_safe (at, &server->serving.sessions) {
		struct session *session = list_entry(at, struct session, link);
		/* What is being stored is still answered: the disk decides, not the client. */
		if (session->state != ST_COMMIT)
			session_close_with(session, CLOSING_STOP, REPLY_SHUTTING_DOWN);
	}
}

static int server_init(
        struct submit *submit, struct server *server, struct loop *loop, struct tls_server *tls)
{
	server->submit = submit;
	server->serving = (struct serving){
	        .loop = loop,
	        .spool = submit->spool,
	        .slots = submit->slots,
	        .shares = submit->shares,
	        .conf = conf_ref(submit->conf),
	        .tls = tls_server_ref(tls),
	        .on_session_ended = on_session_ended,
	};
	list_init(&server->serving.sessions);
	list_init(&server->serving.lingering);
	timer_init(&server->drain, loop, on_drain_end, server);
	return auth_link_new(loop, on_changed, server, &server->serving.auth);
}

static void *server_main(void *arg)
{
	struct server *server = arg;

	loop_run(server->serving.loop);
	return NULL;
}

static int add_server(struct submit *submit, struct tls_server *tls)
{
	struct server *server = &submit->servers[submit->server_count];
	bool is_main = submit->server_count == 0;
	struct loop *loop = submit->main_loop;

	int r = is_main ? 0 : loop_new(&loop);
	if (r < 0)
		return r;
	submit->server_count++;
	r = server_init(submit, server, loop, tls);
	if (r == 0 && !is_main) {
		r = -pthread_create(&server->thread, NULL, server_main, server);
		server->has_thread = r == 0;
	}
	return r;
}

static int listen_on(struct submit *submit, const struct submit_settings *settings)
{
	size_t next = 0;
	int r = 0;

	for (size_t i = 0; i < submit->conf->listener_count; i++) {
		const struct conf_listener *listener = &submit->conf->listeners[i];
		for (size_t k = 0; k < listener->address_count; k++) {
			if (next == settings->listener_count || next == LISTENERS_MAX)
				return -EINVAL;
			struct listening *listening = &submit->listeners[next];
			*listening = (struct listening){.submit = submit, .in_conf = i};
			r = listener_new(submit->main_loop, settings->listeners[next++], on_accept,
			        listening, &listening->listener);
			if (r < 0)
				return r;
			submit->listener_count = next;
		}
	}
	return next == settings->listener_count ? 0 : -EINVAL;
}

static void on_alarm(const char *text)
{
	LOG(NULL, EV_SPOOL_ALARM, "what=%s", LOG_VALUE(slice_str(text)));
}

static int open_spool(struct submit *submit, struct why *why)
{
	const struct spool_in_settings settings = {
	        .path = submit->conf->spool,
	        .ops = &file_system,
	        .wake_fd = submit->wake_fd,
	        .on_alarm = on_alarm,
	};

	return spool_in_open(&settings, &submit->spool, why);
}

static int open_networks(struct submit *submit, struct why *why)
{
	int r = networks_file_new(submit->main_loop, submit->slots, &file_system,
	        submit->conf->spool, &submit->networks);
	return r < 0 ? why_errno(why, r, "remembered networks") : 0;
}

int submit_new(const struct submit_settings *settings, struct submit **ret_submit, struct why *why)
{
	struct submit *submit = calloc(1, sizeof(*submit));
	struct tls_server *tls = NULL;
	unsigned loops = MIN_OF(settings->loops, (unsigned)CONF_LOOPS_MAX);

	if (submit == NULL)
		return why_errno(why, ENOMEM, "submit");
	submit->main_loop = settings->main_loop;
	submit->wake_fd = settings->wake_fd;
	submit->conf = conf_ref(settings->conf);
	proxied_init(&submit->proxied, submit->main_loop);
	int r = slots_new(&submit->slots);
	if (r == 0)
		r = shares_new(&submit->shares);
	if (r < 0)
		why_errno(why, r, "submit");
	if (r == 0)
		r = tls_server_new(settings->certificate, settings->key, &tls, why);
	if (r == 0)
		r = open_spool(submit, why);
	if (r == 0)
		r = open_networks(submit, why);
	if (r == 0) {
		for (unsigned i = 0; r == 0 && i < loops; i++)
			r = add_server(submit, tls);
		if (r == 0)
			r = listen_on(submit, settings);
		if (r == 0)
			set_limits(submit);
		if (r < 0)
			why_errno(why, r, "cannot start the loops");
	}
	tls_server_unref(tls);
	/* The process ends after a failure here; it does not take half a server apart. */
	if (r == 0)
		*ret_submit = submit;
	return r;
}

static void run_auth_link(struct post *post)
{
	struct order *order = container_of(post, struct order, post);

	auth_link_connect(order->server->serving.auth, order->fd);
	free(order);
}

void submit_auth_links(struct submit *submit, const int *fds, size_t count)
{
	struct order *order;

	for (size_t i = 0; i < count; i++) {
		if (i >= submit->server_count ||
		        order_new(&submit->servers[i], run_auth_link, &order) < 0) {
			close(fds[i]);
			continue;
		}
		order->fd = fds[i];
		order_send(order);
	}
}

static void run_reload(struct post *post)
{
	struct order *order = container_of(post, struct order, post);
	struct serving *serving = &order->server->serving;

	conf_unref(serving->conf);
	tls_server_unref(serving->tls);
	serving->conf = order->conf;
	serving->tls = order->tls;
	free(order);
}

int submit_reload(struct submit *submit, const struct conf *conf, struct slice certificate,
        struct slice key, struct why *why)
{
	struct order *orders[CONF_LOOPS_MAX];
	struct tls_server *tls;
	unsigned made = 0;

	int r = tls_server_new(certificate, key, &tls, why);
	if (r < 0)
		return r;
	while (r == 0 && made < submit->server_count) {
		r = order_new(&submit->servers[made], run_reload, &orders[made]);
		made += r == 0;
	}
	if (r < 0) {
		while (made > 0)
			free(orders[--made]);
		tls_server_unref(tls);
		return why_errno(why, r, "cannot reload");
	}
	for (unsigned i = 0; i < made; i++) {
		orders[i]->conf = conf_ref(conf);
		orders[i]->tls = tls_server_ref(tls);
		order_send(orders[i]);
	}
	tls_server_unref(tls);
	conf_unref(submit->conf);
	submit->conf = conf_ref(conf);
	set_limits(submit);
	return 0;
}

static void run_stop(struct post *post)
{
	struct order *order = container_of(post, struct order, post);
	struct server *server = order->server;

	free(order);
	server->serving.stopping = true;
	timer_start(&server->drain, DRAIN_MS);
	list_for_each_safe (at, &server->serving.sessions)
		session_stop(list_entry(at, struct session, link));
	check_drained(server);
}

void submit_stop(struct submit *submit, void (*on_stopped)(void *arg), void *arg)
{
	struct order *order;

	submit->on_stopped = on_stopped;
	submit->arg = arg;
	for (size_t i = 0; i < submit->listener_count; i++)
		listener_free(submit->listeners[i].listener);
	submit->listener_count = 0;
	proxied_done(&submit->proxied);
	submit->draining = submit->server_count;
	for (unsigned i = 0; i < submit->server_count; i++) {
		if (order_new(&submit->servers[i], run_stop, &order) == 0)
			order_send(order);
	}
}

void submit_free(struct submit *submit)
{
	if (submit == NULL)
		return;
	for (unsigned i = 0; i < submit->server_count; i++) {
		struct server *server = &submit->servers[i];
		if (server->has_thread) {
			loop_stop(server->serving.loop);
			pthread_join(server->thread, NULL);
		}
		sessions_cut_off(&server->serving);
		auth_link_free(server->serving.auth);
		conf_unref(server->serving.conf);
		tls_server_unref(server->serving.tls);
	}
	bool slots_are_free = networks_file_free(submit->networks);
	spool_in_close(submit->spool);
	for (unsigned i = 0; i < submit->server_count; i++) {
		if (submit->servers[i].has_thread)
			loop_free(submit->servers[i].serving.loop);
	}
	if (slots_are_free)
		slots_free(submit->slots);
	shares_free(submit->shares);
	if (submit->wake_fd >= 0)
		close(submit->wake_fd);
	conf_unref(submit->conf);
	free(submit);
}

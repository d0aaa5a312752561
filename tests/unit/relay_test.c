/* SPDX-License-Identifier: ISC */
/* Parts of `relay` that can be tried without a spool and without a network. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "gateway/base/clock.h"
#include "gateway/conf/conf.h"
#include "gateway/net/jobs.h"
#include "gateway/net/listener.h"
#include "gateway/relay/attempt.h"
#include "gateway/relay/bounce_limit.h"
#include "gateway/relay/history.h"
#include "gateway/relay/lookup.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/relay.h"
#include "gateway/relay/session.h"
#include "gateway/relay/task.h"
#include "gateway/relay/upstream.h"

/* What set out before a host failed fails with it; the rests of what set out later double. */
static void what_fails_at_once_fails_once(void **state)
{
	static const struct conf_upstream settings = {.name = "isp"};
	static const uint64_t rests_s[] = {1, 2, 4, 8, 16, 32, 60, 60};
	static char name[] = "host.example";
	static struct upstream upstream = {.settings = &settings, .host_count = 2};
	struct host *host = &upstream.hosts[0];

	(void)state;
	host->name = name;
	assert_int_equal(upstream_choose_host(&upstream, 0), 0);
	for (size_t i = 0; i < ARRAY_LEN(rests_s); i++) {
		uint64_t since_ms = clock_mono_ms();
		host->failed_ms = since_ms - 1;
		for (unsigned k = 0; k < 20; k++)
			upstream_host_failed(&upstream, 0, since_ms, "refused");
		assert_int_equal(host->rest_ms, 1000 * rests_s[i]);
		assert_int_equal(host->rests_until_ms, host->failed_ms + host->rest_ms);
		assert_int_equal(upstream_choose_host(&upstream, 0), 1);
		/* Not for its rest being over: it was not found ready. */
		host->rests_until_ms = 0;
		assert_int_equal(upstream_choose_host(&upstream, 0), 1);
	}
}

static void an_account_gets_so_many_bounces_within_an_hour(void **state)
{
	static struct bounce_limit limit;
	struct bounce_wait wait;

	(void)state;
	for (uint64_t i = 0; i < 3; i++)
		assert_true(bounce_limit_take(&limit, 7, 3, 1000 + i, &wait));
	for (uint64_t i = 0; i < 3; i++) {
		assert_false(bounce_limit_take(&limit, 7, 3, 2000 + i, &wait));
		assert_int_equal(wait.ms, BOUNCE_LIMIT_MS - 1000 - i);
		assert_int_equal(wait.is_first, i == 0);
	}
	assert_false(bounce_limit_take(&limit, 7, 2, 2000, &wait)); /* lowered */
	assert_true(bounce_limit_take(&limit, 7, 4, 2000, &wait));  /* raised */
	assert_true(bounce_limit_take(&limit, 8, 1, 2000, &wait));
	assert_false(bounce_limit_take(&limit, 7, 3, 999 + BOUNCE_LIMIT_MS, &wait));
	assert_true(bounce_limit_take(&limit, 7, 1, 1000 + BOUNCE_LIMIT_MS, &wait));
	assert_false(bounce_limit_take(&limit, 7, 1, 1000 + BOUNCE_LIMIT_MS, &wait));
	assert_true(wait.is_first); /* of the new hour */
	/* With one account more than there is room for, the oldest hour is forgotten. */
	limit = (struct bounce_limit){0};
	for (uint64_t i = 0; i < BOUNCE_LIMIT_ACCOUNTS; i++)
		assert_true(bounce_limit_take(&limit, 7 + i, 1, 3000 + i, &wait));
	assert_false(bounce_limit_take(&limit, 7, 1, 9000, &wait));
	assert_true(bounce_limit_take(&limit, 5, 1, 9000, &wait));
	assert_false(bounce_limit_take(&limit, 8, 1, 9000, &wait));
	assert_true(bounce_limit_take(&limit, 7, 1, 9000, &wait));
}

static void the_oldest_of_each_account_goes_first(void **state)
{
	static const struct {
		uint64_t account;
		int64_t accepted_us;
	} facts[] = {{1, 50}, {1, 20}, {1, 60}, {1, 25}, {2, 70}, {1, 10}, {2, 30}, {1, 55}};
	static const size_t turns[] = {5, 6, 1, 4, 3, 0, 7, 2};
	static struct spool_entry entries[ARRAY_LEN(facts)];
	static struct task tasks[ARRAY_LEN(facts)];
	struct scheduler scheduler;

	(void)state;
	scheduler_init(&scheduler);
	for (size_t i = 0; i < ARRAY_LEN(facts); i++) {
		entries[i].account = facts[i].account;
		entries[i].accepted_us = facts[i].accepted_us;
		tasks[i].entry = &entries[i];
		assert_int_equal(scheduler_add(&scheduler, &tasks[i]), 0);
	}
	for (size_t i = 0; i < ARRAY_LEN(turns); i++)
		assert_ptr_equal(scheduler_take(&scheduler), &tasks[turns[i]]);
	assert_null(scheduler_take(&scheduler));
	scheduler_done(&scheduler);
}

/* All of an account's mail may become ready at once and in any order, as with `queue retry all`. */
static void many_of_one_account_line_up_quickly(void **state)
{
	enum { MANY = 100000 };
	struct spool_entry *entries = calloc(MANY, sizeof(*entries));
	struct task *tasks = calloc(MANY, sizeof(*tasks));
	struct scheduler scheduler;
	struct timespec before, after;

	(void)state;
	assert_non_null(entries);
	assert_non_null(tasks);
	scheduler_init(&scheduler);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
	for (size_t i = 0; i < MANY; i++) {
		entries[i].accepted_us = (int64_t)(i * 48271 % MANY); /* each once */
		tasks[i].entry = &entries[i];
		assert_int_equal(scheduler_add(&scheduler, &tasks[i]), 0);
	}
	for (int64_t i = 0; i < MANY; i++)
		assert_int_equal(scheduler_take(&scheduler)->entry->accepted_us, i);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
	assert_true(after.tv_sec - before.tv_sec < 10); /* a part of that even with sanitizers */
	scheduler_done(&scheduler);
	free(tasks);
	free(entries);
}

static const struct conf *parse(const char *upstreams)
{
	const struct conf *conf;
	struct buf text, errors;

	buf_init(&text, 4096);
	buf_init(&errors, CONF_ERRORS_MAX);
	assert_int_equal(buf_printf(&text,
	                         "hostname = \"h.example\"\n"
	                         "database = \"dbname=postern\"\n"
	                         "listener = { submission = { address = [\"127.0.0.1:5587\"] } }\n"
	                         "tls = { certificate = \"/c\"  key = \"/k\" }\n"
	                         "upstream = { %s }\n"
	                         "route = \"isp\"\n",
	                         upstreams),
	        0);
	assert_int_equal(conf_parse(buf_str(&text), "test.conf", &errors, &conf), 0);
	buf_done(&text);
	buf_done(&errors);
	return conf;
}

static void reload(struct relay *relay, const char *upstreams, bool good)
{
	const struct conf *conf = parse(upstreams);
	struct why why;

	assert_int_equal(relay_reload(relay, conf, NULL, 0, &why) == 0, good);
	assert_true(good || why.text[0] != '\0');
	conf_unref(conf);
}

/* The second upstream's authorities cannot be read. */
static void a_reload_that_fails_changes_nothing(void **state)
{
	struct relay relay = {0};
	struct list *link;

	(void)state;
	assert_int_equal(loop_new(&relay.loop), 0);
	list_init(&relay.upstreams);
	list_init(&relay.routeless);
	reload(&relay, "isp = { hosts = [\"one.example:25\"] }", true);
	struct upstream *isp = relay_find_upstream(&relay, SLICE("isp"));
	assert_non_null(isp);
	unsigned generation = isp->generation;
	const struct conf *conf = relay.conf;
	reload(&relay,
	        "isp = { hosts = [\"two.example:25\"] }"
	        "new = { hosts = [\"new.example:25\"]  ca_file = \"/nonexistent/ca\" }",
	        false);
	assert_string_equal(isp->hosts[0].name, "one.example");
	assert_string_equal(isp->settings->hosts[0], "one.example:25");
	assert_int_equal(isp->generation, generation);
	assert_ptr_equal(relay.conf, conf);
	assert_null(relay_find_upstream(&relay, SLICE("new")));
	reload(&relay,
	        "isp = { hosts = [\"two.example:25\"] }"
	        "new = { hosts = [\"new.example:25\"] }",
	        true);
	assert_ptr_equal(relay_find_upstream(&relay, SLICE("isp")), isp);
	assert_string_equal(isp->hosts[0].name, "two.example");
	assert_non_null(relay_find_upstream(&relay, SLICE("new")));
	while ((link = list_pop(&relay.upstreams)) != NULL)
		upstream_free(list_entry(link, struct upstream, link));
	conf_unref(relay.conf);
	loop_free(relay.loop);
}

/* ---- hosts whose names are looked up ---- */

#define PATIENCE_MS 10000

static struct loop *loop;
static sem_t name_server;
static uint16_t own_port; /* where connections are taken */
static struct listener *listener, *other_listener;
static int connection; /* that came, or -1 */
/* At the same port of another address: whether it hangs, or greets; else what it says before it
 * closes. */
static bool other_hangs, other_greets;
static const char *other_says;
static int other_connection; /* that hangs, or -1 */

int __real_getaddrinfo(const char *name, const char *port, const struct addrinfo *hints,
        struct addrinfo **ret_found);
int __wrap_getaddrinfo(const char *name, const char *port, const struct addrinfo *hints,
        struct addrinfo **ret_found);

/* An address that no socket can be connected to, before one that serves. */
static int find_two(const char *port, const struct addrinfo *hints, struct addrinfo **ret_found)
{
	struct addrinfo *last;

	int r = __real_getaddrinfo("255.255.255.255", port, hints, ret_found);
	assert_int_equal(r, 0);
	for (last = *ret_found; last->ai_next != NULL; last = last->ai_next)
		continue;
	return __real_getaddrinfo("127.0.0.1", port, hints, &last->ai_next);
}

/* One that takes connections and does not serve, before one that does. */
static int find_other(const char *port, const struct addrinfo *hints, struct addrinfo **ret_found)
{
	int r = __real_getaddrinfo("127.0.0.2", port, hints, ret_found);
	assert_int_equal(r, 0);
	assert_null((*ret_found)->ai_next);
	return __real_getaddrinfo("127.0.0.1", port, hints, &(*ret_found)->ai_next);
}

/* The linker puts it in front: a name server that says nothing until it is told to. */
int __wrap_getaddrinfo(const char *name, const char *port, const struct addrinfo *hints,
        struct addrinfo **ret_found)
{
	if (strcmp(name, "two.example") == 0)
		return find_two(port, hints, ret_found);
	if (strcmp(name, "late.example") == 0) {
		sem_wait(&name_server);
		return __real_getaddrinfo("127.0.0.1", port, hints, ret_found);
	}
	if (strcmp(name, "other.example") == 0)
		return find_other(port, hints, ret_found);
	if (strcmp(name, "slow.example") != 0)
		return __real_getaddrinfo(name, port, hints, ret_found);
	sem_wait(&name_server);
	return EAI_AGAIN;
}

static void on_connection(void *arg, int fd, const struct addr *peer)
{
	(void)arg;
	(void)peer;
	if (connection >= 0)
		close(fd);
	else
		connection = fd;
	loop_stop(loop);
}

/* Takes no mail: it closes at MAIL. */
static void *greet(void *arg)
{
	int fd = (int)(intptr_t)arg;
	char octets[1000];

	(void)!write(fd, "220 x\r\n", 7);
	(void)!read(fd, octets, sizeof(octets));
	(void)!write(fd, "250-x\r\n250 AUTH PLAIN\r\n", 23);
	(void)!read(fd, octets, sizeof(octets));
	close(fd);
	return NULL;
}

static void on_other_connection(void *arg, int fd, const struct addr *peer)
{
	pthread_t thread;

	(void)arg;
	(void)peer;
	if (other_greets) {
		/* So that its thread may block. */
		assert_int_equal(fcntl(fd, F_SETFL, 0), 0);
		assert_int_equal(pthread_create(&thread, NULL, greet, (void *)(intptr_t)fd), 0);
		pthread_detach(thread);
		return;
	}
	if (other_hangs && other_connection < 0) {
		other_connection = fd;
		return;
	}
	assert_int_equal(write(fd, other_says, strlen(other_says)), strlen(other_says));
	close(fd);
}

/* Port 0: any, which is returned. */
static uint16_t listen_at(uint32_t ip, uint16_t port,
        void (*taken)(void *arg, int fd, const struct addr *peer), struct listener **ret_listener)
{
	struct addr addr = {
	        .u.in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(ip)},
	        .len = sizeof(addr.u.in),
	};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	addr.u.in.sin_port = htons(port);
	assert_int_equal(bind(fd, &addr.u.sa, addr.len), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(getsockname(fd, &addr.u.sa, &addr.len), 0);
	assert_int_equal(listener_new(loop, fd, taken, NULL, ret_listener), 0);
	return addr_port(&addr);
}

static int listen_here(void **state)
{
	(void)state;
	connection = other_connection = -1;
	other_hangs = other_greets = false;
	other_says = "";
	assert_int_equal(loop_new(&loop), 0);
	own_port = listen_at(INADDR_LOOPBACK, 0, on_connection, &listener);
	listen_at(INADDR_LOOPBACK + 1, own_port, on_other_connection, &other_listener);
	return 0;
}

static int stop_here(void **state)
{
	(void)state;
	if (connection >= 0)
		close(connection);
	if (other_connection >= 0)
		close(other_connection);
	listener_free(listener);
	listener_free(other_listener);
	loop_free(loop);
	return 0;
}

static void out_of_patience(void *arg)
{
	(void)arg;
	loop_stop(loop);
}

#define DELIVERIES_MAX 20

/* An upstream with mail that waits for it: as much of `relay` as that takes. */
/* A message of the queue with its task behind it, as the spool keeps them. */
struct queued {
	struct spool_entry entry;
	struct task task;
};

struct bench {
	struct relay relay;
	struct upstream *upstream;
	struct attempt attempt; /* with so many deliveries that it does not end here */
	struct queued message;  /* that it is about: a bounce, which no account holds */
	struct result results[DELIVERIES_MAX];
	uint32_t recipients[DELIVERIES_MAX];
	struct delivery deliveries[DELIVERIES_MAX];
	struct timer patience;
};

static void deliver(struct bench *bench, unsigned i)
{
	bench->recipients[i] = i;
	bench->deliveries[i] = (struct delivery){
	        .attempt = &bench->attempt,
	        .upstream = bench->upstream,
	        .recipients = &bench->recipients[i],
	        .count = 1,
	};
	bench->attempt.open++;
	upstream_deliver(bench->upstream, &bench->deliveries[i]);
}

static struct bench *set_up(const char *upstreams, unsigned deliveries)
{
	struct bench *bench = calloc(1, sizeof(*bench));

	assert_non_null(bench);
	sem_init(&name_server, 0, 0);
	bench->relay.loop = loop;
	assert_int_equal(jobs_new(2, 100, &bench->relay.jobs), 0);
	list_init(&bench->relay.upstreams);
	list_init(&bench->relay.routeless);
	list_init(&bench->relay.lookups);
	reload(&bench->relay, upstreams, true);
	bench->upstream = relay_find_upstream(&bench->relay, SLICE("isp"));
	arena_init(&bench->attempt.arena, 65536);
	bench->attempt.results = bench->results;
	bench->message.entry.is_dsn = true;
	bench->message.task.entry = &bench->message.entry;
	bench->attempt.task = &bench->message.task;
	bench->attempt.open = 1;
	timer_init(&bench->patience, loop, out_of_patience, NULL);
	timer_start(&bench->patience, PATIENCE_MS);
	for (unsigned i = 0; i < deliveries; i++)
		deliver(bench, i);
	return bench;
}

static void end_without_sessions(void *arg)
{
	struct upstream *upstream = arg;

	if (list_is_empty(&upstream->sessions) && list_is_empty(&upstream->relay->lookups) &&
	        upstream->relay->busy == 0)
		loop_stop(loop);
	else
		timer_start(&upstream->resume, 1);
}

static void tear_down(struct bench *bench)
{
	bench->relay.stopping = true;
	upstream_shut(bench->upstream);
	for (unsigned i = 0; i < DELIVERIES_MAX; i++)
		sem_post(&name_server);
	timer_init(&bench->upstream->resume, loop, end_without_sessions, bench->upstream);
	timer_start(&bench->upstream->resume, 0);
	loop_run(loop);
	timer_stop(&bench->patience);
	jobs_free(bench->relay.jobs);
	upstream_free(bench->upstream);
	conf_unref(bench->relay.conf);
	arena_reset(&bench->attempt.arena);
	free(bench);
}

static void run_one_turn(void)
{
	loop_stop(loop);
	loop_run(loop);
}

/* Until the first look-up is on its way. */
static void run_until_asked(struct bench *bench)
{
	while (list_is_empty(&bench->relay.lookups))
		run_one_turn();
}

/* A delivery to this upstream gets as far as the listener. */
static void expect_connection(const char *upstreams, unsigned deliveries)
{
	struct bench *bench = set_up(upstreams, deliveries);

	loop_run(loop);
	enum fate fate = bench->results[0].fate;
	tear_down(bench);
	assert_true(connection >= 0);
	assert_int_equal(fate, FATE_OPEN);
}

/* A name that cannot be looked up in time does not keep mail from the next host. */
static void a_slow_name_makes_way_for_the_next_host(void **state)
{
	char upstreams[200];

	(void)state;
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"slow.example:25\", \"127.0.0.1:%u\"]  tls = \"none\""
	        "  connect_timeout = \"1s\" }",
	        own_port);
	expect_connection(upstreams, 1);
}

/* However much mail waits, a silent name server keeps one worker a host. */
static void a_slow_name_keeps_one_worker(void **state)
{
	char upstreams[200];

	(void)state;
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"slow.example:25\", \"two.example:%u\"]  tls = \"none\""
	        "  connect_timeout = \"1s\" }",
	        own_port);
	expect_connection(upstreams, 8);
}

/* A reload does not forget who is being asked, or a few would take all workers. */
static void a_slow_name_keeps_one_worker_over_reloads(void **state)
{
	char upstreams[200];

	(void)state;
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"slow.example:25\", \"two.example:%u\"]  tls = \"none\""
	        "  connect_timeout = \"1s\" }",
	        own_port);
	struct bench *bench = set_up(upstreams, 1);
	run_until_asked(bench);
	for (unsigned i = 1; i < 4; i++) {
		reload(&bench->relay, upstreams, true);
		deliver(bench, i);
		loop_stop(loop);
		loop_run(loop); /* its session asks */
	}
	loop_run(loop);
	tear_down(bench);
	assert_true(connection >= 0);
}

/* An address to which there is no way fails at once, and the next one is as good. */
static void each_address_of_a_host_is_tried(void **state)
{
	char upstreams[200];

	(void)state;
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"two.example:%u\"]  tls = \"none\" }", own_port);
	expect_connection(upstreams, 1);
}

static sem_t posted;

void __real_loop_post(struct loop *to, struct post *post);
void __wrap_loop_post(struct loop *to, struct post *post);

void __wrap_loop_post(struct loop *to, struct post *post)
{
	__real_loop_post(to, post);
	sem_post(&posted);
}

static struct upstream *to_shut;

static void shut(struct post *post)
{
	(void)post;
	to_shut->relay->stopping = true;
	upstream_shut(to_shut);
}

/* The session has ended when the turn gets to the address that it waited for. */
static void a_stop_and_a_name_in_one_turn(void **state)
{
	char upstreams[200];
	struct post post = {.run = shut};

	(void)state;
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"late.example:%u\"]  tls = \"none\" }", own_port);
	struct bench *bench = set_up(upstreams, 1);
	to_shut = bench->upstream;
	run_until_asked(bench);
	sem_init(&posted, 0, 0);
	loop_post(loop, &post);
	sem_post(&name_server);
	sem_wait(&posted);
	sem_wait(&posted); /* the address too */
	loop_stop(loop);
	loop_run(loop);
	assert_true(list_is_empty(&bench->relay.lookups));
	tear_down(bench);
	assert_int_equal(connection, -1);
}

static void dispatch_nothing(struct defer *defer)
{
	(void)defer;
}

/* The only host rests no longer, and a probe is on its way: it serves one, and may take long. */
static void one_delivery_waits_for_a_probe(void **state)
{
	char upstreams[100];

	(void)state;
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"127.0.0.1:%u\"]  tls = \"none\" }", own_port);
	struct bench *bench = set_up(upstreams, 0);
	bench->upstream->hosts[0].is_open = true;
	for (unsigned i = 0; i < 3; i++)
		deliver(bench, i);
	assert_int_equal(bench->upstream->probing, 1);
	assert_int_equal(bench->upstream->session_count, 1);
	assert_int_equal(bench->results[0].fate, FATE_OPEN);
	assert_int_equal(bench->results[1].fate, FATE_DEFERRED);
	assert_int_equal(bench->results[2].fate, FATE_DEFERRED);
	tear_down(bench);
}

static size_t count_ready(const struct queued *queued, size_t count)
{
	size_t ready = 0;

	for (size_t i = 0; i < count; i++)
		ready += queued[i].task.state == TASK_READY;
	return ready;
}

/*
 * Each is loaded and signed when there is room for it, and not for nothing; also if those before it
 * go elsewhere. As long as the upstream is down none is, and none waits for ever.
 */
static void what_is_held_comes_as_there_is_room(void **state)
{
	enum { HELD = 10, ROOM = 4 };
	static struct queued queued[HELD];

	(void)state;
	struct bench *bench =
	        set_up("isp = { hosts = [\"127.0.0.1:9\"]  tls = \"none\"  connections = 2 }", 0);
	struct upstream *upstream = bench->upstream;
	bench->relay.dispatch.run = dispatch_nothing;
	scheduler_init(&bench->relay.scheduler);
	for (size_t i = 0; i < HELD; i++) {
		task_begin(&bench->relay, &queued[i].entry);
		task_hold(&queued[i].task, &upstream->held, false);
		assert_true(timer_is_running(&queued[i].task.timer));
	}
	upstream->down = true;
	assert_null(upstream_next_delivery(upstream));
	run_one_turn();
	assert_int_equal(count_ready(queued, HELD), 0);

	upstream_resume(upstream);
	run_one_turn();
	assert_int_equal(count_ready(queued, HELD), ROOM);
	assert_null(upstream_next_delivery(upstream));
	run_one_turn();
	assert_int_equal(count_ready(queued, HELD), ROOM);

	upstream_task_came(&queued[0].task);
	run_one_turn();
	assert_int_equal(count_ready(queued, HELD), ROOM + 1);
	for (size_t i = 0; i < HELD; i++)
		task_end(&queued[i].task);
	assert_int_equal(upstream->coming, 0);
	scheduler_done(&bench->relay.scheduler);
	tear_down(bench);
}

/* Takes no mail of the only host's probe: it rests again, and for longer. */
static void a_probe_that_serves_no_mail_is_a_failure(void **state)
{
	char upstreams[100];

	(void)state;
	other_greets = true;
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"127.0.0.2:%u\"]  tls = \"none\" }", own_port);
	struct bench *bench = set_up(upstreams, 0);
	struct host *host = &bench->upstream->hosts[0];
	host->is_open = true;
	host->rest_ms = 1000;
	deliver(bench, 0);
	while (bench->results[0].fate == FATE_OPEN)
		run_one_turn();
	assert_int_equal(bench->results[0].fate, FATE_DEFERRED);
	assert_true(host->is_open && host->rests_until_ms > clock_mono_ms());
	assert_int_equal(host->rest_ms, 2000);
	tear_down(bench);
}

/* Nobody can make it now: the next host is tried, and no copy of the password is left behind. */
static void a_login_that_cannot_be_made_leaves_nothing(void **state)
{
	char upstreams[200];

	(void)state;
	other_greets = true;
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"127.0.0.2:%u\", \"127.0.0.2:%u\"]  tls = \"none\""
	        "  username = \"u\"  password_file = \"/p\" }",
	        own_port, own_port);
	struct bench *bench = set_up(upstreams, 0);
	jobs_free(bench->relay.jobs);
	assert_int_equal(jobs_new(1, 0, &bench->relay.jobs), 0);
	deliver(bench, 0);
	while (bench->results[0].fate == FATE_OPEN)
		run_one_turn();
	assert_int_equal(bench->results[0].fate, FATE_DEFERRED);
	assert_true(bench->upstream->hosts[0].is_open && bench->upstream->hosts[1].is_open);
	tear_down(bench);
}

/* It is ready, and goes, since all connections are in use: its host is not probed without end. */
static void a_probe_that_is_not_needed_has_found_its_host(void **state)
{
	char upstreams[100];

	(void)state;
	other_greets = true;
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"127.0.0.2:%u\"]  tls = \"none\"  connections = 1 }", own_port);
	struct bench *bench = set_up(upstreams, 0);
	bench->upstream->session_count++; /* one that is busy */
	bench->upstream->hosts[0].is_open = true;
	deliver(bench, 0);
	assert_int_equal(bench->upstream->probing, 1);
	while (bench->upstream->session_count > 1)
		run_one_turn();
	assert_false(bench->upstream->hosts[0].is_open);
	bench->upstream->session_count--;
	tear_down(bench);
}

/* What was on its way to the old host has no message, and is not waited for. */
static void mail_that_waits_goes_to_the_new_host_at_once(void **state)
{
	char upstreams[100];

	(void)state;
	struct bench *bench = set_up("isp = { hosts = [\"slow.example:25\"]  tls = \"none\""
	                             "  connections = 1  connect_timeout = \"5m\" }",
	        1);
	run_until_asked(bench);
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"127.0.0.1:%u\"]  tls = \"none\"  connections = 1 }", own_port);
	reload(&bench->relay, upstreams, true);
	loop_run(loop);
	assert_true(connection >= 0);
	assert_int_equal(bench->results[0].fate, FATE_OPEN);
	assert_int_equal(bench->upstream->session_count, 1);
	tear_down(bench);
}

static void expect_the_second_address(const char *next_host)
{
	char upstreams[200];

	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"other.example:%u\"%s]  tls = \"none\"  greeting_timeout = %s }",
	        own_port, next_host, next_host[0] == '\0' ? "\"1s\"" : "\"30s\"");
	expect_connection(upstreams, 1);
}

/* Nor is one that takes connections and does not serve the whole host. */
static void an_address_that_closes_makes_way(void **state)
{
	(void)state;
	expect_the_second_address("");
}

/* The next address has the message at once, although the host has no other name. */
static void an_address_that_takes_no_mail_makes_way(void **state)
{
	(void)state;
	other_greets = true;
	expect_the_second_address("");
}

static void an_address_that_is_busy_makes_way(void **state)
{
	(void)state;
	other_says = "421 4.3.2 too busy\r\n";
	expect_the_second_address("");
}

static void an_address_that_hangs_makes_way(void **state)
{
	(void)state;
	other_hangs = true;
	expect_the_second_address("");
}

/* In time for it, although another host could be tried: one that would not get a connection. */
static void an_address_that_hangs_makes_way_in_a_hurry(void **state)
{
	(void)state;
	other_hangs = true;
	expect_the_second_address(", \"slow.example:25\"");
}

struct server {
	struct upstream *upstream;
	struct timer timer;
};

/* Its part, until a session is ready. */
static void serve(void *arg)
{
	struct server *server = arg;
	char line[100];

	ssize_t len = recv(connection, line, sizeof(line), MSG_DONTWAIT);
	const char *reply = len < 4 || memcmp(line, "EHLO", 4) != 0 ? "" : "250 other.example\r\n";
	assert_int_equal(write(connection, reply, strlen(reply)), strlen(reply));
	if (list_is_empty(&server->upstream->idle))
		timer_start(&server->timer, 1);
	else
		loop_stop(loop);
}

/* So that not each session waits for one that hangs. */
static void the_address_that_served_is_the_first_next_time(void **state)
{
	static const char greeting[] = "220 other.example\r\n";
	char upstreams[200], text[ADDR_TEXT];

	(void)state;
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"other.example:%u\"]  tls = \"none\" }", own_port);
	struct bench *bench = set_up(upstreams, 0);
	struct server server = {.upstream = bench->upstream};
	const struct host *host = &bench->upstream->hosts[0];
	timer_init(&server.timer, loop, serve, &server);
	assert_int_equal(session_start(bench->upstream, 0), 0);
	loop_run(loop);
	assert_true(connection >= 0);
	assert_int_equal(host->addresses.count, 2);
	assert_string_equal(addr_format_ip(&host->addresses.at[0], text), "127.0.0.2");
	assert_int_equal(write(connection, greeting, strlen(greeting)), strlen(greeting));
	timer_start(&server.timer, 1);
	loop_run(loop);
	timer_stop(&server.timer);
	assert_false(list_is_empty(&bench->upstream->idle));
	assert_string_equal(addr_format_ip(&host->addresses.at[0], text), "127.0.0.1");
	assert_string_equal(addr_format_ip(&host->addresses.at[1], text), "127.0.0.2");
	session_end(list_entry(bench->upstream->idle.next, struct session, link), "over");
	tear_down(bench);
}

static _Atomic bool work_done;

static void work(struct job *job)
{
	(void)job;
	work_done = true;
}

static void worked(struct job *job)
{
	loop_stop(job->loop);
}

/* A name server that is silent about the names of one upstream keeps no other from its own. */
static void silent_names_hold_up_no_other_name(void **state)
{
	char upstreams[1000];

	(void)state;
	snprintf(upstreams, sizeof(upstreams),
	        "dead = { hosts = [\"slow.example:1\", \"slow.example:2\", \"slow.example:3\","
	        " \"slow.example:4\", \"slow.example:5\", \"slow.example:6\"]  tls = \"none\" }\n"
	        "isp = { hosts = [\"two.example:%u\"]  tls = \"none\" }",
	        own_port);
	struct bench *bench = set_up(upstreams, 0);
	struct upstream *dead = relay_find_upstream(&bench->relay, SLICE("dead"));
	for (size_t i = 0; i < dead->host_count; i++)
		assert_int_equal(lookup_start(&bench->relay, &dead->hosts[i]), 0);
	deliver(bench, 0);
	loop_run(loop);
	assert_true(connection >= 0);
	tear_down(bench);
	upstream_free(dead);
}

/* The end waits for no name server; what it says later goes to nobody. */
static void a_silent_name_holds_up_no_end(void **state)
{
	(void)state;
	struct bench *bench = set_up("isp = { hosts = [\"slow.example:25\"]  tls = \"none\" }", 1);
	run_until_asked(bench);
	bench->relay.stopping = true;
	upstream_shut(bench->upstream);
	run_one_turn();
	assert_true(list_is_empty(&bench->upstream->sessions));
	assert_int_equal(bench->relay.busy, 0);
	assert_false(list_is_empty(&bench->relay.lookups));
	lookups_abandon(&bench->relay);
	tear_down(bench);
}

/* However many sessions wait for a silent name server, messages are read and signed. */
static void slow_names_hold_up_no_other_work(void **state)
{
	struct job job = {.run = work, .done = worked};

	(void)state;
	struct bench *bench = set_up("isp = { hosts = [\"slow.example:25\"]  tls = \"none\" }", 8);
	run_until_asked(bench);
	work_done = false;
	job.loop = loop;
	assert_int_equal(jobs_submit(bench->relay.jobs, &job), 0);
	loop_run(loop);
	assert_true(work_done);
	tear_down(bench);
}

/* ---- history ---- */

/* A database that is not there: all that is told waits. */
static struct history *history_of(size_t octets_max)
{
	const struct history_settings settings = {
	        .database = "host=/nonexistent",
	        .spool = "/spool",
	        .octets_max = octets_max,
	};
	struct history *history;

	assert_int_equal(history_new(&settings, &history, NULL), 0);
	return history;
}

static const struct message_id an_id = {.bytes = {1, 2, 3}};

static const struct history_delivery a_delivery = {
        .message = &an_id,
        .at_us = 1790000000000000,
        .attempt = 3,
        .number = -1,
        .outcome = "delivered",
        .recipient = {"b@x.example", 11},
        .upstream = {"isp", 3},
        .reply = {"250 ok", 6},
        .seen_by = 7,
        .recipient_hash = UINT64_MAX,
};

static void a_row_in_the_words_of_the_database(void **state)
{
	const struct history_message message = {
	        .id = &an_id,
	        .account = 7,
	        .size = 1000,
	        .recipients = 2,
	        .accepted_us = 1790000000000000,
	        .login = SLICE("a\"b\\c"),
	        .message_id = SLICE("\xc3\xa9\xff\n\xc2\x9b\x7f{},"),
	};
	struct buf out;

	(void)state;
	buf_init(&out, HISTORY_ROW_MAX);
	assert_int_equal(history_row_message(&out, &message), 0);
	assert_slice_equal(buf_slice(&out), "\"(7,1000,2,1790000000000000,\\\"aebagaaaaaaaaaaa\\\","
	                                    "\\\"a\\\\\\\"b\\\\\\\\c\\\",,,,"
	                                    "\\\"\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef"
	                                    "\xbf\xbd\xef\xbf\xbd{},\\\")\",");
	buf_clear(&out);
	assert_int_equal(history_row_delivery(&out, &a_delivery), 0);
	assert_slice_equal(buf_slice(&out),
	        "\"(-1,3,1790000000000000,7,-1,\\\"aebagaaaaaaaaaaa\\\",\\\"delivered\\\","
	        "\\\"b@x.example\\\",\\\"isp\\\",,,,\\\"250 ok\\\")\",");
	buf_done(&out);
}

/* However long its texts are, and whatever they are made of. */
static void the_longest_row_fits(void **state)
{
	static const char octets[] = {'"', '\\', '\xff', '\0', 'x'};
	static char text[8192];
	const struct slice all = slice_of(text, sizeof(text));
	const struct history_message message = {
	        .id = &an_id,
	        .account = UINT64_MAX,
	        .size = UINT64_MAX,
	        .recipients = UINT32_MAX,
	        .accepted_us = INT64_MIN,
	        .login = all,
	        .session = all,
	        .sender = all,
	        .from_domain = all,
	        .message_id = all,
	};
	const struct history_delivery delivery = {
	        .message = &an_id,
	        .at_us = INT64_MIN,
	        .attempt = UINT32_MAX,
	        .number = UINT32_MAX,
	        .outcome = "delivered",
	        .recipient = all,
	        .upstream = all,
	        .host = all,
	        .reply = all,
	        .selectors = all,
	        .notice = all,
	        .seen_by = UINT64_MAX,
	        .recipient_hash = 1ULL << 63,
	};
	struct buf out;

	(void)state;
	buf_init(&out, HISTORY_ROW_MAX);
	for (size_t i = 0; i < ARRAY_LEN(octets); i++) {
		memset(text, octets[i], sizeof(text));
		buf_clear(&out);
		assert_int_equal(history_row_message(&out, &message), 0);
		buf_clear(&out);
		assert_int_equal(history_row_delivery(&out, &delivery), 0);
	}
	buf_done(&out);
}

/* Of 3,000 rows, with room for so much; and it ends soon, though nobody ever takes them. */
static uint64_t rows_lost(size_t octets_max)
{
	struct history *history = history_of(octets_max);
	struct timespec before, after;

	for (unsigned i = 0; i < 3000; i++)
		history_tell_delivery(history, &a_delivery);
	uint64_t lost = history_lost(history);
	clock_gettime(CLOCK_MONOTONIC, &before);
	history_free(history);
	clock_gettime(CLOCK_MONOTONIC, &after);
	assert_true(after.tv_sec - before.tv_sec < 4);
	return lost;
}

static void what_does_not_fit_is_lost_and_counted(void **state)
{
	(void)state;
	uint64_t kept = 3000 - rows_lost(256U << 10);
	assert_in_range(kept, 500, 1500);
	assert_int_equal(3000 - rows_lost(512U << 10), 2 * kept);
	assert_int_equal(rows_lost(2U << 20), 0);
}

static void nothing_is_told_to_nobody(void **state)
{
	(void)state;
	history_tell_delivery(NULL, &a_delivery);
	history_free(NULL);
}

int main(void)
{
#define LISTENING_TEST(test) cmocka_unit_test_setup_teardown(test, listen_here, stop_here)
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(what_fails_at_once_fails_once),
	        cmocka_unit_test(an_account_gets_so_many_bounces_within_an_hour),
	        cmocka_unit_test(the_oldest_of_each_account_goes_first),
	        cmocka_unit_test(many_of_one_account_line_up_quickly),
	        cmocka_unit_test(a_reload_that_fails_changes_nothing),
	        LISTENING_TEST(a_slow_name_makes_way_for_the_next_host),
	        LISTENING_TEST(a_slow_name_keeps_one_worker),
	        LISTENING_TEST(a_slow_name_keeps_one_worker_over_reloads),
	        LISTENING_TEST(each_address_of_a_host_is_tried),
	        LISTENING_TEST(a_stop_and_a_name_in_one_turn),
	        LISTENING_TEST(one_delivery_waits_for_a_probe),
	        LISTENING_TEST(a_probe_that_serves_no_mail_is_a_failure),
	        LISTENING_TEST(a_login_that_cannot_be_made_leaves_nothing),
	        LISTENING_TEST(a_probe_that_is_not_needed_has_found_its_host),
	        LISTENING_TEST(what_is_held_comes_as_there_is_room),
	        LISTENING_TEST(mail_that_waits_goes_to_the_new_host_at_once),
	        LISTENING_TEST(an_address_that_closes_makes_way),
	        LISTENING_TEST(an_address_that_takes_no_mail_makes_way),
	        LISTENING_TEST(an_address_that_is_busy_makes_way),
	        LISTENING_TEST(an_address_that_hangs_makes_way),
	        LISTENING_TEST(an_address_that_hangs_makes_way_in_a_hurry),
	        LISTENING_TEST(the_address_that_served_is_the_first_next_time),
	        LISTENING_TEST(silent_names_hold_up_no_other_name),
	        LISTENING_TEST(a_silent_name_holds_up_no_end),
	        LISTENING_TEST(slow_names_hold_up_no_other_work),
	        cmocka_unit_test(a_row_in_the_words_of_the_database),
	        cmocka_unit_test(the_longest_row_fits),
	        cmocka_unit_test(what_does_not_fit_is_lost_and_counted),
	        cmocka_unit_test(nothing_is_told_to_nobody),
	};

	log_init("test", (enum log_level)(LOG_ALARM + 1));
	return cmocka_run_group_tests(tests, NULL, NULL);
}

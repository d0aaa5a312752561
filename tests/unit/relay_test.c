/* SPDX-License-Identifier: ISC */
/* Parts of `relay` that can be tried without a spool and without a network. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <netdb.h>
#include <semaphore.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway/base/clock.h"
#include "gateway/net/listener.h"
#include "gateway/relay/inner.h"

/* How long the host rests from now on, in seconds. */
static uint64_t rest_s(const struct host *host)
{
	return (host->bad_until_ms - clock_mono_ms() + 999) / 1000;
}

static void what_fails_at_once_fails_once(void **state)
{
	static const struct conf_upstream settings = {.name = "isp"};
	static const uint64_t rests[] = {1, 2, 4, 8, 16, 32, 60, 60};
	static char name[] = "host.example";
	static struct upstream upstream = {.settings = &settings, .host_count = 2};
	struct host *host = &upstream.hosts[0];

	(void)state;
	host->name = name;
	for (size_t i = 0; i < ARRAY_LEN(rests); i++) {
		host->bad_until_ms = 0; /* the last rest is over */
		assert_int_equal(upstream_choose_host(&upstream, 0), 0);
		for (unsigned k = 0; k < 20; k++)
			upstream_host_failed(&upstream, 0, "refused");
		assert_int_equal(rest_s(host), rests[i]);
		assert_int_equal(upstream_choose_host(&upstream, 0), 1);
	}
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
static int connection = -1;

int __real_getaddrinfo(const char *name, const char *port, const struct addrinfo *hints,
        struct addrinfo **ret_found);
int __wrap_getaddrinfo(const char *name, const char *port, const struct addrinfo *hints,
        struct addrinfo **ret_found);

/* The linker puts it in front: a name server that says nothing until it is told to. */
int __wrap_getaddrinfo(const char *name, const char *port, const struct addrinfo *hints,
        struct addrinfo **ret_found)
{
	if (strcmp(name, "slow.example") != 0)
		return __real_getaddrinfo(name, port, hints, ret_found);
	sem_wait(&name_server);
	return EAI_AGAIN;
}

static void on_connection(void *arg, int fd, const struct addr *peer)
{
	(void)arg;
	(void)peer;
	assert_int_equal(connection, -1);
	connection = fd;
	loop_stop(loop);
}

static struct listener *listen_here(uint16_t *ret_port)
{
	struct addr addr = {
	        .u.in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)},
	        .len = sizeof(addr.u.in),
	};
	struct listener *listener;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(fd, &addr.u.sa, addr.len), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(getsockname(fd, &addr.u.sa, &addr.len), 0);
	assert_int_equal(listener_new(loop, fd, on_connection, NULL, &listener), 0);
	*ret_port = addr_port(&addr);
	return listener;
}

static void out_of_patience(void *arg)
{
	(void)arg;
	loop_stop(loop);
}

static void end_when_no_session_is_left(void *arg)
{
	struct upstream *upstream = ((struct delivery *)arg)->upstream;

	if (list_is_empty(&upstream->sessions))
		loop_stop(loop);
	else
		timer_start(&upstream->probe, 1);
}

/* A name that cannot be looked up in time does not keep mail from the next host. */
static void a_slow_name_makes_way_for_the_next_host(void **state)
{
	struct relay relay = {.conf = NULL};
	struct result result = {.fate = FATE_OPEN};
	struct attempt attempt = {.results = &result, .open = 10};
	uint32_t recipient = 0;
	struct delivery delivery = {.attempt = &attempt, .recipients = &recipient, .count = 1};
	struct timer patience;
	char upstreams[200];
	uint16_t port;

	(void)state;
	connection = -1;
	sem_init(&name_server, 0, 0);
	arena_init(&attempt.arena, 4096);
	assert_int_equal(loop_new(&loop), 0);
	assert_int_equal(jobs_new(2, 10, &relay.jobs), 0);
	relay.loop = loop;
	list_init(&relay.upstreams);
	list_init(&relay.routeless);
	struct listener *listener = listen_here(&port);
	snprintf(upstreams, sizeof(upstreams),
	        "isp = { hosts = [\"slow.example:25\", \"127.0.0.1:%u\"]  tls = \"none\""
	        "  connect_timeout = \"1s\"  connections = 1 }",
	        port);
	reload(&relay, upstreams, true);
	delivery.upstream = relay_find_upstream(&relay, SLICE("isp"));
	timer_init(&patience, loop, out_of_patience, NULL);
	timer_start(&patience, PATIENCE_MS);
	upstream_deliver(delivery.upstream, &delivery);
	loop_run(loop);
	assert_true(connection >= 0);
	assert_int_equal(result.fate, FATE_OPEN);

	relay.stopping = true;
	upstream_shut(delivery.upstream);
	sem_post(&name_server);
	timer_init(&delivery.upstream->probe, loop, end_when_no_session_is_left, &delivery);
	timer_start(&delivery.upstream->probe, 0);
	loop_run(loop);
	timer_stop(&patience);
	close(connection);
	listener_free(listener);
	jobs_free(relay.jobs);
	upstream_free(delivery.upstream);
	conf_unref(relay.conf);
	loop_free(loop);
	arena_reset(&attempt.arena);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(what_fails_at_once_fails_once),
	        cmocka_unit_test(a_reload_that_fails_changes_nothing),
	        cmocka_unit_test(a_slow_name_makes_way_for_the_next_host),
	};

	log_init("test", (enum log_level)(LOG_ALARM + 1));
	return cmocka_run_group_tests(tests, NULL, NULL);
}

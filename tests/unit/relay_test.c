/* SPDX-License-Identifier: ISC */
/* Parts of `relay` that can be tried without a spool and without a network. */
#include "tests/unit/unit.h"

#include "gateway/base/clock.h"
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

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(what_fails_at_once_fails_once),
	        cmocka_unit_test(a_reload_that_fails_changes_nothing),
	};

	log_init("test", (enum log_level)(LOG_ALARM + 1));
	return cmocka_run_group_tests(tests, NULL, NULL);
}

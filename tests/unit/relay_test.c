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

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(what_fails_at_once_fails_once),
	};

	log_init("test", (enum log_level)(LOG_ALARM + 1));
	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: ISC */
/* The configuration: its defaults, its errors, and how it is handed on. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gateway/conf/conf.h"

#define WITHOUT_UPSTREAM                                                                           \
	"hostname = \"h.example\"\n"                                                               \
	"database = \"dbname=postern\"\n"                                                          \
	"listener = { submission = { address = [\"127.0.0.1:5587\"] } }\n"                         \
	"tls = { certificate = \"/c\"  key = \"/k\" }\n"

#define SMALLEST                                                                                   \
	WITHOUT_UPSTREAM                                                                           \
	"upstream = { isp = { hosts = [\"smtp.isp.example:587\"] } }\n"                            \
	"route = \"isp\"\n"

static const struct conf *parse(const char *text, struct buf *errors)
{
	const struct conf *conf = NULL;

	buf_init(errors, CONF_ERRORS_MAX);
	int r = conf_parse(text, "test.conf", errors, &conf);
	assert_true((r == 0) == (conf != NULL));
	return conf;
}

static void defaults_are_enough(void **state)
{
	struct buf errors;
	const struct conf *conf = parse(SMALLEST, &errors);

	(void)state;
	assert_non_null(conf);
	assert_int_equal(conf->upstreams[0].tls, CONF_TLS_VERIFY);
	assert_int_equal(conf->submission.message_size, 50 << 20);
	assert_int_equal(conf->retry.expire, 5 * 24 * 3600 * 1000);
	conf_unref(conf);
	buf_done(&errors);
}

static void all_errors_are_told_at_once(void **state)
{
	struct buf errors;
	const struct conf *conf =
	        parse(SMALLEST "hostnam = \"x\"\n"
	                       "submission = { message_size = \"3X\"  recipients = 010 }\n"
	                       "retry = { first = \"0s\" }\n",
	                &errors);

	(void)state;
	assert_null(conf);
	const char *text = buf_str(&errors);
	assert_non_null(text);
	assert_non_null(strstr(text, "test.conf:7: "));
	assert_non_null(strstr(text, "hostname")); /* the nearest known key */
	assert_non_null(strstr(text, "message_size"));
	assert_non_null(strstr(text, "recipients"));
	assert_non_null(strstr(text, "test.conf:9: "));
	buf_done(&errors);
}

static void a_route_must_exist(void **state)
{
	struct buf errors;
	const struct conf *conf = parse(WITHOUT_UPSTREAM
	        "upstream = { isp = { hosts = [\"smtp.isp.example:587\"] } }\n"
	        "route = \"ips\"\n",
	        &errors);

	(void)state;
	assert_null(conf);
	assert_non_null(strstr(buf_str(&errors), "test.conf:6: "));
	buf_done(&errors);
}

static void names_are_checked(void **state)
{
	struct buf errors;
	const struct conf *conf =
	        parse("hostname = \"mail example\"\n"
	              "database = \"dbname=postern\"\n"
	              "listener = { sub*mission = { address = [\"127.0.0.1:5587\"] } }\n"
	              "tls = { certificate = \"/c\"  key = \"/k\" }\n"
	              "upstream = { isp* = { hosts = [\"smtp.isp.example:587\"] } }\n"
	              "route = \"isp*\"\n",
	                &errors);

	(void)state;
	assert_null(conf);
	assert_non_null(strstr(buf_str(&errors), "test.conf:1: hostname"));
	assert_non_null(strstr(buf_str(&errors), "test.conf:3: \"sub*mission\""));
	assert_non_null(strstr(buf_str(&errors), "test.conf:5: \"isp*\""));
	buf_done(&errors);
}

static void write_file(const char *folder, const char *name, const char *text)
{
	char path[100];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

/* Loads `main` beside `included`, from another folder; the errors it gives. */
static struct buf load_with_include(const char *main, const char *included)
{
	char folder[] = "/tmp/pn-unit-XXXXXX", path[100];
	const struct conf *conf;
	struct buf errors;

	assert_non_null(mkdtemp(folder));
	write_file(folder, "main.conf", main);
	write_file(folder, "more.conf", included);
	snprintf(path, sizeof(path), "%s/conf.d", folder);
	assert_int_equal(mkdir(path, 0700), 0);
	buf_init(&errors, CONF_ERRORS_MAX);
	snprintf(path, sizeof(path), "%s/main.conf", folder);
	int r = conf_load(path, &errors, &conf);
	if (r == 0)
		conf_unref(conf);
	else
		assert_int_equal(r, -EINVAL);
	static const char *const names[] = {"main.conf", "more.conf", "conf.d", "."};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
		assert_int_equal(remove(i + 1 < ARRAY_LEN(names) ? path : folder), 0);
	}
	return errors;
}

static void numbers_are_checked_in_every_file(void **state)
{
	struct buf errors = load_with_include(SMALLEST "  @include \"more.conf\"\n",
	        "# 010\nsubmission = { recipients = 0200 }\n");

	(void)state;
	assert_non_null(strstr(buf_str(&errors), "/more.conf:2: 0200 begins with 0"));
	buf_done(&errors);
	/* One that includes itself comes to an end. */
	errors = load_with_include(SMALLEST "@include \"more.conf\"\n",
	        "@include \"more.conf\"\n@include \"more.conf\"\n");
	assert_true(buf_len(&errors) > 0);
	buf_done(&errors);
}

/* libconfig would end the process, also that of a gateway that reloads. */
static void a_folder_cannot_be_included(void **state)
{
	struct buf errors = load_with_include(
	        SMALLEST "@include \"more.conf\"\n", "/*\n*/\n@include \"conf.d\"\n");

	(void)state;
	assert_non_null(strstr(buf_str(&errors), "/more.conf:3: cannot include"));
	buf_done(&errors);
	errors = load_with_include(SMALLEST "/*\n@include \"conf.d\"\n*/\n", "");
	assert_int_equal(buf_len(&errors), 0);
	buf_done(&errors);
}

/* As many as `relay` takes passwords for. */
static void upstreams_have_a_limit(void **state)
{
	struct buf text, errors;

	(void)state;
	for (unsigned count = CONF_UPSTREAMS_MAX; count <= CONF_UPSTREAMS_MAX + 1; count++) {
		buf_init(&text, 1 << 20);
		assert_int_equal(
		        buf_append_str(&text, WITHOUT_UPSTREAM "route = \"u0\"\nupstream = {\n"),
		        0);
		for (unsigned i = 0; i < count; i++)
			assert_int_equal(
			        buf_printf(&text, "u%u = { hosts = [\"a.example:25\"] }\n", i), 0);
		assert_int_equal(buf_append_str(&text, "}\n"), 0);
		const struct conf *conf = parse(buf_str(&text), &errors);
		assert_true((conf != NULL) == (count == CONF_UPSTREAMS_MAX));
		conf_unref(conf);
		buf_done(&errors);
		buf_done(&text);
	}
}

/* Routes that find no room beside a very long name are not left out in silence. */
static void what_does_not_fit_is_an_error(void **state)
{
	static const char before[] = WITHOUT_UPSTREAM "route = \"isp\"\n"
	                                              "upstream = { isp = { hosts = [\"";
	struct buf text, errors;
	char *name;

	(void)state;
	buf_init(&text, 8 << 20);
	assert_int_equal(buf_append_str(&text, before), 0);
	assert_int_equal(buf_reserve(&text, 4190000, &name), 0);
	memset(name, 'h', 4190000);
	buf_added(&text, 4190000);
	assert_int_equal(buf_append_str(&text, ":587\"] } }\ndomain_route = ("), 0);
	for (unsigned i = 0; i < 1000; i++)
		assert_int_equal(buf_append_str(&text,
		                         &", { domain = \"a.example\"  route = \"isp\" }"[i == 0]),
		        0);
	assert_int_equal(buf_append_str(&text, ")\n"), 0);
	assert_null(parse(buf_str(&text), &errors));
	assert_non_null(strstr(buf_str(&errors), "larger than"));
	buf_done(&errors);
	buf_done(&text);
}

static void a_network_has_nothing_behind_its_mask(void **state)
{
	struct buf errors;

	(void)state;
	assert_null(parse("hostname = \"h.example\"\n"
	                  "database = \"dbname=postern\"\n"
	                  "listener = { submission = { address = [\"127.0.0.1:5587\"]\n"
	                  " proxies = [\"192.0.2.0/24\", \"192.0.2.1/24\"] } }\n"
	                  "tls = { certificate = \"/c\"  key = \"/k\" }\n"
	                  "upstream = { isp = { hosts = [\"smtp.isp.example:587\"] } }\n"
	                  "route = \"isp\"\n",
	        &errors));
	assert_non_null(strstr(buf_str(&errors),
	        "test.conf:3: listener.submission: \"192.0.2.1/24\" is no network"));
	buf_done(&errors);
}

static void true_and_false_are_words(void **state)
{
	static const char *const wrong[] = {"\"true\"", "1", "[true]"};
	struct buf text, errors;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		buf_init(&text, 10000);
		assert_int_equal(
		        buf_printf(&text,
		                "listener = { submission = { address = [\"127.0.0.1:5587\"]\n"
		                " networks = %s } }\n",
		                wrong[i]),
		        0);
		assert_null(parse(buf_str(&text), &errors));
		assert_non_null(strstr(buf_str(&errors),
		        "test.conf:2: listener.networks: true or false is wanted here\n"));
		buf_done(&errors);
		buf_done(&text);
	}
}

/* How the supervisor hands the configuration to its children. */
static void what_is_written_reads_back(void **state)
{
	static const char full[] =
	        "hostname = \"h.example\"\n"
	        "database = \"dbname=postern\"\n"
	        "listener = { submission = { address = [\"127.0.0.1:5587\"] }\n"
	        "             relay = { address = [\"127.0.0.1:25\"]  networks = true\n"
	        "              proxies = [\"192.0.2.0/24\", \"2001:db8::/32\"] } }\n"
	        "tls = { certificate = \"/c\"  key = \"/k\" }\n"
	        "upstream = { isp = { hosts = [\"smtp.isp.example:587\"] } }\n"
	        "route = \"isp\"\n";
	struct buf errors, text, again;
	const struct conf *conf = parse(full, &errors), *back;

	(void)state;
	buf_init(&text, 100000);
	buf_init(&again, 100000);
	assert_int_equal(conf_format(conf, &text), 0);
	assert_int_equal(conf_parse(buf_str(&text), "again", &errors, &back), 0);
	assert_int_equal(conf_format(back, &again), 0);
	assert_slice_equal(buf_slice(&again), buf_str(&text));
	assert_true(!back->listeners[0].networks && back->listeners[1].networks);
	assert_int_equal(back->listeners[0].proxies_count, 0);
	assert_int_equal(back->listeners[1].proxies_count, 2);
	assert_string_equal(back->listeners[1].proxies[1], "2001:db8::/32");
	assert_int_equal(back->listeners[1].proxy_nets[0].bits, 24);
	assert_int_equal(back->listeners[1].proxy_nets[1].bits, 32);
	conf_unref(conf);
	conf_unref(back);
	buf_done(&errors);
	buf_done(&text);
	buf_done(&again);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(defaults_are_enough),
	        cmocka_unit_test(all_errors_are_told_at_once),
	        cmocka_unit_test(a_route_must_exist),
	        cmocka_unit_test(names_are_checked),
	        cmocka_unit_test(numbers_are_checked_in_every_file),
	        cmocka_unit_test(a_folder_cannot_be_included),
	        cmocka_unit_test(upstreams_have_a_limit),
	        cmocka_unit_test(what_does_not_fit_is_an_error),
	        cmocka_unit_test(a_network_has_nothing_behind_its_mask),
	        cmocka_unit_test(true_and_false_are_words),
	        cmocka_unit_test(what_is_written_reads_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

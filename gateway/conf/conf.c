/* SPDX-License-Identifier: ISC */
/*
 * Loading: libconfig reads the syntax, then one walk over the tree compares it
 * with the option table, then a few checks look at several options together.
 * Every error found on the way is a line in the caller's buffer; the snapshot is
 * only handed out without any.
 */
#include "gateway/conf/conf.h"

#include <errno.h>
#include <libconfig.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/arena.h"
#include "gateway/conf/option.h"
#include "gateway/conf/source.h"

#define ARENA_MAX      (4U << 20)
#define ENTRIES_MAX    10000
#define NEAREST_WITHIN 4

/* A snapshot with what it stands in. */
struct loaded {
	struct conf conf; /* first: struct conf pointers lead back here */
	_Atomic unsigned refs;
	struct arena arena;
};

/* A list option's field: the items, and right behind them their number. */
struct list_field {
	const char *const *items;
	size_t count;
};

struct load {
	const char *name; /* of the file, for settings that know none */
	struct buf *errors;
	struct loaded *loaded;
	bool failed;
};

static struct loaded *loaded_of(const struct conf *conf)
{
	return (struct loaded *)(uintptr_t)conf;
}

static void printf_like(3, 4)
        load_error(struct load *load, const config_setting_t *at, const char *format, ...)
{
	char text[512];
	va_list args;

	const char *file = at != NULL ? config_setting_source_file(at) : NULL;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	load->failed = true;
	/* A full buffer has told enough. */
	(void)!buf_printf(load->errors, "%s:%u: %s\n", file != NULL ? file : load->name,
	        at != NULL ? config_setting_source_line(at) : 1, text);
}

/* Zeroed, in the snapshot; NULL after an error. */
static void *take_memory(struct load *load, size_t size)
{
	void *memory = arena_alloc(&load->loaded->arena, size);

	if (memory == NULL)
		load_error(load, NULL, "the configuration is larger than %u octets", ARENA_MAX);
	return memory;
}

static const char *copy_text(struct load *load, const char *text)
{
	char *copy = take_memory(load, strlen(text) + 1);

	return copy != NULL ? memcpy(copy, text, strlen(text)) : "";
}

/* "tls.certificate": how an option is named in messages. */
static const char *full_name(const struct option *option, char text[static 128])
{
	const char *group = option_group_name(option->group);

	snprintf(text, 128, "%s%s%s", group, *group != '\0' ? "." : "", option->name);
	return text;
}

static void set_number(struct load *load, const struct option *option, void *field,
        const char *text, const config_setting_t *at)
{
	char name[128];
	uint64_t value, min, max;

	assert_bug(option_parse_number(option->type, slice_str(option->min), &min) == 0);
	assert_bug(option_parse_number(option->type, slice_str(option->max), &max) == 0);
	int r = option_parse_number(option->type, slice_str(text), &value);
	if (r == -EINVAL) {
		load_error(load, at, "%s: \"%.40s\" is not %s", full_name(option, name), text,
		        option->type == OPTION_SIZE
		                ? "a size; write \"50M\" (K M G, or plain octets)"
		        : option->type == OPTION_TIME
		                ? "a time; write \"5m\" (ms s m h d, or plain "
		                  "seconds)"
		                : "a number");
		return;
	}
	if (r < 0 || value < min || value > max) {
		load_error(load, at, "%s: \"%.40s\" is out of range; it may be %s to %s",
		        full_name(option, name), text, option->min, option->max);
		return;
	}
	*(uint64_t *)field = value;
}

static void set_word(struct load *load, const struct option *option, void *field, const char *text,
        const config_setting_t *at)
{
	char name[128];
	int value = option_parse_word(option->type, slice_str(text));

	if (value < 0)
		load_error(load, at, "%s: \"%.40s\" is none of %s", full_name(option, name), text,
		        option_words(option->type));
	else
		*(unsigned *)field = (unsigned)value;
}

static bool within(const struct option *option, size_t number)
{
	uint64_t min, max;

	assert_bug(option_parse_number(OPTION_COUNT, slice_str(option->min), &min) == 0);
	assert_bug(option_parse_number(OPTION_COUNT, slice_str(option->max), &max) == 0);
	return number >= min && number <= max;
}

static void set_text(struct load *load, const struct option *option, void *field, const char *text,
        const config_setting_t *at)
{
	char name[128];

	if (!within(option, strlen(text)))
		load_error(load, at,
		        "%s: a text of %s to %s characters is wanted, this one has %zu",
		        full_name(option, name), option->min, option->max, strlen(text));
	else if (strpbrk(text, "\r\n") != NULL)
		load_error(
		        load, at, "%s: a line break does not belong here", full_name(option, name));
	else
		*(const char **)field = copy_text(load, text);
}

/* A string, or for numbers an integer too: as text, or NULL after an error. */
static const char *setting_text(
        struct load *load, const struct option *option, const config_setting_t *at, char number[32])
{
	bool wants_number = option->type == OPTION_COUNT || option->type == OPTION_SIZE ||
	                    option->type == OPTION_TIME;
	char name[128];

	switch (config_setting_type(at)) {
	case CONFIG_TYPE_STRING:
		return config_setting_get_string(at);
	case CONFIG_TYPE_INT:
	case CONFIG_TYPE_INT64:
		if (wants_number && config_setting_get_int64(at) >= 0) {
			snprintf(number, 32, "%lld", config_setting_get_int64(at));
			return number;
		}
	}
	load_error(load, at, "%s: %s is wanted here", full_name(option, name),
	        wants_number ? "a number" : "a text in quotes");
	return NULL;
}

static void set_list(
        struct load *load, const struct option *option, void *field, const config_setting_t *at)
{
	char name[128], number[32];

	if (!config_setting_is_array(at) && !config_setting_is_list(at)) {
		load_error(load, at, "%s: a list is wanted here: %s = [\"…\", \"…\"]",
		        full_name(option, name), option->name);
		return;
	}
	size_t count = (size_t)config_setting_length(at);
	if (!within(option, count)) {
		load_error(load, at, "%s: %s to %s entries are wanted, here are %zu",
		        full_name(option, name), option->min, option->max, count);
		return;
	}
	const char **items = take_memory(load, count * sizeof(*items));
	for (size_t i = 0; items != NULL && i < count; i++) {
		const config_setting_t *item = config_setting_get_elem(at, (unsigned)i);
		const char *text = setting_text(load, option, item, number);
		items[i] = copy_text(load, text != NULL ? text : "");
	}
	struct list_field list = {items, items != NULL ? count : 0};
	memcpy(field, &list, sizeof(list));
}

static void set_bool(
        struct load *load, const struct option *option, bool *field, const config_setting_t *at)
{
	char name[128];

	if (config_setting_type(at) == CONFIG_TYPE_BOOL)
		*field = config_setting_get_bool(at) != 0;
	else
		load_error(load, at, "%s: true or false is wanted here", full_name(option, name));
}

static void set_option(
        struct load *load, const struct option *option, void *group, const config_setting_t *at)
{
	void *field = (char *)group + option->offset;
	char number[32];

	if (option->type == OPTION_LIST) {
		set_list(load, option, field, at);
		return;
	}
	if (option->type == OPTION_BOOL) {
		set_bool(load, option, field, at);
		return;
	}
	const char *text = setting_text(load, option, at, number);
	if (text == NULL)
		return;
	if (option->type == OPTION_STRING)
		set_text(load, option, field, text, at);
	else if (option_is_word(option->type))
		set_word(load, option, field, text, at);
	else
		set_number(load, option, field, text, at);
}

static void set_fallback(struct load *load, const struct option *option, void *group)
{
	void *field = (char *)group + option->offset;

	/* The default of a list is none, which is how it was zeroed. */
	if (option->type == OPTION_LIST)
		return;
	if (option->type == OPTION_STRING)
		*(const char **)field = option->fallback;
	else if (option->type == OPTION_BOOL)
		*(bool *)field = strcmp(option->fallback, "true") == 0;
	else if (option_is_word(option->type))
		set_word(load, option, field, option->fallback, NULL);
	else
		set_number(load, option, field, option->fallback, NULL);
}

/* Names that may stand in a group beside its options: the other groups, at the top level. */
static const char *subgroup_at(enum option_group group, size_t i)
{
	return group == GROUP_conf && i + 1 < GROUP_COUNT
	               ? option_group_name((enum option_group)(i + 1))
	               : NULL;
}

static void unknown_key(struct load *load, enum option_group group, const config_setting_t *at)
{
	const char *name = config_setting_name(at), *nearest = NULL;
	size_t best = NEAREST_WITHIN;

	for (size_t i = 0; i < option_count; i++) {
		const char *known = option_table[i].name;
		if (option_table[i].group == group &&
		        option_distance(name, known, NEAREST_WITHIN) < best) {
			best = option_distance(name, known, NEAREST_WITHIN);
			nearest = known;
		}
	}
	for (size_t i = 0; subgroup_at(group, i) != NULL; i++) {
		if (option_distance(name, subgroup_at(group, i), NEAREST_WITHIN) < best) {
			best = option_distance(name, subgroup_at(group, i), NEAREST_WITHIN);
			nearest = subgroup_at(group, i);
		}
	}
	const char *place = option_group_name(group);
	if (nearest != NULL)
		load_error(load, at, "unknown key \"%.60s\"%s%s; did you mean \"%s\"?", name,
		        *place != '\0' ? " in " : "", place, nearest);
	else
		load_error(load, at, "unknown key \"%.60s\"%s%s", name,
		        *place != '\0' ? " in " : "", place);
}

/*
 * Fills the struct of a group from its setting (NULL: the group is not in the
 * file, everything takes its default). `owner` is where a missing key is reported.
 */
static void load_group(struct load *load, enum option_group group, void *fields,
        const config_setting_t *setting, const config_setting_t *owner)
{
	char name[128];

	for (size_t i = 0; i < option_count; i++) {
		const struct option *option = &option_table[i];
		if (option->group != group)
			continue;
		const config_setting_t *at =
		        setting != NULL ? config_setting_get_member(setting, option->name) : NULL;
		if (at != NULL)
			set_option(load, option, fields, at);
		else if (option->fallback != NULL)
			set_fallback(load, option, fields);
		else
			load_error(load, owner, "%s is missing", full_name(option, name));
	}
	for (int i = 0; setting != NULL && i < config_setting_length(setting); i++) {
		const config_setting_t *at = config_setting_get_elem(setting, (unsigned)i);
		bool known = option_find(group, config_setting_name(at)) != NULL;
		for (size_t k = 0; !known && subgroup_at(group, k) != NULL; k++)
			known = strcmp(subgroup_at(group, k), config_setting_name(at)) == 0;
		if (!known)
			unknown_key(load, group, at);
	}
}

/* A single group such as `tls = { … }`. */
static void load_single(
        struct load *load, enum option_group group, void *fields, const config_setting_t *root)
{
	const char *name = option_group_name(group);
	const config_setting_t *at = config_setting_get_member(root, name);

	if (at != NULL && !config_setting_is_group(at)) {
		load_error(load, at, "a group is wanted here: %s = { … }", name);
		return;
	}
	load_group(load, group, fields, at, at);
}

/*
 * The entries of a repeated group: named ones in a group (`upstream = { isp = { … } }`),
 * nameless ones in a list (`domain_route = ( { … } )`). Returns an array in the arena
 * of zeroed elements of `size`, filled; each named one begins with its name.
 */
static void *load_repeated(struct load *load, enum option_group group, size_t size,
        const config_setting_t *root, size_t *ret_count)
{
	const char *name = option_group_name(group);
	const config_setting_t *at = config_setting_get_member(root, name);
	bool named = group != GROUP_domain_route;

	*ret_count = 0;
	if (at == NULL)
		return NULL;
	if (named ? !config_setting_is_group(at) : !config_setting_is_list(at)) {
		load_error(load, at,
		        named ? "a group of named groups is wanted here: %s = { NAME = { … } }"
		              : "a list of groups is wanted here: %s = ( { … } )",
		        name);
		return NULL;
	}
	size_t count = (size_t)config_setting_length(at);
	size_t most = group == GROUP_upstream ? CONF_UPSTREAMS_MAX : ENTRIES_MAX;
	if (count > most) {
		load_error(load, at, "%s: more than %zu entries", name, most);
		return NULL;
	}
	char *entries = take_memory(load, count * size);
	for (size_t i = 0; entries != NULL && i < count; i++) {
		const config_setting_t *entry = config_setting_get_elem(at, (unsigned)i);
		void *fields = entries + i * size;
		if (named)
			*(const char **)fields = copy_text(load, config_setting_name(entry));
		/* libconfig takes a star too; the database and the tool do not. */
		if (named && strchr(config_setting_name(entry), '*') != NULL)
			load_error(load, entry, "\"%.60s\": a name has letters, digits, - and _",
			        config_setting_name(entry));
		if (config_setting_is_group(entry))
			load_group(load, group, fields, entry, entry);
		else
			load_error(load, entry, "a group is wanted here: { … }");
	}
	*ret_count = entries != NULL ? count : 0;
	return entries;
}

/* What a listener's or an upstream's entry of a list is not. */
static void entry_error(struct load *load, const config_setting_t *at, const char *group,
        const char *name, const char *entry, const char *wanted)
{
	load_error(load, at, "%s.%s: \"%.60s\" is no %s", group, name, entry, wanted);
}

static void parse_proxies(
        struct load *load, const config_setting_t *at, struct conf_listener *listener)
{
	struct addr_net *nets = take_memory(load, listener->proxies_count * sizeof(*nets));

	for (size_t i = 0; nets != NULL && i < listener->proxies_count; i++) {
		if (addr_net_parse(slice_str(listener->proxies[i]), &nets[i]) < 0)
			entry_error(load, at, "listener", listener->name, listener->proxies[i],
			        "network; write \"192.0.2.0/24\" or \"2001:db8::/32\", without "
			        "bits "
			        "behind the mask");
	}
	listener->proxy_nets = nets;
}

static void check_addresses(struct load *load, const config_setting_t *root)
{
	const struct conf *conf = &load->loaded->conf;
	const config_setting_t *listeners = config_setting_get_member(root, "listener");
	const config_setting_t *upstreams = config_setting_get_member(root, "upstream");
	struct slice host;
	struct addr addr;
	uint16_t port;

	for (size_t i = 0; i < conf->listener_count; i++) {
		struct conf_listener *listener = &conf->listeners[i];
		const config_setting_t *at = config_setting_get_member(listeners, listener->name);
		parse_proxies(load, at, listener);
		for (size_t k = 0; k < listener->address_count; k++) {
			if (addr_parse(slice_str(listener->address[k]), &addr) < 0)
				entry_error(load, at, "listener", listener->name,
				        listener->address[k],
				        "address; write \"192.0.2.1:587\" or \"[::]:587\"");
		}
	}
	for (size_t i = 0; i < conf->upstream_count; i++) {
		const struct conf_upstream *upstream = &conf->upstreams[i];
		const config_setting_t *at = config_setting_get_member(upstreams, upstream->name);
		for (size_t k = 0; k < upstream->hosts_count; k++) {
			if (addr_split(slice_str(upstream->hosts[k]), &host, &port) < 0)
				entry_error(load, at, "upstream", upstream->name,
				        upstream->hosts[k], "host; write \"smtp.isp.example:587\"");
		}
	}
}

/* It stands in the greeting, in EHLO and in Received. */
static void check_hostname(struct load *load, const config_setting_t *root)
{
	const char *name = load->loaded->conf.hostname;

	if (strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.[]:") !=
	        strlen(name))
		load_error(load, config_setting_get_member(root, "hostname"),
		        "hostname: \"%.60s\" is no name of a host", name);
}

/* Also beside other errors: a name that is wrong in one of two places is a common one. */
static void check_route(struct load *load, const config_setting_t *root)
{
	const struct conf *conf = &load->loaded->conf;

	if (*conf->route != '\0' && conf->upstream_count > 0 &&
	        conf_find_upstream(conf, conf->route) == NULL)
		load_error(load, config_setting_get_member(root, "route"),
		        "route: there is no upstream named \"%.60s\"", conf->route);
}

/* What no single option can tell. */
static void check_together(struct load *load, const config_setting_t *root)
{
	const struct conf *conf = &load->loaded->conf;
	const config_setting_t *upstreams = config_setting_get_member(root, "upstream");

	if (conf->listener_count == 0)
		load_error(load, config_setting_get_member(root, "listener"),
		        "no listener: write listener = { submission = { address = [\"[::]:587\", "
		        "\"0.0.0.0:587\"] } }");
	if (conf->upstream_count == 0)
		load_error(load, upstreams,
		        "no upstream: write upstream = { isp = { hosts = "
		        "[\"smtp.isp.example:587\"] } }");
	for (size_t i = 0; i < conf->upstream_count; i++) {
		const struct conf_upstream *upstream = &conf->upstreams[i];
		const config_setting_t *at = config_setting_get_member(upstreams, upstream->name);
		if ((*upstream->username == '\0') != (*upstream->password_file == '\0'))
			load_error(load, at, "upstream.%s: username and password_file go together",
			        upstream->name);
		if (*upstream->username != '\0' && upstream->tls != CONF_TLS_VERIFY &&
		        upstream->tls != CONF_TLS_NONE)
			load_error(load, at,
			        "upstream.%s: anybody on the way could take the password; it is "
			        "only sent with tls = \"verify\" (or, where that is meant, "
			        "\"none\")",
			        upstream->name);
	}
	if (conf->retry.first > conf->retry.max)
		load_error(load, config_setting_get_member(root, "retry"),
		        "retry.first is longer than retry.max");
	check_addresses(load, root);
}

static void load_tree(struct load *load, const config_t *tree)
{
	const config_setting_t *root = config_root_setting(tree);
	struct conf *conf = &load->loaded->conf;

	/* An option that failed stays readable for the checks that follow. */
	conf->hostname = conf->database = conf->route = "";
	load_group(load, GROUP_conf, conf, root, NULL);
	load_single(load, GROUP_tls, &conf->tls, root);
	load_single(load, GROUP_submission, &conf->submission, root);
	load_single(load, GROUP_retry, &conf->retry, root);
	conf->listeners = load_repeated(
	        load, GROUP_listener, sizeof(*conf->listeners), root, &conf->listener_count);
	conf->upstreams = load_repeated(
	        load, GROUP_upstream, sizeof(*conf->upstreams), root, &conf->upstream_count);
	conf->domain_routes = load_repeated(load, GROUP_domain_route, sizeof(*conf->domain_routes),
	        root, &conf->domain_route_count);
	bool each_is_fine = !load->failed;
	check_route(load, root);
	check_hostname(load, root);
	if (each_is_fine)
		check_together(load, root);
}

static int read_and_load(struct load *load, config_t *tree, const char *path, const char *text)
{
	int read = text != NULL ? config_read_string(tree, text) : config_read_file(tree, path);

	if (read != CONFIG_TRUE) {
		load->failed = true;
		const char *file = config_error_file(tree);
		if (config_error_type(tree) == CONFIG_ERR_FILE_IO)
			(void)!buf_printf(load->errors, "%s: cannot be read: %s\n", load->name,
			        strerrordesc_np(errno));
		else
			(void)!buf_printf(load->errors, "%s:%d: %s\n",
			        file != NULL ? file : load->name, config_error_line(tree),
			        config_error_text(tree));
		return -EINVAL;
	}
	load_tree(load, tree);
	return load->failed ? -EINVAL : 0;
}

/* As read_and_load, of a file: a second reader tells what libconfig does not. */
static int check_and_load(struct load *load, config_t *tree, const char *path, const char *folder)
{
	struct buf numbers;

	buf_init(&numbers, CONF_ERRORS_MAX);
	int r = source_check(path, folder, load->errors, &numbers);
	if (r == 0)
		r = read_and_load(load, tree, path, NULL);
	/* Beside other errors, unless the syntax is wrong. */
	if (config_error_type(tree) == CONFIG_ERR_NONE && buf_len(&numbers) > 0) {
		(void)!buf_append_slice(load->errors, buf_slice(&numbers));
		r = -EINVAL;
	}
	buf_done(&numbers);
	return r < 0 ? -EINVAL : 0;
}

static int load_from(const char *path, const char *text, const char *name, struct buf *errors,
        const struct conf **ret_conf)
{
	_cleanup_(freep) char *folder = strdup(name);
	struct loaded *loaded = calloc(1, sizeof(*loaded));
	config_t tree;

	if (loaded == NULL || folder == NULL) {
		/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): it does not know _cleanup_ */
		free(loaded);
		return -ENOMEM;
	}
	atomic_init(&loaded->refs, 1);
	arena_init(&loaded->arena, ARENA_MAX);
	config_init(&tree);
	const char *includes = dirname(folder);
	config_set_include_dir(&tree, includes);

	struct load load = {.name = name, .errors = errors, .loaded = loaded};
	int r = text != NULL ? read_and_load(&load, &tree, path, text)
	                     : check_and_load(&load, &tree, path, includes);
	config_destroy(&tree);
	if (r < 0)
		conf_unref(&loaded->conf);
	else
		*ret_conf = &loaded->conf;
	return r;
}

int conf_load(const char *path, struct buf *errors, const struct conf **ret_conf)
{
	return load_from(path, NULL, path, errors, ret_conf);
}

int conf_parse(const char *text, const char *name, struct buf *errors, const struct conf **ret_conf)
{
	return load_from(NULL, text, name, errors, ret_conf);
}

static bool is_same_list(const struct list_field *a, const struct list_field *b)
{
	bool same = a->count == b->count;

	for (size_t i = 0; same && i < a->count; i++)
		same = strcmp(a->items[i], b->items[i]) == 0;
	return same;
}

static bool is_same(const struct option *option, const void *a, const void *b)
{
	switch (option->type) {
	case OPTION_STRING:
		return strcmp(*(const char *const *)a, *(const char *const *)b) == 0;
	case OPTION_LIST:
		return is_same_list(a, b);
	case OPTION_BOOL:
		return *(const bool *)a == *(const bool *)b;
	case OPTION_TLS_MODE:
	case OPTION_TLS_POLICY:
	case OPTION_NEWLINE:
		return *(const unsigned *)a == *(const unsigned *)b;
	default:
		return *(const uint64_t *)a == *(const uint64_t *)b;
	}
}

static int check_group(enum option_group group, const void *old, const void *fresh, struct why *why)
{
	char name[128];

	for (size_t i = 0; i < option_count; i++) {
		const struct option *option = &option_table[i];
		if (option->group != group || option->reloads ||
		        is_same(option, (const char *)old + option->offset,
		                (const char *)fresh + option->offset))
			continue;
		why_set(why, "%s only changes with a restart", full_name(option, name));
		return -EBUSY;
	}
	return 0;
}

int conf_check_reload(const struct conf *old, const struct conf *fresh, struct why *why)
{
	int r = check_group(GROUP_conf, old, fresh, why);

	if (r == 0)
		r = check_group(GROUP_submission, &old->submission, &fresh->submission, why);
	if (r == 0 && old->listener_count != fresh->listener_count) {
		why_set(why, "listeners come and go only with a restart");
		r = -EBUSY;
	}
	for (size_t i = 0; r == 0 && i < old->listener_count; i++)
		r = check_group(GROUP_listener, &old->listeners[i], &fresh->listeners[i], why);
	return r;
}

const struct conf *conf_ref(const struct conf *conf)
{
	atomic_fetch_add_explicit(&loaded_of(conf)->refs, 1, memory_order_relaxed);
	return conf;
}

void conf_unref(const struct conf *conf)
{
	struct loaded *loaded = loaded_of(conf);

	if (conf == NULL || atomic_fetch_sub_explicit(&loaded->refs, 1, memory_order_acq_rel) > 1)
		return;
	arena_reset(&loaded->arena);
	free(loaded);
}

const struct conf_upstream *conf_find_upstream(const struct conf *conf, const char *name)
{
	for (size_t i = 0; i < conf->upstream_count; i++) {
		if (strcmp(conf->upstreams[i].name, name) == 0)
			return &conf->upstreams[i];
	}
	return NULL;
}

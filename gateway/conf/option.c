/* SPDX-License-Identifier: ISC */
/* The option table and what its types mean; see option.h. Pure. */
#include "gateway/conf/option.h"

#include <errno.h>
#include <string.h>

/* The struct of each group, and the C type of each option type: a mismatch does not compile. */
#define STRUCT_conf         struct conf
#define STRUCT_tls          struct conf_tls
#define STRUCT_submission   struct conf_submission
#define STRUCT_retry        struct conf_retry
#define STRUCT_listener     struct conf_listener
#define STRUCT_upstream     struct conf_upstream
#define STRUCT_domain_route struct conf_domain_route

#define CTYPE_STRING     const char *
#define CTYPE_LIST       const char *const *
#define CTYPE_COUNT      uint64_t
#define CTYPE_SIZE       uint64_t
#define CTYPE_TIME       uint64_t
#define CTYPE_BOOL       bool
#define CTYPE_TLS_MODE   enum conf_tls_mode
#define CTYPE_TLS_POLICY enum conf_tls_policy
#define CTYPE_NEWLINE    enum conf_newline

#define RELOAD  true
#define RESTART false

#define OPTION(group, name, TYPE, fallback, min, max, reload, doc)                                 \
	_Static_assert(__builtin_types_compatible_p(                                               \
	                       __typeof__(((STRUCT_##group *)0)->name), CTYPE_##TYPE),             \
	        "the field and the option differ in type: " #group "." #name);
#include "gateway/conf/options.def"
#undef OPTION

/* A list's count stands right behind its pointer: list_count_of() relies on it. */
_Static_assert(offsetof(struct conf_listener, address_count) ==
                       offsetof(struct conf_listener, address) + sizeof(void *),
        "listener.address");
_Static_assert(offsetof(struct conf_listener, proxies_count) ==
                       offsetof(struct conf_listener, proxies) + sizeof(void *),
        "listener.proxies");
_Static_assert(offsetof(struct conf_upstream, hosts_count) ==
                       offsetof(struct conf_upstream, hosts) + sizeof(void *),
        "upstream.hosts");

const struct option option_table[] = {
#define OPTION(group, name, TYPE, fallback, min, max, reload, doc)                                 \
	{GROUP_##group, #name, OPTION_##TYPE, fallback, min, max, reload, doc,                     \
	        offsetof(STRUCT_##group, name)},
#include "gateway/conf/options.def"
#undef OPTION
};
const size_t option_count = ARRAY_LEN(option_table);

static const char *const group_names[GROUP_COUNT] = {
        [GROUP_conf] = "",
        [GROUP_tls] = "tls",
        [GROUP_submission] = "submission",
        [GROUP_retry] = "retry",
        [GROUP_listener] = "listener",
        [GROUP_upstream] = "upstream",
        [GROUP_domain_route] = "domain_route",
};

static const char *const tls_mode_words[] = {"starttls", "implicit"};
static const char *const tls_policy_words[] = {"verify", "require", "opportunistic", "none"};
static const char *const newline_words[] = {"refuse", "normalize"};

const char *option_group_name(enum option_group group)
{
	return group_names[group];
}

const struct option *option_find(enum option_group group, const char *name)
{
	for (size_t i = 0; i < option_count; i++) {
		if (option_table[i].group == group && strcmp(option_table[i].name, name) == 0)
			return &option_table[i];
	}
	return NULL;
}

/* What one of the unit stands for, 0 for an unknown unit. */
static uint64_t unit_factor(enum option_type type, struct slice unit)
{
	static const struct {
		enum option_type type;
		const char *unit;
		uint64_t factor;
	} units[] = {
	        {OPTION_COUNT, "", 1},
	        {OPTION_SIZE, "", 1},
	        {OPTION_SIZE, "K", 1024},
	        {OPTION_SIZE, "M", 1024UL * 1024},
	        {OPTION_SIZE, "G", 1024UL * 1024 * 1024},
	        {OPTION_TIME, "", 1000},
	        {OPTION_TIME, "ms", 1},
	        {OPTION_TIME, "s", 1000},
	        {OPTION_TIME, "m", 60UL * 1000},
	        {OPTION_TIME, "h", 3600UL * 1000},
	        {OPTION_TIME, "d", 24UL * 3600 * 1000},
	};

	for (size_t i = 0; i < ARRAY_LEN(units); i++) {
		if (units[i].type == type && slice_equal(unit, slice_str(units[i].unit)))
			return units[i].factor;
	}
	return 0;
}

int option_parse_number(enum option_type type, struct slice text, uint64_t *ret_value)
{
	size_t digits = 0;
	uint64_t value;

	while (digits < text.len && text.ptr[digits] >= '0' && text.ptr[digits] <= '9')
		digits++;
	uint64_t factor = unit_factor(type, slice_part(text, digits, text.len));
	if (factor == 0)
		return -EINVAL;
	int r = slice_to_u64(slice_of(text.ptr, digits), &value);
	if (r < 0)
		return r;
	if (__builtin_mul_overflow(value, factor, &value))
		return -ERANGE;
	*ret_value = value;
	return 0;
}

/* The words of an enumeration, in the order of its values. */
static const struct {
	const char *const *words;
	size_t count;
	const char *all; /* for a message */
} enumerations[OPTION_TYPE_COUNT] = {
#define WORDS(list, text)                                                                          \
	{                                                                                          \
		list, ARRAY_LEN(list), text                                                        \
	}
        [OPTION_TLS_MODE] = WORDS(tls_mode_words, "\"starttls\" or \"implicit\""),
        [OPTION_TLS_POLICY] =
                WORDS(tls_policy_words, "\"verify\", \"require\", \"opportunistic\" or \"none\""),
        [OPTION_NEWLINE] = WORDS(newline_words, "\"refuse\" or \"normalize\""),
#undef WORDS
};

bool option_is_word(enum option_type type)
{
	return enumerations[type].words != NULL;
}

int option_parse_word(enum option_type type, struct slice text)
{
	for (size_t i = 0; i < enumerations[type].count; i++) {
		if (slice_equal(text, slice_str(enumerations[type].words[i])))
			return (int)i;
	}
	return -EINVAL;
}

const char *option_word(enum option_type type, unsigned value)
{
	assert_bug(value < enumerations[type].count);
	return enumerations[type].words[value];
}

const char *option_words(enum option_type type)
{
	return enumerations[type].all;
}

size_t option_distance(const char *a, const char *b, size_t limit)
{
	size_t la = strlen(a), lb = strlen(b);
	size_t row[64];

	if (lb >= ARRAY_LEN(row) || la > lb + limit || lb > la + limit)
		return limit;
	for (size_t j = 0; j <= lb; j++)
		row[j] = j;
	for (size_t i = 1; i <= la; i++) {
		size_t diagonal = row[0];
		row[0] = i;
		for (size_t j = 1; j <= lb; j++) {
			size_t replace = diagonal + (a[i - 1] != b[j - 1]);
			size_t edit = MIN_OF(row[j], row[j - 1]) + 1;
			diagonal = row[j];
			row[j] = MIN_OF(replace, edit);
		}
	}
	return MIN_OF(row[lb], limit);
}

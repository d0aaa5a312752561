/* SPDX-License-Identifier: ISC */
/* The option table as data, inside gateway/conf. Any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gateway/base/slice.h"
#include "gateway/conf/conf.h"

enum option_type {
	OPTION_STRING,
	OPTION_LIST,
	OPTION_COUNT,
	OPTION_SIZE,
	OPTION_TIME,
	OPTION_BOOL,
	/* enumerations */
	OPTION_TLS_MODE,
	OPTION_TLS_POLICY,
	OPTION_NEWLINE,
	OPTION_TYPE_COUNT
};

/* In the order in which errors about missing groups should read. */
enum option_group {
	GROUP_conf,
	GROUP_tls,
	GROUP_submission,
	GROUP_retry,
	GROUP_listener,
	GROUP_upstream,
	GROUP_domain_route,
	GROUP_COUNT
};

struct option {
	enum option_group group;
	const char *name;
	enum option_type type;
	const char *fallback; /* NULL: must be given */
	const char *min, *max;
	bool reloads;
	const char *doc;
	size_t offset; /* in the struct of its group */
};

extern const struct option option_table[];
extern const size_t option_count;

/* How a group is written in the file: "tls", "upstream"; "" for the top level. */
const char *option_group_name(enum option_group group);

/* The option of that name in the group, or NULL. */
const struct option *option_find(enum option_group group, const char *name);

/*
 * A number with its unit: COUNT has none, SIZE takes K M G (of 1,024), TIME takes
 * ms s m h d (plain: seconds) and gives milliseconds. 0, -EINVAL or -ERANGE.
 */
int option_parse_number(enum option_type type, struct slice text, uint64_t *ret_value) must_check;

/* Whether it is an enumeration. */
bool option_is_word(enum option_type type);

/* Words of the enumerations: the value, or -EINVAL; the word of a value; all words for a message.
 */
int option_parse_word(enum option_type type, struct slice text) must_check;
const char *option_word(enum option_type type, unsigned value);
const char *option_words(enum option_type type);

/* For error messages: the number of single-octet edits between the two, at most `limit`. */
size_t option_distance(const char *a, const char *b, size_t limit);

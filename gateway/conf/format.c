/* SPDX-License-Identifier: ISC */
/* A snapshot as text that conf_parse() reads back: how it travels to the children. Pure. */
#include <inttypes.h>
#include <string.h>

#include "gateway/conf/conf.h"
#include "gateway/conf/option.h"

struct writer {
	struct buf *out;
	int error;
};

static void put(struct writer *writer, const char *text)
{
	if (writer->error == 0)
		writer->error = buf_append_str(writer->out, text);
}

/* A string literal of libconfig: quotes, backslashes and control characters escaped. */
static void put_quoted(struct writer *writer, const char *text)
{
	put(writer, "\"");
	for (; *text != '\0' && writer->error == 0; text++) {
		unsigned char c = (unsigned char)*text;
		if (c == '"' || c == '\\')
			writer->error = buf_printf(writer->out, "\\%c", c);
		else if (c < ' ')
			writer->error = buf_printf(writer->out, "\\x%02x", c);
		else
			writer->error = buf_append(writer->out, text, 1);
	}
	put(writer, "\"");
}

static void put_value(struct writer *writer, const struct option *option, const void *field)
{
	switch (option->type) {
	case OPTION_STRING:
		put_quoted(writer, *(const char *const *)field);
		break;
	case OPTION_LIST: {
		struct {
			const char *const *items;
			size_t count;
		} list;
		memcpy(&list, field, sizeof(list));
		put(writer, "[");
		for (size_t i = 0; i < list.count; i++) {
			put(writer, i > 0 ? ", " : "");
			put_quoted(writer, list.items[i]);
		}
		put(writer, "]");
		break;
	}
	case OPTION_COUNT:
	case OPTION_SIZE:
	case OPTION_TIME:
		if (writer->error == 0)
			writer->error = buf_printf(writer->out, "\"%" PRIu64 "%s\"",
			        *(const uint64_t *)field, option->type == OPTION_TIME ? "ms" : "");
		break;
	case OPTION_BOOL:
		put(writer, *(const bool *)field ? "true" : "false");
		break;
	case OPTION_TLS_MODE:
	case OPTION_TLS_POLICY:
	case OPTION_NEWLINE:
		put_quoted(writer, option_word(option->type, *(const unsigned *)field));
		break;
	case OPTION_TYPE_COUNT:
		break;
	}
}

static void put_fields(struct writer *writer, enum option_group group, const void *fields)
{
	for (size_t i = 0; i < option_count; i++) {
		const struct option *option = &option_table[i];
		if (option->group != group)
			continue;
		put(writer, option->name);
		put(writer, " = ");
		put_value(writer, option, (const char *)fields + option->offset);
		put(writer, "\n");
	}
}

static void put_single(struct writer *writer, enum option_group group, const void *fields)
{
	put(writer, option_group_name(group));
	put(writer, " = {\n");
	put_fields(writer, group, fields);
	put(writer, "}\n");
}

static void put_named(
        struct writer *writer, enum option_group group, const char *name, const void *fields)
{
	put(writer, name);
	put(writer, " = {\n");
	put_fields(writer, group, fields);
	put(writer, "}\n");
}

int conf_format(const struct conf *conf, struct buf *out)
{
	struct writer writer = {.out = out};

	put_fields(&writer, GROUP_conf, conf);
	put_single(&writer, GROUP_tls, &conf->tls);
	put_single(&writer, GROUP_submission, &conf->submission);
	put_single(&writer, GROUP_retry, &conf->retry);
	put(&writer, "listener = {\n");
	for (size_t i = 0; i < conf->listener_count; i++)
		put_named(&writer, GROUP_listener, conf->listeners[i].name, &conf->listeners[i]);
	put(&writer, "}\nupstream = {\n");
	for (size_t i = 0; i < conf->upstream_count; i++)
		put_named(&writer, GROUP_upstream, conf->upstreams[i].name, &conf->upstreams[i]);
	put(&writer, "}\ndomain_route = (");
	for (size_t i = 0; i < conf->domain_route_count; i++) {
		put(&writer, i > 0 ? ", {\n" : "{\n");
		put_fields(&writer, GROUP_domain_route, &conf->domain_routes[i]);
		put(&writer, "}");
	}
	put(&writer, ")\n");
	return writer.error;
}

/* SPDX-License-Identifier: ISC */
/* The log; see log.h. The only writer to standard error after start. */
#include "gateway/base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "gateway/base/clock.h"

#define LINE_SIZE 4096
/* Octets of a peer's value that are shown: enough for an address (RFC 5321 4.5.3.1: 254). */
#define VALUE_SHOWN 260

static const struct {
	const char *name;
	enum log_level level;
} events[] = {
#define EVENT(id, name, level, meaning) [EV_##id] = {name, level},
#include "gateway/base/events.def"
#undef EVENT
};

#define TOLD_EVERY_MS 60000

static const char *log_process = "posternd";
static enum log_level log_lowest = LOG_INFO;

void log_init(const char *process, enum log_level lowest)
{
	log_process = process;
	log_lowest = lowest;
}

/* Octets that stand in a value as they are without quotes. */
static bool is_bare(unsigned char c)
{
	return c > ' ' && c < 0x7f && c != '"' && c != '=' && c != '\\';
}

const char *log_value_format(struct log_value *value, struct slice slice)
{
	char *out = value->text;
	const char *const end = value->text + sizeof(value->text) - 8;
	size_t len = MIN_OF(slice.len, (size_t)VALUE_SHOWN);
	bool bare = slice.len > 0 && len == slice.len;

	for (size_t i = 0; i < len && bare; i++)
		bare = is_bare((unsigned char)slice.ptr[i]);
	if (bare) {
		memcpy(out, slice.ptr, len);
		out[len] = '\0';
		return value->text;
	}

	*out++ = '"';
	/* Octets above 0x7f are shown only as parts of valid UTF-8. */
	bool utf8 = slice_is_utf8(slice_of(slice.ptr, len));
	for (size_t i = 0, escape = 0; i < len; i++) {
		unsigned char c = (unsigned char)slice.ptr[i];
		/* Behind the end there is room for what a character has left. */
		if (out >= end && (!utf8 || escape > 0 || (c & 0xc0) != 0x80))
			break;
		if (utf8 && escape == 0)
			escape = slice_steering(slice_part(slice, i, len - i));
		if (c == '"' || c == '\\') {
			*out++ = '\\';
			*out++ = (char)c;
		} else if (c < ' ' || c == 0x7f || (c >= 0x80 && !utf8) || escape > 0) {
			snprintf(out, 5, "\\x%02x", c);
			out += 4;
		} else {
			*out++ = (char)c;
		}
		escape -= escape > 0;
	}
	if (len < slice.len || out >= end) {
		memcpy(out, "...", 3);
		out += 3;
	}
	*out++ = '"';
	*out = '\0';
	return value->text;
}

void log_ctx_init(struct log_ctx *ctx)
{
	ctx->text[0] = '\0';
}

void log_ctx_add(struct log_ctx *ctx, const char *key, struct slice value)
{
	size_t used = strlen(ctx->text);
	int len = snprintf(
	        ctx->text + used, sizeof(ctx->text) - used, " %s=%s", key, LOG_VALUE(value));

	if (len < 0 || (size_t)len >= sizeof(ctx->text) - used)
		ctx->text[used] = '\0';
}

void log_event(const struct log_ctx *ctx, enum event event, const char *format, ...)
{
	char line[LINE_SIZE], when[CLOCK_TEXT_SIZE];

	if (events[event].level < log_lowest)
		return;
	int64_t now = clock_wall_us();
	clock_iso(now / 1000000, when);
	int len = snprintf(line, sizeof(line), "event=%s time=%.19s.%03uZ process=%s%s",
	        events[event].name, when, (unsigned)(now / 1000 % 1000), log_process,
	        ctx != NULL ? ctx->text : "");
	size_t used = MIN_OF((size_t)len, sizeof(line) - 2);

	if (format[0] != '\0') {
		va_list args;
		line[used++] = ' ';
		va_start(args, format);
		len = vsnprintf(line + used, sizeof(line) - used, format, args);
		va_end(args);
		if (len > 0)
			used = MIN_OF(used + (size_t)len, sizeof(line) - 2);
	}
	line[used++] = '\n';
	/* A log that cannot be written must not stop the mail. */
	while (write(STDERR_FILENO, line, used) < 0 && errno == EINTR)
		continue;
}

bool log_is_due(uint64_t *told_ms)
{
	uint64_t now = clock_mono_ms();

	if (*told_ms != 0 && now - *told_ms < TOLD_EVERY_MS)
		return false;
	*told_ms = now;
	return true;
}

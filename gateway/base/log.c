/* SPDX-License-Identifier: ISC */
/* The log; see log.h. The only writer to standard error after start. */
#include "gateway/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
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
/* Lines wait for room in the log, all together so long in a second; none waits once one was lost.
 */
#define WAIT_MS 100

static _Atomic uint64_t lost;      /* lines, since one could be written */
static _Atomic uint64_t second_ms; /* when the current second began */
static _Atomic uint64_t waited_ms; /* in it */

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

void log_open(void)
{
	int fd = open("/proc/self/fd/2", O_WRONLY | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

	/* Not of a socket, which is told with each line not to wait, nor of what is not ours. */
	if (fd < 0)
		return;
	(void)!dup2(fd, STDERR_FILENO);
	close(fd);
}

/* Who reads the log may be late, slow, or stand still: that must not stop the mail. */
static bool wait_for_room(void)
{
	struct pollfd log = {.fd = STDERR_FILENO, .events = POLLOUT};
	uint64_t now = clock_mono_ms();

	if (poll(&log, 1, 0) != 0)
		return true;
	if (now - atomic_load(&second_ms) >= 1000) {
		atomic_store(&second_ms, now);
		atomic_store(&waited_ms, 0);
	}
	uint64_t waited = atomic_load(&waited_ms);
	if (atomic_load(&lost) > 0 || waited >= WAIT_MS)
		return false;
	bool has_room = poll(&log, 1, (int)(WAIT_MS - waited)) != 0;
	atomic_fetch_add(&waited_ms, clock_mono_ms() - now);
	return has_room;
}

static bool put(const char *line, size_t len)
{
	ssize_t n;

	if (!wait_for_room())
		return false;
	do {
		n = send(STDERR_FILENO, line, len, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && errno == ENOTSOCK)
			n = write(STDERR_FILENO, line, len);
	} while (n < 0 && errno == EINTR);
	return n == (ssize_t)len;
}

printf_like(3, 0) static bool put_event(
        const struct log_ctx *ctx, enum event event, const char *format, va_list args)
{
	char line[LINE_SIZE], when[CLOCK_TEXT_SIZE];

	int64_t now = clock_wall_us();
	clock_iso(now / 1000000, when);
	int len = snprintf(line, sizeof(line), "event=%s time=%.19s.%03uZ process=%s%s",
	        events[event].name, when, (unsigned)(now / 1000 % 1000), log_process,
	        ctx != NULL ? ctx->text : "");
	size_t used = MIN_OF((size_t)len, sizeof(line) - 2);

	if (format[0] != '\0') {
		line[used++] = ' ';
		len = vsnprintf(line + used, sizeof(line) - used, format, args);
		if (len > 0)
			used = MIN_OF(used + (size_t)len, sizeof(line) - 2);
	}
	line[used++] = '\n';
	return put(line, used);
}

printf_like(2, 3) static bool put_own(enum event event, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	bool is_put = put_event(NULL, event, format, args);
	va_end(args);
	return is_put;
}

static void tell_lost(void)
{
	uint64_t count = atomic_exchange(&lost, 0);

	if (count > 0 && !put_own(EV_LOG_LOST, "lines=%" PRIu64, count))
		atomic_fetch_add(&lost, count);
}

void log_event(const struct log_ctx *ctx, enum event event, const char *format, ...)
{
	va_list args;

	if (events[event].level < log_lowest)
		return;
	va_start(args, format);
	bool is_put = put_event(ctx, event, format, args);
	va_end(args);
	if (is_put)
		tell_lost();
	else
		atomic_fetch_add(&lost, 1);
}

bool log_is_due(uint64_t *told_ms)
{
	uint64_t now = clock_mono_ms();

	if (*told_ms != 0 && now - *told_ms < TOLD_EVERY_MS)
		return false;
	*told_ms = now;
	return true;
}

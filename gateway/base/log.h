/* SPDX-License-Identifier: ISC */
/*
 * The log: one event a line, logfmt, on standard error.
 *
 *     LOG(&session->log, EV_MESSAGE_ACCEPTED, "size=%zu from=%s", n, LOG_VALUE(from));
 *     event=message.accepted time=2026-11-24T10:00:00.123Z process=submit sid=… size=2310 from=a@b
 *
 * Events are named in events.def. Whatever a peer said goes through LOG_VALUE,
 * which quotes and escapes; secrets never come here. A line is one write(2), so
 * lines of several threads and processes never mix. They wait for who reads them for a tenth of
 * the time at most, then they are lost, and counted: the log never stops the mail. Any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARNING, LOG_ALARM };

enum event {
#define EVENT(id, name, level, meaning) EV_##id,
#include "gateway/base/events.def"
#undef EVENT
	EVENT_COUNT
};

/* What every line of one session or message carries: "sid=… account=…". Owner: its user. */
struct log_ctx {
	char text[200];
};

/* Empties it, then adds `key=value`, value escaped. What does not fit is left out. */
void log_ctx_init(struct log_ctx *ctx);
void log_ctx_add(struct log_ctx *ctx, const char *key, struct slice value);

/* `ctx` may be NULL; `format` may be "". */
#define LOG(ctx, event, ...) log_event((ctx), (event), __VA_ARGS__)
void log_event(const struct log_ctx *ctx, enum event event, const char *format, ...)
        printf_like(3, 4);

/* A peer's value, quoted and escaped (cut at about 200 octets), for "%s"; lives to the end of the
 * block. */
struct log_value {
	char text[512];
};
#define LOG_VALUE(slice) log_value_format(&(struct log_value){{0}}, (slice))
const char *log_value_format(struct log_value *value, struct slice slice);

/*
 * Whether a minute has gone since it was true last, which `told_ms` (0 at first) remembers: a flood
 * is told of once a minute, not once a newcomer, for that would be another flood.
 */
bool log_is_due(uint64_t *told_ms);

/* Once, by the first process, before it logs: lets standard error not block, where that can be. */
void log_open(void);

/*
 * Before threads start: the process name in each line, and the lowest level that
 * is written (LOG_INFO by default).
 */
void log_init(const char *process, enum log_level lowest);

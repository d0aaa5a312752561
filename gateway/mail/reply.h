/* SPDX-License-Identifier: ISC */
/*
 * Replies: those that the server sends, from one table, and those that an upstream
 * sends, parsed within limits. Pure, any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

enum reply {
#define REPLY(id, code, enhanced, text, meaning) REPLY_##id,
#include "gateway/mail/replies.def"
#undef REPLY
	REPLY_COUNT,
	/* What a handler returns whose reply comes later. */
	REPLY_LATER,
};

#define REPLY_ARGS_MAX 5

/* Arguments of a reply, for its %s in order; NULL ends them. Printable text only. */
struct reply_args {
	const char *text[REPLY_ARGS_MAX + 1];
};
#define REPLY_ARGS(...) (&(const struct reply_args){{__VA_ARGS__}})

/* Appends the whole line with CRLF. `args` may be NULL. As buf_append. */
int reply_write(struct buf *out, enum reply reply, const struct reply_args *args) must_check;

/* One line of a reply of several (RFC 5321 4.2.1): "250-text" or "250 text". */
enum reply_place { REPLY_MORE, REPLY_LAST };
int reply_write_line(
        struct buf *out, enum reply reply, enum reply_place place, const char *text) must_check;

const char *reply_name(enum reply reply);

/* ---- of an upstream ---- */

#define PEER_REPLY_LINE_MAX  2048
#define PEER_REPLY_LINES_MAX 128
#define PEER_REPLY_TEXT_MAX  1024

struct peer_reply {
	unsigned code;
	char enhanced[16];                  /* "5.1.1" or "" (RFC 2034) */
	char text[PEER_REPLY_TEXT_MAX + 1]; /* all lines joined by blanks, printable, cut */
	/* private */
	unsigned lines;
	size_t used;
};

void peer_reply_start(struct peer_reply *reply);

/* It wants a login that it does not accept or that we do not have (RFC 4954 6). */
bool peer_reply_wants_login(const struct peer_reply *reply);

/*
 * Takes the next line (without CRLF). 1: the reply is complete; 0: more lines
 * follow; -EBADMSG: malformed (also by NUL or a bare CR), too long or too many: not a reply
 * to act upon.
 */
int peer_reply_line(struct peer_reply *reply, struct slice line) must_check;

/* SPDX-License-Identifier: ISC */
/* Replies, both directions; see reply.h. */
#include "gateway/mail/reply.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct {
	const char *name;
	unsigned code;
	const char *enhanced, *text;
} replies[] = {
#define REPLY(id, code, enhanced, text, meaning) [REPLY_##id] = {#id, code, enhanced, text},
#include "gateway/mail/replies.def"
#undef REPLY
};

const char *reply_name(enum reply reply)
{
	return replies[reply].name;
}

/* Only printable octets leave: an argument can never break the line. */
static int append_printable(struct buf *out, const char *text)
{
	int r = 0;

	for (; r == 0 && *text != '\0'; text++)
		r = buf_append(out, *text < ' ' || *text == 0x7f ? "?" : text, 1);
	return r;
}

int reply_write(struct buf *out, enum reply reply, const struct reply_args *args)
{
	const char *enhanced = replies[reply].enhanced;
	struct slice left = slice_str(replies[reply].text);
	unsigned next = 0;

	int r = buf_printf(
	        out, "%u %s%s", replies[reply].code, enhanced, *enhanced != '\0' ? " " : "");
	while (r == 0 && left.len > 0) {
		ptrdiff_t at = slice_find(left, '%');
		size_t plain = at < 0 ? left.len : (size_t)at;
		r = buf_append(out, left.ptr, plain);
		left = slice_part(left, plain, left.len);
		if (r < 0 || left.len == 0)
			break;
		assert_bug(left.len >= 2 && left.ptr[1] == 's' && args != NULL &&
		           next < REPLY_ARGS_MAX && args->text[next] != NULL);
		r = append_printable(out, args->text[next++]);
		left = slice_part(left, 2, left.len);
	}
	return r == 0 ? buf_append(out, "\r\n", 2) : r;
}

int reply_write_line(struct buf *out, enum reply reply, enum reply_place place, const char *text)
{
	return buf_printf(
	        out, "%u%c%s\r\n", replies[reply].code, place == REPLY_LAST ? ' ' : '-', text);
}

void peer_reply_start(struct peer_reply *reply)
{
	reply->code = 0;
	reply->enhanced[0] = '\0';
	reply->text[0] = '\0';
	reply->lines = 0;
	reply->used = 0;
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* "5.1.1 " at the front of the text: class 2, 4 or 5, subject and detail of 1 to 3 digits. */
static size_t enhanced_length(struct slice text)
{
	size_t at = 1, digits;

	if (text.len < 5 || (text.ptr[0] != '2' && text.ptr[0] != '4' && text.ptr[0] != '5'))
		return 0;
	for (unsigned part = 0; part < 2; part++) {
		if (at >= text.len || text.ptr[at] != '.')
			return 0;
		at++;
		for (digits = 0; at < text.len && is_digit(text.ptr[at]); digits++)
			at++;
		if (digits < 1 || digits > 3)
			return 0;
	}
	return at == text.len || text.ptr[at] == ' ' ? at : 0;
}

static void keep_text(struct peer_reply *reply, struct slice text)
{
	if (reply->lines > 0 && reply->used < PEER_REPLY_TEXT_MAX)
		reply->text[reply->used++] = ' ';
	for (size_t i = 0; i < text.len && reply->used < PEER_REPLY_TEXT_MAX; i++) {
		unsigned char c = (unsigned char)text.ptr[i];
		reply->text[reply->used++] = c < ' ' || c == 0x7f || c >= 0x80 ? '?' : (char)c;
	}
	reply->text[reply->used] = '\0';
}

int peer_reply_line(struct peer_reply *reply, struct slice line)
{
	/* What these hide a reader would not see. Other alphabets are common, and only shown as
	 * "?". */
	if (slice_find(line, '\0') >= 0 || slice_find(line, '\r') >= 0)
		return -EBADMSG;
	if (line.len < 3 || line.len > PEER_REPLY_LINE_MAX || line.ptr[0] < '2' ||
	        line.ptr[0] > '5' || !is_digit(line.ptr[1]) || !is_digit(line.ptr[2]) ||
	        (line.len > 3 && line.ptr[3] != ' ' && line.ptr[3] != '-') ||
	        reply->lines == PEER_REPLY_LINES_MAX)
		return -EBADMSG;
	unsigned code = (unsigned)(line.ptr[0] - '0') * 100U + (unsigned)(line.ptr[1] - '0') * 10U +
	                (unsigned)(line.ptr[2] - '0');
	if (reply->lines > 0 && code != reply->code)
		return -EBADMSG;
	reply->code = code;

	struct slice text = slice_part(line, 4, line.len);
	size_t enhanced = enhanced_length(text);
	/* It counts only when its class is that of the code (RFC 2034 4). */
	if (enhanced > 0 && enhanced < sizeof(reply->enhanced) && text.ptr[0] == line.ptr[0] &&
	        reply->enhanced[0] == '\0') {
		memcpy(reply->enhanced, text.ptr, enhanced);
		reply->enhanced[enhanced] = '\0';
	}
	keep_text(reply, text);
	reply->lines++;
	return line.len > 3 && line.ptr[3] == '-' ? 0 : 1;
}

bool peer_reply_wants_login(const struct peer_reply *reply)
{
	return reply->code == 530 || reply->code == 535 || reply->code == 538;
}

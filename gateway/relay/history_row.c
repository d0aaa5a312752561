/* SPDX-License-Identifier: ISC */
/*
 * Rows for the database out of what strangers said: valid UTF-8 without control
 * characters, cut, and quoted twice, for the row and for the array that it stands in.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>

#include "gateway/relay/history.h"

/* Characters that are kept. */
#define NAME_MAX_CHARS       256
#define MESSAGE_ID_MAX_CHARS 250 /* as in trace(); its index takes no more than 2,700 octets */
#define REPLY_MAX_CHARS      1000
#define ROW_NUMBERS          160

/* A quote opens and closes a text of a row; the array that the row is in escapes it. */
#define QUOTE "\\\""
/* For what is no character: U+FFFD. */
#define ODD "\xef\xbf\xbd"

static bool is_plain(unsigned char octet)
{
	return octet >= 0x20 && octet < 0x7f && octet != '"' && octet != '\\';
}

/* The octets of the character at the front, or 0 when it is none or a control character. */
static size_t character_len(struct slice text)
{
	unsigned char first = (unsigned char)text.ptr[0];

	if (first < 0x80)
		return first >= 0x20 && first != 0x7f;
	for (size_t len = 2; len <= 4 && len <= text.len; len++)
		if (slice_is_utf8(slice_of(text.ptr, len)))
			return first == 0xc2 && (unsigned char)text.ptr[1] < 0xa0 ? 0 : len;
	return 0;
}

static int append_character(struct buf *out, struct slice *text)
{
	size_t len = character_len(*text);
	struct slice character = slice_part(*text, 0, len);
	const char *instead = NULL;

	if (len == 0)
		instead = ODD;
	else if (*text->ptr == '"')
		instead = "\\\\\\\"";
	else if (*text->ptr == '\\')
		instead = "\\\\\\\\";
	*text = slice_part(*text, MAX_OF(len, (size_t)1), text->len);
	return instead != NULL ? buf_append_str(out, instead) : buf_append_slice(out, character);
}

static int append_text(struct buf *out, struct slice text, size_t characters)
{
	int r = buf_append_str(out, QUOTE);

	while (r == 0 && text.len > 0 && characters > 0) {
		size_t plain = 0;
		while (plain < text.len && plain < characters &&
		        is_plain((unsigned char)text.ptr[plain]))
			plain++;
		if (plain > 0) {
			r = buf_append(out, text.ptr, plain);
			text = slice_part(text, plain, text.len);
			characters -= plain;
		} else {
			r = append_character(out, &text);
			characters--;
		}
	}
	return r == 0 ? buf_append_str(out, QUOTE) : r;
}

/* Behind a comma. An empty one is null. */
static int append_next(struct buf *out, struct slice text, size_t characters)
{
	int r = buf_append_str(out, ",");

	return r == 0 && text.len > 0 ? append_text(out, text, characters) : r;
}

static int append_id(struct buf *out, const struct message_id *id)
{
	char text[ID_TEXT + 1];

	return append_next(out, slice_str(id_format(id, text)), ID_TEXT);
}

static int append_names(struct buf *out, const struct slice *const names[], size_t count)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < count; i++)
		r = append_next(out, *names[i], NAME_MAX_CHARS);
	return r;
}

int history_row_message(struct buf *out, const struct history_message *message)
{
	const struct slice *const names[] = {
	        &message->login, &message->session, &message->sender, &message->from_domain};
	char numbers[ROW_NUMBERS];

	int len = snprintf(numbers, sizeof(numbers),
	        "\"(%" PRIu64 ",%" PRIu64 ",%" PRIu32 ",%" PRId64, message->account, message->size,
	        message->recipients, message->accepted_us);
	int r = buf_append(out, numbers, (size_t)len);
	if (r == 0)
		r = append_id(out, message->id);
	if (r == 0)
		r = append_names(out, names, ARRAY_LEN(names));
	if (r == 0)
		r = append_next(out, message->message_id, MESSAGE_ID_MAX_CHARS);
	return r == 0 ? buf_append_str(out, ")\",") : r;
}

int history_row_delivery(struct buf *out, const struct history_delivery *delivery)
{
	const struct slice outcome = slice_str(delivery->outcome);
	const struct slice *const names[] = {&outcome, &delivery->recipient, &delivery->upstream,
	        &delivery->host, &delivery->selectors, &delivery->notice};
	char numbers[ROW_NUMBERS];

	/* A hash is any 64 bits; a bigint of the database has a sign. */
	int len = snprintf(numbers, sizeof(numbers),
	        "\"(%" PRId64 ",%" PRIu32 ",%" PRId64 ",%" PRIu64 ",%" PRId64, delivery->number,
	        delivery->attempt, delivery->at_us, delivery->seen_by,
	        (int64_t)delivery->recipient_hash);
	int r = buf_append(out, numbers, (size_t)len);
	if (r == 0)
		r = append_id(out, delivery->message);
	if (r == 0)
		r = append_names(out, names, ARRAY_LEN(names));
	if (r == 0)
		r = append_next(out, delivery->reply, REPLY_MAX_CHARS);
	return r == 0 ? buf_append_str(out, ")\",") : r;
}

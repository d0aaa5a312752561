/* SPDX-License-Identifier: ISC */
/*
 * Rows for the database out of what strangers said: valid UTF-8 without control
 * characters, cut, and quoted twice, for the row and for the array that it stands in.
 */
#include <stdbool.h>
#include <string.h>

#include "gateway/relay/history.h"

/* Characters that are kept. */
#define NAME_CHARS       256
#define MESSAGE_ID_CHARS 250 /* as in trace(); its index takes no more than 2,700 octets */
#define REPLY_CHARS      1000

/* A quote opens and closes a text of a row; the array that the row is in escapes it. */
#define QUOTE SLICE("\\\"")
/* For what is no character: U+FFFD. */
#define ODD SLICE("\xef\xbf\xbd")

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

/*
 * All of these write at `at`, where there is room for the longest row, and return what is
 * behind it: a row is made on the loop.
 */

static char *put(char *at, struct slice octets)
{
	memcpy(at, octets.ptr, octets.len);
	return at + octets.len;
}

static char *put_number(char *at, uint64_t number)
{
	char digits[20], *first = digits + sizeof(digits);

	do {
		*--first = (char)('0' + number % 10);
		number /= 10;
	} while (number > 0);
	return put(at, slice_of(first, (size_t)(digits + sizeof(digits) - first)));
}

static char *put_signed(char *at, int64_t number)
{
	if (number >= 0)
		return put_number(at, (uint64_t)number);
	*at = '-';
	return put_number(at + 1, -(uint64_t)number);
}

/* One character of the text, which then stands behind it. */
static char *put_character(char *at, struct slice *text)
{
	size_t len = character_len(*text);
	struct slice character = slice_part(*text, 0, len);

	*text = slice_part(*text, MAX_OF(len, (size_t)1), text->len);
	if (len == 0)
		return put(at, ODD);
	if (*character.ptr == '"')
		return put(at, SLICE("\\\\\\\""));
	if (*character.ptr == '\\')
		return put(at, SLICE("\\\\\\\\"));
	return put(at, character);
}

/* Behind a comma. An empty text is null. */
static char *put_text(char *at, struct slice text, size_t characters)
{
	*at++ = ',';
	if (text.len == 0)
		return at;
	at = put(at, QUOTE);
	while (text.len > 0 && characters > 0) {
		size_t plain = 0;
		while (plain < text.len && plain < characters &&
		        is_plain((unsigned char)text.ptr[plain]))
			plain++;
		if (plain > 0) {
			at = put(at, slice_part(text, 0, plain));
			text = slice_part(text, plain, text.len);
			characters -= plain;
		} else {
			at = put_character(at, &text);
			characters--;
		}
	}
	return put(at, QUOTE);
}

static char *put_id(char *at, const struct message_id *id)
{
	char text[ID_TEXT + 1];

	return put_text(at, slice_str(id_format(id, text)), ID_TEXT);
}

int history_row_message(struct buf *out, const struct history_message *message)
{
	char *row;

	int r = buf_reserve(out, HISTORY_ROW_MAX, &row);
	if (r < 0)
		return r;
	char *at = put(row, SLICE("\"("));
	at = put_number(at, message->account);
	*at++ = ',';
	at = put_number(at, message->size);
	*at++ = ',';
	at = put_number(at, message->recipients);
	*at++ = ',';
	at = put_signed(at, message->accepted_us);
	at = put_id(at, message->id);
	at = put_text(at, message->login, NAME_CHARS);
	at = put_text(at, message->session, NAME_CHARS);
	at = put_text(at, message->sender, NAME_CHARS);
	at = put_text(at, message->from_domain, NAME_CHARS);
	at = put_text(at, message->message_id, MESSAGE_ID_CHARS);
	at = put(at, SLICE(")\","));
	buf_added(out, (size_t)(at - row));
	return 0;
}

int history_row_delivery(struct buf *out, const struct history_delivery *delivery)
{
	char *row;

	int r = buf_reserve(out, HISTORY_ROW_MAX, &row);
	if (r < 0)
		return r;
	char *at = put(row, SLICE("\"("));
	at = put_signed(at, delivery->number);
	*at++ = ',';
	at = put_number(at, delivery->attempt);
	*at++ = ',';
	at = put_signed(at, delivery->at_us);
	*at++ = ',';
	at = put_number(at, delivery->seen_by);
	*at++ = ',';
	/* A hash is any 64 bits; a bigint of the database has a sign. */
	at = put_signed(at, (int64_t)delivery->recipient_hash);
	at = put_id(at, delivery->message);
	at = put_text(at, slice_str(delivery->outcome), NAME_CHARS);
	at = put_text(at, delivery->recipient, NAME_CHARS);
	at = put_text(at, delivery->upstream, NAME_CHARS);
	at = put_text(at, delivery->host, NAME_CHARS);
	at = put_text(at, delivery->selectors, NAME_CHARS);
	at = put_text(at, delivery->notice, NAME_CHARS);
	at = put_text(at, delivery->reply, REPLY_CHARS);
	at = put(at, SLICE(")\","));
	buf_added(out, (size_t)(at - row));
	return 0;
}

/* SPDX-License-Identifier: ISC */
/* The header of a message; see header.h. */
#include "gateway/mail/header.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* Length of the line at the front, CRLF included; 0 when it has none. */
static size_t line_length(struct slice text)
{
	const char *end = text.len == 0 ? NULL : memmem(text.ptr, text.len, "\r\n", 2);

	return end == NULL ? 0 : (size_t)(end - text.ptr) + 2;
}

static bool is_all_blank(struct slice line)
{
	return slice_trim(slice_of(line.ptr, line.len - 2)).len == 0;
}

/* RFC 5322 3.6.8: printable but the colon. */
static bool name_is_valid(struct slice name)
{
	for (size_t i = 0; i < name.len; i++) {
		if (name.ptr[i] <= ' ' || name.ptr[i] >= 0x7f)
			return false;
	}
	return name.len > 0;
}

static bool has_controls(struct slice text)
{
	for (size_t i = 0; i < text.len; i++) {
		unsigned char c = (unsigned char)text.ptr[i];
		if ((c < ' ' && c != '\t' && c != '\r' && c != '\n') || c == 0x7f)
			return true;
	}
	return false;
}

int header_next(struct slice *rest, struct header_field *ret_field)
{
	if (rest->len == 0)
		return 0;
	size_t len = line_length(*rest);
	ptrdiff_t colon = slice_find(slice_of(rest->ptr, len), ':');
	if (len == 0 || colon <= 0 || !name_is_valid(slice_of(rest->ptr, (size_t)colon)))
		return -EINVAL;
	/* Continuation lines; one of white space alone looks like the end to some readers. */
	while (len < rest->len && is_blank(rest->ptr[len])) {
		struct slice next = slice_part(*rest, len, rest->len);
		size_t more = line_length(next);
		if (more == 0 || is_all_blank(slice_of(next.ptr, more)))
			return -EINVAL;
		len += more;
	}
	struct slice all = slice_of(rest->ptr, len);
	if (has_controls(all))
		return -EINVAL;
	*ret_field = (struct header_field){
	        .name = slice_of(all.ptr, (size_t)colon),
	        .body = slice_of(all.ptr + colon + 1, len - (size_t)colon - 3),
	        .all = all,
	};
	*rest = slice_part(*rest, len, rest->len);
	return 1;
}

static bool is_named(const struct header_field *field, struct slice name)
{
	return slice_equal_nocase(field->name, name);
}

struct slice header_message_id(struct slice block)
{
	struct header_field field;

	while (header_next(&block, &field) == 1) {
		if (!is_named(&field, SLICE("Message-ID")))
			continue;
		ptrdiff_t open = slice_find(field.body, '<');
		struct slice id = slice_part(field.body, (size_t)(open + 1), field.body.len);
		ptrdiff_t close = slice_find_last(id, '>');
		return open >= 0 && close >= 0 ? slice_part(id, 0, (size_t)close)
		                               : slice_trim(field.body);
	}
	return SLICE("");
}

/*
 * RFC 5322 3.6, RFC 2045: at most one of each. Of two, one reader shows the first and
 * another the last. (From and Sender are counted where they are read; Bcc goes.)
 */
static const char *const single_fields[] = {
        "Date",
        "Reply-To",
        "To",
        "Cc",
        "Subject",
        "Message-ID",
        "In-Reply-To",
        "References",
        "MIME-Version",
        "Content-Type",
        "Content-Transfer-Encoding",
};

struct check {
	bool smtputf8;
	address_fn each;
	void *arg;
	struct header_facts facts;
	unsigned from, sender;
	unsigned singles; /* a bit for each of single_fields that was seen */
	bool utf8_address;
	struct slice first_domain; /* of the field that is read */
};

static void on_mailbox(void *arg, const struct mailbox *mailbox)
{
	struct check *check = arg;

	if (mailbox->is_utf8 && !check->smtputf8)
		check->utf8_address = true;
	if (check->first_domain.len == 0)
		check->first_domain = mailbox->domain;
	check->each(check->arg, mailbox);
}

/* Control characters and line ends above ASCII: U+0080 to U+009F, U+2028, U+2029. */
static bool has_utf8_controls(struct slice text)
{
	for (size_t i = 0; i + 1 < text.len; i++) {
		const unsigned char *at = (const unsigned char *)text.ptr + i;
		if (at[0] == 0xc2 && at[1] < 0xa0)
			return true;
		if (i + 2 < text.len && at[0] == 0xe2 && at[1] == 0x80 && (at[2] & 0xfe) == 0xa8)
			return true;
	}
	return false;
}

/* A field of 1 to `most` mailboxes; `fault` is what it is called otherwise. */
static enum header_fault check_addresses(
        struct check *check, const struct header_field *field, int most, enum header_fault fault)
{
	check->first_domain = slice_of("", 0);
	if (!slice_is_utf8(field->body) || has_utf8_controls(field->body))
		return fault;
	int count = address_list_parse(field->body, on_mailbox, check);
	if (count < 1 || count > most)
		return fault;
	return check->utf8_address ? HEADER_UTF8_ADDRESS : HEADER_FINE;
}

static enum header_fault check_single(struct check *check, const struct header_field *field)
{
	for (unsigned i = 0; i < ARRAY_LEN(single_fields); i++) {
		if (!is_named(field, slice_str(single_fields[i])))
			continue;
		if ((check->singles & 1U << i) != 0)
			return HEADER_REPEATED;
		check->singles |= 1U << i;
	}
	return HEADER_FINE;
}

static enum header_fault check_field(struct check *check, const struct header_field *field)
{
	enum header_fault fault;

	if (is_named(field, SLICE("From"))) {
		if (check->from++ > 0)
			return HEADER_FROM_BAD;
		fault = check_addresses(check, field, INT_MAX, HEADER_FROM_BAD);
		check->facts.from_domain = check->first_domain;
		check->facts.from = field->body;
		return fault;
	}
	if (is_named(field, SLICE("Sender"))) {
		if (check->sender++ > 0)
			return HEADER_SENDER_BAD;
		return check_addresses(check, field, 1, HEADER_SENDER_BAD);
	}
	if (is_named(field, SLICE("Resent-From")))
		return check_addresses(check, field, INT_MAX, HEADER_SENDER_BAD);
	if (is_named(field, SLICE("Resent-Sender")))
		return check_addresses(check, field, 1, HEADER_SENDER_BAD);
	if (is_named(field, SLICE("Date")))
		check->facts.has_date = true;
	else if (is_named(field, SLICE("Message-ID")))
		check->facts.has_message_id = true;
	else if (is_named(field, SLICE("Received")))
		check->facts.received++;
	return check_single(check, field);
}

enum header_fault header_check(struct slice block, bool smtputf8, address_fn each, void *arg,
        struct header_facts *ret_facts)
{
	struct check check = {.smtputf8 = smtputf8, .each = each, .arg = arg};
	struct header_field field;
	unsigned fields = 0;
	int r;

	if (block.len > HEADER_MAX)
		return HEADER_TOO_BIG;
	while ((r = header_next(&block, &field)) == 1) {
		if (++fields > HEADER_FIELDS_MAX || field.all.len > HEADER_FIELD_MAX)
			return HEADER_TOO_BIG;
		enum header_fault fault = check_field(&check, &field);
		if (fault != HEADER_FINE)
			return fault;
	}
	if (r < 0)
		return HEADER_MALFORMED;
	if (check.from == 0)
		return HEADER_FROM_BAD;
	if (check.facts.received > HEADER_HOPS_MAX)
		return HEADER_LOOP;
	check.facts.has_sender = check.sender > 0;
	*ret_facts = check.facts;
	return HEADER_FINE;
}

const char *header_fault_text(enum header_fault fault)
{
	switch (fault) {
	case HEADER_FROM_BAD:
		return "exactly one From field with proper addresses is needed";
	case HEADER_SENDER_BAD:
		return "the Sender or a Resent field is doubtful";
	case HEADER_REPEATED:
		return "a field that may occur once occurs again";
	case HEADER_MALFORMED:
		return "a line in it is no header field";
	case HEADER_FINE:
	case HEADER_TOO_BIG:
	case HEADER_UTF8_ADDRESS:
	case HEADER_LOOP:
		break;
	}
	return "it cannot be read";
}

/*
 * Hidden recipients (RFC 5322 3.6.3, 3.6.6), and what only final delivery may write (RFC
 * 5321 4.4): nobody has checked the sender in there.
 */
static bool is_dropped(const struct header_field *field)
{
	return is_named(field, SLICE("Bcc")) || is_named(field, SLICE("Resent-Bcc")) ||
	       is_named(field, SLICE("Return-Path"));
}

int header_fix(struct slice block, const struct header_additions *additions, struct buf *out)
{
	struct header_field field;

	int r = buf_append_slice(out, additions->received);
	if (r == 0 && additions->date != NULL)
		r = buf_printf(out, "Date: %s\r\n", additions->date);
	if (r == 0 && additions->message_id != NULL)
		r = buf_printf(out, "Message-ID: %s\r\n", additions->message_id);
	if (r == 0 && additions->sender.len > 0)
		r = buf_printf(out, "Sender: %.*s\r\n", SLICE_ARGS(additions->sender));
	while (r == 0 && header_next(&block, &field) == 1) {
		if (!is_dropped(&field))
			r = buf_append_slice(out, field.all);
	}
	return r == 0 ? buf_append(out, "\r\n", 2) : r;
}

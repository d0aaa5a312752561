/* SPDX-License-Identifier: ISC */
/*
 * Bounces about whatever addresses, replies and headers get as far as that: of the input,
 * what the parsers let through. Length octet and text each: sender, then recipient and
 * line of a reply, up to eight times; then the header of the message.
 */
#include "gateway/mail/dsn.h"

#include "gateway/mail/header.h"
#include "gateway/mail/path.h"
#include "gateway/mail/reply.h"
#include "tests/fuzz/fuzz.h"

#define RECIPIENTS_MAX 8

static void ignore_mailbox(void *arg, const struct mailbox *mailbox)
{
	(void)arg;
	(void)mailbox;
}

static bool is_address(struct slice text)
{
	struct mailbox mailbox;

	return mailbox_parse(text, &mailbox) == 0;
}

static unsigned count_of(struct slice text, const char *what)
{
	unsigned count = 0;
	const char *found;

	while (text.len > 0 && (found = memmem(text.ptr, text.len, what, strlen(what))) != NULL) {
		count++;
		text = slice_part(text, (size_t)(found - text.ptr) + strlen(what), text.len);
	}
	return count;
}

/* The part with the status: ASCII, groups of fields with one empty line between them. */
static void check_status(struct slice body, const struct dsn *dsn)
{
	static const char type[] = "Content-Type: message/delivery-status\r\n\r\n";
	const char *from = memmem(body.ptr, body.len, type, strlen(type));

	assert_bug(from != NULL);
	from += strlen(type);
	struct slice status = slice_of(from, (size_t)(body.ptr + body.len - from));
	const char *end = memmem(status.ptr, status.len, "\r\n--=_", 6);
	assert_bug(end != NULL);
	status.len = (size_t)(end - status.ptr);
	assert_bug(slice_is_ascii(status));
	assert_bug(count_of(status, "\r\n\r\n") == dsn->recipient_count);
	assert_bug(count_of(status, "\r\nFinal-Recipient: ") == dsn->recipient_count);
	assert_bug(count_of(status, "\r\nStatus: ") == dsn->recipient_count);
	assert_bug(count_of(status, "\r\nAction: ") == dsn->recipient_count);
}

static void check_written(struct slice header, struct slice body, const struct dsn *dsn)
{
	struct header_facts facts;

	assert_bug(fuzz_lines_are_whole(header) && fuzz_lines_are_whole(body));
	assert_bug(slice_ends_with_nocase(header, SLICE("\r\n\r\n")));
	assert_bug(header_check(slice_of(header.ptr, header.len - 2), true, ignore_mailbox, NULL,
	                   &facts) == HEADER_FINE);
	assert_bug(count_of(body, "--=_id1--\r\n") == 1);
	check_status(body, dsn);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice in = slice_of(data, size);
	struct dsn_recipient recipients[RECIPIENTS_MAX];
	struct peer_reply replies[RECIPIENTS_MAX];
	struct header_facts facts;
	struct buf header, body;
	uint8_t flags = fuzz_u8(&in);
	struct dsn dsn = {
	        .hostname = "m.example",
	        .id = "id1",
	        .original_id = "id0",
	        .wall_s = 1700000000,
	        .accepted_s = 1700000000 - 60,
	        .retry_until_s = (flags & 1) != 0 ? 1700000000 + 60 : 0,
	        .recipients = recipients,
	        .sender = fuzz_bytes(&in),
	};

	if (!is_address(dsn.sender))
		return 0;
	for (unsigned i = 0; i < 1U + flags / 2 % RECIPIENTS_MAX; i++) {
		struct slice address = fuzz_bytes(&in), line = fuzz_bytes(&in);
		peer_reply_start(&replies[i]);
		if (!is_address(address) || peer_reply_line(&replies[i], line) < 0)
			break;
		recipients[dsn.recipient_count++] = (struct dsn_recipient){
		        .address = address,
		        .status = replies[i].enhanced[0] != '\0' ? replies[i].enhanced : "5.0.0",
		        .remote_mta = (flags & 16) != 0 ? "mx.example" : NULL,
		        .diagnostic = replies[i].text,
		};
	}
	/* With its empty line, as the spool keeps it. */
	dsn.original_header = in;
	if (dsn.recipient_count == 0 || !slice_ends_with_nocase(in, SLICE("\r\n\r\n")) ||
	        !fuzz_lines_are_whole(in) || memmem(in.ptr, in.len, "--=_id1", 7) != NULL ||
	        header_check(slice_of(in.ptr, in.len - 2), true, ignore_mailbox, NULL, &facts) !=
	                HEADER_FINE)
		return 0;
	buf_init(&header, 16384);
	buf_init(&body, 1U << 20);
	assert_bug(dsn_write(&dsn, &header, &body) == 0);
	check_written(buf_slice(&header), buf_slice(&body), &dsn);
	buf_done(&header);
	buf_done(&body);
	return 0;
}

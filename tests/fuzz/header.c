/* SPDX-License-Identifier: ISC */
/*
 * Headers: what was accepted is accepted again after it was completed, says the same, and
 * has one end. The first octet: whether SMTPUTF8 was given.
 */
#include "gateway/mail/header.h"

#include "tests/fuzz/fuzz.h"

static const char received[] = "Received: from c.example by m.example with ESMTPSA id x;\r\n"
                               "\tTue, 24 Nov 2026 10:00:00 +0000\r\n";

static void on_mailbox(void *arg, const struct mailbox *mailbox)
{
	unsigned *mailboxes = arg;

	assert_bug(mailbox->text.len > 0);
	++*mailboxes;
}

/* Whether a line of it begins with that name, whatever the parser thinks of it. */
static bool has_field(struct slice header, struct slice name)
{
	for (struct slice rest = header; rest.len > 0;) {
		if (slice_starts_with_nocase(slice_until(&rest, '\n'), name))
			return true;
	}
	return false;
}

static void check_fixed(struct slice block, bool smtputf8, const struct header_facts *facts,
        unsigned mailboxes, struct buf *out)
{
	const struct header_additions additions = {
	        .received = slice_str(received),
	        .date = facts->has_date ? NULL : "Tue, 24 Nov 2026 10:00:00 +0000",
	        .message_id = facts->has_message_id ? NULL : "<x@m.example>",
	};
	struct header_facts again;
	unsigned mailboxes_again = 0;

	assert_bug(header_fix(block, &additions, out) == 0);
	struct slice header = buf_slice(out);
	const char *end = memmem(header.ptr, header.len, "\r\n\r\n", 4);
	assert_bug(end != NULL && end + 4 == header.ptr + header.len);
	assert_bug(fuzz_lines_are_whole(header));
	assert_bug(!has_field(header, SLICE("bcc:")) && !has_field(header, SLICE("resent-bcc:")) &&
	           !has_field(header, SLICE("return-path:")));

	struct slice fields = slice_of(header.ptr, header.len - 2);
	enum header_fault fault =
	        header_check(fields, smtputf8, on_mailbox, &mailboxes_again, &again);
	/* Only the limits may be passed by what was added. */
	if (fault == HEADER_LOOP || fault == HEADER_TOO_BIG)
		return;
	assert_bug(fault == HEADER_FINE);
	assert_bug(again.has_date && again.has_message_id);
	assert_bug(again.received == facts->received + 1 && mailboxes_again == mailboxes);
	assert_bug(slice_equal(again.from_domain, facts->from_domain));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice block = slice_of(data, size);
	bool smtputf8 = (fuzz_u8(&block) & 1) != 0;
	struct header_facts facts;
	unsigned mailboxes = 0;
	struct buf out;

	enum header_fault fault = header_check(block, smtputf8, on_mailbox, &mailboxes, &facts);
	assert_bug(*header_fault_text(fault) != '\0');
	/* Bare line ends are refused by the reader of dots. */
	if (fault != HEADER_FINE || !fuzz_lines_are_whole(block))
		return 0;
	assert_bug(mailboxes > 0 && facts.from_domain.len > 0);
	buf_init(&out, HEADER_MAX + 8192);
	check_fixed(block, smtputf8, &facts, mailboxes, &out);
	buf_done(&out);
	return 0;
}

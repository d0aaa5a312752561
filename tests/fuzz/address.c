/* SPDX-License-Identifier: ISC */
/* Mailbox lists of header fields. */
#include "gateway/mail/address.h"

#include "gateway/base/buf.h"
#include "tests/fuzz/fuzz.h"

struct seen {
	struct slice body;
	int count;
};

static void on_mailbox(void *arg, const struct mailbox *mailbox)
{
	struct seen *seen = arg;
	struct mailbox again;

	assert_bug(fuzz_is_inside(mailbox->text, seen->body));
	assert_bug(!fuzz_has_controls(mailbox->text));
	assert_bug(mailbox_parse(mailbox->text, &again) == 0);
	seen->count++;
}

static int parse_with(struct buf *text, struct slice body, const char *behind)
{
	buf_clear(text);
	assert_bug(buf_append_slice(text, body) == 0 && buf_append_str(text, behind) == 0);
	struct seen seen = {.body = buf_slice(text)};
	return address_list_parse(seen.body, on_mailbox, &seen);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct seen seen = {.body = slice_of(data, size)};
	struct buf text;

	int r = address_list_parse(seen.body, on_mailbox, &seen);
	if (r < 0)
		return 0;
	assert_bug(r == seen.count && r > 0);
	/* It was read to its end: nothing there is open, so what follows is read as it is. */
	buf_init(&text, size + 100);
	assert_bug(parse_with(&text, seen.body, ",") < 0);
	assert_bug(parse_with(&text, seen.body, " >") < 0);
	assert_bug(parse_with(&text, seen.body, ")") < 0);
	assert_bug(parse_with(&text, seen.body, "\"") < 0);
	assert_bug(parse_with(&text, seen.body, " (a)") == r);
	if (r < 1000)
		assert_bug(parse_with(&text, seen.body, ",b@y.example") == r + 1);
	buf_done(&text);
	return 0;
}

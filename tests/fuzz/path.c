/* SPDX-License-Identifier: ISC */
/* Paths and mailboxes of the envelope: a line with the path, then what may follow it. */
#include "gateway/mail/path.h"

#include "gateway/mail/sender_right.h"
#include "tests/fuzz/fuzz.h"

static void check_mailbox(const struct mailbox *mailbox)
{
	struct slice text = mailbox->text;
	struct mailbox again;

	assert_bug(text.len <= PATH_TEXT_MAX && slice_is_utf8(text) && !fuzz_has_controls(text));
	assert_bug(mailbox->local.len > 0 && mailbox->local.len <= LOCAL_PART_MAX);
	assert_bug(mailbox->local.len + 1 + mailbox->domain.len == text.len);
	assert_bug(text.ptr[mailbox->local.len] == '@');
	assert_bug(mailbox->local.ptr == text.ptr && fuzz_is_inside(mailbox->domain, text));
	assert_bug(mailbox->is_utf8 != slice_is_ascii(text));
	assert_bug(domain_is_valid(mailbox->domain) && slice_find(mailbox->domain, '@') < 0);
	assert_bug(mailbox_parse(text, &again) == 0 && slice_equal(again.domain, mailbox->domain));
	/* Who may send as this address may. */
	assert_bug(sender_right_covers(text, mailbox));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice all = slice_of(data, size), rest = all;
	struct mailbox mailbox;

	if (path_parse(&rest, &mailbox) == 0) {
		struct slice taken = slice_of(all.ptr, all.len - rest.len);
		assert_bug(fuzz_is_inside(rest, all) && rest.len + taken.len == all.len);
		assert_bug(taken.len == mailbox.text.len + 2);
		assert_bug(taken.ptr[0] == '<' && taken.ptr[taken.len - 1] == '>');
		if (mailbox.text.len > 0)
			check_mailbox(&mailbox);
	}
	if (mailbox_parse(all, &mailbox) == 0) {
		assert_bug(slice_equal(mailbox.text, all));
		check_mailbox(&mailbox);
	}
	if (helo_is_presentable(all)) {
		assert_bug(!fuzz_has_controls(all) && slice_is_ascii(all));
		assert_bug(slice_find(all, ' ') < 0 && slice_find(all, '(') < 0 &&
		           slice_find(all, ')') < 0 && slice_find(all, ';') < 0);
	}
	rest = all;
	struct slice pattern = slice_until(&rest, '\n');
	if (mailbox_parse(rest, &mailbox) == 0 && sender_right_covers(pattern, &mailbox)) {
		/* The domains are the same, or the pattern's is a whole part behind a dot. */
		ptrdiff_t at = slice_find_last(pattern, '@');
		assert_bug(at >= 0);
		struct slice domain = slice_part(pattern, (size_t)at + 1, pattern.len);
		assert_bug(slice_ends_with_nocase(mailbox.domain, domain));
		assert_bug(domain.len == mailbox.domain.len || domain.ptr[0] == '.');
	}
	return 0;
}

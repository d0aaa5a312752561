/* SPDX-License-Identifier: ISC */
/* Sender rights; see sender_right.h. */
#include "gateway/mail/sender_right.h"

static bool local_covers(struct slice pattern, struct slice local)
{
	if (slice_ends_with_nocase(pattern, SLICE("+*"))) {
		/* "user+" and at least one octet of tag */
		struct slice prefix = slice_of(pattern.ptr, pattern.len - 1);
		return local.len > prefix.len && slice_starts_with_nocase(local, prefix);
	}
	return slice_equal_nocase(pattern, local);
}

static bool domain_covers(struct slice pattern, struct slice domain)
{
	if (pattern.len > 0 && pattern.ptr[0] == '.')
		return domain.len > pattern.len && slice_ends_with_nocase(domain, pattern);
	return slice_equal_nocase(pattern, domain);
}

bool sender_right_covers(struct slice pattern, const struct mailbox *mailbox)
{
	ptrdiff_t at = slice_find_last(pattern, '@');

	if (at < 0)
		return false;
	struct slice local = slice_of(pattern.ptr, (size_t)at);
	struct slice domain = slice_part(pattern, (size_t)at + 1, pattern.len);
	return domain_covers(domain, mailbox->domain) &&
	       (local.len == 0 || local_covers(local, mailbox->local));
}

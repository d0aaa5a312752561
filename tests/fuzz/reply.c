/* SPDX-License-Identifier: ISC */
/* Replies of an upstream, line for line, and what it offers in EHLO. */
#include "gateway/mail/reply.h"

#include "gateway/mail/ehlo.h"
#include "tests/fuzz/fuzz.h"

static void check_reply(const struct peer_reply *reply)
{
	struct slice text = slice_str(reply->text), enhanced = slice_str(reply->enhanced);

	assert_bug(reply->code >= 200 && reply->code <= 599);
	assert_bug(text.len <= PEER_REPLY_TEXT_MAX);
	assert_bug(slice_is_ascii(text) && !fuzz_has_controls(text));
	assert_bug(enhanced.len == 0 ||
	           (enhanced.len >= 5 && enhanced.ptr[1] == '.' &&
	                   (unsigned)(enhanced.ptr[0] - '0') == reply->code / 100));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice rest = slice_of(data, size);
	struct peer_reply reply;
	struct ehlo ehlo = {0};
	unsigned lines = 0;

	peer_reply_start(&reply);
	while (rest.len > 0) {
		struct slice line = slice_until(&rest, '\n');
		ehlo_take_line(&ehlo, line);
		int r = peer_reply_line(&reply, line);
		if (r < 0) {
			peer_reply_start(&reply);
			lines = 0;
			continue;
		}
		assert_bug(line.len <= PEER_REPLY_LINE_MAX && ++lines <= PEER_REPLY_LINES_MAX);
		assert_bug(slice_find(line, '\0') < 0 && slice_find(line, '\r') < 0);
		check_reply(&reply);
		if (r == 1) {
			peer_reply_start(&reply);
			lines = 0;
		}
	}
	assert_bug(ehlo.has_size || ehlo.size == 0);
	return 0;
}

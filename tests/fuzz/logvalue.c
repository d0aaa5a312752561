/* SPDX-License-Identifier: ISC */
/* Peers' values in the log: one value a value, nothing in it that moves a terminal. */
#include "gateway/base/log.h"
#include "tests/fuzz/fuzz.h"

/* In quotes, each of its own behind a backslash; or bare, with nothing that would end it. */
static void check_quotes(struct slice text)
{
	assert_bug(text.len > 0);
	if (text.ptr[0] != '"') {
		assert_bug(slice_find(text, '"') < 0 && slice_find(text, ' ') < 0 &&
		           slice_find(text, '=') < 0 && slice_find(text, '\\') < 0);
		return;
	}
	size_t i = 1;
	while (i < text.len && text.ptr[i] != '"')
		i += text.ptr[i] == '\\' ? 2 : 1;
	assert_bug(i == text.len - 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct log_value value;
	struct log_ctx ctx;

	struct slice text = slice_str(log_value_format(&value, slice_of(data, size)));
	assert_bug(text.len < sizeof(value.text));
	assert_bug(!fuzz_has_controls(text) && slice_is_utf8(text));
	check_quotes(text);
	for (size_t i = 0; i + 1 < text.len; i++)
		assert_bug(text.ptr[i] != '\xc2' || (unsigned char)text.ptr[i + 1] >= 0xa0);

	log_ctx_init(&ctx);
	log_ctx_add(&ctx, "sid", SLICE("0123abcd"));
	log_ctx_add(&ctx, "account", slice_of(data, size));
	text = slice_str(ctx.text);
	assert_bug(slice_starts_with(text, SLICE(" sid=0123abcd")) && !fuzz_has_controls(text));
	return 0;
}

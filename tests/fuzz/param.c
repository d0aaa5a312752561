/* SPDX-License-Identifier: ISC */
/* Parameters of MAIL and RCPT, and xtext. */
#include "gateway/mail/param.h"

#include "gateway/base/slice.h"
#include "tests/fuzz/fuzz.h"

static bool is_hex(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F');
}

static void check_xtext(struct slice text)
{
	if (!xtext_is_valid(text))
		return;
	assert_bug(text.len > 0 && slice_is_ascii(text) && !fuzz_has_controls(text));
	assert_bug(slice_find(text, '=') < 0 && slice_find(text, ' ') < 0);
	while (text.len > 0) {
		struct slice before = slice_until(&text, '+');
		if (before.ptr + before.len == text.ptr + text.len)
			break;
		assert_bug(text.len >= 2 && is_hex(text.ptr[0]) && is_hex(text.ptr[1]));
		text = slice_part(text, 2, text.len);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice all = slice_of(data, size), rest = all;
	struct param param;
	int r;

	for (size_t before = rest.len; (r = param_next(&rest, &param)) == 1; before = rest.len) {
		assert_bug(rest.len < before && fuzz_is_inside(rest, all));
		assert_bug(param.key.len > 0 && fuzz_is_inside(param.key, all));
		assert_bug(slice_is_ascii(param.key) && param.key.ptr[-1] == ' ');
		if (param.value.ptr != NULL) {
			assert_bug(param.value.len > 0 && param.value.ptr[-1] == '=');
			assert_bug(slice_find(param.value, ' ') < 0 &&
			           slice_find(param.value, '=') < 0 &&
			           !fuzz_has_controls(param.value));
			check_xtext(param.value);
		}
	}
	assert_bug(r != 0 || rest.len == 0);
	check_xtext(all);
	return 0;
}

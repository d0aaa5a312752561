/* SPDX-License-Identifier: ISC */
/* Parameters of MAIL and RCPT; see param.h. */
#include "gateway/mail/param.h"

#include <errno.h>

static bool key_is_valid(struct slice key)
{
	for (size_t i = 0; i < key.len; i++) {
		char c = ascii_lower(key.ptr[i]);
		bool alnum = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
		if (!alnum && (c != '-' || i == 0))
			return false;
	}
	return key.len > 0;
}

static bool value_is_valid(struct slice value)
{
	for (size_t i = 0; i < value.len; i++) {
		unsigned char c = (unsigned char)value.ptr[i];
		if (c <= ' ' || c == '=' || c == 0x7f)
			return false;
	}
	return value.len > 0;
}

int param_next(struct slice *rest, struct param *ret_param)
{
	struct slice left = *rest;

	while (left.len > 0 && left.ptr[0] == ' ')
		left = slice_part(left, 1, left.len);
	if (left.len == 0) {
		*rest = left;
		return 0;
	}
	/* Something must part it from what is before. */
	if (left.len == rest->len)
		return -EINVAL;
	struct slice word = slice_until(&left, ' ');
	/* The blank that ended the word parts it from the next one. */
	if (left.len > 0)
		left = slice_of(left.ptr - 1, left.len + 1);
	struct param param = {.value = {NULL, 0}};
	ptrdiff_t equals = slice_find(word, '=');
	param.key = equals < 0 ? word : slice_of(word.ptr, (size_t)equals);
	if (equals >= 0)
		param.value = slice_part(word, (size_t)equals + 1, word.len);
	if (!key_is_valid(param.key) || (equals >= 0 && !value_is_valid(param.value)))
		return -EINVAL;
	*ret_param = param;
	*rest = left;
	return 1;
}

static bool is_upper_hex(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F');
}

bool xtext_is_valid(struct slice text)
{
	for (size_t i = 0; i < text.len; i++) {
		unsigned char c = (unsigned char)text.ptr[i];
		if (c < '!' || c > '~' || c == '=')
			return false;
		if (c != '+')
			continue;
		if (text.len - i < 3 || !is_upper_hex(text.ptr[i + 1]) ||
		        !is_upper_hex(text.ptr[i + 2]))
			return false;
		i += 2;
	}
	return text.len > 0;
}

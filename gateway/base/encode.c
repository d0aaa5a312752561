/* SPDX-License-Identifier: ISC */
/* base64 and hexadecimal; see encode.h. */
#include "gateway/base/encode.h"

#include <errno.h>

static const char base64_alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

int base64_encode(struct slice in, struct buf *out)
{
	const unsigned char *p = (const unsigned char *)in.ptr;
	char *to;

	int r = buf_reserve(out, base64_len(in.len), &to);
	if (r < 0)
		return r;
	for (size_t i = 0; i < in.len; i += 3) {
		size_t left = in.len - i;
		uint32_t group = (uint32_t)p[i] << 16;
		if (left > 1)
			group |= (uint32_t)p[i + 1] << 8;
		if (left > 2)
			group |= p[i + 2];
		*to++ = base64_alphabet[group >> 18 & 63];
		*to++ = base64_alphabet[group >> 12 & 63];
		*to++ = left > 1 ? base64_alphabet[group >> 6 & 63] : '=';
		*to++ = left > 2 ? base64_alphabet[group & 63] : '=';
	}
	buf_added(out, base64_len(in.len));
	return 0;
}

static int base64_value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	if (c == '+')
		return 62;
	if (c == '/')
		return 63;
	return -1;
}

int base64_decode(struct slice in, struct buf *out)
{
	char *to;
	size_t pad = 0, written = 0;

	if (in.len % 4 != 0)
		return -EBADMSG;
	if (in.len == 0)
		return 0;
	if (in.ptr[in.len - 1] == '=')
		pad = in.ptr[in.len - 2] == '=' ? 2 : 1;
	int r = buf_reserve(out, in.len / 4 * 3, &to);
	if (r < 0)
		return r;

	for (size_t i = 0; i < in.len; i += 4) {
		size_t padded = i + 4 == in.len ? pad : 0;
		uint32_t group = 0;
		for (size_t k = 0; k < 4; k++) {
			int value = k < 4 - padded ? base64_value(in.ptr[i + k]) : 0;
			if (value < 0)
				return -EBADMSG;
			group = group << 6 | (uint32_t)value;
		}
		/* RFC 4648 3.5: bits behind the end must be zero, or two texts mean one value. */
		if ((group & ((1U << (8 * padded)) - 1)) != 0)
			return -EBADMSG;
		to[written++] = (char)(group >> 16);
		if (padded < 2)
			to[written++] = (char)(group >> 8);
		if (padded < 1)
			to[written++] = (char)group;
	}
	buf_added(out, written);
	return 0;
}

void hex_encode(const void *in, size_t len, char *ret_text)
{
	static const char digits[] = "0123456789abcdef";
	const unsigned char *p = in;

	for (size_t i = 0; i < len; i++) {
		ret_text[2 * i] = digits[p[i] >> 4];
		ret_text[2 * i + 1] = digits[p[i] & 15];
	}
	ret_text[2 * len] = '\0';
}

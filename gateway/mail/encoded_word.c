/* SPDX-License-Identifier: ISC */
/* Encoded-words; see encoded_word.h. Decoded as leniently as any reader does. */
#include "gateway/mail/encoded_word.h"

#include <string.h>

#define ESCAPE 0x1b

/* Octets as they are decoded. */
struct judge {
	bool is_2022;   /* ISO-2022-JP and its like switch between ASCII and pairs of octets */
	bool in_pairs;  /* they do now */
	bool in_escape; /* the next octet tells */
	bool plain;
};

static void judge(struct judge *judge, unsigned char octet)
{
	if (judge->is_2022 && octet == ESCAPE) {
		judge->in_escape = true;
	} else if (judge->in_escape) {
		judge->in_escape = false;
		judge->in_pairs = octet == '$';
	} else if (!judge->in_pairs &&
	           (octet < ' ' || octet == 0x7f || octet == '<' || octet == '>')) {
		judge->plain = false;
	}
}

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = ascii_lower(c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static void decode_q(struct slice text, struct judge *ret_judge)
{
	for (size_t i = 0; i < text.len; i++) {
		bool is_hex = text.ptr[i] == '=' && i + 2 < text.len &&
		              hex_value(text.ptr[i + 1]) >= 0 && hex_value(text.ptr[i + 2]) >= 0;
		if (!is_hex) {
			judge(ret_judge, (unsigned char)text.ptr[i]);
			continue;
		}
		judge(ret_judge, (unsigned char)(hex_value(text.ptr[i + 1]) * 16 +
		                                 hex_value(text.ptr[i + 2])));
		i += 2;
	}
}

static void decode_b(struct slice text, struct judge *ret_judge)
{
	static const char alphabet[] =
	        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	unsigned bits = 0, count = 0;

	for (size_t i = 0; i < text.len; i++) {
		const char *at = text.ptr[i] == '\0' ? NULL : strchr(alphabet, text.ptr[i]);
		if (at == NULL) {
			count = 0; /* padding, or what is skipped */
			continue;
		}
		bits = bits << 6 | (unsigned)(at - alphabet);
		count += 6;
		if (count >= 8) {
			count -= 8;
			judge(ret_judge, (unsigned char)(bits >> count));
		}
	}
}

/* UTF-7 has ways of its own to write "<" in letters (RFC 2152). */
static bool is_utf7(struct slice charset)
{
	struct slice name = slice_until(&charset, '*'); /* RFC 2231 5: a language may follow */

	return slice_ends_with_nocase(name, SLICE("utf-7")) ||
	       slice_ends_with_nocase(name, SLICE("utf7"));
}

/* Behind an "=?". What begins as an encoded-word must be a whole one. */
static bool word_is_plain(struct slice rest)
{
	struct slice charset = slice_until(&rest, '?');
	struct slice encoding = slice_until(&rest, '?');
	bool is_q = slice_equal_nocase(encoding, SLICE("q"));

	if (!is_q && !slice_equal_nocase(encoding, SLICE("b")))
		return true; /* no encoded-word for anybody */
	struct slice text = slice_until(&rest, '?');
	struct judge judged = {
	        .plain = !is_utf7(charset) && rest.len > 0 && rest.ptr[0] == '=',
	        .is_2022 = slice_starts_with_nocase(charset, SLICE("iso-2022-")),
	};
	if (is_q)
		decode_q(text, &judged);
	else
		decode_b(text, &judged);
	return judged.plain;
}

bool encoded_words_are_plain(struct slice text)
{
	const char *at;

	while (text.len > 0 && (at = memmem(text.ptr, text.len, "=?", 2)) != NULL) {
		text = slice_part(text, (size_t)(at - text.ptr) + 2, text.len);
		if (!word_is_plain(text))
			return false;
	}
	return true;
}

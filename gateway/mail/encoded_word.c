/* SPDX-License-Identifier: ISC */
/* Encoded-words; see encoded_word.h. Decoded as leniently as any reader does. */
#include "gateway/mail/encoded_word.h"

#include <string.h>

#define ESCAPE 0x1b

/*
 * Charsets of which every octet below 0x40 is the ASCII character, also behind one that begins a
 * character (there GB 18030 has digits, GBK, Big5 and Shift_JIS 0x40 to 0x7e). In others "<" may
 * be any octet, or several.
 */
static bool is_ascii_superset(struct slice charset)
{
	static const char *const names[] = {"us-ascii", "utf-8", "gb2312", "gbk", "gb18030", "big5",
	        "shift_jis", "ks_c_5601-1987"};
	static const char *const families[] = {"iso-8859-", "windows-125", "koi8-", "euc-"};

	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		if (slice_equal_nocase(charset, slice_str(names[i])))
			return true;
	for (size_t i = 0; i < ARRAY_LEN(families); i++)
		if (slice_starts_with_nocase(charset, slice_str(families[i])))
			return true;
	return false;
}

/* Whether the octet begins a character of two in such a charset; "@" may be the second one. */
static bool begins_pair(struct slice charset, unsigned char octet)
{
	if (slice_equal_nocase(charset, SLICE("shift_jis")))
		return (octet >= 0x81 && octet <= 0x9f) || (octet >= 0xe0 && octet <= 0xfc);
	return octet >= 0x81 && octet <= 0xfe &&
	       (slice_equal_nocase(charset, SLICE("gbk")) ||
	               slice_equal_nocase(charset, SLICE("gb18030")) ||
	               slice_equal_nocase(charset, SLICE("big5")));
}

/* Octets as they are decoded. */
struct judge {
	struct slice charset;
	bool is_2022;      /* ISO-2022-JP (RFC 1468): ASCII or, behind an escape, pairs of octets */
	bool in_pairs;     /* it is now */
	bool is_half;      /* one octet of a pair was there, of this charset or another */
	char escape[3];    /* an escape */
	size_t escape_len; /* what was there of it */
	bool plain;
};

/* An octet of an escape: "(B" and "(J" mean ASCII, or nearly; "$@" and "$B" pairs. */
static void judge_escape(struct judge *judge, unsigned char octet)
{
	judge->escape[judge->escape_len++] = (char)octet;
	if (judge->escape_len < sizeof(judge->escape))
		return;
	judge->escape_len = 0;
	bool to_ascii = judge->escape[1] == '(' && (octet == 'B' || octet == 'J');
	judge->in_pairs = judge->escape[1] == '$' && (octet == '@' || octet == 'B');
	judge->plain = judge->plain && (to_ascii || judge->in_pairs);
}

static void judge(struct judge *judge, unsigned char octet)
{
	if (judge->escape_len > 0 || (judge->is_2022 && octet == ESCAPE && !judge->is_half)) {
		judge_escape(judge, octet);
	} else if (judge->in_pairs) {
		judge->is_half = !judge->is_half;
		judge->plain = judge->plain && octet > ' ' && octet < 0x7f;
	} else {
		bool hides = octet < ' ' || octet == 0x7f || octet == '<' || octet == '>' ||
		             (octet == '@' && !judge->is_half);
		judge->plain = judge->plain && !hides;
		judge->is_half = !judge->is_half && begins_pair(judge->charset, octet);
	}
}

/* At the end of a word, which must be as at its beginning (RFC 2047 3). */
static bool is_plain(const struct judge *judge)
{
	return judge->plain && !judge->in_pairs && judge->escape_len == 0;
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
			judge(ret_judge, text.ptr[i] == '_' ? ' ' : (unsigned char)text.ptr[i]);
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

	while (text.len > 0 && text.ptr[text.len - 1] == '=')
		text.len--;
	for (size_t i = 0; i < text.len; i++) {
		const char *at = text.ptr[i] == '\0' ? NULL : strchr(alphabet, text.ptr[i]);
		if (at == NULL) {
			/* Readers differ in whether it ends, or is nothing. */
			ret_judge->plain = false;
			return;
		}
		bits = bits << 6 | (unsigned)(at - alphabet);
		count += 6;
		if (count >= 8) {
			count -= 8;
			judge(ret_judge, (unsigned char)(bits >> count));
		}
	}
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
	charset = slice_until(&charset, '*'); /* RFC 2231 5: a language may follow */
	struct judge judged = {
	        .charset = charset,
	        .is_2022 = slice_equal_nocase(charset, SLICE("iso-2022-jp")),
	};
	judged.plain = (judged.is_2022 || is_ascii_superset(charset)) && rest.len > 0 &&
	               rest.ptr[0] == '=';
	if (is_q)
		decode_q(text, &judged);
	else
		decode_b(text, &judged);
	return is_plain(&judged);
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

/* SPDX-License-Identifier: ISC */
/* Addresses of the envelope; see path.h. */
#include "gateway/mail/path.h"

#include <errno.h>
#include <string.h>

static bool is_let_dig(unsigned char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       c >= 0x80;
}

bool path_is_atext(unsigned char octet)
{
	return is_let_dig(octet) || (octet != '\0' && strchr("!#$%&'*+-/=?^_`{|}~", octet) != NULL);
}

static bool label_is_valid(struct slice label)
{
	if (label.len < 1 || label.len > 63 || label.ptr[0] == '-' ||
	        label.ptr[label.len - 1] == '-')
		return false;
	for (size_t i = 0; i < label.len; i++) {
		if (!is_let_dig((unsigned char)label.ptr[i]) && label.ptr[i] != '-')
			return false;
	}
	return true;
}

/* "[192.0.2.1]", "[IPv6:…]": the octets that may occur; whether it means a host is not ours. */
static bool literal_is_valid(struct slice literal)
{
	if (literal.len < 3 || literal.ptr[literal.len - 1] != ']')
		return false;
	for (size_t i = 1; i < literal.len - 1; i++) {
		unsigned char c = (unsigned char)literal.ptr[i];
		if (!(c < 0x80 && is_let_dig(c)) && c != '.' && c != ':' && c != '-')
			return false;
	}
	return true;
}

bool domain_is_valid(struct slice domain)
{
	struct slice rest = domain;

	if (domain.len < 1 || domain.len > DOMAIN_MAX)
		return false;
	if (domain.ptr[0] == '[')
		return literal_is_valid(domain);
	if (domain.ptr[domain.len - 1] == '.')
		return false;
	while (rest.len > 0) {
		if (!label_is_valid(slice_until(&rest, '.')))
			return false;
	}
	return true;
}

/* Length of the quoted string at the front, 0 if it is none (RFC 5321 4.1.2). */
static size_t quoted_length(struct slice text)
{
	for (size_t i = 1; i < text.len; i++) {
		unsigned char c = (unsigned char)text.ptr[i];
		if (c == '"')
			return i + 1;
		if (c == '\\') {
			if (++i == text.len || text.ptr[i] < ' ' || text.ptr[i] == 0x7f)
				return 0;
		} else if (c < ' ' || c == 0x7f) {
			return 0;
		}
	}
	return 0;
}

/* Length of the dot-string at the front, 0 if it is none. */
static size_t dot_string_length(struct slice text)
{
	size_t len = 0;

	while (len < text.len &&
	        (path_is_atext((unsigned char)text.ptr[len]) || text.ptr[len] == '.')) {
		bool dot = text.ptr[len] == '.';
		if (dot && (len == 0 || text.ptr[len - 1] == '.'))
			return 0;
		len++;
	}
	return len > 0 && text.ptr[len - 1] == '.' ? 0 : len;
}

int mailbox_parse(struct slice text, struct mailbox *ret_mailbox)
{
	if (text.len == 0 || text.len > PATH_TEXT_MAX || !slice_is_utf8(text))
		return -EINVAL;
	size_t local = text.ptr[0] == '"' ? quoted_length(text) : dot_string_length(text);
	if (local == 0 || local > LOCAL_PART_MAX || local >= text.len || text.ptr[local] != '@')
		return -EINVAL;
	struct mailbox mailbox = {
	        .text = text,
	        .local = slice_of(text.ptr, local),
	        .domain = slice_part(text, local + 1, text.len),
	        .is_utf8 = !slice_is_ascii(text),
	};
	if (!domain_is_valid(mailbox.domain))
		return -EINVAL;
	*ret_mailbox = mailbox;
	return 0;
}

/* Where the closing bracket stands: quoted strings may hold another one. */
static ptrdiff_t find_closing_bracket(struct slice text)
{
	bool quoted = false;

	for (size_t i = 1; i < text.len; i++) {
		if (text.ptr[i] == '"')
			quoted = !quoted;
		else if (text.ptr[i] == '\\' && quoted)
			i++;
		else if (text.ptr[i] == '>' && !quoted)
			return (ptrdiff_t)i;
	}
	return -1;
}

int path_parse(struct slice *rest, struct mailbox *ret_mailbox)
{
	if (rest->len < 2 || rest->ptr[0] != '<')
		return -EINVAL;
	ptrdiff_t end = find_closing_bracket(*rest);
	if (end < 0)
		return -EINVAL;
	struct slice text = slice_of(rest->ptr + 1, (size_t)end - 1);
	struct mailbox mailbox = {.text = text, .local = text, .domain = text};

	if (text.len > 0) {
		int r = mailbox_parse(text, &mailbox);
		if (r < 0)
			return r;
	}
	*rest = slice_part(*rest, (size_t)end + 1, rest->len);
	*ret_mailbox = mailbox;
	return 0;
}

bool helo_is_presentable(struct slice name)
{
	if (name.len == 0 || name.len > DOMAIN_MAX)
		return false;
	for (size_t i = 0; i < name.len; i++) {
		unsigned char c = (unsigned char)name.ptr[i];
		if (!(c < 0x80 && is_let_dig(c)) && (c == '\0' || strchr(".-:[]_", c) == NULL))
			return false;
	}
	return true;
}

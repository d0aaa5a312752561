/* SPDX-License-Identifier: ISC */
/* Addresses in header fields; see address.h. */
#include "gateway/mail/address.h"

#include <errno.h>
#include <string.h>

#include "gateway/mail/encoded_word.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define COMMENT_DEPTH_MAX 8
#define MAILBOXES_MAX     1000

static bool is_white(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static void advance(struct slice *text, size_t len)
{
	*text = slice_part(*text, len, text->len);
}

/* Within a name or a comment: what a reader that looks for "<" first would take for an address. */
static bool is_bracket(char c)
{
	return c == '<' || c == '>';
}

/*
 * Whether the backslash there quotes an octet (RFC 5322 3.2.1). Not one at the end of a line:
 * readers differ in what is left of it when the line is unfolded.
 */
static bool is_quoted_pair(struct slice text, size_t at)
{
	return at + 1 < text.len && text.ptr[at + 1] != '\r' && text.ptr[at + 1] != '\n' &&
	       !is_bracket(text.ptr[at + 1]);
}

/* Length of the comment at the front, or 0: nested parentheses, quoted pairs. */
static size_t comment_length(struct slice text)
{
	unsigned depth = 0;

	for (size_t i = 0; i < text.len && !is_bracket(text.ptr[i]); i++) {
		if (text.ptr[i] == '\\') {
			if (!is_quoted_pair(text, i++))
				return 0;
		} else if (text.ptr[i] == '(') {
			if (++depth > COMMENT_DEPTH_MAX)
				return 0;
		} else if (text.ptr[i] == ')' && --depth == 0) {
			return i + 1;
		}
	}
	return 0;
}

/* Comments and white space; -EINVAL for a comment without end. */
static int skip_cfws(struct slice *text)
{
	while (text->len > 0) {
		if (is_white(text->ptr[0])) {
			advance(text, 1);
		} else if (text->ptr[0] == '(') {
			size_t len = comment_length(*text);
			if (len == 0)
				return -EINVAL;
			advance(text, len);
		} else {
			break;
		}
	}
	return 0;
}

static size_t atom_length(struct slice text)
{
	size_t len = 0;

	while (len < text.len && path_is_atext((unsigned char)text.ptr[len]))
		len++;
	return len;
}

static size_t quoted_length(struct slice text)
{
	for (size_t i = 1; i < text.len && !is_bracket(text.ptr[i]); i++) {
		if (text.ptr[i] == '"')
			return i + 1;
		if (text.ptr[i] == '\\' && !is_quoted_pair(text, i++))
			return 0;
	}
	return 0;
}

/* As quoted_length(), of a local part: only what could stand there without the quotes. */
static size_t quoted_local_length(struct slice text)
{
	size_t len = 1;

	while (len < text.len &&
	        (path_is_atext((unsigned char)text.ptr[len]) || text.ptr[len] == '.'))
		len++;
	return len > 1 && len < text.len && text.ptr[len] == '"' ? len + 1 : 0;
}

/* Length of an addr-spec at the front, without any white space in it; 0 if there is none. */
static size_t addr_spec_length(struct slice text)
{
	size_t len = 0;

	if (text.len == 0)
		return 0;
	if (text.ptr[0] == '"') {
		len = quoted_local_length(text);
	} else {
		while (len < text.len &&
		        (path_is_atext((unsigned char)text.ptr[len]) || text.ptr[len] == '.'))
			len++;
	}
	if (len == 0 || len >= text.len || text.ptr[len] != '@')
		return 0;
	len++;
	if (len < text.len && text.ptr[len] == '[') {
		while (len < text.len && text.ptr[len] != ']')
			len++;
		return len < text.len ? len + 1 : 0;
	}
	while (len < text.len &&
	        (path_is_atext((unsigned char)text.ptr[len]) || text.ptr[len] == '.'))
		len++;
	return len;
}

/*
 * The addr-spec of that length at the front. No encoded-word may stand in it (RFC 2047 5):
 * a reader that decodes one all the same shows another address.
 */
static int parse_addr_spec(struct slice *text, size_t len, struct mailbox *ret_mailbox)
{
	struct slice spec = slice_of(text->ptr, len);

	if (memmem(spec.ptr, spec.len, "=?", 2) != NULL)
		return -EINVAL;
	advance(text, len);
	return mailbox_parse(spec, ret_mailbox);
}

static void skip_white(struct slice *text)
{
	while (text->len > 0 && is_white(text->ptr[0]))
		advance(text, 1);
}

/*
 * "<addr-spec>" at the front. White space may stand around it, but no comment: who takes all
 * between the brackets would show what it says.
 */
static int parse_angle(struct slice *text, struct mailbox *ret_mailbox)
{
	advance(text, 1);
	skip_white(text);
	size_t len = addr_spec_length(*text);
	if (len == 0 || parse_addr_spec(text, len, ret_mailbox) < 0)
		return -EINVAL;
	skip_white(text);
	if (text->len == 0 || text->ptr[0] != '>')
		return -EINVAL;
	advance(text, 1);
	return 0;
}

/*
 * The words of a display name, up to "<". A dot behind one is obsolete syntax that
 * every reader takes alike ("J. Smith <…>"), so it passes.
 */
static int skip_phrase(struct slice *text)
{
	bool word = false;
	size_t len;

	while (text->len > 0 && text->ptr[0] != '<') {
		if (text->ptr[0] == '"')
			len = quoted_length(*text);
		else if (text->ptr[0] == '.')
			len = word ? 1 : 0;
		else
			len = atom_length(*text);
		if (len == 0)
			return -EINVAL;
		word = true;
		advance(text, len);
		if (skip_cfws(text) < 0)
			return -EINVAL;
	}
	return text->len > 0 ? 0 : -EINVAL;
}

static int parse_mailbox(struct slice *text, struct mailbox *ret_mailbox)
{
	if (skip_cfws(text) < 0)
		return -EINVAL;
	size_t len = addr_spec_length(*text);
	if (len > 0)
		return parse_addr_spec(text, len, ret_mailbox);
	if (skip_phrase(text) < 0)
		return -EINVAL;
	return parse_angle(text, ret_mailbox);
}

int address_list_parse(struct slice body, address_fn each, void *arg)
{
	struct mailbox mailbox;
	int count = 0;

	if (!encoded_words_are_plain(body))
		return -EINVAL;
	for (;;) {
		if (count == MAILBOXES_MAX || parse_mailbox(&body, &mailbox) < 0 ||
		        skip_cfws(&body) < 0)
			return -EINVAL;
		each(arg, &mailbox);
		count++;
		if (body.len == 0)
			return count;
		if (body.ptr[0] != ',')
			return -EINVAL;
		advance(&body, 1);
	}
}

uint64_t address_hash(struct slice address)
{
	char lower[PATH_TEXT_MAX];
	size_t len = MIN_OF(address.len, sizeof(lower));

	for (size_t i = 0; i < len; i++)
		lower[i] = ascii_lower(address.ptr[i]);
	return XXH3_64bits(lower, len);
}

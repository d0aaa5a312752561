/* SPDX-License-Identifier: ISC */
/* Text that strangers wrote, on the terminal of whoever looks after the mail. */
#include <stdio.h>

#include "gateway/base/slice.h"
#include "gateway/ctl/ctl.h"

/* Puts the character at the front as \uNNNN if it steers a terminal: its octets, or 0: it is none.
 */
static size_t put_steering(const char *text)
{
	size_t len = slice_steering(slice_of(text, strnlen(text, 3)));
	/* What the first octet of one, two, three has of the character. */
	static const unsigned masks[] = {0, 0x7f, 0x1f, 0x0f};
	unsigned point = (unsigned char)text[0] & masks[len];

	for (size_t i = 1; i < len; i++)
		point = point << 6 | ((unsigned char)text[i] & 0x3fU);
	if (len > 0)
		printf("\\u%04x", point);
	return len;
}

void ctl_print_json(const char *text)
{
	putchar('"');
	while (*text != '\0') {
		size_t len = put_steering(text);
		if (len == 0) {
			if (*text == '"' || *text == '\\')
				putchar('\\');
			putchar(*text);
		}
		text += len > 0 ? len : 1;
	}
	putchar('"');
}

void ctl_print_text(const char *text)
{
	while (*text != '\0') {
		size_t len = put_steering(text);
		if (len == 0)
			putchar(*text);
		text += len > 0 ? len : 1;
	}
}

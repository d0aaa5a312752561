/* SPDX-License-Identifier: ISC */
/* Text that strangers wrote, on the terminal of whoever looks after the mail. */
#include <stdio.h>

#include "gateway/ctl/ctl.h"

/*
 * Puts the character at the front as \uNNNN if it steers a terminal: a control, also of C1, a
 * line separator, a change of direction. Its octets, or 0: it is none.
 */
static size_t put_steering(const char *text)
{
	const unsigned char *at = (const unsigned char *)text;
	size_t len = 0;
	unsigned point = at[0];

	if (at[0] < 0x20 || at[0] == 0x7f) {
		len = 1;
	} else if (at[0] == 0xc2 && at[1] >= 0x80 && at[1] < 0xa0) {
		len = 2;
		point = at[1];
	} else if (at[0] == 0xe2 && (at[1] == 0x80 || at[1] == 0x81) && at[2] >= 0x80) {
		len = 3;
		point = 0x2000U | (at[1] & 0x3fU) << 6 | (at[2] & 0x3fU);
	}
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

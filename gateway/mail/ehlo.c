/* SPDX-License-Identifier: ISC */
/* EHLO keywords; see ehlo.h. */
#include "gateway/mail/ehlo.h"

void ehlo_take_line(struct ehlo *ehlo, struct slice line)
{
	struct slice rest = slice_trim(line);
	struct slice keyword = slice_until(&rest, ' ');

	if (slice_equal_nocase(keyword, SLICE("STARTTLS"))) {
		ehlo->starttls = true;
	} else if (slice_equal_nocase(keyword, SLICE("PIPELINING"))) {
		ehlo->pipelining = true;
	} else if (slice_equal_nocase(keyword, SLICE("8BITMIME"))) {
		ehlo->eightbitmime = true;
	} else if (slice_equal_nocase(keyword, SLICE("SMTPUTF8"))) {
		ehlo->smtputf8 = true;
	} else if (slice_equal_nocase(keyword, SLICE("SIZE"))) {
		ehlo->has_size = true;
		if (slice_to_u64(slice_trim(rest), &ehlo->size) < 0)
			ehlo->size = 0;
	} else if (slice_equal_nocase(keyword, SLICE("AUTH"))) {
		while (rest.len > 0) {
			if (slice_equal_nocase(slice_until(&rest, ' '), SLICE("PLAIN")))
				ehlo->auth_plain = true;
		}
	}
}

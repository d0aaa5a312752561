/* SPDX-License-Identifier: ISC */
/* Lines of SMTP; see line.h. */
#include "gateway/mail/line.h"

enum line_found line_find(struct line_reader *reader, struct slice in, size_t max,
        struct line *ret_line, size_t *ret_used)
{
	ptrdiff_t end = slice_find(in, '\n');
	size_t len = end < 0 ? in.len : (size_t)end;
	bool too_long = reader->skipping || len > max;

	if (end < 0) {
		reader->skipping = too_long;
		*ret_used = too_long ? in.len : 0;
		return LINE_NONE;
	}
	reader->skipping = false;
	*ret_used = len + 1;
	if (too_long)
		return LINE_TOO_LONG;
	bool crlf = len > 0 && in.ptr[len - 1] == '\r';
	*ret_line = (struct line){slice_of(in.ptr, len - crlf), crlf};
	return LINE_WHOLE;
}

bool line_has_controls(struct slice text)
{
	for (size_t i = 0; i < text.len; i++) {
		unsigned char c = (unsigned char)text.ptr[i];
		if (c < ' ' || c == 0x7f)
			return true;
	}
	return false;
}

bool line_is_clean(struct slice text)
{
	return !line_has_controls(text) && slice_is_utf8(text);
}

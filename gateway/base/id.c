/* SPDX-License-Identifier: ISC */
/* Message ids; see id.h. */
#include "gateway/base/id.h"

#include <errno.h>
#include <string.h>

#include "gateway/base/random.h"

static const char alphabet[] = "abcdefghijklmnopqrstuvwxyz234567";

struct message_id id_new(void)
{
	struct message_id id;

	random_bytes(id.bytes, sizeof(id.bytes));
	return id;
}

const char *id_format(const struct message_id *id, char ret_text[ID_TEXT + 1])
{
	uint32_t bits = 0;
	unsigned held = 0, at = 0;

	for (unsigned i = 0; i < ID_SIZE; i++) {
		bits = bits << 8 | id->bytes[i];
		held += 8;
		while (held >= 5) {
			held -= 5;
			ret_text[at++] = alphabet[bits >> held & 31];
		}
	}
	ret_text[ID_TEXT] = '\0';
	return ret_text;
}

int id_parse(struct slice text, struct message_id *ret_id)
{
	struct message_id id = {0};
	uint32_t bits = 0;
	unsigned held = 0, at = 0;

	if (text.len != ID_TEXT)
		return -EINVAL;
	for (size_t i = 0; i < ID_TEXT; i++) {
		char c = ascii_lower(text.ptr[i]);
		const char *found = c == '\0' ? NULL : strchr(alphabet, c);
		if (found == NULL)
			return -EINVAL;
		bits = bits << 5 | (uint32_t)(found - alphabet);
		held += 5;
		if (held >= 8) {
			held -= 8;
			id.bytes[at++] = (uint8_t)(bits >> held);
		}
	}
	*ret_id = id;
	return 0;
}

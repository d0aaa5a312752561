/* SPDX-License-Identifier: ISC */
/*
 * What a client says to log in: what is taken is taken apart at the right places. The first
 * octet says what it is.
 */
#include <stdlib.h>

#include "auth/response.h"
#include "gateway/base/encode.h"
#include "tests/fuzz/fuzz.h"

static void check_name(struct slice name)
{
	assert_bug(name.len > 0 && name.len <= LOGIN_MAX && slice_is_utf8(name));
	for (size_t i = 0; i < name.len; i++)
		assert_bug((unsigned char)name.ptr[i] >= ' ' && name.ptr[i] != 0x7f);
}

static void check_plain(struct slice message)
{
	struct slice authzid, login, password;

	if (response_split_plain(message, &authzid, &login, &password) < 0)
		return;
	if (authzid.len > 0)
		check_name(authzid);
	check_name(login);
	assert_bug(response_is_password(password));
	/* Nothing is left out, and the two NULs are the only ones. */
	assert_bug(authzid.len + login.len + password.len + 2 == message.len);
	assert_bug(message.ptr == authzid.ptr && login.ptr == authzid.ptr + authzid.len + 1);
	assert_bug(password.ptr == login.ptr + login.len + 1);
	assert_bug(slice_find(login, '\0') < 0 && slice_find(password, '\0') < 0);
}

static void check_scram(struct slice message)
{
	char login[LOGIN_MAX + 1];

	if (response_read_scram_first(message, login) < 0)
		return;
	check_name(slice_str(login));
	/* Where libsasl2 looks there is something. */
	assert_bug(message.len >= sizeof("n,,n=x,r=x") - 1);
	assert_bug(slice_find(message, '\0') < 0);
	assert_bug(!response_is_scram_final(message));
}

static void check_final(struct slice message)
{
	char login[LOGIN_MAX + 1];

	if (!response_is_scram_final(message))
		return;
	assert_bug(slice_starts_with(message, SLICE("c=")) && slice_find(message, '\0') < 0);
	assert_bug(response_read_scram_first(message, login) < 0);
}

/* What is decoded is encoded to what it was: there is one text for a value. */
static void check_base64(struct slice text)
{
	struct buf octets, again;

	buf_init(&octets, 65536);
	buf_init(&again, 131072);
	if (base64_decode(text, &octets) == 0) {
		assert_bug(base64_encode(buf_slice(&octets), &again) == 0);
		assert_bug(slice_equal(buf_slice(&again), text));
	} else {
		assert_bug(buf_len(&octets) == 0);
	}
	buf_done(&octets);
	buf_done(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char normal[LOGIN_MAX + 1];

	if (size == 0 || size > 65536)
		return 0;
	/* Memory of its own, so that a sanitizer sees what is read behind the end. */
	char *copy = malloc(size - 1 + (size == 1));
	assert_bug(copy != NULL);
	memcpy(copy, data + 1, size - 1);
	struct slice said = slice_of(copy, size - 1);
	switch (*data) {
	case 'p':
		check_plain(said);
		break;
	case 's':
		check_scram(said);
		break;
	case 'f':
		check_final(said);
		break;
	case 'b':
		check_base64(said);
		break;
	default:
		if (response_normal_login(said, normal) == 0)
			check_name(slice_str(normal));
		break;
	}
	free(copy);
	return 0;
}

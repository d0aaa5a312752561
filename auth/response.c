/* SPDX-License-Identifier: ISC */
/* What clients say to log in; see response.h. */
#include "auth/response.h"

#include <errno.h>
#include <stdio.h>

#include "auth/password.h"
#include "gateway/base/encode.h"
#include "gateway/mail/line.h"

#define SCRAM_MAX  2048 /* libsasl2 takes no more */
#define PROOF_SIZE 32

bool response_is_name(struct slice name)
{
	return name.len > 0 && name.len <= LOGIN_MAX && line_is_clean(name);
}

bool response_is_password(struct slice password)
{
	return password.len > 0 && password.len <= PASSWORD_MAX && slice_find(password, '\0') < 0;
}

int response_normal_login(struct slice login, char ret_login[LOGIN_MAX + 1])
{
	if (!response_is_name(login) || slice_find(login, ' ') >= 0)
		return -EBADMSG;
	for (size_t i = 0; i < login.len; i++)
		ret_login[i] = ascii_lower(login.ptr[i]);
	ret_login[login.len] = '\0';
	return 0;
}

int response_split_plain(struct slice message, struct slice *ret_authzid, struct slice *ret_login,
        struct slice *ret_password)
{
	ptrdiff_t first = slice_find(message, '\0');

	if (first < 0)
		return -EBADMSG;
	struct slice authzid = slice_part(message, 0, (size_t)first);
	struct slice rest = slice_part(message, (size_t)first + 1, message.len);
	ptrdiff_t second = slice_find(rest, '\0');
	if (second < 0)
		return -EBADMSG;
	struct slice login = slice_part(rest, 0, (size_t)second);
	struct slice password = slice_part(rest, (size_t)second + 1, rest.len);
	if ((authzid.len > 0 && !response_is_name(authzid)) || !response_is_name(login) ||
	        !response_is_password(password))
		return -EBADMSG;
	*ret_authzid = authzid;
	*ret_login = login;
	*ret_password = password;
	return 0;
}

/* ---- SCRAM ---- */

/* The value of the attribute that comes next, and must be that one. Without it -EBADMSG. */
static int take(struct slice *rest, const char *attribute, struct slice *ret_value)
{
	struct slice field = slice_until(rest, ',');

	if (!slice_starts_with(field, slice_str(attribute)) || field.len <= 2)
		return -EBADMSG;
	*ret_value = slice_part(field, 2, field.len);
	return 0;
}

/* saslname: a comma is "=2C", an equals sign "=3D". */
static int unescape(struct slice name, char ret_name[LOGIN_MAX + 1])
{
	size_t len = 0;

	while (name.len > 0) {
		bool escaped = *name.ptr == '=';
		if (len == LOGIN_MAX || (escaped && !slice_starts_with(name, SLICE("=2C")) &&
		                                !slice_starts_with(name, SLICE("=3D"))))
			return -EBADMSG;
		ret_name[len++] = !escaped ? *name.ptr : name.ptr[1] == '2' ? ',' : '=';
		name = slice_part(name, escaped ? 3 : 1, name.len);
	}
	ret_name[len] = '\0';
	return response_is_name(slice_of(ret_name, len)) ? 0 : -EBADMSG;
}

static bool is_nonce(struct slice nonce)
{
	for (size_t i = 0; i < nonce.len; i++) {
		if (nonce.ptr[i] <= ' ' || nonce.ptr[i] == 0x7f)
			return false;
	}
	return nonce.len > 0;
}

/* attr-val: a letter, "=", and text. */
static bool is_extension(struct slice field)
{
	return field.len > 2 && field.ptr[1] == '=' && ascii_lower(*field.ptr) >= 'a' &&
	       ascii_lower(*field.ptr) <= 'z';
}

/* Without an empty field at either end, which slice_until() does not show. */
static bool is_scram(struct slice message)
{
	return message.len > 0 && message.len <= SCRAM_MAX && line_is_clean(message) &&
	       message.ptr[message.len - 1] != ',';
}

int response_read_scram_first(struct slice message, char ret_login[LOGIN_MAX + 1])
{
	char authzid[LOGIN_MAX + 1], login[LOGIN_MAX + 1];
	struct slice rest = message, value;

	if (!is_scram(message))
		return -EBADMSG;
	struct slice binding = slice_until(&rest, ',');
	/* "p=": no mechanism that binds a channel is offered. */
	if (!slice_equal(binding, SLICE("n")) && !slice_equal(binding, SLICE("y")))
		return -EBADMSG;
	if (slice_starts_with(rest, SLICE(",")))
		rest = slice_part(rest, 1, rest.len);
	else if (take(&rest, "a=", &value) < 0 || unescape(value, authzid) < 0)
		return -EBADMSG;
	if (take(&rest, "n=", &value) < 0 || unescape(value, login) < 0)
		return -EBADMSG;
	if (take(&rest, "r=", &value) < 0 || !is_nonce(value))
		return -EBADMSG;
	while (rest.len > 0) {
		if (!is_extension(slice_until(&rest, ',')))
			return -EBADMSG;
	}
	memcpy(ret_login, login, sizeof(login));
	return 0;
}

static bool decodes(struct slice base64, size_t wanted_len)
{
	struct buf octets;

	buf_init(&octets, SCRAM_MAX);
	bool good = base64_decode(base64, &octets) == 0 &&
	            (wanted_len == 0 || buf_len(&octets) == wanted_len);
	buf_wipe(&octets);
	return good;
}

bool response_is_scram_final(struct slice message)
{
	struct slice rest = message, binding, nonce;

	if (!is_scram(message) || take(&rest, "c=", &binding) < 0 || !decodes(binding, 0) ||
	        take(&rest, "r=", &nonce) < 0 || !is_nonce(nonce))
		return false;
	for (;;) {
		struct slice field = slice_until(&rest, ',');
		if (slice_starts_with(field, SLICE("p=")))
			return rest.len == 0 &&
			       decodes(slice_part(field, 2, field.len), PROOF_SIZE);
		if (!is_extension(field))
			return false;
	}
}

/* ---- the responses of one attempt ---- */

static const char *const mechanism_names[] = {
        [RESPONSE_PLAIN] = "PLAIN",
        [RESPONSE_LOGIN] = "LOGIN",
        [RESPONSE_SCRAM] = "SCRAM-SHA-256",
};

const char *response_mechanism_name(enum response_mechanism mechanism)
{
	return mechanism_names[mechanism];
}

int response_reader_init(struct response_reader *reader, struct slice mechanism)
{
	for (unsigned i = 0; i < ARRAY_LEN(mechanism_names); i++) {
		if (slice_equal_nocase(mechanism, slice_str(mechanism_names[i]))) {
			*reader = (struct response_reader){.mechanism = i};
			return 0;
		}
	}
	return -EBADMSG;
}

/* With a blank it is nobody, but guessed at all the same. */
static void claim(struct response_reader *reader, struct slice login)
{
	reader->is_nobody = response_normal_login(login, reader->login) < 0;
	if (reader->is_nobody)
		snprintf(reader->login, sizeof(reader->login), "%.*s", SLICE_ARGS(login));
}

static bool read_plain(struct response_reader *reader, struct slice response)
{
	struct slice login;

	if (response_split_plain(response, &reader->authzid, &login, &reader->password) < 0)
		return false;
	claim(reader, login);
	reader->guesses = true;
	return true;
}

static bool read_login(struct response_reader *reader, struct slice response)
{
	if (reader->responses == 1) {
		if (response_is_name(response))
			claim(reader, response);
		return response_is_name(response);
	}
	reader->guesses = response_is_password(response);
	if (reader->guesses)
		reader->password = response;
	return reader->guesses;
}

static bool read_scram(struct response_reader *reader, struct slice response)
{
	char login[LOGIN_MAX + 1];

	if (reader->responses == 2)
		return response_is_scram_final(response);
	if (reader->responses > 2)
		return response.len == 0;
	if (response_read_scram_first(response, login) < 0)
		return false;
	claim(reader, slice_str(login));
	reader->guesses = true;
	return true;
}

bool response_read(struct response_reader *reader, struct slice response)
{
	reader->responses++;
	reader->guesses = false;
	reader->authzid = reader->password = SLICE("");
	switch (reader->mechanism) {
	case RESPONSE_PLAIN:
		return read_plain(reader, response);
	case RESPONSE_LOGIN:
		return read_login(reader, response);
	default:
		return read_scram(reader, response);
	}
}

/* SPDX-License-Identifier: ISC */
/*
 * What a client says to log in, taken apart before libsasl2 sees it: that takes more than the
 * RFCs let it, and reads an octet too far in some of it (README.md). Pure, any thread.
 */
#pragma once

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

#define LOGIN_MAX 254

/* Whether it is text as the name of an account is: 1 to 254 octets of UTF-8 without controls. */
bool response_is_name(struct slice name);

/* The normal form of a login: ASCII lower-case. -EBADMSG for what no account has, as blanks. */
int response_normal_login(struct slice login, char ret_login[LOGIN_MAX + 1]) must_check;

/* PLAIN (RFC 4616): 0 or -EBADMSG. The parts point into the message. */
int response_split_plain(struct slice message, struct slice *ret_authzid, struct slice *ret_login,
        struct slice *ret_password) must_check;

/* A password by LOGIN: 1 to 1024 octets, none of them NUL. */
bool response_is_password(struct slice password);

/*
 * The first message of SCRAM (RFC 5802 7) without channel binding and without extensions that
 * must be understood: 0 and the login, unescaped, or -EBADMSG.
 */
int response_read_scram_first(struct slice message, char ret_login[LOGIN_MAX + 1]) must_check;

/* Whether it is a second message of SCRAM-SHA-256. */
bool response_is_scram_final(struct slice message);

enum response_mechanism { RESPONSE_PLAIN, RESPONSE_LOGIN, RESPONSE_SCRAM };

/* "PLAIN", "LOGIN", "SCRAM-SHA-256". */
const char *response_mechanism_name(enum response_mechanism mechanism);

/* What the responses of one attempt have said so far. To be read only. */
struct response_reader {
	enum response_mechanism mechanism;
	unsigned responses;        /* that were read */
	char login[LOGIN_MAX + 1]; /* who the client says that it is, as far as it has: normal form,
	                              or what it was if that has none */
	bool is_nobody;            /* that name is no account's */

	/* Of the response that was read last. */
	bool guesses; /* it is a try at the login's password, or the beginning of one */
	struct slice authzid,
	        password; /* with PLAIN and LOGIN, if it guesses; they point into it */
};

/* For PLAIN, LOGIN or SCRAM-SHA-256, in any case: 0, or -EBADMSG for others. */
int response_reader_init(struct response_reader *reader, struct slice mechanism) must_check;

/* Whether the next response is well formed. */
bool response_read(struct response_reader *reader, struct slice response) must_check;

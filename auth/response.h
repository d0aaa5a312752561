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

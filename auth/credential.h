/* SPDX-License-Identifier: ISC */
/* One of the things that an account logs in with, as the database has it. Pure, any thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/slice.h"

enum credential_kind {
	CREDENTIAL_UNKNOWN, /* fits no password: a certificate */
	CREDENTIAL_SCRAM,   /* a password: a verifier of verifier.h */
	CREDENTIAL_CRYPT,   /* a password: a hash of foreign_hash.h */
	CREDENTIAL_TOKEN,   /* an app password: SHA-256, hexadecimal */
};

struct credential {
	uint64_t id;
	enum credential_kind kind;
	struct slice verifier;
	struct slice mechanisms, networks; /* the only ones, separated by blanks; "": any */
	struct slice sender;               /* the only one; "": all of the account */
	bool may_not_send;                 /* the account has lost the right to `sender` */
};

/* As the database names them. */
enum credential_kind credential_kind_of(struct slice name);

/*
 * What of an app password counts: without hyphens and blanks, in lower case. Whether it has the
 * form of one.
 */
#define CREDENTIAL_TOKEN_LEN 28
bool credential_read_token(struct slice password, char ret_token[CREDENTIAL_TOKEN_LEN]);

/*
 * Whether the password is this app password, however it was typed: with or without hyphens and
 * blanks, in any case. A microsecond; in constant time for what has the form of one.
 */
bool credential_token_fits(const struct credential *credential, struct slice password);

/*
 * NULL when it is good for a login by that mechanism from that address (as addr_format_ip
 * writes it); else why not, for the log.
 */
const char *credential_objection(
        const struct credential *credential, struct slice mechanism, struct slice client_address);

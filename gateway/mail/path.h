/* SPDX-License-Identifier: ISC */
/*
 * Addresses of the envelope: RFC 5321 4.1.2 without source routes, and with UTF-8
 * when SMTPUTF8 was given (RFC 6531 3.3). Strict; nothing is rewritten. Pure.
 */
#pragma once

#include <stdbool.h>

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

#define LOCAL_PART_MAX 64  /* RFC 5321 4.5.3.1.1 */
#define DOMAIN_MAX     255 /* RFC 5321 4.5.3.1.2 */
#define PATH_TEXT_MAX  254 /* without the brackets: RFC 5321 4.5.3.1.3 */

/* Slices of the caller's text. */
struct mailbox {
	struct slice text, local, domain;
	bool is_utf8; /* has octets above 0x7f */
};

/* "local@domain", the whole text: 0, or -EINVAL. UTF-8 must be valid; the caller checks whether it
 * may be. */
int mailbox_parse(struct slice text, struct mailbox *ret_mailbox) must_check;

/*
 * A path in angle brackets at the front of *rest, which then stands behind it.
 * "<>" gives an empty mailbox. 0 or -EINVAL.
 */
int path_parse(struct slice *rest, struct mailbox *ret_mailbox) must_check;

/* An octet of an atom: RFC 5322 3.2.3, and UTF-8 (RFC 6531 3.3). */
bool path_is_atext(unsigned char octet);

/* Letters, digits, hyphens in labels of 1 to 63 (or UTF-8 octets), or an address literal. */
bool domain_is_valid(struct slice domain);

/* A name of EHLO that may stand in Received (no way to smuggle anything in there). */
bool helo_is_presentable(struct slice name);

/* SPDX-License-Identifier: ISC */
/*
 * Delivery status notifications: a multipart/report that tells a sender which
 * recipients did not get a message, or not yet (RFC 3461 6, RFC 3462, RFC 3464),
 * with the header of the message. Pure.
 */
#pragma once

#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"

struct dsn_recipient {
	struct slice address;
	const char *status;     /* "5.1.1" */
	const char *remote_mta; /* NULL: none was asked */
	const char *diagnostic; /* what it said, printable; or our own words */
};

struct dsn {
	const char *hostname;
	const char *id, *original_id;
	struct slice sender; /* who gets it */
	int64_t wall_s, accepted_s;
	int64_t retry_until_s; /* a notice of delay: it is tried until then; 0: it has failed */
	const struct dsn_recipient *recipients;
	uint32_t recipient_count;
	struct slice original_header; /* a block with its empty line */
};

/* Header (with its empty line) and body into two buffers. As buf_append. */
int dsn_write(const struct dsn *dsn, struct buf *ret_header, struct buf *ret_body) must_check;

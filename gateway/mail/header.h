/* SPDX-License-Identifier: ISC */
/*
 * The header of a message: split into fields and judged strictly, then written
 * anew with what was missing. Everything else stays octet for octet. Pure.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/mail/address.h"

#define HEADER_MAX        (256U << 10) /* octets */
#define HEADER_FIELDS_MAX 1000
#define HEADER_FIELD_MAX  (64U << 10)
#define HEADER_HOPS_MAX   100 /* Received fields: RFC 5321 6.3 */

struct header_field {
	struct slice name;
	struct slice body; /* behind the colon, folds and all, without the last CRLF */
	struct slice all;  /* name to CRLF */
};

/* The next field at the front of *rest: 1, 0 at the end of the header, -EINVAL. */
int header_next(struct slice *rest, struct header_field *ret_field) must_check;

/* What stands between the angle brackets of Message-ID (all of it without them), "" for none. */
struct slice header_message_id(struct slice block);

enum header_fault {
	HEADER_FINE = 0,
	HEADER_MALFORMED,    /* a line that is no field, odd names, controls */
	HEADER_TOO_BIG,      /* too many fields, or one too long */
	HEADER_FROM_BAD,     /* none, more than one, or not strictly parsable */
	HEADER_SENDER_BAD,   /* Sender or Resent-*, likewise */
	HEADER_REPEATED,     /* one that may occur once occurs again */
	HEADER_UTF8_ADDRESS, /* needs SMTPUTF8 */
	HEADER_LOOP,         /* too many Received */
};

struct header_facts {
	bool has_date, has_message_id, has_sender;
	unsigned received;
	/* The domain of the first mailbox in From: whose key signs. Points into the block. */
	struct slice from_domain;
	struct slice from; /* body of the field */
};

/*
 * Judges a header block (with CRLF line ends, without the empty line). `each` gets
 * every mailbox that the sender must own: From, Sender, Resent-From, Resent-Sender.
 */
enum header_fault header_check(struct slice block, bool smtputf8, address_fn each, void *arg,
        struct header_facts *ret_facts) must_check;

/* What the client sees of a fault. */
const char *header_fault_text(enum header_fault fault);

struct header_additions {
	struct slice received;  /* a whole field */
	const char *date;       /* body of the field to add, NULL: it has one */
	const char *message_id; /* likewise */
	struct slice sender;    /* address of a field Sender to add, empty: none */
};

/*
 * Writes the final header block: Received on top, missing fields, then the block
 * without Bcc, Resent-Bcc and Return-Path, then the empty line. As buf_append.
 */
int header_fix(
        struct slice block, const struct header_additions *additions, struct buf *out) must_check;

/* SPDX-License-Identifier: ISC */
/*
 * Addresses in header fields: RFC 5322 3.4, read strictly, so that no mail reader
 * can see another address than the one that was checked. Groups, routes, empty
 * members and obsolete forms are refused, and so are angle brackets that stand in a
 * name or a comment, plain or encoded. Pure.
 */
#pragma once

#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/mail/path.h"

/* Called for each mailbox; its slices point into the field. */
typedef void (*address_fn)(void *arg, const struct mailbox *mailbox);

/* A mailbox-list (From) in an unfolded-or-not field body: how many, or -EINVAL. */
int address_list_parse(struct slice body, address_fn each, void *arg) must_check;

/*
 * A hash of an address (at most PATH_TEXT_MAX octets of it) that does not tell upper from
 * lower case of ASCII: XXH3, 64 bits. It stands in the database: it must stay what it is.
 */
uint64_t address_hash(struct slice address);

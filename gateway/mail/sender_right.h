/* SPDX-License-Identifier: ISC */
/* Which addresses an account may send as. Pure. */
#pragma once

#include <stdbool.h>

#include "gateway/base/slice.h"
#include "gateway/mail/path.h"

/*
 * Whether the pattern covers the mailbox: "user@domain", "@domain", "@.domain"
 * (any subdomain), "user+*@domain" (any tag). ASCII case does not matter; everything
 * else is compared octet for octet.
 */
bool sender_right_covers(struct slice pattern, const struct mailbox *mailbox);

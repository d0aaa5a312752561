/* SPDX-License-Identifier: ISC */
/* Parameters of MAIL and RCPT (RFC 5321 4.1.2), validated and never decoded. Pure. */
#pragma once

#include <stdbool.h>

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

struct param {
	struct slice key, value; /* value: ptr NULL when there is no "=" */
};

/*
 * The next one at the front of *rest: 1, 0 at the end, -EINVAL when malformed.
 * Parameters are separated by single or more blanks.
 */
int param_next(struct slice *rest, struct param *ret_param) must_check;

/* RFC 3461 4: printable octets but + and =, or + and two upper-case hexadecimal digits. */
bool xtext_is_valid(struct slice text);

/* SPDX-License-Identifier: ISC */
/* The Received field that we add (RFC 5321 4.4), without the client's address. Pure. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"

struct trace {
	struct slice helo; /* as the client said it; left out when it is not presentable */
	const char *hostname;
	const char *id;
	const char *tls_version, *tls_cipher; /* NULL: in the clear */
	bool esmtp, smtputf8, logged_in;
	int64_t wall_s;
};

/* Appends the whole field. As buf_append. */
int trace_write(const struct trace *trace, struct buf *out) must_check;

/* SPDX-License-Identifier: ISC */
/* Our login at an upstream: the client side of Cyrus SASL, and its only user here. */
#pragma once

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/why.h"

/* Once, before threads. 0 or -EIO with the reason. */
int sasl_client_prepare(struct why *why) must_check;

/*
 * Appends the initial response of PLAIN (RFC 4616), not encoded; wipe it. Blocks
 * (the library looks up our own name): on a worker. 0, -EIO with the reason, or as
 * buf_append.
 */
int sasl_client_plain(const char *host, const char *username, const char *password,
        struct buf *ret_response, struct why *why) must_check;

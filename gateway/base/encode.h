/* SPDX-License-Identifier: ISC */
/* base64 and hexadecimal. Pure, any thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

/* Appends padded base64 (RFC 4648 4) on one line; as buf_append. */
int base64_encode(struct slice in, struct buf *out) must_check;

/*
 * Strict: no white space, full padding, no bits set behind the end. Appends the
 * octets; -EBADMSG if malformed (nothing is appended), else as buf_append.
 */
int base64_decode(struct slice in, struct buf *out) must_check;

/* Characters that `len` octets take in padded base64. */
static inline size_t base64_len(size_t len)
{
	return (len + 2) / 3 * 4;
}

/* Lower-case hexadecimal; `ret_text` has room for 2 * len + 1. */
void hex_encode(const void *in, size_t len, char *ret_text);

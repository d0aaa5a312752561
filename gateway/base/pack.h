/* SPDX-License-Identifier: ISC */
/*
 * Records of fixed numbers and length-prefixed bytes, little-endian: what stands
 * in the spool and passes between the processes. Both sides keep the first error
 * and do nothing after it, so that callers check once, at the end. One thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

struct pack {
	struct buf *out; /* the caller's */
	int error;       /* 0, -ENOBUFS, -ENOMEM */
};

static inline struct pack pack_start(struct buf *out)
{
	return (struct pack){.out = out};
}

void pack_u8(struct pack *pack, uint8_t value);
void pack_u16(struct pack *pack, uint16_t value);
void pack_u32(struct pack *pack, uint32_t value);
void pack_u64(struct pack *pack, uint64_t value);
void pack_raw(struct pack *pack, const void *data, size_t len);

/* A u32 length, then the octets. */
void pack_bytes(struct pack *pack, struct slice bytes);

struct unpack {
	struct slice left;
	int error; /* 0 or -EBADMSG */
};

static inline struct unpack unpack_start(struct slice in)
{
	return (struct unpack){.left = in};
}

/* Zero / an empty slice after an error. Slices point into the input. */
uint8_t unpack_u8(struct unpack *unpack);
uint16_t unpack_u16(struct unpack *unpack);
uint32_t unpack_u32(struct unpack *unpack);
uint64_t unpack_u64(struct unpack *unpack);
void unpack_raw(struct unpack *unpack, void *ret_data, size_t len);

/* At most `max` octets, more is an error. */
struct slice unpack_bytes(struct unpack *unpack, size_t max);

/* 0 when all was well formed and nothing is left over, else -EBADMSG. */
int unpack_end(const struct unpack *unpack) must_check;

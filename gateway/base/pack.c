/* SPDX-License-Identifier: ISC */
/* Little-endian records; see pack.h. */
#include "gateway/base/pack.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

void pack_raw(struct pack *pack, const void *data, size_t len)
{
	if (pack->error == 0)
		pack->error = buf_append(pack->out, data, len);
}

void pack_u8(struct pack *pack, uint8_t value)
{
	pack_raw(pack, &value, sizeof(value));
}

void pack_u16(struct pack *pack, uint16_t value)
{
	value = htole16(value);
	pack_raw(pack, &value, sizeof(value));
}

void pack_u32(struct pack *pack, uint32_t value)
{
	value = htole32(value);
	pack_raw(pack, &value, sizeof(value));
}

void pack_u64(struct pack *pack, uint64_t value)
{
	value = htole64(value);
	pack_raw(pack, &value, sizeof(value));
}

void pack_bytes(struct pack *pack, struct slice bytes)
{
	if (bytes.len > UINT32_MAX) {
		if (pack->error == 0)
			pack->error = -ENOBUFS;
		return;
	}
	pack_u32(pack, (uint32_t)bytes.len);
	pack_raw(pack, bytes.ptr, bytes.len);
}

void unpack_raw(struct unpack *unpack, void *ret_data, size_t len)
{
	if (unpack->error == 0 && unpack->left.len < len)
		unpack->error = -EBADMSG;
	if (unpack->error != 0) {
		memset(ret_data, 0, len);
		return;
	}
	memcpy(ret_data, unpack->left.ptr, len);
	unpack->left = slice_part(unpack->left, len, unpack->left.len);
}

uint8_t unpack_u8(struct unpack *unpack)
{
	uint8_t value;

	unpack_raw(unpack, &value, sizeof(value));
	return value;
}

uint16_t unpack_u16(struct unpack *unpack)
{
	uint16_t value;

	unpack_raw(unpack, &value, sizeof(value));
	return le16toh(value);
}

uint32_t unpack_u32(struct unpack *unpack)
{
	uint32_t value;

	unpack_raw(unpack, &value, sizeof(value));
	return le32toh(value);
}

uint64_t unpack_u64(struct unpack *unpack)
{
	uint64_t value;

	unpack_raw(unpack, &value, sizeof(value));
	return le64toh(value);
}

struct slice unpack_bytes(struct unpack *unpack, size_t max)
{
	uint32_t len = unpack_u32(unpack);

	if (unpack->error == 0 && (len > max || len > unpack->left.len))
		unpack->error = -EBADMSG;
	if (unpack->error != 0)
		return slice_of("", 0);
	struct slice bytes = slice_of(unpack->left.ptr, len);
	unpack->left = slice_part(unpack->left, len, unpack->left.len);
	return bytes;
}

int unpack_end(const struct unpack *unpack)
{
	return unpack->error == 0 && unpack->left.len == 0 ? 0 : -EBADMSG;
}

/* SPDX-License-Identifier: ISC */
/* The octets of segments and records; see format.h. */
#include "gateway/spool/format.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define SEGMENT_MAGIC  0x31474553544e5350ULL /* "PSNTSEG1" */
#define RECORD_MAGIC   0x43455250U           /* "PREC" */
#define FORMAT_VERSION 1
#define PART_MAX       (2U << 20) /* of an envelope, or of what a bounce settles */
#define BLOCK_MAX      (1U << 20) /* of a header */

/* The fixed headers as they lie on disk; each ends with the checksum of what is before. */
struct segment_octets {
	uint64_t magic;
	uint32_t version, number;
	uint64_t nonce;
	uint32_t previous, run;
	uint64_t previous_end;
	uint64_t reserved[2];
	uint64_t sum;
};
_Static_assert(sizeof(struct segment_octets) == SEGMENT_HEADER_SIZE, "segment header");

struct record_octets {
	uint32_t magic, type;
	uint64_t nonce, offset, committed;
	uint32_t envelope_len, body_len;
	uint64_t envelope_sum, body_sum;
	uint64_t sum;
};
_Static_assert(sizeof(struct record_octets) == RECORD_HEADER_SIZE, "record header");

uint64_t format_checksum(struct slice octets)
{
	return XXH3_64bits(octets.ptr, octets.len);
}

void segment_header_encode(
        const struct segment_header *header, uint8_t ret_octets[SEGMENT_HEADER_SIZE])
{
	struct segment_octets octets = {
	        .magic = htole64(SEGMENT_MAGIC),
	        .version = htole32(FORMAT_VERSION),
	        .number = htole32(header->number),
	        .nonce = htole64(header->nonce),
	        .previous = htole32(header->previous),
	        .run = htole32(header->run),
	        .previous_end = htole64(header->previous_end),
	};

	octets.sum = htole64(XXH3_64bits(&octets, offsetof(struct segment_octets, sum)));
	memcpy(ret_octets, &octets, sizeof(octets));
}

int segment_header_decode(
        const uint8_t bytes[SEGMENT_HEADER_SIZE], struct segment_header *ret_header)
{
	struct segment_octets octets;

	memcpy(&octets, bytes, sizeof(octets));
	if (le64toh(octets.sum) != XXH3_64bits(&octets, offsetof(struct segment_octets, sum)) ||
	        le64toh(octets.magic) != SEGMENT_MAGIC)
		return -EBADMSG;
	if (le32toh(octets.version) != FORMAT_VERSION)
		return -ENOTSUP;
	*ret_header = (struct segment_header){
	        .number = le32toh(octets.number),
	        .nonce = le64toh(octets.nonce),
	        .previous = le32toh(octets.previous),
	        .run = le32toh(octets.run),
	        .previous_end = le64toh(octets.previous_end),
	};
	return 0;
}

void record_header_encode(
        const struct record_header *header, uint8_t ret_octets[RECORD_HEADER_SIZE])
{
	struct record_octets octets = {
	        .magic = htole32(RECORD_MAGIC),
	        .type = htole32(header->type),
	        .nonce = htole64(header->nonce),
	        .offset = htole64(header->offset),
	        .committed = htole64(header->committed),
	        .envelope_len = htole32(header->envelope_len),
	        .body_len = htole32(header->body_len),
	        .envelope_sum = htole64(header->envelope_sum),
	        .body_sum = htole64(header->body_sum),
	};

	octets.sum = htole64(XXH3_64bits(&octets, offsetof(struct record_octets, sum)));
	memcpy(ret_octets, &octets, sizeof(octets));
}

int record_header_decode(const uint8_t bytes[RECORD_HEADER_SIZE], uint64_t nonce, uint64_t offset,
        struct record_header *ret_header)
{
	struct record_octets octets;

	memcpy(&octets, bytes, sizeof(octets));
	if (le32toh(octets.magic) != RECORD_MAGIC || le64toh(octets.nonce) != nonce ||
	        le64toh(octets.offset) != offset ||
	        le64toh(octets.sum) != XXH3_64bits(&octets, offsetof(struct record_octets, sum)))
		return -EBADMSG;
	struct record_header header = {
	        .type = (enum record_type)le32toh(octets.type),
	        .nonce = nonce,
	        .offset = offset,
	        .committed = le64toh(octets.committed),
	        .envelope_len = le32toh(octets.envelope_len),
	        .body_len = le32toh(octets.body_len),
	        .envelope_sum = le64toh(octets.envelope_sum),
	        .body_sum = le64toh(octets.body_sum),
	};
	if (header.envelope_len > RECORD_ENVELOPE_MAX || header.body_len > RECORD_BODY_MAX)
		return -EBADMSG;
	*ret_header = header;
	return 0;
}

int record_header_nonce(
        const uint8_t bytes[RECORD_HEADER_SIZE], uint64_t offset, uint64_t *ret_nonce)
{
	struct record_octets octets;
	struct record_header header;

	memcpy(&octets, bytes, sizeof(octets));
	uint64_t nonce = le64toh(octets.nonce);
	int r = record_header_decode(bytes, nonce, offset, &header);
	if (r == 0)
		*ret_nonce = nonce;
	return r;
}

uint64_t record_size(const struct record_header *header)
{
	uint64_t size = RECORD_HEADER_SIZE + (uint64_t)header->envelope_len + header->body_len;

	return (size + RECORD_ALIGN - 1) / RECORD_ALIGN * RECORD_ALIGN;
}

static bool is_within_limits(const struct stored_message *message)
{
	return message->recipients > 0 && message->recipients <= RESULTS_MAX &&
	       message->settles.len <= PART_MAX && message->envelope.len <= PART_MAX &&
	       message->header.len <= BLOCK_MAX;
}

void stored_message_pack(const struct stored_message *message, struct pack *pack)
{
	/* What could not be read back must not be answered 250. */
	if (pack->error == 0 && !is_within_limits(message))
		pack->error = -ENOBUFS;
	pack_raw(pack, message->id.bytes, ID_SIZE);
	pack_u64(pack, message->account);
	pack_u64(pack, (uint64_t)message->accepted_us);
	pack_u32(pack, message->recipients);
	pack_u64(pack, message->body_size);
	pack_u8(pack, message->body_in_file);
	pack_u32(pack, message->file_run);
	pack_u64(pack, message->file_sum);
	pack_bytes(pack, message->settles);
	pack_bytes(pack, message->envelope);
	pack_bytes(pack, message->header);
}

int stored_message_unpack(struct slice octets, struct stored_message *ret_message)
{
	struct unpack unpack = unpack_start(octets);
	struct stored_message message;

	unpack_raw(&unpack, message.id.bytes, ID_SIZE);
	message.account = unpack_u64(&unpack);
	message.accepted_us = (int64_t)unpack_u64(&unpack);
	message.recipients = unpack_u32(&unpack);
	message.body_size = unpack_u64(&unpack);
	message.body_in_file = unpack_u8(&unpack) != 0;
	message.file_run = unpack_u32(&unpack);
	message.file_sum = unpack_u64(&unpack);
	message.settles = unpack_bytes(&unpack, PART_MAX);
	message.envelope = unpack_bytes(&unpack, PART_MAX);
	message.header = unpack_bytes(&unpack, BLOCK_MAX);
	int r = unpack_end(&unpack);
	if (r == 0 && !is_within_limits(&message))
		r = -EBADMSG;
	if (r == 0)
		*ret_message = message;
	return r;
}

void results_pack(struct message_id id, const struct stored_result *results, uint32_t count,
        struct pack *pack)
{
	pack_raw(pack, id.bytes, ID_SIZE);
	pack_u32(pack, count);
	for (uint32_t i = 0; i < count; i++) {
		pack_u32(pack, results[i].recipient);
		pack_u8(pack, (uint8_t)results[i].outcome);
	}
}

int results_unpack(struct slice octets, struct message_id *ret_id,
        void (*each)(void *arg, struct stored_result result), void *arg)
{
	struct unpack check = unpack_start(octets), unpack = check;
	struct message_id id;

	/* Once for the form, then for the content: a malformed one has no effect at all. */
	unpack_raw(&check, id.bytes, ID_SIZE);
	uint32_t count = unpack_u32(&check);
	if (check.error != 0 || count > RESULTS_MAX || check.left.len != count * 5UL)
		return -EBADMSG;
	unpack_raw(&unpack, ret_id->bytes, ID_SIZE);
	(void)unpack_u32(&unpack);
	for (uint32_t i = 0; i < count; i++) {
		struct stored_result result = {.recipient = unpack_u32(&unpack)};
		result.outcome = (enum stored_outcome)unpack_u8(&unpack);
		each(arg, result);
	}
	return (int)count;
}

bool results_are_none(struct slice octets)
{
	struct unpack unpack = unpack_start(octets);
	uint8_t id[ID_SIZE];

	unpack_raw(&unpack, id, ID_SIZE);
	return unpack_u32(&unpack) == 0 && unpack.error == 0;
}

void deferral_pack(const struct stored_deferral *deferral, struct pack *pack)
{
	pack_raw(pack, deferral->id.bytes, ID_SIZE);
	pack_u32(pack, deferral->attempt);
	pack_u64(pack, (uint64_t)deferral->next_us);
	pack_u64(pack, deferral->age_ms);
}

int deferral_unpack(struct slice octets, struct stored_deferral *ret_deferral)
{
	struct unpack unpack = unpack_start(octets);
	struct stored_deferral deferral;

	unpack_raw(&unpack, deferral.id.bytes, ID_SIZE);
	deferral.attempt = unpack_u32(&unpack);
	deferral.next_us = (int64_t)unpack_u64(&unpack);
	deferral.age_ms = unpack_u64(&unpack);
	int r = unpack_end(&unpack);
	if (r == 0)
		*ret_deferral = deferral;
	return r;
}

/* SPDX-License-Identifier: ISC */
/*
 * The octets of a segment: a header, then records, each a header, an envelope
 * part and a body part. Everything carries checksums (XXH3), the segment's random
 * nonce and its own position, so that a record forged inside a body is not one,
 * and a torn tail can be told from damage. Little-endian. Pure, any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/id.h"
#include "gateway/base/pack.h"
#include "gateway/base/slice.h"

#define SEGMENT_HEADER_SIZE 64
#define RECORD_HEADER_SIZE  64
#define RECORD_ALIGN        8
#define RECORD_ENVELOPE_MAX (4U << 20)
#define RECORD_BODY_MAX     (1U << 20)

struct segment_header {
	uint32_t number;
	uint64_t nonce;
	uint32_t previous;     /* the last valid segment before it, 0: none */
	uint64_t previous_end; /* where that one's committed part ends */
	uint32_t run;          /* the first segment of its writer's run */
};

enum record_type {
	RECORD_PROBE = 1, /* says nothing; tests whether writing works */
	RECORD_MESSAGE,   /* in/: an accepted message */
	RECORD_DSN,       /* out/: a bounce, and the mark of the recipients it settles */
	RECORD_RESULT,    /* out/: recipients that are settled */
	RECORD_DEFERRAL,  /* out/: when to try again */
};

struct record_header {
	enum record_type type;
	uint64_t nonce;
	uint64_t offset;    /* of this header in its segment */
	uint64_t committed; /* end of the committed part when it was written */
	uint32_t envelope_len, body_len;
	uint64_t envelope_sum, body_sum;
};

void segment_header_encode(
        const struct segment_header *header, uint8_t ret_octets[SEGMENT_HEADER_SIZE]);
/* 0; -EBADMSG; -ENOTSUP for a whole header of another version. */
int segment_header_decode(
        const uint8_t bytes[SEGMENT_HEADER_SIZE], struct segment_header *ret_header) must_check;

void record_header_encode(
        const struct record_header *header, uint8_t ret_octets[RECORD_HEADER_SIZE]);

/* 0, or -EBADMSG when it is not a record of that segment at that offset. */
int record_header_decode(const uint8_t bytes[RECORD_HEADER_SIZE], uint64_t nonce, uint64_t offset,
        struct record_header *ret_header) must_check;

/* The nonce in a whole record header at that offset, whatever it is; 0 or -EBADMSG. */
int record_header_nonce(
        const uint8_t bytes[RECORD_HEADER_SIZE], uint64_t offset, uint64_t *ret_nonce) must_check;

/* Octets of the whole record, padding included. */
uint64_t record_size(const struct record_header *header);

uint64_t format_checksum(struct slice octets);

/* What the envelope part of RECORD_MESSAGE and RECORD_DSN holds. */
struct stored_message {
	struct message_id id;
	uint64_t account;
	int64_t accepted_us; /* wall clock */
	uint32_t recipients;
	uint64_t body_size; /* octets of the body, wherever it is */
	bool body_in_file;
	uint32_t file_run; /* of a body in a file: the first half of its name */
	uint64_t file_sum; /* and its checksum */
	/* RECORD_DSN: whose recipients it settles, packed as in a RECORD_RESULT; else empty. */
	struct slice settles;
	struct slice envelope; /* opaque here */
	struct slice header;   /* the final header block, empty line included */
};

/* -ENOBUFS in `pack` for parts that are too long to be read back: 2 MiB, the header 1 MiB. */
void stored_message_pack(const struct stored_message *message, struct pack *pack);
/* Slices point into the octets. 0 or -EBADMSG. */
int stored_message_unpack(struct slice octets, struct stored_message *ret_message) must_check;

enum stored_outcome { OUTCOME_DELIVERED = 1, OUTCOME_FAILED = 2, OUTCOME_DELETED = 3 };

#define RESULTS_MAX 100000

struct stored_result {
	uint32_t recipient;
	enum stored_outcome outcome;
};

void results_pack(struct message_id id, const struct stored_result *results, uint32_t count,
        struct pack *pack);
/* Whether they are well-formed so far and of no recipient: a notice of delay settles nobody. */
bool results_are_none(struct slice octets);
/* At most RESULTS_MAX through the callback: their number or -EBADMSG. */
int results_unpack(struct slice octets, struct message_id *ret_id,
        void (*each)(void *arg, struct stored_result result), void *arg) must_check;

struct stored_deferral {
	struct message_id id;
	uint32_t attempt;
	int64_t next_us; /* wall clock */
	uint64_t age_ms; /* counted by the monotonic clock */
};

void deferral_pack(const struct stored_deferral *deferral, struct pack *pack);
int deferral_unpack(struct slice octets, struct stored_deferral *ret_deferral) must_check;

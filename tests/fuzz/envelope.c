/* SPDX-License-Identifier: ISC */
/* Envelopes: what is decoded can be encoded to what it was. */
#include "gateway/mail/envelope.h"

#include "tests/fuzz/fuzz.h"

#define ARENA_MAX (4U << 20)

static void check_again(struct slice octets, const struct envelope *envelope)
{
	struct arena arena;
	struct envelope again;
	struct buf out, out_again;

	arena_init(&arena, ARENA_MAX);
	buf_init(&out, ARENA_MAX);
	buf_init(&out_again, ARENA_MAX);
	assert_bug(envelope_encode(envelope, &out) == 0);
	assert_bug(buf_len(&out) == octets.len);
	assert_bug(envelope_decode(buf_slice(&out), &arena, &again) == 0);
	assert_bug(again.recipient_count == envelope->recipient_count);
	assert_bug(slice_equal(again.sender, envelope->sender) && again.size == envelope->size);
	for (uint32_t i = 0; i < again.recipient_count; i++)
		assert_bug(slice_equal(again.recipients[i], envelope->recipients[i]));
	assert_bug(envelope_encode(&again, &out_again) == 0);
	assert_bug(slice_equal(buf_slice(&out), buf_slice(&out_again)));
	buf_done(&out);
	buf_done(&out_again);
	arena_reset(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice octets = slice_of(data, size);
	struct envelope envelope;
	struct arena arena;

	arena_init(&arena, ARENA_MAX);
	if (envelope_decode(octets, &arena, &envelope) == 0) {
		assert_bug(envelope.recipient_count > 0);
		for (uint32_t i = 0; i < envelope.recipient_count; i++)
			assert_bug(fuzz_is_inside(envelope.recipients[i], octets));
		check_again(octets, &envelope);
	}
	arena_reset(&arena);
	return 0;
}

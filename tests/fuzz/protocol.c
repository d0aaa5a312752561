/* SPDX-License-Identifier: ISC */
/* Datagrams between `submit` and `auth`: what is decoded can be encoded to what it was. */
#include "auth/protocol.h"
#include "tests/fuzz/fuzz.h"

static void check_again(struct slice datagram, const struct auth_message *message,
        const struct auth_account_room *room)
{
	static struct auth_account_room room_again;
	struct auth_message again;
	struct buf out, out_again;

	buf_init(&out, PROTOCOL_DATAGRAM_MAX);
	buf_init(&out_again, PROTOCOL_DATAGRAM_MAX);
	assert_bug(protocol_encode(message, &room->account, &out) == 0);
	assert_bug(buf_len(&out) == datagram.len);
	assert_bug(protocol_decode(buf_slice(&out), &again, &room_again) == 0);
	assert_bug(again.type == message->type && again.number == message->number);
	assert_bug(again.era == message->era);
	assert_bug(slice_equal(again.data, message->data));
	assert_bug(slice_equal(again.fingerprint, message->fingerprint));
	assert_bug(slice_equal(again.reason, message->reason));
	assert_bug(again.waited_ms == message->waited_ms);
	assert_bug(slice_equal(again.recipients, message->recipients));
	assert_bug(protocol_encode(&again, &room_again.account, &out_again) == 0);
	assert_bug(slice_equal(buf_slice(&out), buf_slice(&out_again)));
	buf_done(&out);
	buf_done(&out_again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct auth_account_room room;
	struct slice datagram = slice_of(data, size);
	struct auth_message message;

	if (size > PROTOCOL_DATAGRAM_MAX || protocol_decode(datagram, &message, &room) < 0)
		return 0;
	assert_bug(message.type > 0 && message.type < AUTH_TYPE_COUNT);
	assert_bug(fuzz_is_inside(message.data, datagram));
	assert_bug(fuzz_is_inside(message.fingerprint, datagram));
	assert_bug(fuzz_is_inside(message.reason, datagram));
	assert_bug(fuzz_is_inside(message.client_address, datagram));
	assert_bug(fuzz_is_inside(message.recipients, datagram));
	assert_bug(message.recipients.len % PROTOCOL_HASH_SIZE == 0);
	if (message.type == AUTH_DONE) {
		assert_bug(room.account.sender_count <= PROTOCOL_SENDERS_MAX);
		for (uint32_t i = 0; i < room.account.sender_count; i++)
			assert_bug(fuzz_is_inside(room.account.senders[i], datagram));
	}
	check_again(datagram, &message, &room);
	return 0;
}

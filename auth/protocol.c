/* SPDX-License-Identifier: ISC */
/* Datagrams between `submit` and `auth`; see protocol.h. */
#include "auth/protocol.h"

#include <errno.h>
#include <sys/socket.h>

#include "gateway/base/pack.h"

#define TEXT_MAX 1024

static void pack_account(struct pack *pack, const struct auth_account *account)
{
	pack_u64(pack, account->id);
	pack_bytes(pack, account->login);
	pack_bytes(pack, account->route);
	pack_u64(pack, account->message_bytes);
	pack_u32(pack, account->recipients);
	pack_u32(pack, account->connections);
	pack_u8(pack, account->sign_required);
	pack_u32(pack, account->sender_count);
	for (uint32_t i = 0; i < account->sender_count; i++)
		pack_bytes(pack, account->senders[i]);
	pack_u8(pack, account->add_sender);
	pack_u8(pack, account->counts_new_recipients);
	pack_u64(pack, account->era);
	pack_u64(pack, account->valid_until_ms);
	pack_u64(pack, account->credential);
}

static void unpack_account(struct unpack *unpack, struct auth_account_room *room)
{
	struct auth_account *account = &room->account;

	account->id = unpack_u64(unpack);
	account->login = unpack_bytes(unpack, TEXT_MAX);
	account->route = unpack_bytes(unpack, TEXT_MAX);
	account->message_bytes = unpack_u64(unpack);
	account->recipients = unpack_u32(unpack);
	account->connections = unpack_u32(unpack);
	account->sign_required = unpack_u8(unpack) != 0;
	uint32_t count = unpack_u32(unpack);
	if (count > PROTOCOL_SENDERS_MAX)
		unpack->error = -EBADMSG;
	account->senders = room->senders;
	account->sender_count = 0;
	while (unpack->error == 0 && account->sender_count < count)
		room->senders[account->sender_count++] = unpack_bytes(unpack, TEXT_MAX);
	account->add_sender = unpack_u8(unpack) != 0;
	account->counts_new_recipients = unpack_u8(unpack) != 0;
	account->era = unpack_u64(unpack);
	account->valid_until_ms = unpack_u64(unpack);
	account->credential = unpack_u64(unpack);
}

static void pack_charge(struct pack *pack, const struct auth_charge *charge)
{
	pack_u64(pack, charge->account);
	pack_u64(pack, (uint64_t)charge->charged_at);
	pack_u32(pack, charge->messages);
	pack_u32(pack, charge->recipients);
	pack_u64(pack, charge->bytes);
	pack_u8(pack, charge->bytes_counted);
	pack_u32(pack, charge->new_recipients);
}

static void unpack_charge(struct unpack *unpack, struct auth_charge *charge)
{
	charge->account = unpack_u64(unpack);
	charge->charged_at = (int64_t)unpack_u64(unpack);
	charge->messages = unpack_u32(unpack);
	charge->recipients = unpack_u32(unpack);
	charge->bytes = unpack_u64(unpack);
	charge->bytes_counted = unpack_u8(unpack) != 0;
	charge->new_recipients = unpack_u32(unpack);
}

static void pack_limited(struct pack *pack, const struct auth_limited *limited)
{
	pack_u8(pack, limited->never);
	pack_bytes(pack, limited->measure);
	pack_bytes(pack, limited->per);
	pack_u64(pack, (uint64_t)limited->used);
	pack_u64(pack, (uint64_t)limited->amount);
	pack_u64(pack, (uint64_t)limited->next_s);
}

static void unpack_limited(struct unpack *unpack, struct auth_limited *limited)
{
	limited->never = unpack_u8(unpack) != 0;
	limited->measure = unpack_bytes(unpack, TEXT_MAX);
	limited->per = unpack_bytes(unpack, TEXT_MAX);
	limited->used = (int64_t)unpack_u64(unpack);
	limited->amount = (int64_t)unpack_u64(unpack);
	limited->next_s = (int64_t)unpack_u64(unpack);
}

int protocol_encode(
        const struct auth_message *message, const struct auth_account *account, struct buf *out)
{
	struct pack pack = pack_start(out);

	buf_clear(out);
	pack_u8(&pack, (uint8_t)message->type);
	pack_u32(&pack, message->number);
	switch (message->type) {
	case AUTH_HELLO:
		pack_u32(&pack, PROTOCOL_VERSION);
		break;
	case AUTH_LOGIN_START:
		pack_bytes(&pack, message->mechanism);
		pack_bytes(&pack, message->client_address);
		pack_bytes(&pack, message->session);
		pack_u8(&pack, message->has_initial);
		pack_bytes(&pack, message->data);
		pack_bytes(&pack, message->fingerprint);
		break;
	case AUTH_LOGIN_NETWORK:
		pack_bytes(&pack, message->client_address);
		pack_bytes(&pack, message->session);
		break;
	case AUTH_LOGIN_AGAIN:
		pack_bytes(&pack, message->client_address);
		pack_bytes(&pack, message->session);
		pack_bytes(&pack, message->data);
		pack_u64(&pack, message->credential);
		break;
	case AUTH_LOGIN_STEP:
		pack_bytes(&pack, message->data);
		break;
	case AUTH_MORE:
		pack_bytes(&pack, message->data);
		pack_u32(&pack, message->waited_ms);
		break;
	case AUTH_REFUSED:
		pack_u32(&pack, message->waited_ms);
		break;
	case AUTH_ADMIT:
		pack_charge(&pack, &message->charge);
		pack_bytes(&pack, message->recipients);
		break;
	case AUTH_SETTLE:
	case AUTH_ADMITTED:
		pack_charge(&pack, &message->charge);
		break;
	case AUTH_CHANGED:
		pack_charge(&pack, &message->charge);
		pack_u64(&pack, message->era);
		break;
	case AUTH_DONE:
		pack_account(&pack, account);
		break;
	case AUTH_LIMITED:
		pack_limited(&pack, &message->limited);
		break;
	case AUTH_BLOCKED:
		pack_bytes(&pack, message->reason);
		pack_u32(&pack, message->waited_ms);
		break;
	case AUTH_LOGIN_CANCEL:
	case AUTH_MALFORMED:
	case AUTH_UNAVAILABLE:
	case AUTH_SLOWED:
	case AUTH_TYPE_COUNT:
		break;
	}
	return pack.error;
}

int protocol_decode(
        struct slice datagram, struct auth_message *ret_message, struct auth_account_room *ret_room)
{
	struct unpack unpack = unpack_start(datagram);
	struct auth_message message = {.type = (enum auth_type)unpack_u8(&unpack)};

	message.number = unpack_u32(&unpack);
	switch (message.type) {
	case AUTH_HELLO:
		if (unpack_u32(&unpack) != PROTOCOL_VERSION)
			return -EBADMSG;
		break;
	case AUTH_LOGIN_START:
		message.mechanism = unpack_bytes(&unpack, TEXT_MAX);
		message.client_address = unpack_bytes(&unpack, TEXT_MAX);
		message.session = unpack_bytes(&unpack, TEXT_MAX);
		message.has_initial = unpack_u8(&unpack) != 0;
		message.data = unpack_bytes(&unpack, PROTOCOL_DATAGRAM_MAX);
		message.fingerprint = unpack_bytes(&unpack, TEXT_MAX);
		break;
	case AUTH_LOGIN_NETWORK:
		message.client_address = unpack_bytes(&unpack, TEXT_MAX);
		message.session = unpack_bytes(&unpack, TEXT_MAX);
		break;
	case AUTH_LOGIN_AGAIN:
		message.client_address = unpack_bytes(&unpack, TEXT_MAX);
		message.session = unpack_bytes(&unpack, TEXT_MAX);
		message.data = unpack_bytes(&unpack, TEXT_MAX);
		message.credential = unpack_u64(&unpack);
		break;
	case AUTH_LOGIN_STEP:
		message.data = unpack_bytes(&unpack, PROTOCOL_DATAGRAM_MAX);
		break;
	case AUTH_MORE:
		message.data = unpack_bytes(&unpack, PROTOCOL_DATAGRAM_MAX);
		message.waited_ms = unpack_u32(&unpack);
		break;
	case AUTH_REFUSED:
		message.waited_ms = unpack_u32(&unpack);
		break;
	case AUTH_ADMIT:
		unpack_charge(&unpack, &message.charge);
		message.recipients = unpack_bytes(&unpack, PROTOCOL_DATAGRAM_MAX);
		if (message.recipients.len % PROTOCOL_HASH_SIZE != 0)
			return -EBADMSG;
		break;
	case AUTH_SETTLE:
	case AUTH_ADMITTED:
		unpack_charge(&unpack, &message.charge);
		break;
	case AUTH_CHANGED:
		unpack_charge(&unpack, &message.charge);
		message.era = unpack_u64(&unpack);
		break;
	case AUTH_DONE:
		unpack_account(&unpack, ret_room);
		break;
	case AUTH_LIMITED:
		unpack_limited(&unpack, &message.limited);
		break;
	case AUTH_BLOCKED:
		message.reason = unpack_bytes(&unpack, TEXT_MAX);
		message.waited_ms = unpack_u32(&unpack);
		break;
	case AUTH_LOGIN_CANCEL:
	case AUTH_MALFORMED:
	case AUTH_UNAVAILABLE:
	case AUTH_SLOWED:
		break;
	case AUTH_TYPE_COUNT:
	default:
		return -EBADMSG;
	}
	int r = unpack_end(&unpack);
	if (r == 0)
		*ret_message = message;
	return r;
}

int protocol_send(int link, struct slice datagram)
{
	while (send(link, datagram.ptr, datagram.len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

int protocol_receive(int link, char room[PROTOCOL_DATAGRAM_MAX], struct slice *ret_datagram)
{
	ssize_t got;

	do
		got = recv(link, room, PROTOCOL_DATAGRAM_MAX, MSG_DONTWAIT | MSG_TRUNC);
	while (got < 0 && errno == EINTR);
	if (got <= 0)
		return got < 0 ? -errno : 0;
	if (got > PROTOCOL_DATAGRAM_MAX)
		return -EMSGSIZE;
	*ret_datagram = slice_of(room, (size_t)got);
	return 1;
}

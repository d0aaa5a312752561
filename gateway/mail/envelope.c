/* SPDX-License-Identifier: ISC */
/* Envelopes as octets; see envelope.h. */
#include "gateway/mail/envelope.h"

#include <errno.h>

#include "gateway/base/pack.h"

#define VERSION  1
#define TEXT_MAX 1024

int envelope_encode(const struct envelope *envelope, struct buf *out)
{
	struct pack pack = pack_start(out);

	pack_u8(&pack, VERSION);
	pack_u64(&pack, envelope->account);
	pack_bytes(&pack, envelope->login);
	pack_bytes(&pack, envelope->session);
	pack_bytes(&pack, envelope->sender);
	pack_u8(&pack, envelope->body_8bit);
	pack_u8(&pack, envelope->smtputf8);
	pack_u8(&pack, envelope->sign_required);
	pack_u64(&pack, envelope->size);
	pack_bytes(&pack, envelope->from_domain);
	pack_bytes(&pack, envelope->route);
	pack_raw(&pack, envelope->body_hash, BODY_HASH_SIZE);
	pack_u32(&pack, envelope->recipient_count);
	for (uint32_t i = 0; i < envelope->recipient_count; i++)
		pack_bytes(&pack, envelope->recipients[i]);
	return pack.error;
}

int envelope_decode(struct slice octets, struct arena *arena, struct envelope *ret_envelope)
{
	struct unpack unpack = unpack_start(octets);
	struct envelope envelope = {0};

	if (unpack_u8(&unpack) != VERSION)
		return -EBADMSG;
	envelope.account = unpack_u64(&unpack);
	envelope.login = unpack_bytes(&unpack, TEXT_MAX);
	envelope.session = unpack_bytes(&unpack, TEXT_MAX);
	envelope.sender = unpack_bytes(&unpack, TEXT_MAX);
	envelope.body_8bit = unpack_u8(&unpack) != 0;
	envelope.smtputf8 = unpack_u8(&unpack) != 0;
	envelope.sign_required = unpack_u8(&unpack) != 0;
	envelope.size = unpack_u64(&unpack);
	envelope.from_domain = unpack_bytes(&unpack, TEXT_MAX);
	envelope.route = unpack_bytes(&unpack, TEXT_MAX);
	unpack_raw(&unpack, envelope.body_hash, BODY_HASH_SIZE);
	envelope.recipient_count = unpack_u32(&unpack);
	if (unpack.error != 0 || envelope.recipient_count == 0 ||
	        envelope.recipient_count > ENVELOPE_RECIPIENTS_MAX)
		return -EBADMSG;
	envelope.recipients =
	        arena_alloc(arena, envelope.recipient_count * sizeof(*envelope.recipients));
	if (envelope.recipients == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < envelope.recipient_count; i++)
		envelope.recipients[i] = unpack_bytes(&unpack, TEXT_MAX);
	int r = unpack_end(&unpack);
	if (r == 0)
		*ret_envelope = envelope;
	return r;
}

/* SPDX-License-Identifier: ISC */
/* SCRAM-SHA-256 verifiers; see verifier.h. */
#include "auth/verifier.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <string.h>

#include "gateway/base/encode.h"
#include "gateway/base/random.h"

#define PREFIX         SLICE("SCRAM-SHA-256$")
#define ITERATIONS_MAX 1000000
#define SALT_SIZE      16 /* of new ones */

/* Decodes base64 of at most `max` octets; how many they are, or -EBADMSG. */
static int decode(struct slice text, uint8_t *ret_octets, size_t max)
{
	struct buf octets;

	buf_init(&octets, 256);
	bool fits = base64_decode(text, &octets) == 0 && buf_len(&octets) <= max;
	int len = (int)buf_len(&octets);
	if (fits)
		memcpy(ret_octets, buf_slice(&octets).ptr, buf_len(&octets));
	buf_wipe(&octets);
	return fits ? len : -EBADMSG;
}

int verifier_parse(struct slice text, struct verifier *ret_verifier)
{
	struct verifier verifier;
	uint64_t iterations;

	if (!slice_starts_with(text, PREFIX))
		return -EBADMSG;
	struct slice rest = slice_part(text, PREFIX.len, text.len);
	struct slice count = slice_until(&rest, ':');
	struct slice salt = slice_until(&rest, '$');
	struct slice stored = slice_until(&rest, ':');
	if (slice_to_u64(count, &iterations) < 0 || iterations == 0 || iterations > ITERATIONS_MAX)
		return -EBADMSG;
	int salt_len = decode(salt, verifier.salt, sizeof(verifier.salt));
	if (salt_len <= 0)
		return -EBADMSG;
	if (decode(stored, verifier.stored_key, sizeof(verifier.stored_key)) != VERIFIER_KEY_SIZE)
		return -EBADMSG;
	verifier.salt_len = (size_t)salt_len;
	verifier.iterations = (unsigned)iterations;
	*ret_verifier = verifier;
	return 0;
}

/* The keys of RFC 5802 3 to the salt and iterations of `verifier`. Whether that could be done. */
static bool make_keys(const struct verifier *verifier, struct slice password,
        uint8_t ret_stored[VERIFIER_KEY_SIZE], uint8_t ret_server[VERIFIER_KEY_SIZE])
{
	const gnutls_datum_t key = {
	        (unsigned char *)(uintptr_t)password.ptr, (unsigned)password.len};
	const gnutls_datum_t salt = {
	        (unsigned char *)(uintptr_t)verifier->salt, (unsigned)verifier->salt_len};
	uint8_t salted[VERIFIER_KEY_SIZE], client[VERIFIER_KEY_SIZE];

	bool made = gnutls_pbkdf2(GNUTLS_MAC_SHA256, &key, &salt, verifier->iterations, salted,
	                    sizeof(salted)) == 0 &&
	            gnutls_hmac_fast(GNUTLS_MAC_SHA256, salted, sizeof(salted), "Client Key", 10,
	                    client) == 0 &&
	            gnutls_hash_fast(GNUTLS_DIG_SHA256, client, sizeof(client), ret_stored) == 0 &&
	            gnutls_hmac_fast(GNUTLS_MAC_SHA256, salted, sizeof(salted), "Server Key", 10,
	                    ret_server) == 0;
	gnutls_memset(salted, 0, sizeof(salted));
	gnutls_memset(client, 0, sizeof(client));
	return made;
}

bool verifier_check(const struct verifier *verifier, struct slice password)
{
	uint8_t stored[VERIFIER_KEY_SIZE], server[VERIFIER_KEY_SIZE];

	return make_keys(verifier, password, stored, server) &&
	       gnutls_memcmp(stored, verifier->stored_key, sizeof(stored)) == 0;
}

static int append_text(unsigned iterations, struct slice salt,
        const uint8_t stored[VERIFIER_KEY_SIZE], const uint8_t server[VERIFIER_KEY_SIZE],
        struct buf *out)
{
	int r = buf_printf(out, "SCRAM-SHA-256$%u:", iterations);

	if (r == 0)
		r = base64_encode(salt, out);
	if (r == 0)
		r = buf_append(out, "$", 1);
	if (r == 0)
		r = base64_encode(slice_of(stored, VERIFIER_KEY_SIZE), out);
	if (r == 0)
		r = buf_append(out, ":", 1);
	return r == 0 ? base64_encode(slice_of(server, VERIFIER_KEY_SIZE), out) : r;
}

int verifier_make(struct slice password, unsigned iterations, struct buf *out)
{
	struct verifier verifier = {.iterations = iterations, .salt_len = SALT_SIZE};
	uint8_t server[VERIFIER_KEY_SIZE];

	random_bytes(verifier.salt, SALT_SIZE);
	if (!make_keys(&verifier, password, verifier.stored_key, server))
		return -ENOMEM;
	return append_text(
	        iterations, slice_of(verifier.salt, SALT_SIZE), verifier.stored_key, server, out);
}

/* One of three values that only the holder of the secret can tell. */
static int derive(struct slice secret, struct slice login, char purpose, uint8_t *ret_mac)
{
	struct buf text;

	buf_init(&text, 4096);
	int r = buf_append(&text, &purpose, 1);
	if (r == 0)
		r = buf_append_slice(&text, login);
	if (r == 0 && gnutls_hmac_fast(GNUTLS_MAC_SHA256, secret.ptr, secret.len,
	                      buf_slice(&text).ptr, buf_len(&text), ret_mac) < 0)
		r = -ENOMEM;
	buf_done(&text);
	return r;
}

int verifier_fake(struct slice secret, struct slice login, unsigned iterations, struct buf *out)
{
	uint8_t salt[32], stored[32], server[32];

	int r = derive(secret, login, 's', salt);
	if (r == 0)
		r = derive(secret, login, 'k', stored);
	if (r == 0)
		r = derive(secret, login, 'v', server);
	return r == 0 ? append_text(iterations, slice_of(salt, SALT_SIZE), stored, server, out) : r;
}

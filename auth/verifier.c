/* SPDX-License-Identifier: ISC */
/* SCRAM-SHA-256 verifiers; see verifier.h. */
#include "auth/verifier.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <stdio.h>
#include <string.h>

#include "gateway/base/encode.h"
#include "gateway/base/random.h"

#define PREFIX         SLICE("SCRAM-SHA-256$")
#define ITERATIONS_MAX 1000000

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
	struct verifier verifier = {.iterations = iterations, .salt_len = VERIFIER_SALT_NEW};
	uint8_t server[VERIFIER_KEY_SIZE];

	random_bytes(verifier.salt, VERIFIER_SALT_NEW);
	if (!make_keys(&verifier, password, verifier.stored_key, server))
		return -ENOMEM;
	return append_text(iterations, slice_of(verifier.salt, VERIFIER_SALT_NEW),
	        verifier.stored_key, server, out);
}

/* A value that only the holder of the secret can tell. */
static int derive(struct slice secret, struct slice login, const char *purpose, uint8_t ret_mac[32])
{
	struct buf text;

	buf_init(&text, 4096);
	int r = buf_append_slice(&text, slice_str(purpose));
	if (r == 0)
		r = buf_append_slice(&text, login);
	if (r == 0 && gnutls_hmac_fast(GNUTLS_MAC_SHA256, secret.ptr, secret.len,
	                      buf_slice(&text).ptr, buf_len(&text), ret_mac) < 0)
		r = -ENOMEM;
	buf_done(&text);
	return r;
}

/* Who has other iterations has set another password, with another salt. */
static int derive_salt(struct slice secret, struct slice login, unsigned iterations,
        uint8_t ret_salt[VERIFIER_SALT_MAX])
{
	char purpose[2][32];

	snprintf(purpose[0], sizeof(purpose[0]), "salt %u ", iterations);
	snprintf(purpose[1], sizeof(purpose[1]), "more salt %u ", iterations);
	int r = derive(secret, login, purpose[0], ret_salt);
	return r == 0 ? derive(secret, login, purpose[1], ret_salt + 32) : r;
}

int verifier_fake(struct slice secret, struct slice login, const struct verifier_shape shapes[],
        size_t shape_count, struct buf *out)
{
	uint8_t chosen[32], salt[VERIFIER_SALT_MAX], stored[32], server[32];
	uint32_t number;

	int r = derive(secret, login, "shape ", chosen);
	if (r < 0)
		return r;
	memcpy(&number, chosen, sizeof(number));
	const struct verifier_shape *shape = &shapes[number % shape_count];
	r = derive_salt(secret, login, shape->iterations, salt);
	if (r == 0)
		r = derive(secret, login, "stored ", stored);
	if (r == 0)
		r = derive(secret, login, "server ", server);
	return r == 0 ? append_text(shape->iterations, slice_of(salt, shape->salt_len), stored,
	                        server, out)
	              : r;
}

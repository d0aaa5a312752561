/* SPDX-License-Identifier: ISC */
/* Kinds and restrictions of credentials; see credential.h. */
#include "auth/credential.h"

#include <arpa/inet.h>
#include <gnutls/crypto.h>
#include <string.h>

#include "gateway/base/addr.h"
#include "gateway/base/compiler.h"
#include "gateway/base/encode.h"

/* As app_password_create() makes them: 28 characters, without those that look like others. */
#define TOKEN_ALPHABET SLICE("abcdefghijkmnpqrstuvwxyz23456789")
#define DIGEST_SIZE    32UL

enum credential_kind credential_kind_of(struct slice name)
{
	if (slice_equal(name, SLICE("scram-sha-256")))
		return CREDENTIAL_SCRAM;
	if (slice_equal(name, SLICE("crypt")))
		return CREDENTIAL_CRYPT;
	return slice_equal(name, SLICE("token")) ? CREDENTIAL_TOKEN : CREDENTIAL_UNKNOWN;
}

bool credential_read_token(struct slice password, char ret_token[CREDENTIAL_TOKEN_LEN])
{
	size_t len = 0;

	for (size_t i = 0; i < password.len; i++) {
		char c = ascii_lower(password.ptr[i]);
		if (c == '-' || c == ' ')
			continue;
		if (len == CREDENTIAL_TOKEN_LEN || slice_find(TOKEN_ALPHABET, c) < 0)
			return false;
		ret_token[len++] = c;
	}
	return len == CREDENTIAL_TOKEN_LEN;
}

bool credential_token_fits(const struct credential *credential, struct slice password)
{
	char token[CREDENTIAL_TOKEN_LEN], hex[2 * DIGEST_SIZE + 1];
	uint8_t digest[DIGEST_SIZE];

	bool fits = credential_read_token(password, token) &&
	            credential->verifier.len == 2 * DIGEST_SIZE &&
	            gnutls_hash_fast(GNUTLS_DIG_SHA256, token, sizeof(token), digest) == 0;
	if (fits) {
		hex_encode(digest, sizeof(digest), hex);
		fits = gnutls_memcmp(hex, credential->verifier.ptr, 2 * DIGEST_SIZE) == 0;
	}
	gnutls_memset(token, 0, sizeof(token));
	return fits;
}

static bool has_word(struct slice words, struct slice word)
{
	while (words.len > 0) {
		if (slice_equal_nocase(slice_until(&words, ' '), word))
			return true;
	}
	return false;
}

/* The octets of an address: 4 or 16 of them, or 0 for what is none. */
static size_t read_ip(struct slice text, uint8_t ret_octets[16])
{
	char terminated[ADDR_TEXT];

	if (text.len >= sizeof(terminated))
		return 0;
	memcpy(terminated, text.ptr, text.len);
	terminated[text.len] = '\0';
	if (inet_pton(AF_INET, terminated, ret_octets) == 1)
		return 4;
	return inet_pton(AF_INET6, terminated, ret_octets) == 1 ? 16 : 0;
}

/* "192.0.2.0/24" */
static bool network_holds(struct slice network, const uint8_t *address, size_t size)
{
	uint8_t prefix[16];
	uint64_t bits;
	struct slice rest = network;

	if (size == 0 || read_ip(slice_until(&rest, '/'), prefix) != size ||
	        slice_to_u64(rest, &bits) < 0 || bits > 8 * size)
		return false;
	size_t whole = bits / 8;
	uint8_t mask = (uint8_t)(0xff00U >> (bits % 8));
	return memcmp(prefix, address, whole) == 0 &&
	       (bits % 8 == 0 || ((prefix[whole] ^ address[whole]) & mask) == 0);
}

const char *credential_objection(
        const struct credential *credential, struct slice mechanism, struct slice client_address)
{
	struct slice networks = credential->networks;
	uint8_t address[16];

	if (credential->mechanisms.len > 0 && !has_word(credential->mechanisms, mechanism))
		return "mechanism_not_allowed";
	if (networks.len == 0)
		return NULL;
	size_t size = read_ip(client_address, address);
	while (networks.len > 0) {
		if (network_holds(slice_until(&networks, ' '), address, size))
			return NULL;
	}
	return "network_not_allowed";
}

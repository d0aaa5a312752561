/* SPDX-License-Identifier: ISC */
/* Hashes of other systems; see foreign_hash.h. */
#include "auth/foreign_hash.h"

#include <crypt.h>
#include <gnutls/crypto.h>
#include <stdint.h>
#include <string.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/encode.h"

/*
 * What a hash may cost, here and in crypt_hash_of() of the schema: 100 ms of a core of today, but
 * bcrypt what many frameworks write by default: 250 ms.
 */
#define SHA_CRYPT_ROUNDS_MAX 100000
#define BCRYPT_COST_MAX      12
/* What costs hardly more than a verifier: 5 ms. */
#define SHA_CRYPT_ROUNDS_SMALL 10000
#define BCRYPT_COST_SMALL      6
#define BCRYPT_OCTETS          72 /* of a password that it looks at */
#define HASH_MAX               512
#define SALT_MAX               64

enum cost { COST_SMALL, COST_LARGE, COST_UNBEARABLE };

static const struct salted {
	const char *prefix;
	gnutls_digest_algorithm_t algorithm;
	size_t size;
} salted[] = {
        {"{SSHA}", GNUTLS_DIG_SHA1, 20},
        {"{SSHA256}", GNUTLS_DIG_SHA256, 32},
        {"{SSHA512}", GNUTLS_DIG_SHA512, 64},
};

/* What a number of the hash means; the text must be one. */
static enum cost cost_of_number(struct slice text, uint64_t small, uint64_t max)
{
	uint64_t number;

	if (slice_to_u64(text, &number) < 0 || number > max)
		return COST_UNBEARABLE;
	return number <= small ? COST_SMALL : COST_LARGE;
}

/* "rounds=5000$" may stand behind "$6$"; it is the default. */
static enum cost sha_crypt_cost(struct slice parameters)
{
	struct slice prefix = SLICE("rounds=");

	if (!slice_starts_with(parameters, prefix))
		return COST_SMALL;
	struct slice rest = slice_part(parameters, prefix.len, parameters.len);
	return cost_of_number(
	        slice_until(&rest, '$'), SHA_CRYPT_ROUNDS_SMALL, SHA_CRYPT_ROUNDS_MAX);
}

/* The parameters that crypt_gensalt() chooses for a cost of 1 to 7; 5 where nobody chooses. */
static enum cost yescrypt_cost(struct slice parameters)
{
	static const struct {
		const char *parameters;
		enum cost cost;
	} known[] = {
	        {"j75", COST_SMALL},
	        {"j85", COST_SMALL},
	        {"j7T", COST_SMALL},
	        {"j8T", COST_LARGE},
	        {"j9T", COST_LARGE},
	        {"jAT", COST_LARGE},
	        {"jBT", COST_LARGE},
	};
	struct slice rest = parameters;
	struct slice chosen = slice_until(&rest, '$');

	for (size_t i = 0; i < ARRAY_LEN(known); i++) {
		if (slice_equal(chosen, slice_str(known[i].parameters)))
			return known[i].cost;
	}
	return COST_UNBEARABLE;
}

static enum cost bcrypt_cost(struct slice parameters)
{
	struct slice rest = parameters;

	return cost_of_number(slice_until(&rest, '$'), BCRYPT_COST_SMALL, BCRYPT_COST_MAX);
}

/* A kind that we do not take is unbearable. */
static enum cost crypt_cost(struct slice hash)
{
	static const struct {
		const char *prefix;
		enum cost (*cost)(struct slice parameters);
	} kinds[] = {
	        {"$6$", sha_crypt_cost},
	        {"$5$", sha_crypt_cost},
	        {"$y$", yescrypt_cost},
	        {"$2a$", bcrypt_cost},
	        {"$2b$", bcrypt_cost},
	        {"$2y$", bcrypt_cost},
	};

	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		struct slice prefix = slice_str(kinds[i].prefix);
		if (slice_starts_with(hash, prefix))
			return kinds[i].cost(slice_part(hash, prefix.len, hash.len));
	}
	return COST_UNBEARABLE;
}

bool foreign_hash_is_whole(struct slice hash, struct slice password)
{
	return !slice_starts_with(hash, SLICE("$2")) || password.len < BCRYPT_OCTETS;
}

bool foreign_hash_is_slow(struct slice hash)
{
	return crypt_cost(hash) == COST_LARGE;
}

static bool crypt_fits(struct slice hash, struct slice password)
{
	struct crypt_data data = {0}; /* 32 KiB */
	char setting[HASH_MAX], phrase[CRYPT_MAX_PASSPHRASE_SIZE];

	if (hash.len >= sizeof(setting) || password.len >= sizeof(phrase) ||
	        slice_find(password, '\0') >= 0 || crypt_cost(hash) == COST_UNBEARABLE)
		return false;
	memcpy(setting, hash.ptr, hash.len);
	setting[hash.len] = '\0';
	memcpy(phrase, password.ptr, password.len);
	phrase[password.len] = '\0';
	const char *made = crypt_rn(phrase, setting, &data, (int)sizeof(data));
	bool fits = made != NULL && strlen(made) == hash.len &&
	            gnutls_memcmp(made, setting, hash.len) == 0;
	gnutls_memset(phrase, 0, sizeof(phrase));
	gnutls_memset(&data, 0, sizeof(data));
	return fits;
}

/* `encoded` is base64 of the digest over password and salt, and the salt. */
static bool salted_fits(const struct salted *kind, struct slice encoded, struct slice password)
{
	uint8_t digest[64];
	gnutls_hash_hd_t hash;
	struct buf octets;

	buf_init(&octets, 256);
	bool fits = base64_decode(encoded, &octets) == 0 && buf_len(&octets) > kind->size &&
	            buf_len(&octets) <= kind->size + SALT_MAX &&
	            gnutls_hash_init(&hash, kind->algorithm) == 0;
	if (fits) {
		struct slice stored = slice_of(buf_slice(&octets).ptr, kind->size);
		struct slice salt = slice_part(buf_slice(&octets), kind->size, buf_len(&octets));
		gnutls_hash(hash, password.ptr, password.len);
		gnutls_hash(hash, salt.ptr, salt.len);
		gnutls_hash_deinit(hash, digest);
		fits = gnutls_memcmp(digest, stored.ptr, stored.len) == 0;
	}
	buf_wipe(&octets);
	return fits;
}

bool foreign_hash_fits(struct slice hash, struct slice password)
{
	for (size_t i = 0; i < ARRAY_LEN(salted); i++) {
		struct slice prefix = slice_str(salted[i].prefix);
		if (slice_starts_with(hash, prefix))
			return salted_fits(
			        &salted[i], slice_part(hash, prefix.len, hash.len), password);
	}
	return crypt_fits(hash, password);
}

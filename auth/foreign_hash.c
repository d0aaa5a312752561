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

/* What a hash may cost, here and in crypt_hash_of() of the schema: less than the time after which
 * `submit` tells a refusal (submission.refusal_delay), on a machine of today. */
#define SHA_CRYPT_ROUNDS_MAX 656000 /* the default of Python's passlib */
#define BCRYPT_COST_MAX      12
#define HASH_MAX             512
#define SALT_MAX             64

static const struct salted {
	const char *prefix;
	gnutls_digest_algorithm_t algorithm;
	size_t size;
} salted[] = {
        {"{SSHA}", GNUTLS_DIG_SHA1, 20},
        {"{SSHA256}", GNUTLS_DIG_SHA256, 32},
        {"{SSHA512}", GNUTLS_DIG_SHA512, 64},
};

/* "rounds=5000$" may stand behind "$6$". */
static bool rounds_are_bearable(struct slice parameters)
{
	struct slice prefix = SLICE("rounds=");
	uint64_t rounds;

	if (!slice_starts_with(parameters, prefix))
		return true;
	struct slice rest = slice_part(parameters, prefix.len, parameters.len);
	return slice_to_u64(slice_until(&rest, '$'), &rounds) == 0 &&
	       rounds <= SHA_CRYPT_ROUNDS_MAX;
}

/* The parameters that crypt_gensalt() chooses for a cost of 1 to 7. */
static bool yescrypt_is_bearable(struct slice parameters)
{
	static const char *const bearable[] = {"j75", "j85", "j7T", "j8T", "j9T", "jAT", "jBT"};
	struct slice rest = parameters;
	struct slice chosen = slice_until(&rest, '$');

	for (size_t i = 0; i < ARRAY_LEN(bearable); i++) {
		if (slice_equal(chosen, slice_str(bearable[i])))
			return true;
	}
	return false;
}

static bool bcrypt_is_bearable(struct slice parameters)
{
	struct slice rest = parameters;
	uint64_t cost;

	return slice_to_u64(slice_until(&rest, '$'), &cost) == 0 && cost <= BCRYPT_COST_MAX;
}

/* Whether it is of a kind that we take and may cost what it does. */
static bool crypt_is_bearable(struct slice hash)
{
	static const struct {
		const char *prefix;
		bool (*is_bearable)(struct slice parameters);
	} kinds[] = {
	        {"$6$", rounds_are_bearable},
	        {"$5$", rounds_are_bearable},
	        {"$y$", yescrypt_is_bearable},
	        {"$2a$", bcrypt_is_bearable},
	        {"$2b$", bcrypt_is_bearable},
	        {"$2y$", bcrypt_is_bearable},
	};

	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		struct slice prefix = slice_str(kinds[i].prefix);
		if (slice_starts_with(hash, prefix))
			return kinds[i].is_bearable(slice_part(hash, prefix.len, hash.len));
	}
	return false;
}

static bool crypt_fits(struct slice hash, struct slice password)
{
	struct crypt_data data = {0}; /* 32 KiB */
	char setting[HASH_MAX], phrase[CRYPT_MAX_PASSPHRASE_SIZE];

	if (hash.len >= sizeof(setting) || password.len >= sizeof(phrase) ||
	        slice_find(password, '\0') >= 0 || !crypt_is_bearable(hash))
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

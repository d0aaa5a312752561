/* SPDX-License-Identifier: ISC */
/*
 * Private keys. RSA signs through libcrypto where the build found it: GnuTLS spends
 * half of each RSA signature on a fresh blinding and takes 4.5 times as long. The
 * key is still GnuTLS's (gnutls_privkey_import_ext4), so everything above is alike;
 * at load one signature of either is compared.
 */
#include "gateway/dkim/key.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/encode.h"

#if HAVE_LIBCRYPTO
#include <openssl/evp.h>
#include <openssl/pem.h>
#endif

#define RSA_BITS     2048
#define RSA_BITS_MIN 2048

static const char *const algorithm_names[] = {
        [DKIM_RSA_SHA256] = "rsa-sha256",
        [DKIM_ED25519_SHA256] = "ed25519-sha256",
};

const char *dkim_algorithm_name(enum dkim_algorithm algorithm)
{
	return algorithm_names[algorithm];
}

int dkim_algorithm_parse(struct slice name, enum dkim_algorithm *ret_algorithm)
{
	for (unsigned i = 0; i < ARRAY_LEN(algorithm_names); i++) {
		if (slice_equal(name, slice_str(algorithm_names[i]))) {
			*ret_algorithm = (enum dkim_algorithm)i;
			return 0;
		}
	}
	return -EINVAL;
}

static int key_why(struct why *why, int code, const char *what)
{
	why_set(why, "%s: %s", what, gnutls_strerror(code));
	return code == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL;
}

#if HAVE_LIBCRYPTO
/* Signs a DigestInfo (GNUTLS_SIGN_RSA_RAW) with PKCS #1 padding. Any thread. */
static int libcrypto_sign(gnutls_privkey_t key, gnutls_sign_algorithm_t algorithm, void *userdata,
        unsigned flags, const gnutls_datum_t *digest_info, gnutls_datum_t *signature)
{
	EVP_PKEY *pkey = userdata;
	size_t len = (size_t)EVP_PKEY_get_size(pkey);
	EVP_PKEY_CTX *ctx;

	(void)key;
	(void)flags;
	if (algorithm != GNUTLS_SIGN_RSA_RAW)
		return GNUTLS_E_UNIMPLEMENTED_FEATURE;
	signature->data = gnutls_malloc(len);
	ctx = EVP_PKEY_CTX_new(pkey, NULL);
	if (signature->data == NULL || ctx == NULL || EVP_PKEY_sign_init(ctx) <= 0 ||
	        EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PADDING) <= 0 ||
	        EVP_PKEY_sign(ctx, signature->data, &len, digest_info->data, digest_info->size) <=
	                0) {
		EVP_PKEY_CTX_free(ctx);
		gnutls_free(signature->data);
		return GNUTLS_E_PK_SIGN_FAILED;
	}
	EVP_PKEY_CTX_free(ctx);
	signature->size = (unsigned)len;
	return 0;
}

static int libcrypto_info(gnutls_privkey_t key, unsigned flags, void *userdata)
{
	(void)key;
	if ((flags & GNUTLS_PRIVKEY_INFO_PK_ALGO) != 0)
		return GNUTLS_PK_RSA;
	if ((flags & GNUTLS_PRIVKEY_INFO_PK_ALGO_BITS) != 0)
		return EVP_PKEY_get_bits(userdata);
	if ((flags & GNUTLS_PRIVKEY_INFO_HAVE_SIGN_ALGO) != 0)
		return GNUTLS_FLAGS_TO_SIGN_ALGO(flags) == GNUTLS_SIGN_RSA_SHA256 ||
		       GNUTLS_FLAGS_TO_SIGN_ALGO(flags) == GNUTLS_SIGN_RSA_RAW;
	return -1;
}

static void libcrypto_deinit(gnutls_privkey_t key, void *userdata)
{
	(void)key;
	EVP_PKEY_free(userdata);
}

/* Whether both sign alike; PKCS #1 signatures have no randomness in them. */
static bool sign_alike(gnutls_privkey_t a, gnutls_privkey_t b)
{
	unsigned char hash[DKIM_HASH_SIZE] = "postern compares two signatures";
	const gnutls_datum_t digest = {hash, sizeof(hash)};
	gnutls_datum_t sa = {0}, sb = {0};

	bool alike = gnutls_privkey_sign_hash2(a, GNUTLS_SIGN_RSA_SHA256, 0, &digest, &sa) == 0 &&
	             gnutls_privkey_sign_hash2(b, GNUTLS_SIGN_RSA_SHA256, 0, &digest, &sb) == 0 &&
	             sa.size == sb.size && memcmp(sa.data, sb.data, sa.size) == 0;
	gnutls_free(sa.data);
	gnutls_free(sb.data);
	return alike;
}

/* Puts libcrypto behind the key; it stays as it is if anything goes wrong. */
static void use_libcrypto(struct dkim_key *key, struct slice pem)
{
	BIO *bio = BIO_new_mem_buf(pem.ptr, (int)pem.len);
	EVP_PKEY *pkey = bio != NULL ? PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL) : NULL;
	gnutls_privkey_t fast;

	BIO_free(bio);
	if (pkey == NULL || EVP_PKEY_get_base_id(pkey) != EVP_PKEY_RSA ||
	        gnutls_privkey_init(&fast) < 0) {
		EVP_PKEY_free(pkey);
		return;
	}
	if (gnutls_privkey_import_ext4(fast, pkey, NULL, libcrypto_sign, NULL, libcrypto_deinit,
	            libcrypto_info, GNUTLS_PRIVKEY_IMPORT_AUTO_RELEASE) < 0) {
		EVP_PKEY_free(pkey);
		gnutls_privkey_deinit(fast);
		return;
	}
	if (sign_alike(fast, key->private)) {
		gnutls_privkey_deinit(key->private);
		key->private = fast;
	} else {
		gnutls_privkey_deinit(fast);
	}
}
#else
static void use_libcrypto(struct dkim_key *key, struct slice pem)
{
	(void)key;
	(void)pem;
}
#endif

static int check_kind(const struct dkim_key *key, struct why *why)
{
	unsigned bits = 0;
	int kind = gnutls_privkey_get_pk_algorithm(key->private, &bits);

	if (kind != (key->algorithm == DKIM_RSA_SHA256 ? GNUTLS_PK_RSA : GNUTLS_PK_EDDSA_ED25519)) {
		why_set(why, "the key is not of the kind %s", dkim_algorithm_name(key->algorithm));
		return -EINVAL;
	}
	/* RFC 8301 3.2 */
	if (kind == GNUTLS_PK_RSA && bits < RSA_BITS_MIN) {
		why_set(why, "an RSA key of %u bits is too short; %d are needed", bits,
		        RSA_BITS_MIN);
		return -EINVAL;
	}
	return 0;
}

int dkim_key_load(
        enum dkim_algorithm algorithm, struct slice pem, struct dkim_key **ret_key, struct why *why)
{
	const gnutls_datum_t text = {(unsigned char *)(uintptr_t)pem.ptr, (unsigned)pem.len};
	struct dkim_key *key = calloc(1, sizeof(*key));

	if (key == NULL)
		return why_errno(why, ENOMEM, "DKIM key");
	atomic_init(&key->refs, 1);
	key->algorithm = algorithm;
	int r = gnutls_privkey_init(&key->private);
	if (r >= 0)
		r = gnutls_pubkey_init(&key->public);
	if (r >= 0)
		r = gnutls_privkey_import_x509_raw(
		        key->private, &text, GNUTLS_X509_FMT_PEM, NULL, 0);
	if (r >= 0)
		r = gnutls_pubkey_import_privkey(key->public, key->private, 0, 0);
	r = r < 0 ? key_why(why, r, "the DKIM key cannot be read") : check_kind(key, why);
	if (r < 0) {
		dkim_key_unref(key);
		return r;
	}
	if (algorithm == DKIM_RSA_SHA256)
		use_libcrypto(key, pem);
	*ret_key = key;
	return 0;
}

void dkim_key_unref(struct dkim_key *key)
{
	if (key == NULL || atomic_fetch_sub_explicit(&key->refs, 1, memory_order_acq_rel) > 1)
		return;
	if (key->private != NULL)
		gnutls_privkey_deinit(key->private);
	if (key->public != NULL)
		gnutls_pubkey_deinit(key->public);
	free(key);
}

int dkim_key_generate(enum dkim_algorithm algorithm, struct buf *ret_pem, struct why *why)
{
	bool rsa = algorithm == DKIM_RSA_SHA256;
	gnutls_x509_privkey_t key;
	gnutls_datum_t pem = {0};

	int r = gnutls_x509_privkey_init(&key);
	if (r < 0)
		return why_errno(why, ENOMEM, "DKIM key");
	r = gnutls_x509_privkey_generate(
	        key, rsa ? GNUTLS_PK_RSA : GNUTLS_PK_EDDSA_ED25519, rsa ? RSA_BITS : 256, 0);
	if (r >= 0)
		r = gnutls_x509_privkey_export2_pkcs8(
		        key, GNUTLS_X509_FMT_PEM, NULL, GNUTLS_PKCS_PLAIN, &pem);
	gnutls_x509_privkey_deinit(key);
	if (r < 0)
		return key_why(why, r, "a DKIM key could not be made");
	r = buf_append(ret_pem, pem.data, pem.size);
	gnutls_memset(pem.data, 0, pem.size);
	gnutls_free(pem.data);
	return r < 0 ? why_errno(why, r, "DKIM key") : 0;
}

int dkim_key_record(struct dkim_key *key, struct buf *ret_text)
{
	gnutls_datum_t public = {0};
	int r;

	/* RFC 8463 4: Ed25519 stands there bare, RSA as SubjectPublicKeyInfo. */
	if (key->algorithm == DKIM_RSA_SHA256)
		r = gnutls_pubkey_export2(key->public, GNUTLS_X509_FMT_DER, &public);
	else
		r = gnutls_pubkey_export_ecc_raw2(key->public, NULL, &public, NULL, 0);
	if (r < 0)
		return -EINVAL;
	r = buf_printf(ret_text,
	        "v=DKIM1; k=%s; p=", key->algorithm == DKIM_RSA_SHA256 ? "rsa" : "ed25519");
	if (r == 0)
		r = base64_encode(slice_of(public.data, public.size), ret_text);
	gnutls_free(public.data);
	return r;
}

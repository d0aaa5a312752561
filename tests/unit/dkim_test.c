/* SPDX-License-Identifier: ISC */
/* Body hashes and signatures, checked by GnuTLS with the published keys. */
#include "tests/unit/unit.h"

#include <gnutls/abstract.h>

#include "gateway/base/encode.h"
#include "gateway/dkim/dkim.h"
#include "gateway/mail/header.h"

/* The hash of the body given in pieces of that size. */
static void hash_body(const char *text, size_t piece, uint8_t ret_hash[DKIM_HASH_SIZE])
{
	struct slice rest = slice_str(text);
	struct dkim_body body;

	assert_int_equal(dkim_body_init(&body), 0);
	while (rest.len > 0) {
		dkim_body_update(&body, slice_part(rest, 0, piece));
		rest = slice_part(rest, piece, SIZE_MAX);
	}
	dkim_body_done(&body, ret_hash);
}

static void bodies_are_canonical_wherever_they_are_cut(void **state)
{
	/* RFC 6376 3.4.4 and 3.4.5 */
	static const struct {
		const char *body, *canonical;
	} cases[] = {
	        {"", ""},
	        {"\r\n", ""},
	        {" \t\r\n\r\n", ""},
	        {" C \r\nD \t E\r\n\r\n\r\n", " C\r\nD E\r\n"},
	        {"\r\n\r\na\r\n", "\r\n\r\na\r\n"},
	        {"a\r\n \r\n\t\r\nb\r\n", "a\r\n\r\n\r\nb\r\n"},
	        {"a\t \t\r\n", "a\r\n"},
	        {"\ta\r\n", " a\r\n"},
	        {"a\r\n \t", "a\r\n"},
	};
	uint8_t wanted[DKIM_HASH_SIZE], hash[DKIM_HASH_SIZE];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		size_t len = strlen(cases[i].body);
		gnutls_hash_fast(
		        GNUTLS_DIG_SHA256, cases[i].canonical, strlen(cases[i].canonical), wanted);
		for (size_t piece = 1; piece <= len + 1; piece++) {
			hash_body(cases[i].body, piece, hash);
			if (memcmp(hash, wanted, sizeof(hash)) != 0)
				fail_msg("case %zu in pieces of %zu", i, piece);
		}
	}
}

static void long_bodies_pass_the_window(void **state)
{
	static char text[10001];
	uint8_t wanted[DKIM_HASH_SIZE], hash[DKIM_HASH_SIZE];

	(void)state;
	memset(text, 'x', sizeof(text) - 1);
	memcpy(text + 5000, "\r\n", 2);
	memcpy(text + sizeof(text) - 3, "\r\n", 2);
	gnutls_hash_fast(GNUTLS_DIG_SHA256, text, sizeof(text) - 1, wanted);
	for (size_t piece = 1000; piece <= sizeof(text); piece += 11) {
		hash_body(text, piece, hash);
		assert_memory_equal(hash, wanted, sizeof(hash));
	}
}

static struct dkim_key *new_key(enum dkim_algorithm algorithm)
{
	struct dkim_key *key;
	struct why why;
	struct buf pem;

	buf_init(&pem, 8192);
	assert_int_equal(dkim_key_generate(algorithm, &pem, &why), 0);
	assert_int_equal(dkim_key_load(algorithm, buf_slice(&pem), &key, &why), 0);
	buf_wipe(&pem);
	return key;
}

/* The public key as its DNS record gives it. */
static gnutls_pubkey_t published(struct dkim_key *key, enum dkim_algorithm algorithm)
{
	gnutls_pubkey_t public;
	struct buf record, octets;

	buf_init(&record, 2048);
	buf_init(&octets, 2048);
	assert_int_equal(dkim_key_record(key, &record), 0);
	struct slice text = buf_slice(&record);
	const char *p = memmem(text.ptr, text.len, "p=", 2);
	assert_non_null(p);
	assert_int_equal(
	        base64_decode(slice_part(text, (size_t)(p + 2 - text.ptr), text.len), &octets), 0);
	const gnutls_datum_t datum = {
	        (unsigned char *)(uintptr_t)buf_slice(&octets).ptr, (unsigned)buf_len(&octets)};
	assert_int_equal(gnutls_pubkey_init(&public), 0);
	if (algorithm == DKIM_RSA_SHA256)
		assert_int_equal(gnutls_pubkey_import(public, &datum, GNUTLS_X509_FMT_DER), 0);
	else
		assert_int_equal(gnutls_pubkey_import_ecc_raw(
		                         public, GNUTLS_ECC_CURVE_ED25519, &datum, NULL),
		        0);
	buf_done(&record);
	buf_done(&octets);
	return public;
}

static struct slice sign(
        struct dkim_key *key, struct slice header, struct buf *out, const char *body)
{
	const struct dkim_signing signing = {
	        .domain = SLICE("x.example"),
	        .selector = SLICE("s1"),
	        .key = key,
	        .now_s = 1700000000,
	        .expires_s = 1700000100,
	};
	uint8_t hash[DKIM_HASH_SIZE];
	struct why why;

	hash_body(body, 1, hash);
	assert_int_equal(dkim_sign(&signing, header, hash, out, &why), 0);
	return buf_slice(out);
}

/* White space to one blank each, none at the end: enough for a field that we wrote. */
static void append_relaxed(struct buf *out, struct slice text)
{
	bool blank = false;

	for (size_t i = 0; i < text.len; i++) {
		bool white = memchr(" \t\r\n", text.ptr[i], 4) != NULL;
		if (!white && blank)
			assert_int_equal(buf_append(out, " ", 1), 0);
		if (!white)
			assert_int_equal(buf_append(out, text.ptr + i, 1), 0);
		blank = white;
	}
}

static void expect_signature(enum dkim_algorithm algorithm, const char *header, const char *signed_)
{
	struct dkim_key *key = new_key(algorithm);
	gnutls_pubkey_t public = published(key, algorithm);
	struct buf out, canonical, base64, signature;
	uint8_t hash[DKIM_HASH_SIZE];

	buf_init(&out, 65536);
	buf_init(&canonical, 65536);
	buf_init(&base64, 8192);
	buf_init(&signature, 8192);
	struct slice field = sign(key, slice_str(header), &out, "");
	const char *b = memmem(field.ptr, field.len, "\tb=", 3);
	assert_non_null(b);
	size_t tags = (size_t)(b - field.ptr) + 3;

	assert_int_equal(buf_append_str(&canonical, signed_), 0);
	assert_int_equal(buf_append_str(&canonical, "dkim-signature:"), 0);
	append_relaxed(&canonical,
	        slice_part(field, strlen("DKIM-Signature: "), tags - strlen("DKIM-Signature: ")));
	for (size_t i = tags; i < field.len; i++)
		if (memchr("\t\r\n", field.ptr[i], 3) == NULL)
			assert_int_equal(buf_append(&base64, field.ptr + i, 1), 0);
	assert_int_equal(base64_decode(buf_slice(&base64), &signature), 0);

	gnutls_hash_fast(GNUTLS_DIG_SHA256, buf_slice(&canonical).ptr, buf_len(&canonical), hash);
	const gnutls_datum_t digest = {hash, sizeof(hash)};
	const gnutls_datum_t octets = {(unsigned char *)(uintptr_t)buf_slice(&signature).ptr,
	        (unsigned)buf_len(&signature)};
	assert_int_equal(algorithm == DKIM_RSA_SHA256
	                         ? gnutls_pubkey_verify_hash2(
	                                   public, GNUTLS_SIGN_RSA_SHA256, 0, &digest, &octets)
	                         : gnutls_pubkey_verify_data2(
	                                   public, GNUTLS_SIGN_EDDSA_ED25519, 0, &digest, &octets),
	        0);
	gnutls_pubkey_deinit(public);
	dkim_key_unref(key);
	buf_done(&out);
	buf_done(&canonical);
	buf_done(&base64);
	buf_done(&signature);
}

static void headers_are_signed_in_canonical_form(void **state)
{
	static const char header[] = "X-Unsigned: 1\r\n"
	                             "Subject:a\t b \r\n\t c  \r\n"
	                             "fRoM: \r\n a@x.example\r\n"
	                             "Cc:\r\n"
	                             "Resent-To: first\r\n"
	                             "Resent-To: second\r\n"
	                             "\r\n";
	/* In the order of h=, fields of one name from the last one up (RFC 6376 5.4.2). */
	static const char canonical[] = "from:a@x.example\r\n"
	                                "cc:\r\n"
	                                "subject:a b c\r\n"
	                                "resent-to:second\r\n"
	                                "resent-to:first\r\n";
	(void)state;
	expect_signature(DKIM_RSA_SHA256, header, canonical);
	expect_signature(DKIM_ED25519_SHA256, header, canonical);
}

static size_t count_of(struct slice text, const char *word)
{
	size_t count = 0;
	const char *at;

	while ((at = memmem(text.ptr, text.len, word, strlen(word))) != NULL) {
		count++;
		text = slice_part(text, (size_t)(at - text.ptr) + strlen(word), text.len);
	}
	return count;
}

static void any_header_that_is_accepted_can_be_signed(void **state)
{
	struct dkim_key *key = new_key(DKIM_ED25519_SHA256);
	struct buf header, out;

	(void)state;
	buf_init(&header, HEADER_MAX);
	buf_init(&out, 65536);
	for (unsigned i = 0; i < HEADER_FIELDS_MAX; i++)
		assert_int_equal(buf_append_str(&header, "List-Unsubscribe-Post: a\r\n"), 0);
	assert_int_equal(buf_append_str(&header, "\r\n"), 0);
	struct slice field = sign(key, buf_slice(&header), &out, "a\r\n");
	assert_int_equal(count_of(field, "List-Unsubscribe-Post"), HEADER_FIELDS_MAX + 1);
	/* RFC 5322 2.1.1 */
	while (field.len > 0)
		assert_true(slice_until(&field, '\n').len <= 79);
	dkim_key_unref(key);
	buf_done(&header);
	buf_done(&out);
}

static void short_and_wrong_keys_are_refused(void **state)
{
	struct dkim_key *key;
	struct why why;
	struct buf pem;

	(void)state;
	buf_init(&pem, 8192);
	assert_int_equal(dkim_key_generate(DKIM_ED25519_SHA256, &pem, &why), 0);
	assert_true(dkim_key_load(DKIM_RSA_SHA256, buf_slice(&pem), &key, &why) < 0);
	assert_true(dkim_key_load(DKIM_RSA_SHA256, SLICE("no key"), &key, &why) < 0);
	buf_done(&pem);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(bodies_are_canonical_wherever_they_are_cut),
	        cmocka_unit_test(long_bodies_pass_the_window),
	        cmocka_unit_test(headers_are_signed_in_canonical_form),
	        cmocka_unit_test(any_header_that_is_accepted_can_be_signed),
	        cmocka_unit_test(short_and_wrong_keys_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: ISC */
/*
 * DKIM: the body hash in pieces is that of the whole, and the one that a simple reader of
 * RFC 6376 3.4.4 computes; every header that is accepted can be signed. An octet that seeds
 * the pieces, the header with its empty line, the body.
 */
#include "gateway/dkim/dkim.h"

#include "gateway/mail/header.h"
#include "tests/fuzz/fuzz.h"

/* RFC 8463 A.2 */
static const char key_pem[] = "-----BEGIN PRIVATE KEY-----\n"
                              "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMRBScVpezJpGXA7rAMcrn9g\n"
                              "-----END PRIVATE KEY-----\n";

static void hash_body(struct slice body, unsigned seed, uint8_t ret_hash[DKIM_HASH_SIZE])
{
	struct dkim_body hashing;
	bool whole = seed == 0;

	assert_bug(dkim_body_init(&hashing) == 0);
	while (body.len > 0) {
		seed = seed * 1103515245U + 12345U;
		size_t len = whole ? body.len : MIN_OF((size_t)1 + (seed >> 16) % 16, body.len);
		dkim_body_update(&hashing, slice_of(body.ptr, len));
		body = slice_part(body, len, body.len);
	}
	dkim_body_done(&hashing, ret_hash);
}

/* Relaxed, line for line: runs of blanks become one, none at the end, no empty lines at the end. */
static void hash_simply(struct slice body, uint8_t ret_hash[DKIM_HASH_SIZE])
{
	struct buf out;
	size_t kept = 0;

	buf_init(&out, body.len + 1);
	while (body.len > 0) {
		struct slice line = slice_until(&body, '\n');
		line.len--; /* its CR */
		bool blank = false;
		size_t start = buf_len(&out);
		for (size_t i = 0; i < line.len; i++) {
			bool is_blank = line.ptr[i] == ' ' || line.ptr[i] == '\t';
			if (!is_blank && blank)
				assert_bug(buf_append(&out, " ", 1) == 0);
			if (!is_blank)
				assert_bug(buf_append(&out, &line.ptr[i], 1) == 0);
			blank = is_blank;
		}
		bool empty = buf_len(&out) == start;
		assert_bug(buf_append(&out, "\r\n", 2) == 0);
		kept = empty ? kept : buf_len(&out);
	}
	gnutls_hash_fast(GNUTLS_DIG_SHA256, buf_slice(&out).ptr, kept, ret_hash);
	buf_done(&out);
}

static void ignore_mailbox(void *arg, const struct mailbox *mailbox)
{
	(void)arg;
	(void)mailbox;
}

static void check_signature(struct slice signature, const struct header_facts *facts)
{
	struct header_field field;
	struct slice rest = signature;

	assert_bug(facts->from_domain.len > 0);
	assert_bug(slice_starts_with(signature, SLICE("DKIM-Signature: ")));
	assert_bug(fuzz_lines_are_whole(signature) && slice_is_ascii(signature));
	assert_bug(header_next(&rest, &field) == 1 && rest.len == 0);
	while (rest.len > 0)
		assert_bug(slice_until(&rest, '\n').len <= 999);
}

static void sign(struct slice header, const uint8_t hash[DKIM_HASH_SIZE])
{
	static struct dkim_key *key;
	struct header_facts facts;
	struct buf out;
	struct why why;

	if (key == NULL)
		assert_bug(dkim_key_load(DKIM_ED25519_SHA256, slice_str(key_pem), &key, &why) == 0);
	struct slice fields = slice_of(header.ptr, header.len - 2);
	if (header_check(fields, true, ignore_mailbox, NULL, &facts) != HEADER_FINE)
		return;
	const struct dkim_signing signing = {
	        .domain = SLICE("x.example"),
	        .selector = SLICE("s1"),
	        .key = key,
	        .now_s = 1700000000,
	        .expires_s = 1700000000 + 86400,
	};
	buf_init(&out, 65536);
	assert_bug(dkim_sign(&signing, header, hash, &out, &why) == 0);
	check_signature(buf_slice(&out), &facts);
	buf_done(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice body = slice_of(data, size);
	unsigned seed = fuzz_u8(&body) + 1U;
	uint8_t hash[DKIM_HASH_SIZE], again[DKIM_HASH_SIZE];
	const char *end = body.len == 0 ? NULL : memmem(body.ptr, body.len, "\r\n\r\n", 4);
	struct slice header = fuzz_take(&body, end == NULL ? 0 : (size_t)(end - body.ptr) + 4);

	hash_body(body, 0, hash);
	hash_body(body, seed, again);
	assert_bug(memcmp(hash, again, sizeof(hash)) == 0);
	if (fuzz_lines_are_whole(body)) {
		hash_simply(body, again);
		assert_bug(memcmp(hash, again, sizeof(hash)) == 0);
	}
	if (header.len > 0 && fuzz_lines_are_whole(header))
		sign(header, hash);
	return 0;
}

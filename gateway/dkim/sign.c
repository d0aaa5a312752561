/* SPDX-License-Identifier: ISC */
/* The signature over header and body hash (RFC 6376 3.5, 3.7). Any thread. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "gateway/base/encode.h"
#include "gateway/dkim/key.h"
#include "gateway/mail/header.h"

#define FIELDS_MAX    (HEADER_FIELDS_MAX + 3) /* and those that we have added */
#define LINE_COLUMNS  76
#define NAMES_MAX     32768 /* h= of any header that was accepted (HEADER_FIELDS_MAX) */
#define BASE64_MAX    16384
#define CANONICAL_MAX (1U << 20)

/*
 * Signed once more often than they occur, so that none can be added later (RFC 6376
 * 8.15). The order is that of h=.
 */
static const char *const oversigned[] = {
        "From",
        "To",
        "Cc",
        "Subject",
        "Date",
        "Reply-To",
        "Message-ID",
        "MIME-Version",
        "Content-Type",
        "Content-Transfer-Encoding",
        "List-Id",
        "List-Help",
        "List-Unsubscribe",
        "List-Unsubscribe-Post",
        "List-Subscribe",
        "List-Post",
        "List-Owner",
        "List-Archive",
};

/* Signed as often as they occur. */
static const char *const signed_too[] = {
        "Sender",
        "In-Reply-To",
        "References",
        "Resent-From",
        "Resent-Sender",
        "Resent-To",
        "Resent-Cc",
        "Resent-Date",
        "Resent-Message-ID",
        "Autocrypt",
};

struct field {
	struct slice name, body;
};

struct signature {
	const struct dkim_signing *signing;
	struct field fields[FIELDS_MAX];
	size_t field_count;
	struct buf names;     /* of h=, folded */
	struct buf canonical; /* what is hashed */
	size_t column;
};

/* Splits a block that was checked at acceptance; its empty line ends it. */
static void split_fields(struct signature *signature, struct slice header)
{
	struct header_field field;

	while (signature->field_count < FIELDS_MAX && header_next(&header, &field) == 1)
		signature->fields[signature->field_count++] =
		        (struct field){.name = field.name, .body = field.body};
}

/* RFC 6376 3.4.2: name lower-case, unfolded, white space to one blank, none at the ends. */
static int put_canonical(struct buf *out, struct slice name, struct slice body)
{
	bool blank = false, any = false;
	int r = 0;

	for (size_t i = 0; r == 0 && i < name.len; i++) {
		char c = ascii_lower(name.ptr[i]);
		r = buf_append(out, &c, 1);
	}
	if (r == 0)
		r = buf_append(out, ":", 1);
	for (size_t i = 0; r == 0 && i < body.len;) {
		size_t from = i;
		while (i < body.len && memchr(" \t\r\n", body.ptr[i], 4) == NULL)
			i++;
		if (i == from) {
			blank = true;
			i++;
			continue;
		}
		if (blank && any)
			r = buf_append(out, " ", 1);
		if (r == 0)
			r = buf_append(out, body.ptr + from, i - from);
		blank = false;
		any = true;
	}
	return r;
}

/* Adds one name to h=, folding before it would run over the line. */
static int put_name(struct signature *signature, const char *name)
{
	size_t len = strlen(name);
	int r = 0;

	if (buf_len(&signature->names) > 0) {
		r = buf_append(&signature->names, ":", 1);
		signature->column++;
	}
	if (r == 0 && signature->column + len + 1 > LINE_COLUMNS) {
		r = buf_append(&signature->names, "\r\n\t ", 4);
		signature->column = 9;
	}
	signature->column += len;
	return r == 0 ? buf_append(&signature->names, name, len) : r;
}

/* All instances of the field, bottom up (RFC 6376 5.4.2), each into h= and the hash. */
static int sign_field(struct signature *signature, const char *name)
{
	int r = 0;

	for (size_t i = signature->field_count; r == 0 && i > 0; i--) {
		const struct field *field = &signature->fields[i - 1];
		if (!slice_equal_nocase(field->name, slice_str(name)))
			continue;
		r = put_name(signature, name);
		if (r == 0)
			r = put_canonical(&signature->canonical, field->name, field->body);
		if (r == 0)
			r = buf_append(&signature->canonical, "\r\n", 2);
	}
	return r;
}

static int choose_fields(struct signature *signature)
{
	int r = 0;

	signature->column = 11; /* "\th=" and its tab */
	for (size_t i = 0; r == 0 && i < ARRAY_LEN(oversigned); i++) {
		r = sign_field(signature, oversigned[i]);
		if (r == 0)
			r = put_name(signature, oversigned[i]);
	}
	for (size_t i = 0; r == 0 && i < ARRAY_LEN(signed_too); i++)
		r = sign_field(signature, signed_too[i]);
	return r;
}

/* The field up to "b=". */
static int put_tags(
        const struct signature *signature, const uint8_t body_hash[DKIM_HASH_SIZE], struct buf *out)
{
	const struct dkim_signing *signing = signature->signing;
	int r = buf_printf(out,
	        "DKIM-Signature: v=1; a=%s; c=relaxed/relaxed;\r\n"
	        "\td=%.*s; s=%.*s;\r\n"
	        "\tt=%" PRId64 "; x=%" PRId64 ";\r\n"
	        "\th=",
	        dkim_algorithm_name(signing->key->algorithm), SLICE_ARGS(signing->domain),
	        SLICE_ARGS(signing->selector), signing->now_s, signing->expires_s);

	if (r == 0)
		r = buf_append_slice(out, buf_slice(&signature->names));
	if (r == 0)
		r = buf_append_str(out, ";\r\n\tbh=");
	if (r == 0)
		r = base64_encode(slice_of(body_hash, DKIM_HASH_SIZE), out);
	return r == 0 ? buf_append_str(out, ";\r\n\tb=") : r;
}

static int make_signature(
        struct signature *signature, gnutls_datum_t *ret_signature, struct why *why)
{
	struct slice canonical = buf_slice(&signature->canonical);
	unsigned char hash[DKIM_HASH_SIZE];
	const gnutls_datum_t digest = {hash, sizeof(hash)};
	const struct dkim_key *key = signature->signing->key;

	int r = gnutls_hash_fast(GNUTLS_DIG_SHA256, canonical.ptr, canonical.len, hash);
	if (r >= 0 && key->algorithm == DKIM_RSA_SHA256)
		r = gnutls_privkey_sign_hash2(
		        key->private, GNUTLS_SIGN_RSA_SHA256, 0, &digest, ret_signature);
	else if (r >= 0)
		/* RFC 8463 3: PureEdDSA over the SHA-256 of the header. */
		r = gnutls_privkey_sign_data2(
		        key->private, GNUTLS_SIGN_EDDSA_ED25519, 0, &digest, ret_signature);
	if (r < 0) {
		why_set(why, "the DKIM key does not sign: %s", gnutls_strerror(r));
		return -EIO;
	}
	return 0;
}

/* base64 folded into lines. */
static int put_folded(struct buf *out, struct slice octets)
{
	struct buf text;

	buf_init(&text, BASE64_MAX);
	int r = base64_encode(octets, &text);
	struct slice left = buf_slice(&text);
	for (size_t room = LINE_COLUMNS - 10; r == 0 && left.len > 0; room = LINE_COLUMNS - 8) {
		struct slice line = slice_of(left.ptr, MIN_OF(left.len, room));
		r = buf_append_slice(out, line);
		left = slice_part(left, line.len, left.len);
		if (r == 0 && left.len > 0)
			r = buf_append_str(out, "\r\n\t");
	}
	buf_done(&text);
	return r == 0 ? buf_append_str(out, "\r\n") : r;
}

static int sign(struct signature *signature, const uint8_t body_hash[DKIM_HASH_SIZE],
        struct buf *out, struct why *why)
{
	size_t before = buf_len(out);
	gnutls_datum_t octets = {0};

	int r = choose_fields(signature);
	if (r == 0)
		r = put_tags(signature, body_hash, out);
	if (r < 0)
		return r;
	/* The field itself, with an empty b= and without its CRLF, is hashed last. */
	struct slice own = slice_part(buf_slice(out), before, buf_len(out));
	r = put_canonical(&signature->canonical, SLICE("DKIM-Signature"),
	        slice_part(own, sizeof("DKIM-Signature:") - 1, own.len));
	if (r == 0)
		r = make_signature(signature, &octets, why);
	if (r == 0)
		r = put_folded(out, slice_of(octets.data, octets.size));
	gnutls_free(octets.data);
	if (r < 0)
		buf_truncate(out, before);
	return r;
}

int dkim_sign(const struct dkim_signing *signing, struct slice header,
        const uint8_t body_hash[DKIM_HASH_SIZE], struct buf *out, struct why *why)
{
	struct signature signature = {.signing = signing};

	buf_init(&signature.names, NAMES_MAX);
	buf_init(&signature.canonical, CANONICAL_MAX);
	split_fields(&signature, header);
	int r = sign(&signature, body_hash, out, why);
	buf_done(&signature.names);
	buf_done(&signature.canonical);
	return r;
}

/* SPDX-License-Identifier: ISC */
/*
 * The body hash in relaxed canonical form (RFC 6376 3.4.4): white space at line
 * ends goes, other white space becomes one blank, empty lines at the end go. Works
 * on spans: this runs over every octet of mail.
 */
#include <errno.h>
#include <string.h>

#include "gateway/dkim/dkim.h"

int dkim_body_init(struct dkim_body *body)
{
	body->line_ends = 0;
	body->blank = body->any = false;
	body->used = 0;
	return gnutls_hash_init(&body->hash, GNUTLS_DIG_SHA256) < 0 ? -ENOMEM : 0;
}

static void put(struct dkim_body *body, const char *octets, size_t len)
{
	if (len > sizeof(body->window) - body->used) {
		gnutls_hash(body->hash, body->window, body->used);
		body->used = 0;
		if (len > sizeof(body->window)) {
			gnutls_hash(body->hash, octets, len);
			return;
		}
	}
	memcpy(body->window + body->used, octets, len);
	body->used += len;
}

static bool is_special(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

void dkim_body_update(struct dkim_body *body, struct slice octets)
{
	const char *at = octets.ptr, *end = octets.ptr + octets.len;

	while (at < end) {
		if (*at == '\n') {
			body->line_ends++;
			body->blank = false;
			at++;
		} else if (*at == '\r') {
			at++;
		} else if (*at == ' ' || *at == '\t') {
			body->blank = true;
			at++;
		} else {
			const char *from = at;
			while (at < end && !is_special(*at))
				at++;
			for (; body->line_ends > 0; body->line_ends--)
				put(body, "\r\n", 2);
			if (body->blank)
				put(body, " ", 1);
			body->blank = false;
			body->any = true;
			put(body, from, (size_t)(at - from));
		}
	}
}

void dkim_body_done(struct dkim_body *body, uint8_t ret_hash[DKIM_HASH_SIZE])
{
	/* A body that is not empty ends with exactly one CRLF; an empty one is the empty string. */
	if (body->any)
		put(body, "\r\n", 2);
	gnutls_hash(body->hash, body->window, body->used);
	gnutls_hash_deinit(body->hash, ret_hash);
	body->hash = NULL;
}

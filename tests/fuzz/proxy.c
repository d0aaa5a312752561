/* SPDX-License-Identifier: ISC */
/* The header of the PROXY protocol. */
#include "gateway/net/proxy.h"

#include <errno.h>
#include <stdlib.h>

#include "tests/fuzz/fuzz.h"

static bool is_same(const struct proxy_header *a, const struct proxy_header *b)
{
	return a->has_source == b->has_source &&
	       (!a->has_source || (addr_same_ip(&a->source, &b->source) &&
	                                  addr_port(&a->source) == addr_port(&b->source)));
}

/* In memory of its own, so that a sanitizer sees what is read behind the end. */
static ssize_t parse_part(const uint8_t *data, size_t len, struct proxy_header *ret_header)
{
	char *copy = malloc(len + (len == 0));

	assert_bug(copy != NULL);
	memcpy(copy, data, len);
	ssize_t r = proxy_header_parse(slice_of(copy, len), ret_header);
	free(copy);
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct proxy_header header, again;

	ssize_t r = parse_part(data, size, &header);
	assert_bug(r == -EBADMSG || (r >= 0 && (size_t)r <= size && r <= PROXY_HEADER_MAX));
	if (r == 0)
		assert_bug(size < PROXY_HEADER_MAX);
	if (r <= 0)
		return 0;
	/* It does not depend on what follows, and no shorter part of it is one, or wrong. */
	assert_bug(parse_part(data, (size_t)r, &again) == r);
	assert_bug(is_same(&header, &again));
	for (size_t len = 0; len < (size_t)r; len++)
		assert_bug(parse_part(data, len, &again) == 0);
	if (header.has_source)
		assert_bug(header.source.u.sa.sa_family == AF_INET ||
		           header.source.u.sa.sa_family == AF_INET6);
	return 0;
}

/* SPDX-License-Identifier: ISC */
/* The header of the PROXY protocol; see proxy.h. Section numbers are those of proxy-protocol.txt.
 */
#include "gateway/net/proxy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#define V1_MAX       107 /* 2.1, with its CRLF */
#define V1_PREFIX    6   /* "PROXY " */
#define V2_FIXED     16
#define V2_SIGNATURE "\r\n\r\n\0\r\nQUIT\n"

static const uint8_t mapped_prefix[12] = {[10] = 0xff, [11] = 0xff};

static void set_v4(struct proxy_header *header, const void *ip, uint16_t port)
{
	header->has_source = true;
	header->source = (struct addr){.len = sizeof(header->source.u.in)};
	header->source.u.in.sin_family = AF_INET;
	header->source.u.in.sin_port = htons(port);
	memcpy(&header->source.u.in.sin_addr, ip, 4);
}

static void set_v6(struct proxy_header *header, const void *ip, uint16_t port)
{
	/* One client, one address: limits and networks know it as IPv4. */
	if (memcmp(ip, mapped_prefix, sizeof(mapped_prefix)) == 0) {
		set_v4(header, (const uint8_t *)ip + sizeof(mapped_prefix), port);
		return;
	}
	header->has_source = true;
	header->source = (struct addr){.len = sizeof(header->source.u.in6)};
	header->source.u.in6.sin6_family = AF_INET6;
	header->source.u.in6.sin6_port = htons(port);
	memcpy(&header->source.u.in6.sin6_addr, ip, 16);
}

/* ---- version 1 (2.1): a line ---- */

static bool take_ip(struct slice *line, int family, uint8_t ret_ip[16])
{
	char text[INET6_ADDRSTRLEN];
	struct slice word = slice_until(line, ' ');

	if (word.len >= sizeof(text) || memchr(word.ptr, '\0', word.len) != NULL)
		return false;
	memcpy(text, word.ptr, word.len);
	text[word.len] = '\0';
	return inet_pton(family, text, ret_ip) == 1;
}

static bool take_port(struct slice *line, uint16_t *ret_port)
{
	struct slice word = slice_until(line, ' ');
	uint64_t port;

	if (slice_to_u64(word, &port) < 0 || port > UINT16_MAX ||
	        (word.len > 1 && word.ptr[0] == '0'))
		return false;
	*ret_port = (uint16_t)port;
	return true;
}

/* The line behind "PROXY ", without its CRLF. */
static int parse_line(struct slice line, struct proxy_header *ret_header)
{
	struct proxy_header header = {0};
	uint8_t source[16], destination[16];
	uint16_t source_port, destination_port;

	struct slice protocol = slice_until(&line, ' ');
	/* Whatever stands behind it is not looked at. */
	if (slice_equal(protocol, SLICE("UNKNOWN"))) {
		*ret_header = header;
		return 0;
	}
	bool v6 = slice_equal(protocol, SLICE("TCP6"));
	int family = v6 ? AF_INET6 : AF_INET;
	if ((!v6 && !slice_equal(protocol, SLICE("TCP4"))) || !take_ip(&line, family, source) ||
	        !take_ip(&line, family, destination) || !take_port(&line, &source_port))
		return -EBADMSG;
	/* The last word: no blank may follow. */
	if (slice_find(line, ' ') >= 0 || !take_port(&line, &destination_port))
		return -EBADMSG;
	if (v6)
		set_v6(&header, source, source_port);
	else
		set_v4(&header, source, source_port);
	*ret_header = header;
	return 0;
}

static ssize_t parse_v1(struct slice input, struct proxy_header *ret_header)
{
	ptrdiff_t end = slice_find(slice_part(input, 0, V1_MAX), '\n');

	if (end < 0)
		return input.len < V1_MAX ? 0 : -EBADMSG;
	struct slice line = slice_part(input, V1_PREFIX, (size_t)end - V1_PREFIX);
	if (line.len == 0 || line.ptr[line.len - 1] != '\r')
		return -EBADMSG;
	line.len--;
	int r = parse_line(line, ret_header);
	return r < 0 ? r : end + 1;
}

/* ---- version 2 (2.2): binary ---- */

static uint16_t get_u16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

/* The addresses, as `family` says how; extensions may follow them. */
static int parse_addresses(uint8_t family, struct slice body, struct proxy_header *header)
{
	const uint8_t *at = (const uint8_t *)body.ptr;

	switch (family) {
	case 0x00: /* not known, or of a kind that has no name here */
		return 0;
	case 0x11: /* TCP over IPv4: source, destination, their ports */
		if (body.len < 12)
			return -EBADMSG;
		set_v4(header, at, get_u16(at + 8));
		return 0;
	case 0x21: /* TCP over IPv6 */
		if (body.len < 36)
			return -EBADMSG;
		set_v6(header, at, get_u16(at + 32));
		return 0;
	default: /* datagrams, unix sockets: nobody submits mail by those */
		return -EBADMSG;
	}
}

static ssize_t parse_v2(struct slice input, struct proxy_header *ret_header)
{
	const uint8_t *at = (const uint8_t *)input.ptr;
	struct proxy_header header = {0};

	if (input.len > 12 && at[12] != 0x20 && at[12] != 0x21)
		return -EBADMSG;
	if (input.len < V2_FIXED)
		return 0;
	size_t len = V2_FIXED + get_u16(at + 14);
	if (len > PROXY_HEADER_MAX)
		return -EBADMSG;
	if (input.len < len)
		return 0;
	/* LOCAL: the proxy speaks for itself, what follows is not looked at. */
	int r = at[12] == 0x20 ? 0
	                       : parse_addresses(at[13],
	                                 slice_part(input, V2_FIXED, len - V2_FIXED), &header);
	if (r < 0)
		return r;
	*ret_header = header;
	return (ssize_t)len;
}

static bool begins(struct slice input, struct slice with)
{
	size_t len = MIN_OF(input.len, with.len);

	return memcmp(input.ptr, with.ptr, len) == 0;
}

ssize_t proxy_header_parse(struct slice input, struct proxy_header *ret_header)
{
	const struct slice v1 = SLICE("PROXY "), v2 = slice_of(V2_SIGNATURE, 12);

	if (input.len == 0)
		return 0;
	if (begins(input, v1))
		return input.len < v1.len ? 0 : parse_v1(input, ret_header);
	if (begins(input, v2))
		return input.len < v2.len ? 0 : parse_v2(input, ret_header);
	return -EBADMSG;
}

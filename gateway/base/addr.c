/* SPDX-License-Identifier: ISC */
/* Socket addresses; see addr.h. */
#include "gateway/base/addr.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

int addr_split(struct slice text, struct slice *ret_host, uint16_t *ret_port)
{
	ptrdiff_t colon = slice_find_last(text, ':');
	uint64_t port;

	if (colon <= 0)
		return -EINVAL;
	struct slice host = slice_of(text.ptr, (size_t)colon);
	if (slice_to_u64(slice_part(text, (size_t)colon + 1, text.len), &port) < 0 || port == 0 ||
	        port > UINT16_MAX)
		return -EINVAL;
	if (host.ptr[0] == '[') {
		if (host.len < 3 || host.ptr[host.len - 1] != ']')
			return -EINVAL;
		host = slice_of(host.ptr + 1, host.len - 2);
	} else if (slice_find(host, ':') >= 0) {
		return -EINVAL;
	}
	*ret_host = host;
	*ret_port = (uint16_t)port;
	return 0;
}

static int parse_ip(struct slice ip, bool v6, uint16_t port, struct addr *ret_addr)
{
	struct addr addr = {0};
	char host[INET6_ADDRSTRLEN];

	/* What is behind a NUL would not be looked at. */
	if (ip.len >= sizeof(host) || slice_find(ip, '\0') >= 0)
		return -EINVAL;
	memcpy(host, ip.ptr, ip.len);
	host[ip.len] = '\0';

	if (v6) {
		addr.u.in6 =
		        (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port)};
		addr.len = sizeof(addr.u.in6);
		if (inet_pton(AF_INET6, host, &addr.u.in6.sin6_addr) != 1)
			return -EINVAL;
	} else {
		addr.u.in = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
		addr.len = sizeof(addr.u.in);
		if (inet_pton(AF_INET, host, &addr.u.in.sin_addr) != 1)
			return -EINVAL;
	}
	*ret_addr = addr;
	return 0;
}

int addr_parse(struct slice text, struct addr *ret_addr)
{
	struct slice ip;
	uint16_t port;

	int r = addr_split(text, &ip, &port);
	return r < 0 ? r : parse_ip(ip, text.ptr[0] == '[', port, ret_addr);
}

/* Its octets, in the order of the network. */
static const uint8_t *octets_of(const struct addr *addr)
{
	return addr->u.sa.sa_family == AF_INET6 ? addr->u.in6.sin6_addr.s6_addr
	                                        : (const uint8_t *)&addr->u.in.sin_addr;
}

int addr_net_parse(struct slice text, struct addr_net *ret_net)
{
	struct slice mask = text, ip = slice_until(&mask, '/');
	bool v6 = slice_find(ip, ':') >= 0;
	uint64_t bits, most = v6 ? 128 : 32;
	struct addr_net net;

	int r = parse_ip(ip, v6, 0, &net.addr);
	if (r < 0)
		return r;
	if (ip.len == text.len)
		bits = most;
	else if (slice_to_u64(mask, &bits) < 0 || bits > most)
		return -EINVAL;
	for (uint64_t i = bits; i < most; i++) {
		if ((octets_of(&net.addr)[i / 8] & 0x80U >> i % 8) != 0)
			return -EINVAL;
	}
	net.bits = (unsigned)bits;
	*ret_net = net;
	return 0;
}

bool addr_net_holds(const struct addr_net *net, const struct addr *addr)
{
	const uint8_t *a = octets_of(&net->addr), *b = octets_of(addr);
	unsigned whole = net->bits / 8, left = net->bits % 8;

	if (net->addr.u.sa.sa_family != addr->u.sa.sa_family || memcmp(a, b, whole) != 0)
		return false;
	return left == 0 || ((a[whole] ^ b[whole]) & 0xff00U >> left & 0xff) == 0;
}

const char *addr_format_ip(const struct addr *addr, char ret_text[ADDR_TEXT])
{
	const void *ip = addr->u.sa.sa_family == AF_INET6 ? (const void *)&addr->u.in6.sin6_addr
	                                                  : (const void *)&addr->u.in.sin_addr;

	if (inet_ntop(addr->u.sa.sa_family, ip, ret_text, ADDR_TEXT) == NULL)
		snprintf(ret_text, ADDR_TEXT, "unknown");
	return ret_text;
}

const char *addr_format(const struct addr *addr, char ret_text[ADDR_TEXT])
{
	char ip[ADDR_TEXT];
	bool v6 = addr->u.sa.sa_family == AF_INET6;

	addr_format_ip(addr, ip);
	snprintf(ret_text, ADDR_TEXT, "%s%.45s%s:%u", v6 ? "[" : "", ip, v6 ? "]" : "",
	        addr_port(addr));
	return ret_text;
}

int addr_from_sockaddr(const struct sockaddr *sa, socklen_t len, struct addr *ret_addr)
{
	struct addr addr = {0};

	if (sa->sa_family == AF_INET && len >= sizeof(addr.u.in))
		addr.len = sizeof(addr.u.in);
	else if (sa->sa_family == AF_INET6 && len >= sizeof(addr.u.in6))
		addr.len = sizeof(addr.u.in6);
	else
		return -EAFNOSUPPORT;
	memcpy(&addr.u, sa, addr.len);
	*ret_addr = addr;
	return 0;
}

uint16_t addr_port(const struct addr *addr)
{
	return ntohs(
	        addr->u.sa.sa_family == AF_INET6 ? addr->u.in6.sin6_port : addr->u.in.sin_port);
}

bool addr_same_ip(const struct addr *a, const struct addr *b)
{
	if (a->u.sa.sa_family != b->u.sa.sa_family)
		return false;
	if (a->u.sa.sa_family == AF_INET6)
		return memcmp(&a->u.in6.sin6_addr, &b->u.in6.sin6_addr, 16) == 0;
	return a->u.in.sin_addr.s_addr == b->u.in.sin_addr.s_addr;
}

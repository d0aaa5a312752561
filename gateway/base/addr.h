/* SPDX-License-Identifier: ISC */
/* Socket addresses as text and back. Numbers only: nothing here asks the DNS. Any thread. */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

union addr_any {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

struct addr {
	union addr_any u;
	socklen_t len;
};

/* A network: the first `bits` of its addresses. */
struct addr_net {
	struct addr addr;
	unsigned bits;
};

/*
 * What one customer has of IPv6 is a /64 to a /48, most often a /56 at home. Whoever is counted is
 * counted by /56: a /64 would give one customer 256 shares. Those who have less share one.
 */
#define ADDR_CUSTOMER_OCTETS_V6 7

/* "[2001:db8::1]:65535" and its terminator. */
#define ADDR_TEXT 64

/* "192.0.2.1:587" or "[::]:587"; 0 or -EINVAL. */
int addr_parse(struct slice text, struct addr *ret_addr) must_check;

/* With the port / without it and without brackets; return `ret_text`. */
const char *addr_format(const struct addr *addr, char ret_text[ADDR_TEXT]);
const char *addr_format_ip(const struct addr *addr, char ret_text[ADDR_TEXT]);

/*
 * Splits "host:port" or "[v6]:port" (the form of `hosts` of an upstream); the
 * host may be a name. 0 or -EINVAL.
 */
int addr_split(struct slice text, struct slice *ret_host, uint16_t *ret_port) must_check;

/* From a kernel sockaddr of IPv4 or IPv6; 0 or -EAFNOSUPPORT. */
int addr_from_sockaddr(const struct sockaddr *sa, socklen_t len, struct addr *ret_addr) must_check;

/* "192.0.2.0/24", "2001:db8::/32", or an address alone. 0 or -EINVAL, also for bits behind the
 * mask. */
int addr_net_parse(struct slice text, struct addr_net *ret_net) must_check;

bool addr_net_holds(const struct addr_net *net, const struct addr *addr);

uint16_t addr_port(const struct addr *addr);

/* Same family and IP address; ports are not compared. */
bool addr_same_ip(const struct addr *a, const struct addr *b);

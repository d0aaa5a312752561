/* SPDX-License-Identifier: ISC */
/*
 * The header of the PROXY protocol, versions 1 and 2, with which a load balancer says whom it
 * speaks for: proxy-protocol.txt of HAProxy. Pure. Whether the sender may be believed is the
 * caller's to judge.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "gateway/base/addr.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

/* Of a header: version 1 has 107 octets at most, version 2 may have extensions, which are skipped.
 */
#define PROXY_HEADER_MAX 4096

struct proxy_header {
	bool has_source;    /* false: the connection is the proxy's own, or it does not know */
	struct addr source; /* IPv4 in IPv6 (::ffff:192.0.2.1) has become IPv4 */
};

/*
 * Reads the header that `input` begins with. Its length, or 0 when more octets are needed (fewer
 * than PROXY_HEADER_MAX have come, and all of them are the header's), or -EBADMSG.
 */
ssize_t proxy_header_parse(struct slice input, struct proxy_header *ret_header) must_check;

/* SPDX-License-Identifier: ISC */
/* The Received field; see trace.h. */
#include "gateway/mail/trace.h"

#include "gateway/base/clock.h"
#include "gateway/mail/path.h"

int trace_write(const struct trace *trace, struct buf *out)
{
	char date[CLOCK_TEXT_SIZE];
	/* RFC 3848, RFC 6531 4.3: the client has logged in, always under TLS. */
	const char *protocol = trace->smtputf8 ? "UTF8SMTPSA" : trace->esmtp ? "ESMTPSA" : "SMTP";
	struct slice helo = helo_is_presentable(trace->helo) ? trace->helo : SLICE("EHLO");

	return buf_printf(out,
	        "Received: from %.*s\r\n\tby %s (Postern) with %s id %s\r\n"
	        "\t(using %s with cipher %s);\r\n\t%s\r\n",
	        SLICE_ARGS(helo), trace->hostname, protocol, trace->id, trace->tls_version,
	        trace->tls_cipher, clock_rfc5322(trace->wall_s, date));
}

/* SPDX-License-Identifier: ISC */
/* The Received field; see trace.h. */
#include "gateway/mail/trace.h"

#include "gateway/base/clock.h"
#include "gateway/mail/path.h"

int trace_write(const struct trace *trace, struct buf *out)
{
	char date[CLOCK_TEXT_SIZE];
	bool extended = trace->smtputf8 || trace->esmtp, tls = trace->tls_version != NULL;
	struct slice helo = helo_is_presentable(trace->helo) ? trace->helo : SLICE("EHLO");

	/* RFC 3848, RFC 6531 4.3: an S for TLS, an A for a login. */
	int r = buf_printf(out, "Received: from %.*s\r\n\tby %s (Postern) with %s%s%s id %s",
	        SLICE_ARGS(helo), trace->hostname,
	        trace->smtputf8 ? "UTF8SMTP"
	        : trace->esmtp  ? "ESMTP"
	                        : "SMTP",
	        extended && tls ? "S" : "", extended && trace->logged_in ? "A" : "", trace->id);
	if (r == 0 && tls)
		r = buf_printf(out, "\r\n\t(using %s with cipher %s)", trace->tls_version,
		        trace->tls_cipher);
	return r == 0 ? buf_printf(out, ";\r\n\t%s\r\n", clock_rfc5322(trace->wall_s, date)) : r;
}

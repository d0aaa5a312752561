/* SPDX-License-Identifier: ISC */
/* Delivery status notifications; see dsn.h. */
#include "gateway/mail/dsn.h"

#include <stdbool.h>
#include <string.h>

#include "gateway/base/clock.h"

/* Enough for any real header; what is longer is cut at a line. */
#define ORIGINAL_SHOWN 16384

static bool is_delay(const struct dsn *dsn)
{
	return dsn->retry_until_s != 0;
}

static int write_header(const struct dsn *dsn, struct buf *out)
{
	char date[CLOCK_TEXT_SIZE];

	return buf_printf(out,
	        "Date: %s\r\n"
	        "From: Mail delivery <MAILER-DAEMON@%s>\r\n"
	        "To: <%.*s>\r\n"
	        "Subject: Your message %s\r\n"
	        "Message-ID: <%s@%s>\r\n"
	        "Auto-Submitted: auto-replied\r\n"
	        "MIME-Version: 1.0\r\n"
	        "Content-Transfer-Encoding: 8bit\r\n"
	        "Content-Type: multipart/report; report-type=delivery-status;\r\n"
	        "\tboundary=\"=_%s\"\r\n"
	        "\r\n",
	        clock_rfc5322(dsn->wall_s, date), dsn->hostname, SLICE_ARGS(dsn->sender),
	        is_delay(dsn) ? "has not been delivered yet" : "could not be delivered", dsn->id,
	        dsn->hostname, dsn->id);
}

static int write_words(const struct dsn *dsn, struct buf *out)
{
	char until[CLOCK_TEXT_SIZE];
	int r = buf_printf(out,
	        "--=_%s\r\n"
	        "Content-Type: text/plain; charset=utf-8\r\n"
	        "Content-Transfer-Encoding: 8bit\r\n"
	        "\r\n"
	        "Your message %s %s to:\r\n"
	        "\r\n",
	        dsn->id, dsn->original_id,
	        is_delay(dsn) ? "has not been delivered yet" : "could not be delivered");

	for (uint32_t i = 0; r == 0 && i < dsn->recipient_count; i++) {
		const struct dsn_recipient *recipient = &dsn->recipients[i];
		r = buf_printf(out, "    %.*s\r\n        %.700s\r\n",
		        SLICE_ARGS(recipient->address), recipient->diagnostic);
	}
	if (r < 0)
		return r;
	if (is_delay(dsn))
		r = buf_printf(out,
		        "\r\n"
		        "There is nothing that you need to do: it is tried again and again, "
		        "until\r\n"
		        "%s. If it cannot be delivered by then, you will be told.\r\n"
		        "\r\n",
		        clock_rfc5322(dsn->retry_until_s, until));
	else
		r = buf_append_str(out,
		        "\r\n"
		        "It will not be tried again. Please check the addresses, or ask "
		        "whoever\r\n"
		        "runs this mail service and name the message by its number above.\r\n"
		        "\r\n");
	return r;
}

/* What message/delivery-status cannot carry as it is: RFC 6533 3, utf-8-addr-xtext. */
static bool needs_escape(unsigned char c)
{
	return c <= ' ' || c >= 0x7f || c == '+' || c == '=' || c == '\\';
}

/* "utf-8; gr\x{FC}n@y.example" for an address (valid UTF-8) that ASCII cannot tell. */
static int write_final_recipient(struct slice address, struct buf *out)
{
	if (slice_is_ascii(address))
		return buf_printf(out, "Final-Recipient: rfc822; %.*s\r\n", SLICE_ARGS(address));

	int r = buf_append_str(out, "Final-Recipient: utf-8; ");
	for (size_t i = 0; r == 0 && i < address.len; i++) {
		unsigned char c = (unsigned char)address.ptr[i];
		if (!needs_escape(c)) {
			r = buf_append(out, &address.ptr[i], 1);
			continue;
		}
		/* The bits of its lead octet, then six of each that follows. */
		uint32_t point = c & (c < 0x80 ? 0x7fU : c < 0xe0 ? 0x1fU : c < 0xf0 ? 0x0fU : 7U);
		for (; i + 1 < address.len && (address.ptr[i + 1] & 0xc0) == 0x80; i++)
			point = point << 6 | (address.ptr[i + 1] & 0x3fU);
		r = buf_printf(out, "\\x{%02X}", point);
	}
	return r == 0 ? buf_append(out, "\r\n", 2) : r;
}

/* A reply of the host that was asked, or our own words about it (RFC 3464 2.3.6). */
static const char *diagnostic_type(const char *diagnostic)
{
	bool reply = strspn(diagnostic, "0123456789") == 3;

	return reply ? "smtp" : "x-postern";
}

static int write_status(const struct dsn *dsn, struct buf *out)
{
	char arrived[CLOCK_TEXT_SIZE], until[CLOCK_TEXT_SIZE];
	int r = buf_printf(out,
	        "--=_%s\r\n"
	        "Content-Type: message/delivery-status\r\n"
	        "\r\n"
	        "Reporting-MTA: dns; %s\r\n"
	        "Arrival-Date: %s\r\n",
	        dsn->id, dsn->hostname, clock_rfc5322(dsn->accepted_s, arrived));

	for (uint32_t i = 0; r == 0 && i < dsn->recipient_count; i++) {
		const struct dsn_recipient *recipient = &dsn->recipients[i];
		r = buf_append_str(out, "\r\n");
		if (r == 0)
			r = write_final_recipient(recipient->address, out);
		if (r == 0)
			r = buf_printf(out, "Action: %s\r\nStatus: %s\r\n",
			        is_delay(dsn) ? "delayed" : "failed", recipient->status);
		if (r == 0 && recipient->remote_mta != NULL)
			r = buf_printf(out, "Remote-MTA: dns; %s\r\n", recipient->remote_mta);
		if (r == 0 && recipient->remote_mta != NULL)
			r = buf_printf(out, "Diagnostic-Code: %s; %.700s\r\n",
			        diagnostic_type(recipient->diagnostic), recipient->diagnostic);
		if (r == 0 && is_delay(dsn))
			r = buf_printf(out, "Will-Retry-Until: %s\r\n",
			        clock_rfc5322(dsn->retry_until_s, until));
	}
	return r == 0 ? buf_append_str(out, "\r\n") : r;
}

/* Whole lines only, so that the part stays a header. */
static struct slice cut_header(struct slice header)
{
	if (header.len <= ORIGINAL_SHOWN)
		return header;
	ptrdiff_t end = slice_find_last(slice_of(header.ptr, ORIGINAL_SHOWN), '\n');
	return slice_of(header.ptr, (size_t)(end + 1));
}

static int write_original(const struct dsn *dsn, struct buf *out)
{
	int r = buf_printf(out,
	        "--=_%s\r\n"
	        "Content-Type: text/rfc822-headers\r\n"
	        "Content-Transfer-Encoding: 8bit\r\n"
	        "\r\n",
	        dsn->id);

	if (r == 0)
		r = buf_append_slice(out, cut_header(dsn->original_header));
	return r == 0 ? buf_printf(out, "\r\n--=_%s--\r\n", dsn->id) : r;
}

int dsn_write(const struct dsn *dsn, struct buf *ret_header, struct buf *ret_body)
{
	int r = write_header(dsn, ret_header);

	if (r == 0)
		r = write_words(dsn, ret_body);
	if (r == 0)
		r = write_status(dsn, ret_body);
	return r == 0 ? write_original(dsn, ret_body) : r;
}

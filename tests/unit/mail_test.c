/* SPDX-License-Identifier: ISC */
/* The grammar of SMTP and of messages, whole and in pieces of every size. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <stdlib.h>

#include "gateway/mail/address.h"
#include "gateway/mail/dot.h"
#include "gateway/mail/dsn.h"
#include "gateway/mail/ehlo.h"
#include "gateway/mail/envelope.h"
#include "gateway/mail/header.h"
#include "gateway/mail/line.h"
#include "gateway/mail/newline.h"
#include "gateway/mail/param.h"
#include "gateway/mail/path.h"
#include "gateway/mail/reply.h"
#include "gateway/mail/sender_right.h"
#include "gateway/mail/trace.h"

static void mailboxes_are_strict(void **state)
{
	static const struct {
		const char *text;
		bool good;
	} cases[] = {
	        {"alice@example.org", true},
	        {"a.b+c@example.org", true},
	        {"\"a b\"@example.org", true},
	        {"a@[192.0.2.1]", true},
	        {"a@[IPv6:2001:db8::1]", true},
	        {"a..b@example.org", false},
	        {".a@example.org", false},
	        {"a.@example.org", false},
	        {"a@", false},
	        {"@example.org", false},
	        {"a@-example.org", false},
	        {"a@exam ple.org", false},
	        {"a b@example.org", false},
	        {"a@b@example.org", false},
	        {"a\"b@example.org", false},
	        {"a@example..org", false},
	        {"a@example.org\n", false},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct mailbox mailbox;
		int r = mailbox_parse(slice_str(cases[i].text), &mailbox);
		if ((r == 0) != cases[i].good)
			fail_msg("%s: %d", cases[i].text, r);
	}
}

static void paths_take_no_source_routes(void **state)
{
	struct mailbox mailbox;
	struct slice rest = SLICE("<a@b.example> SIZE=1");

	(void)state;
	assert_int_equal(path_parse(&rest, &mailbox), 0);
	assert_slice_equal(mailbox.text, "a@b.example");
	assert_slice_equal(rest, " SIZE=1");
	rest = SLICE("<>");
	assert_int_equal(path_parse(&rest, &mailbox), 0);
	assert_int_equal(mailbox.text.len, 0);
	rest = SLICE("<@relay.example:a@b.example>");
	assert_int_equal(path_parse(&rest, &mailbox), -EINVAL);
	rest = SLICE("a@b.example");
	assert_int_equal(path_parse(&rest, &mailbox), -EINVAL);
}

static void paths_end_where_they_end(void **state)
{
	static const struct {
		const char *text, *mailbox, *rest; /* NULL: refused */
	} cases[] = {
	        {"<\"a>b\"@x.example>z", "\"a>b\"@x.example", "z"},
	        {"<\"a\\\">\"@x.example>", "\"a\\\">\"@x.example", ""},
	        {"<a@[IPv6:::1]>", "a@[IPv6:::1]", ""},
	        {"<a@x.example", NULL, NULL},
	        {"<\"a@x.example>", NULL, NULL},
	        {"< a@x.example>", NULL, NULL},
	        {"<a@x.example >", NULL, NULL},
	        {"<a@x.example.>", NULL, NULL},
	        {"<a@x_y.example>", NULL, NULL},
	        {"<a@[1.2.3.4]x>", NULL, NULL},
	        {"<postmaster>", NULL, NULL},
	        {"<\xe4@x.example>", NULL, NULL},
	        {"<\xc0\xaf@x.example>", NULL, NULL},
	        {"<", NULL, NULL},
	        {"", NULL, NULL},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct slice rest = slice_str(cases[i].text);
		struct mailbox mailbox;
		int r = path_parse(&rest, &mailbox);
		if ((r == 0) != (cases[i].mailbox != NULL))
			fail_msg("%s: %d", cases[i].text, r);
		if (r < 0)
			continue;
		assert_slice_equal(mailbox.text, cases[i].mailbox);
		assert_slice_equal(rest, cases[i].rest);
	}
}

static void mailboxes_have_limits(void **state)
{
	static const struct {
		int local, label;
		bool good;
	} cases[] = {{64, 63, true}, {65, 63, false}, {64, 64, false}, {0, 10, false}};
	static const char many[] =
	        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
	char text[400];
	struct mailbox mailbox;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		snprintf(text, sizeof(text), "%.*s@%.*s.example", cases[i].local, many,
		        cases[i].label, many);
		assert_int_equal(mailbox_parse(slice_str(text), &mailbox) == 0, cases[i].good);
	}
	/* 254 octets in all (RFC 5321 4.5.3.1.3) */
	snprintf(text, sizeof(text), "%.64s@%.63s.%.63s.%.61s", many, many, many, many);
	assert_int_equal(mailbox_parse(slice_str(text), &mailbox), 0);
	snprintf(text, sizeof(text), "%.64s@%.63s.%.63s.%.62s", many, many, many, many);
	assert_int_equal(mailbox_parse(slice_str(text), &mailbox), -EINVAL);
}

static void names_of_clients_cannot_break_received(void **state)
{
	static const char *const bad[] = {
	        "", "a b", "x) by evil (", "a\r\nX: y", "a;b", "\"a\"", "\xc3\xa4.example"};
	struct trace trace = {
	        .hostname = "mail.example",
	        .id = "id1",
	        .tls_version = "TLS1.3",
	        .tls_cipher = "AES-256-GCM",
	        .esmtp = true,
	        .wall_s = 1700000000,
	};
	struct buf out;

	(void)state;
	buf_init(&out, 10000);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		trace.helo = slice_str(bad[i]);
		buf_clear(&out);
		assert_int_equal(trace_write(&trace, &out), 0);
		assert_true(slice_starts_with(
		        buf_slice(&out), SLICE("Received: from EHLO\r\n\tby mail.example ")));
	}
	trace.helo = SLICE("[IPv6:2001:db8::1]");
	trace.smtputf8 = trace.logged_in = true;
	buf_clear(&out);
	assert_int_equal(trace_write(&trace, &out), 0);
	assert_slice_equal(buf_slice(&out), "Received: from [IPv6:2001:db8::1]\r\n"
	                                    "\tby mail.example (Postern) with UTF8SMTPSA id id1\r\n"
	                                    "\t(using TLS1.3 with cipher AES-256-GCM);\r\n"
	                                    "\tTue, 14 Nov 2023 22:13:20 +0000\r\n");
	buf_done(&out);
}

static void received_tells_how_it_came(void **state)
{
	static const struct {
		bool esmtp, smtputf8, logged_in;
		const char *tls, *with;
	} ways[] = {
	        {false, false, false, NULL, "SMTP id id1;"},
	        {true, false, false, NULL, "ESMTP id id1;"},
	        {true, false, false, "TLS1.3", "ESMTPS id id1\r\n\t(using TLS1.3 with cipher x);"},
	        {true, false, true, "TLS1.3", "ESMTPSA id id1\r\n\t(using TLS1.3 with cipher x);"},
	        {false, false, true, "TLS1.3", "SMTP id id1\r\n\t(using TLS1.3 with cipher x);"},
	        {true, true, false, NULL, "UTF8SMTP id id1;"},
	        {true, true, false, "TLS1.3",
	                "UTF8SMTPS id id1\r\n\t(using TLS1.3 with cipher x);"},
	};
	char wanted[200];
	struct buf out;

	(void)state;
	buf_init(&out, 10000);
	for (size_t i = 0; i < ARRAY_LEN(ways); i++) {
		const struct trace trace = {
		        .helo = SLICE("c.example"),
		        .hostname = "mail.example",
		        .id = "id1",
		        .tls_version = ways[i].tls,
		        .tls_cipher = "x",
		        .esmtp = ways[i].esmtp,
		        .smtputf8 = ways[i].smtputf8,
		        .logged_in = ways[i].logged_in,
		        .wall_s = 1700000000,
		};
		buf_clear(&out);
		assert_int_equal(trace_write(&trace, &out), 0);
		snprintf(wanted, sizeof(wanted),
		        "Received: from c.example\r\n\tby mail.example (Postern) with %s\r\n"
		        "\tTue, 14 Nov 2023 22:13:20 +0000\r\n",
		        ways[i].with);
		assert_slice_equal(buf_slice(&out), wanted);
	}
	buf_done(&out);
}

/* "key=value;" of each, "key;" without value, "!" for malformed. */
static void list_parameters(struct slice rest, struct buf *out)
{
	struct param param;
	int r;

	while ((r = param_next(&rest, &param)) == 1)
		assert_int_equal(
		        buf_printf(out, "%.*s%s%.*s;", SLICE_ARGS(param.key),
		                param.value.ptr != NULL ? "=" : "", SLICE_ARGS(param.value)),
		        0);
	if (r < 0)
		assert_int_equal(buf_append_str(out, "!"), 0);
	else
		assert_int_equal(rest.len, 0);
}

static void parameters_are_split_at_blanks(void **state)
{
	static const struct {
		const char *text, *parameters;
	} cases[] = {
	        {"", ""},
	        {"  ", ""},
	        {" SIZE=1", "SIZE=1;"},
	        {"  SIZE=1  SMTPUTF8 ", "SIZE=1;SMTPUTF8;"},
	        {" AUTH=<>", "AUTH=<>;"},
	        {" X-a-1=b", "X-a-1=b;"},
	        {"SIZE=1", "!"},
	        {" SIZE=", "!"},
	        {" =1", "!"},
	        {" -a=1", "!"},
	        {" a_b=1", "!"},
	        {" a=b=c", "!"},
	        {" a=b\tc", "!"},
	        {" a=1\tb=2", "!"},
	        {" a=1 b=\x7f", "a=1;!"},
	};
	struct buf out;

	(void)state;
	buf_init(&out, 1000);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		buf_clear(&out);
		list_parameters(slice_str(cases[i].text), &out);
		assert_slice_equal(buf_slice(&out), cases[i].parameters);
	}
	buf_done(&out);
}

static void offers_of_upstreams_are_read(void **state)
{
	static const char *const lines[] = {"pipelining", "8BITMIME ", "SIZE  52428800",
	        "AUTH LOGIN plain", "STARTTLSX", "XSMTPUTF8", ""};
	struct ehlo ehlo = {0};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(lines); i++)
		ehlo_take_line(&ehlo, slice_str(lines[i]));
	assert_true(ehlo.pipelining && ehlo.eightbitmime && ehlo.auth_plain && ehlo.has_size);
	assert_false(ehlo.starttls || ehlo.smtputf8);
	assert_true(ehlo.size == 52428800);
	ehlo_take_line(&ehlo, SLICE("SIZE 99999999999999999999999"));
	assert_true(ehlo.size == 0);
}

static void xtext_is_checked(void **state)
{
	(void)state;
	assert_true(xtext_is_valid(SLICE("a+2Bb")));
	assert_false(xtext_is_valid(SLICE("a+2b")));
	assert_false(xtext_is_valid(SLICE("a=b")));
	assert_false(xtext_is_valid(SLICE("a\rb")));
}

static void append(void *arg, struct slice content)
{
	assert_int_equal(buf_append_slice(arg, content), 0);
}

/* Decodes in pieces of every size, so that no boundary matters. */
static void expect_dot(const char *in, const char *content, const char *left, unsigned faults)
{
	for (size_t piece = 1; piece <= strlen(in); piece++) {
		struct slice rest = slice_str(in);
		struct buf out;
		struct dot dot;
		bool end = false;

		buf_init(&out, 10000);
		dot_init(&dot, false);
		while (rest.len > 0 && !end) {
			struct slice part = slice_part(rest, 0, piece);
			size_t used = dot_decode(&dot, part, append, &out, &end);
			rest = slice_part(rest, used, SIZE_MAX);
		}
		if (left == NULL) {
			assert_false(end);
		} else {
			assert_true(end);
			assert_slice_equal(rest, left);
		}
		if (content != NULL)
			assert_slice_equal(buf_slice(&out), content);
		assert_int_equal(dot.faults, faults);
		buf_done(&out);
	}
}

static void only_one_end_of_data(void **state)
{
	(void)state;
	expect_dot("a\r\n.\r\nQUIT\r\n", "a\r\n", "QUIT\r\n", 0);
	expect_dot(".\r\n", "", "", 0);
	expect_dot("..a\r\n.\r\n", ".a\r\n", "", 0);
	expect_dot(".a\r\n.\r\n", "a\r\n", "", 0);
	/* Every other end that some server believed in. */
	expect_dot("a\n.\n", NULL, NULL, DOT_BARE_LF);
	expect_dot("a\n.\r\n", NULL, NULL, DOT_BARE_LF);
	expect_dot("a\r\n.\nb", NULL, NULL, DOT_BARE_LF);
	expect_dot("a\r.\rb", NULL, NULL, DOT_BARE_CR);
	expect_dot("a\r\n.\rb\r\n.\r\n", NULL, "", DOT_BARE_CR);
}

/* In pieces of every size. */
static void expect_chunks(const char *in, const char *content, unsigned faults)
{
	for (size_t piece = 1; piece <= strlen(in) + 1; piece++) {
		struct slice rest = slice_str(in);
		struct buf out;
		struct dot dot;
		bool end;

		buf_init(&out, 10000);
		dot_init(&dot, true);
		for (; rest.len > 0; rest = slice_part(rest, piece, SIZE_MAX)) {
			struct slice part = slice_part(rest, 0, piece);
			assert_int_equal(dot_decode(&dot, part, append, &out, &end), part.len);
			assert_false(end);
		}
		dot_finish(&dot, append, &out);
		assert_slice_equal(buf_slice(&out), content);
		assert_int_equal(dot.faults, faults);
		buf_done(&out);
	}
}

static void chunks_have_no_dots(void **state)
{
	(void)state;
	expect_chunks("", "", 0);
	expect_chunks("a\r\n.\r\n..b\r\n", "a\r\n.\r\n..b\r\n", 0);
	expect_chunks("a", "a\r\n", 0);
	expect_chunks("a\r", "a\r\r\n", DOT_BARE_CR);
	expect_chunks("a\n", "a\n\r\n", DOT_BARE_LF);
	expect_chunks(".\n.\r.", ".\n.\r.\r\n", DOT_BARE_LF | DOT_BARE_CR);
}

static void expect_newlines(const char *in, const char *text)
{
	for (size_t piece = 1; piece <= strlen(in) + 1; piece++) {
		struct slice rest = slice_str(in);
		struct newline newline;
		struct buf out;

		buf_init(&out, 10000);
		newline_init(&newline);
		for (; rest.len > 0; rest = slice_part(rest, piece, SIZE_MAX))
			newline_take(&newline, slice_part(rest, 0, piece), append, &out);
		newline_finish(&newline, append, &out);
		assert_slice_equal(buf_slice(&out), text);
		assert_int_equal(newline.faults, 0);
		buf_done(&out);
	}
}

static void bare_line_ends_become_whole(void **state)
{
	char line[2 * TEXT_LINE_MAX + 3];
	struct newline newline;
	struct buf out;

	(void)state;
	expect_newlines("", "");
	expect_newlines("a\nb\rc\r\nd", "a\r\nb\r\nc\r\nd\r\n");
	expect_newlines("a\n\nb", "a\r\n\r\nb\r\n");
	expect_newlines("a\r\rb", "a\r\n\r\nb\r\n");
	expect_newlines("a\r\r\nb\r", "a\r\nb\r\n");
	expect_newlines("a\r\r\r\n", "a\r\n\r\n");
	expect_newlines("a\r\r\r\rb", "a\r\n\r\n\r\n\r\nb\r\n");
	expect_newlines("a\n\rb", "a\r\n\r\nb\r\n");

	/* The length is that of the lines that are made; a NUL is none. */
	memset(line, 'x', sizeof(line));
	line[TEXT_LINE_MAX] = '\n';
	buf_init(&out, 10000);
	newline_init(&newline);
	newline_take(&newline, slice_of(line, 2 * TEXT_LINE_MAX + 1), append, &out);
	assert_int_equal(newline.faults, 0);
	newline_take(&newline, slice_of(line, 1), append, &out);
	assert_int_equal(newline.faults, DOT_LONG_LINE);
	newline_init(&newline);
	newline_take(&newline, slice_of("a\0b", 3), append, &out);
	assert_int_equal(newline.faults, DOT_NUL);
	buf_done(&out);
}

/* All lines, joined: the text and '|' behind CR LF, '/' behind a bare LF, '!' for a long one. */
static void expect_lines(const char *in, size_t piece, const char *told)
{
	struct line_reader reader = {false};
	struct slice all = slice_str(in);
	size_t from = 0, to = 0, used;
	struct line line;
	struct buf out;

	buf_init(&out, 1000);
	while (to < all.len) {
		to = MIN_OF(to + piece, all.len);
		enum line_found found;
		do {
			found = line_find(
			        &reader, slice_part(all, from, to - from), 6, &line, &used);
			from += used;
			if (found == LINE_WHOLE) {
				append(&out, line.text);
				append(&out, line.crlf ? SLICE("|") : SLICE("/"));
			} else if (found == LINE_TOO_LONG) {
				append(&out, SLICE("!"));
			}
		} while (found != LINE_NONE);
	}
	append(&out, slice_part(all, from, all.len));
	assert_slice_equal(buf_slice(&out), told);
	buf_done(&out);
}

static void lines_are_the_same_whole_and_in_pieces(void **state)
{
	(void)state;
	for (size_t piece = 1; piece < 40; piece++) {
		expect_lines("a\r\nb\nc\rd\r\n\r\n\ne", piece, "a|b/c\rd||/e");
		expect_lines("12345\r\n123456\n123456\r\n1234567\n1\n", piece, "12345|123456/!!1/");
		expect_lines("123456789123456789\r\nx\r\n", piece, "!x|");
	}
	assert_true(line_is_clean(SLICE("")));
	assert_true(line_is_clean(SLICE("MAIL FROM:<\xc3\xa4@x>")));
	assert_false(line_is_clean(SLICE("a\rb")));
	assert_false(line_is_clean(slice_of("a\0b", 3)));
	assert_false(line_is_clean(SLICE("a\x7f")));
	assert_false(line_is_clean(SLICE("\xc0\xaf")));     /* overlong */
	assert_false(line_is_clean(SLICE("\xed\xa0\x80"))); /* a surrogate */
	assert_false(line_is_clean(SLICE("\xff")));
}

static void take_mailbox(void *arg, const struct mailbox *mailbox)
{
	struct buf *out = arg;

	assert_int_equal(buf_append_slice(out, mailbox->text), 0);
	assert_int_equal(buf_append_str(out, ";"), 0);
}

static void from_is_read_as_every_reader_reads_it(void **state)
{
	static const struct {
		const char *body, *mailboxes; /* NULL: refused */
	} cases[] = {
	        {" a@x.example", "a@x.example;"},
	        {" Alice <a@x.example>", "a@x.example;"},
	        {" \"Al, ice\" <a@x.example>, b@y.example", "a@x.example;b@y.example;"},
	        {" (comment) a@x.example (b@y.example)", "a@x.example;"},
	        {" =?utf-8?q?A=2C?= <a@x.example>", "a@x.example;"},
	        {" J. Smith <a@x.example>", "a@x.example;"},
	        {" \"A\\\"l\"\r\n\t<a@x.example>", "a@x.example;"},
	        {" (a(b\\))c) a@x.example", "a@x.example;"},
	        {"", NULL},
	        {" a@x.example,", NULL},
	        {" group: a@x.example;", NULL},
	        {" <a@x.example> <b@y.example>", NULL},
	        {" <@r.example:a@x.example>", NULL},
	        {" a@x.example b@y.example", NULL},
	        {" \"a@x.example\"", NULL},
	        {" . <a@x.example>", NULL},
	        {" =?utf-8?q?b=40y.example?=@x.example", NULL},
	        {" A <=?utf-8?b?YkB5AA==?=@x.example>", NULL},
	        {" \"A\\\r\n \" <a@x.example>", NULL},
	        {" (A\\\r\n )) a@x.example", NULL},
	        {" (A a@x.example", NULL},
	        {" \"A <a@x.example>", NULL},
	        {" a @x.example", NULL},
	        {" a@x.example.", NULL},
	        {" <>", NULL},
	        {" A <a@x.example", NULL},
	        {" b@y.example <a@x.example>", NULL},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct buf out;
		buf_init(&out, 1000);
		int r = address_list_parse(slice_str(cases[i].body), take_mailbox, &out);
		if ((r > 0) != (cases[i].mailboxes != NULL))
			fail_msg("%s: %d", cases[i].body, r);
		if (r > 0)
			assert_slice_equal(buf_slice(&out), cases[i].mailboxes);
		buf_done(&out);
	}
}

static void headers_are_judged(void **state)
{
	static const struct {
		const char *block;
		enum header_fault fault;
	} cases[] = {
	        {"From: a@x.example\r\n", HEADER_FINE},
	        {"From: a@x.example\r\nFrom: b@x.example\r\n", HEADER_FROM_BAD},
	        {"Subject: x\r\n", HEADER_FROM_BAD},
	        {"From : a@x.example\r\n", HEADER_MALFORMED},
	        {" folded: first\r\nFrom: a@x.example\r\n", HEADER_MALFORMED},
	        {"From: a@x.example\r\nno colon\r\n", HEADER_MALFORMED},
	        {"From: a@x.example\r\nSender: \r\n", HEADER_SENDER_BAD},
	        {"From: a@x.example\r\nSender: a@x.example\r\n", HEADER_FINE},
	        {"From: a@x.example\r\nSender: a@x.example\r\nSENDER: a@x.example\r\n",
	                HEADER_SENDER_BAD},
	        {"From: a@x.example\r\nSender: a@x.example, b@x.example\r\n", HEADER_SENDER_BAD},
	        {"From: a@x.example, b@x.example\r\n", HEADER_FINE},
	        {"From: a@x.example\r\nResent-From: a@x.example, b@x.example\r\n"
	         "Resent-From: a@x.example\r\n",
	                HEADER_FINE},
	        {"From: a@x.example\r\nResent-From: a@x.example;\r\n", HEADER_SENDER_BAD},
	        {"From: a@x.example\r\nResent-Sender: a@x.example, b@x.example\r\n",
	                HEADER_SENDER_BAD},
	        {"From: a@x.example\r\nTo: b@y.example\r\nTo: c@y.example\r\n", HEADER_REPEATED},
	        {"Subject: 1\r\nFrom: a@x.example\r\nsubject: 2\r\n", HEADER_REPEATED},
	        {"From: a@x.example\r\nContent-Type: text/html\r\nContent-Type: text/plain\r\n",
	                HEADER_REPEATED},
	        {"From: a@x.example\r\nKeywords: 1\r\nKeywords: 2\r\n", HEADER_FINE},
	        {"From: a@x.example\r\nSubject: a\r\n \r\n b\r\n", HEADER_MALFORMED},
	        {"From: a@x.example\r\nSubject:\r\n\tb\r\n", HEADER_FINE},
	        {"From: a@x.example\r\nSubj\xc3\xa4: b\r\n", HEADER_MALFORMED},
	        {"From: a@x.example\r\nSubject: \x1b[2J\r\n", HEADER_MALFORMED},
	        {"From: a@x.example\r\nSubject: no end", HEADER_MALFORMED},
	        {"From: \xe4 <a@x.example>\r\n", HEADER_FROM_BAD},
	        {": a@x.example\r\n", HEADER_MALFORMED},
	        {"From: \xc3\xa4@x.example\r\n", HEADER_UTF8_ADDRESS},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct header_facts facts;
		struct buf out;
		buf_init(&out, 1000);
		enum header_fault fault =
		        header_check(slice_str(cases[i].block), false, take_mailbox, &out, &facts);
		if (fault != cases[i].fault)
			fail_msg("%s: %d", cases[i].block, (int)fault);
		buf_done(&out);
	}
}

static void ignore_mailbox(void *arg, const struct mailbox *mailbox)
{
	(void)arg;
	(void)mailbox;
}

/* "From" and then so many of a field with a body of that length. */
static enum header_fault judge_many(const char *name, unsigned count, size_t body_len)
{
	struct header_facts facts;
	struct buf block;
	char *room;

	buf_init(&block, 2UL * HEADER_MAX);
	assert_int_equal(buf_append_str(&block, "From: a@x.example\r\n"), 0);
	for (unsigned i = 0; i < count; i++) {
		assert_int_equal(buf_printf(&block, "%s:", name), 0);
		assert_int_equal(buf_reserve(&block, body_len, &room), 0);
		memset(room, 'x', body_len);
		buf_added(&block, body_len);
		assert_int_equal(buf_append_str(&block, "\r\n"), 0);
	}
	enum header_fault fault =
	        header_check(buf_slice(&block), false, ignore_mailbox, NULL, &facts);
	buf_done(&block);
	return fault;
}

static void headers_have_limits(void **state)
{
	(void)state;
	assert_int_equal(judge_many("X", HEADER_FIELDS_MAX - 1, 1), HEADER_FINE);
	assert_int_equal(judge_many("X", HEADER_FIELDS_MAX, 1), HEADER_TOO_BIG);
	assert_int_equal(judge_many("X", 1, HEADER_FIELD_MAX - 4), HEADER_FINE);
	assert_int_equal(judge_many("X", 1, HEADER_FIELD_MAX - 3), HEADER_TOO_BIG);
	assert_int_equal(judge_many("X", 5, HEADER_FIELD_MAX - 4), HEADER_TOO_BIG);
}

static enum header_fault judge_repeated(const char *field, unsigned count)
{
	struct header_facts facts;
	struct buf block;

	buf_init(&block, HEADER_MAX);
	assert_int_equal(buf_append_str(&block, "From: a@x.example\r\n"), 0);
	for (unsigned i = 0; i < count; i++)
		assert_int_equal(buf_append_str(&block, field), 0);
	enum header_fault fault =
	        header_check(buf_slice(&block), false, ignore_mailbox, NULL, &facts);
	buf_done(&block);
	return fault;
}

/* However they are written, and nothing else that looks like them. */
static void hops_are_counted(void **state)
{
	static const struct {
		const char *field;
		bool counts;
	} cases[] = {
	        {"Received: from a by b\r\n", true},
	        {"rEcEiVeD: from a by b\r\n", true},
	        {"RECEIVED:\r\n", true},
	        {"Received:\r\n\tfrom a\r\n by b\r\n", true},
	        {"received:from a\r\n Received: by b\r\n", true}, /* one, not two */
	        {"X-Received: from a by b\r\n", false},
	        {"Received-SPF: pass\r\n", false},
	        {"Receive: from a by b\r\n", false},
	        {"Subject-2: x\r\n Received: from a by b\r\n", false},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		enum header_fault fault = judge_repeated(cases[i].field, HEADER_HOPS_MAX);
		if (fault != HEADER_FINE)
			fail_msg("%s: %d", cases[i].field, (int)fault);
		fault = judge_repeated(cases[i].field, HEADER_HOPS_MAX + 1);
		if (fault != (cases[i].counts ? HEADER_LOOP : HEADER_FINE))
			fail_msg("%s: %d, once too many", cases[i].field, (int)fault);
	}
	assert_int_equal(judge_repeated("Received : from a by b\r\n", 1), HEADER_MALFORMED);
}

/* No cut of a header is read as another one, and none is read beyond its end. */
static void headers_are_judged_at_every_cut(void **state)
{
	static const char block[] = "From: \"A\\\" b\" (c (d)) <a@x.example>,\r\n\tb@y.example\r\n"
	                            "Sender: a@x.example\r\nTo: c@z.example\r\n";
	(void)state;
	for (size_t len = 0; len <= sizeof(block) - 1; len++) {
		struct header_facts facts;
		struct buf out;
		char *copy = malloc(MAX_OF(len, 1U)); /* so that a sanitizer sees its end */
		assert_non_null(copy);
		memcpy(copy, block, len);
		buf_init(&out, 1000);
		enum header_fault fault =
		        header_check(slice_of(copy, len), false, take_mailbox, &out, &facts);
		bool whole_lines = len > 2 && copy[len - 1] == '\n';
		if (whole_lines && fault == HEADER_FINE)
			assert_true(slice_starts_with(
			        buf_slice(&out), SLICE("a@x.example;b@y.example;")));
		else
			assert_int_not_equal(fault, HEADER_FINE);
		buf_done(&out);
		free(copy);
	}
}

static void headers_are_completed(void **state)
{
	const struct header_additions additions = {
	        .received = SLICE("Received: here\r\n"),
	        .date = "today",
	        .message_id = NULL,
	        .sender = SLICE("a@x.example"),
	};
	struct buf out;

	(void)state;
	buf_init(&out, 1000);
	assert_int_equal(header_fix(SLICE("From: a@x.example\r\nBcc: b@y.example,\r\n "
	                                  "c@y.example\r\nTo: d@y.example\r\n"
	                                  "resent-bcc: e@y.example\r\n"
	                                  "Return-Path: <f@y.example>\r\n"),
	                         &additions, &out),
	        0);
	struct slice all = buf_slice(&out);
	assert_true(slice_starts_with(all, SLICE("Received: here\r\n")));
	assert_null(memmem(all.ptr, all.len, "Bcc", 3));
	assert_null(memmem(all.ptr, all.len, "c@y", 3));
	assert_null(memmem(all.ptr, all.len, "e@y", 3));
	assert_null(memmem(all.ptr, all.len, "f@y", 3));
	assert_non_null(memmem(all.ptr, all.len, "Date: today\r\n", 13));
	assert_non_null(memmem(all.ptr, all.len, "\r\nSender: a@x.example\r\n", 23));
	assert_true(slice_ends_with_nocase(all, SLICE("\r\n\r\n")));
	buf_done(&out);
}

static void rights_cover_what_they_say(void **state)
{
	static const struct {
		const char *pattern, *mailbox;
		bool covers;
	} cases[] = {
	        {"a@x.example", "A@X.example", true},
	        {"a@x.example", "b@x.example", false},
	        {"@x.example", "any@x.example", true},
	        {"@x.example", "any@y.x.example", false},
	        {"@.x.example", "any@y.x.example", true},
	        {"@.x.example", "any@x.example", false},
	        {"@.x.example", "any@evilx.example", false},
	        {"a+*@x.example", "a+tag@x.example", true},
	        {"a+*@x.example", "ab@x.example", false},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct mailbox mailbox;
		assert_int_equal(mailbox_parse(slice_str(cases[i].mailbox), &mailbox), 0);
		if (sender_right_covers(slice_str(cases[i].pattern), &mailbox) != cases[i].covers)
			fail_msg("%s %s", cases[i].pattern, cases[i].mailbox);
	}
}

static void replies_of_peers_are_bounded(void **state)
{
	struct peer_reply reply;

	(void)state;
	peer_reply_start(&reply);
	assert_int_equal(peer_reply_line(&reply, SLICE("550-5.1.1 no")), 0);
	assert_int_equal(peer_reply_line(&reply, SLICE("550 5.1.1 such \x1buser")), 1);
	assert_int_equal(reply.code, 550);
	assert_string_equal(reply.enhanced, "5.1.1");
	assert_null(strchr(reply.text, 0x1b));
	peer_reply_start(&reply);
	assert_int_equal(peer_reply_line(&reply, SLICE("250-a")), 0);
	assert_int_equal(peer_reply_line(&reply, SLICE("550 b")), -EBADMSG);
	peer_reply_start(&reply);
	assert_int_equal(peer_reply_line(&reply, SLICE("hello")), -EBADMSG);
	peer_reply_start(&reply);
	assert_int_equal(peer_reply_line(&reply, SLICE("250 a\0b")), -EBADMSG);
	peer_reply_start(&reply);
	assert_int_equal(peer_reply_line(&reply, SLICE("250 a\rb")), -EBADMSG);
	peer_reply_start(&reply);
	assert_int_equal(peer_reply_line(&reply, SLICE("250 \xc3\xbc\x07")), 1);
	assert_string_equal(reply.text, "???");
	peer_reply_start(&reply);
	int r = 0;
	for (unsigned i = 0; i <= PEER_REPLY_LINES_MAX && r == 0; i++)
		r = peer_reply_line(&reply, SLICE("250-more"));
	assert_int_equal(r, -EBADMSG);
}

static void texts_of_peers_are_cut_and_printable(void **state)
{
	static char line[PEER_REPLY_LINE_MAX + 1];
	struct peer_reply reply;

	(void)state;
	memset(line, '\xff', sizeof(line));
	memcpy(line, "550-", 4);
	for (size_t len = PEER_REPLY_TEXT_MAX - 4; len <= PEER_REPLY_TEXT_MAX + 8; len++) {
		peer_reply_start(&reply);
		assert_int_equal(peer_reply_line(&reply, slice_of(line, len)), 0);
		assert_int_equal(peer_reply_line(&reply, slice_of(line, len)), 0);
		assert_int_equal(peer_reply_line(&reply, SLICE("550 5.7.1")), 1);
		assert_int_equal(strlen(reply.text), PEER_REPLY_TEXT_MAX);
		assert_int_equal(strspn(reply.text, "? "), PEER_REPLY_TEXT_MAX);
		assert_string_equal(reply.enhanced, "5.7.1");
	}
	peer_reply_start(&reply);
	assert_int_equal(peer_reply_line(&reply, slice_of(line, sizeof(line))), -EBADMSG);
}

static void codes_of_peers_are_strict(void **state)
{
	static const struct {
		const char *line;
		int result;
		const char *enhanced;
	} cases[] = {
	        {"250", 1, ""},
	        {"250 ", 1, ""},
	        {"250-", 0, ""},
	        {"450 4.7.1 later", 1, "4.7.1"},
	        {"450 5.7.1 not of its class", 1, ""},
	        {"550 5.1234.1 no", 1, ""},
	        {"550 5.1 no", 1, ""},
	        {"550 5.1.1", 1, "5.1.1"},
	        {"550 5.1.1x", 1, ""},
	        {"", -EBADMSG, NULL},
	        {"25", -EBADMSG, NULL},
	        {"150 no", -EBADMSG, NULL},
	        {"650 no", -EBADMSG, NULL},
	        {"2500 no", -EBADMSG, NULL},
	        {"250_no", -EBADMSG, NULL},
	        {" 250 no", -EBADMSG, NULL},
	        {"2x0 no", -EBADMSG, NULL},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct peer_reply reply;
		peer_reply_start(&reply);
		int r = peer_reply_line(&reply, slice_str(cases[i].line));
		if (r != cases[i].result)
			fail_msg("%s: %d", cases[i].line, r);
		if (r >= 0)
			assert_string_equal(reply.enhanced, cases[i].enhanced);
	}
}

static void assert_has(struct slice text, const char *part)
{
	if (memmem(text.ptr, text.len, part, strlen(part)) == NULL)
		fail_msg("missing: %s in %.*s", part, SLICE_ARGS(text));
}

static void bounces_are_reports(void **state)
{
	const struct dsn_recipient recipients[] = {
	        {SLICE("b@y.example"), "5.1.1", "mx.y.example", "550 no such user"},
	        {SLICE("c@y.example"), "5.3.4", "mx.y.example", "it is too big"},
	        {SLICE("d@y.example"), "4.4.7", NULL, "no host answered"},
	        {SLICE("g+r\xc3\xbc\xe2\x82\xac\xf0\x9f\x93\xac@y.example"), "5.6.7",
	                "mx.y.example", "553 no UTF-8"},
	};
	static char original[20000];
	const struct dsn dsn = {
	        .hostname = "mail.example",
	        .id = "bounce",
	        .original_id = "first",
	        .sender = SLICE("a@x.example"),
	        .recipients = recipients,
	        .recipient_count = ARRAY_LEN(recipients),
	        .original_header = slice_of(original, sizeof(original)),
	};
	struct buf header, body;

	(void)state;
	for (size_t i = 0; i < sizeof(original); i += 10)
		memcpy(original + i, "Seen: ye\r\n", 10);
	buf_init(&header, 100000);
	buf_init(&body, 100000);
	assert_int_equal(dsn_write(&dsn, &header, &body), 0);
	struct slice head = buf_slice(&header), text = buf_slice(&body);
	/* RFC 2045 6.4: what holds 8bit parts says so. */
	assert_has(head, "\r\nContent-Transfer-Encoding: 8bit\r\n");
	assert_has(head, "\r\nTo: <a@x.example>\r\n");
	assert_true(slice_ends_with_nocase(head, SLICE("\r\n\r\n")));
	assert_has(text, "\r\nFinal-Recipient: rfc822; b@y.example\r\nAction: failed\r\n"
	                 "Status: 5.1.1\r\nRemote-MTA: dns; mx.y.example\r\n"
	                 "Diagnostic-Code: smtp; 550 no such user\r\n\r\n");
	assert_has(text, "\r\nDiagnostic-Code: x-postern; it is too big\r\n");
	assert_has(text, "\r\nFinal-Recipient: utf-8; "
	                 "g\\x{2B}r\\x{FC}\\x{20AC}\\x{1F4EC}@y.example\r\n");
	assert_has(text, "\r\nSeen: ye\r\n\r\n--=_bounce--\r\n");
	/* The report itself is ASCII. */
	const char *report = memmem(text.ptr, text.len, "message/delivery-status", 23);
	assert_non_null(report);
	assert_true(slice_is_ascii(slice_part(text, (size_t)(report - text.ptr), text.len)));
	while (text.len > 0)
		assert_true(slice_until(&text, '\n').len <= TEXT_LINE_MAX + 1);
	buf_done(&header);
	buf_done(&body);
}

/* So many fit into 1 MiB at their longest: `relay` counts on it. */
static void bounces_of_many_have_room(void **state)
{
	static struct dsn_recipient recipients[300];
	char address[PATH_TEXT_MAX + 1], diagnostic[801], host[256];
	const struct dsn dsn = {
	        .hostname = "mail.example",
	        .id = "bounce",
	        .original_id = "first",
	        .sender = SLICE("a@x.example"),
	        .recipients = recipients,
	        .recipient_count = ARRAY_LEN(recipients),
	        .original_header = SLICE(""),
	};
	struct buf header, body;

	(void)state;
	/* Both take most room when escaped. */
	memset(address, '+', 64);
	address[64] = '@';
	for (size_t i = 65; i + 2 < sizeof(address); i += 2)
		memcpy(address + i, "\xc4\x80", 2);
	memset(diagnostic, 'x', sizeof(diagnostic) - 1);
	diagnostic[sizeof(diagnostic) - 1] = '\0';
	memset(host, 'h', sizeof(host) - 1);
	host[sizeof(host) - 1] = '\0';
	for (size_t i = 0; i < ARRAY_LEN(recipients); i++)
		recipients[i] = (struct dsn_recipient){
		        slice_of(address, 65 + 188), "5.100.100", host, diagnostic};
	buf_init(&header, 1U << 20);
	buf_init(&body, 1U << 20);
	assert_int_equal(dsn_write(&dsn, &header, &body), 0);
	buf_done(&header);
	buf_done(&body);
}

static void envelopes_read_back(void **state)
{
	struct slice recipients[] = {SLICE("b@y.example"), SLICE("c@y.example")};
	const struct envelope envelope = {
	        .account = 7,
	        .login = SLICE("alice"),
	        .session = SLICE("s1"),
	        .sender = SLICE("a@x.example"),
	        .recipients = recipients,
	        .recipient_count = 2,
	        .smtputf8 = true,
	        .size = 99,
	        .from_domain = SLICE("x.example"),
	};
	struct envelope back;
	struct arena arena;
	struct buf out;

	(void)state;
	buf_init(&out, 10000);
	arena_init(&arena, 10000);
	assert_int_equal(envelope_encode(&envelope, &out), 0);
	assert_int_equal(envelope_decode(buf_slice(&out), &arena, &back), 0);
	assert_int_equal(back.recipient_count, 2);
	assert_slice_equal(back.recipients[1], "c@y.example");
	assert_true(back.smtputf8 && !back.body_8bit && back.size == 99);
	/* No cut of it is one. */
	for (size_t len = 0; len < buf_len(&out); len++)
		assert_int_equal(
		        envelope_decode(slice_part(buf_slice(&out), 0, len), &arena, &back),
		        -EBADMSG);
	arena_reset(&arena);
	buf_done(&out);
}

static void a_message_id_is_found(void **state)
{
	static const struct {
		const char *block, *id;
	} cases[] = {
	        {"Message-ID: <a@b>\r\n\r\n", "a@b"},
	        {"From: <x@y>\r\nmessage-id:\r\n\t<a@b>\r\nTo: <c@d>\r\n\r\n", "a@b"},
	        {"Message-ID: (why) <a@b> (so)\r\n\r\n", "a@b"},
	        {"Message-ID:  bare \r\n\r\n", "bare"},
	        {"Message-ID: >a<\r\n\r\n", ">a<"},
	        {"Message-ID: <a>b>\r\n\r\n", "a>b"},
	        {"Message-ID: <\r\n\r\n", "<"},
	        {"Message-ID: <>\r\n\r\n", ""},
	        {"Message-ID:\r\n\r\n", ""},
	        {"Subject: Message-ID: <a@b>\r\n\r\nMessage-ID: <a@b>\r\n", ""},
	        {"", ""},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++)
		assert_slice_equal(header_message_id(slice_str(cases[i].block)), cases[i].id);
}

/* The value stands in databases. */
static void a_hash_knows_no_case(void **state)
{
	char longest[PATH_TEXT_MAX + 10];

	(void)state;
	assert_int_equal(address_hash(SLICE("bob@example.net")), 0xc6dcf39aed4a19d5ULL);
	assert_int_equal(address_hash(SLICE("BOB@Example.NET")), 0xc6dcf39aed4a19d5ULL);
	assert_int_not_equal(address_hash(SLICE("bob@example.org")), 0xc6dcf39aed4a19d5ULL);
	memset(longest, 'a', sizeof(longest));
	(void)address_hash(slice_of(longest, sizeof(longest)));
	(void)address_hash(SLICE(""));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(a_message_id_is_found),
	        cmocka_unit_test(a_hash_knows_no_case),
	        cmocka_unit_test(mailboxes_are_strict),
	        cmocka_unit_test(paths_take_no_source_routes),
	        cmocka_unit_test(paths_end_where_they_end),
	        cmocka_unit_test(mailboxes_have_limits),
	        cmocka_unit_test(names_of_clients_cannot_break_received),
	        cmocka_unit_test(received_tells_how_it_came),
	        cmocka_unit_test(parameters_are_split_at_blanks),
	        cmocka_unit_test(offers_of_upstreams_are_read),
	        cmocka_unit_test(xtext_is_checked),
	        cmocka_unit_test(only_one_end_of_data),
	        cmocka_unit_test(chunks_have_no_dots),
	        cmocka_unit_test(bare_line_ends_become_whole),
	        cmocka_unit_test(lines_are_the_same_whole_and_in_pieces),
	        cmocka_unit_test(from_is_read_as_every_reader_reads_it),
	        cmocka_unit_test(headers_are_judged),
	        cmocka_unit_test(headers_have_limits),
	        cmocka_unit_test(hops_are_counted),
	        cmocka_unit_test(headers_are_judged_at_every_cut),
	        cmocka_unit_test(headers_are_completed),
	        cmocka_unit_test(rights_cover_what_they_say),
	        cmocka_unit_test(replies_of_peers_are_bounded),
	        cmocka_unit_test(texts_of_peers_are_cut_and_printable),
	        cmocka_unit_test(codes_of_peers_are_strict),
	        cmocka_unit_test(bounces_are_reports),
	        cmocka_unit_test(bounces_of_many_have_room),
	        cmocka_unit_test(envelopes_read_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

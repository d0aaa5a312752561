/* SPDX-License-Identifier: ISC */
/* Who may send as whom: every header of rights.txt, judged as the session does. */
#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/mail/dot.h"
#include "gateway/mail/header.h"
#include "gateway/mail/sender_right.h"

static const char *table_path;

static const char *const owned[] = {"alice@example.org", "tag+*@tags.example", "@owned.example",
        "@.sub.example", "grüße@example.org"};

static void check_right(void *arg, const struct mailbox *mailbox)
{
	bool *all_owned = arg;
	bool covered = false;

	for (size_t i = 0; i < ARRAY_LEN(owned); i++)
		covered = covered || sender_right_covers(slice_str(owned[i]), mailbox);
	*all_owned = *all_owned && covered;
}

static void keep(void *arg, struct slice octets)
{
	assert_int_equal(buf_append_slice(arg, octets), 0);
}

/* The word of the table for a message that has only this header. */
static const char *judge(struct slice text, bool smtputf8)
{
	struct header_facts facts;
	struct buf input, header;
	struct dot dot;
	bool end, all_owned = true;

	buf_init(&input, 1U << 20);
	buf_init(&header, 1U << 20);
	assert_int_equal(buf_append_slice(&input, text), 0);
	assert_int_equal(buf_append_str(&input, "\r\n\r\n.\r\n"), 0);
	dot_init(&dot, false);
	assert_int_equal(dot_decode(&dot, buf_slice(&input), keep, &header, &end), buf_len(&input));
	assert_true(end);
	struct slice block = buf_slice(&header);
	const char *body = memmem(block.ptr, block.len, "\r\n\r\n", 4);
	assert_non_null(body);
	block.len = slice_starts_with(block, SLICE("\r\n")) ? 0 : (size_t)(body - block.ptr) + 2;
	enum header_fault fault = header_check(block, smtputf8, check_right, &all_owned, &facts);
	buf_done(&input);
	buf_done(&header);
	if ((dot.faults & (DOT_BARE_CR | DOT_BARE_LF | DOT_NUL)) != 0)
		return "ends";
	if (fault == HEADER_TOO_BIG)
		return "big";
	if (fault == HEADER_UTF8_ADDRESS)
		return "utf8";
	if (fault != HEADER_FINE)
		return "bad";
	if (!all_owned)
		return "no";
	return (dot.faults & DOT_LONG_LINE) != 0 ? "bad" : "yes";
}

/* One octet of the table's text at *at. */
static char unescape(const char **at)
{
	char c = *(*at)++;

	if (c != '\\')
		return c;
	c = *(*at)++;
	switch (c) {
	case 'r':
		return '\r';
	case 'n':
		return '\n';
	case 't':
		return '\t';
	case '0':
		return '\0';
	case 'x':
		break;
	default:
		assert_int_equal(c, '\\');
		return c;
	}
	const char digits[] = {(*at)[0], (*at)[1], '\0'};
	*at += 2;
	return (char)strtoul(digits, NULL, 16);
}

static void read_header(const char *at, struct buf *out)
{
	while (*at != '\0') {
		unsigned long times = 1;
		const char *text = at, *behind = at;
		if (*at == '{') {
			char *star;
			times = strtoul(at + 1, &star, 10);
			assert_int_equal(*star, '*');
			text = star + 1;
		}
		for (unsigned long i = 0; i < times; i++) {
			behind = text;
			do {
				char octet = unescape(&behind);
				assert_int_equal(buf_append(out, &octet, 1), 0);
			} while (*at == '{' && *behind != '}');
		}
		at = behind + (*at == '{');
	}
}

/* Of the reasons that are explained, whether and how often they are given. */
#define REASONS_MAX 200
struct reasons {
	char names[REASONS_MAX][40];
	unsigned rows[REASONS_MAX];
	size_t count;
};

/* "= name what it means" */
static void read_reason(struct reasons *reasons, const char *line)
{
	const char *name = line + 2, *end = strchr(name, ' ');

	assert_true(end != NULL && end[1] != '\0' && reasons->count < REASONS_MAX);
	snprintf(reasons->names[reasons->count++], sizeof(reasons->names[0]), "%.*s",
	        (int)(end - name), name);
}

static bool give_reason(struct reasons *reasons, const char *name)
{
	for (size_t i = 0; i < reasons->count; i++)
		if (strcmp(reasons->names[i], name) == 0) {
			reasons->rows[i]++;
			return true;
		}
	return false;
}

static void each_header_is_judged_for_a_reason(void **state)
{
	static const char *const verdicts[] = {"yes", "no", "bad", "ends", "utf8", "big"};
	static struct reasons reasons;
	unsigned counts[ARRAY_LEN(verdicts)] = {0};
	FILE *table = fopen(table_path, "r");
	char line[4096];
	unsigned rows = 0, failed = 0;

	(void)state;
	assert_non_null(table);
	while (fgets(line, sizeof(line), table) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		if (line[0] == '#' || line[0] == '\0')
			continue;
		if (line[0] == '=') {
			read_reason(&reasons, line);
			continue;
		}
		char *reason = strchr(line, ' ');
		char *header = reason == NULL ? NULL : strchr(reason + 1, ' ');
		if (header == NULL) {
			fail_msg("a row without a reason or a header: %s", line);
			break;
		}
		*reason++ = '\0';
		*header++ = '\0';
		if (!give_reason(&reasons, reason)) {
			print_error("the reason %s is not explained: %.100s\n", reason, header);
			failed++;
		}
		char *plus = strstr(line, "+u");
		if (plus != NULL)
			*plus = '\0';
		struct buf text;
		buf_init(&text, 1U << 20);
		read_header(header, &text);
		const char *verdict = judge(buf_slice(&text), plus != NULL);
		if (strcmp(verdict, line) != 0) {
			print_error("%s and not %s: %.100s\n", verdict, line, header);
			failed++;
		}
		for (size_t i = 0; i < ARRAY_LEN(verdicts); i++)
			counts[i] += strcmp(verdict, verdicts[i]) == 0;
		rows++;
		buf_done(&text);
	}
	fclose(table);
	for (size_t i = 0; i < reasons.count; i++)
		if (reasons.rows[i] == 0) {
			print_error("no row has the reason %s\n", reasons.names[i]);
			failed++;
		}
	print_message("%u headers, %zu reasons:", rows, reasons.count);
	for (size_t i = 0; i < ARRAY_LEN(verdicts); i++)
		print_message(" %s %u", verdicts[i], counts[i]);
	print_message("\n");
	assert_int_equal(failed, 0);
	assert_true(rows > 200);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(each_header_is_judged_for_a_reason),
	};

	if (argc != 2)
		return 2;
	table_path = argv[1];
	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: ISC */
/* Numbers in the source text of a configuration; see numbers.h. Pure but for reading the files. */
#include "gateway/conf/numbers.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "gateway/base/slice.h"

#define FILE_MAX  (4U << 20)
#define FILES_MAX 64

struct scan {
	const char *file;
	struct slice left;
	unsigned line;
	struct buf *errors;
	int found;
};

static void skip(struct scan *scan, size_t count)
{
	for (size_t i = 0; i < count && i < scan->left.len; i++)
		scan->line += scan->left.ptr[i] == '\n';
	scan->left = slice_part(scan->left, count, scan->left.len);
}

/* Behind the closing quote of the string at the front. */
static size_t string_length(struct slice text)
{
	size_t i = 1;

	while (i < text.len && text.ptr[i] != '"')
		i += text.ptr[i] == '\\' ? 2 : 1;
	return i + 1;
}

static size_t comment_length(struct slice text)
{
	if (slice_starts_with(text, SLICE("/*"))) {
		const char *end = memmem(text.ptr, text.len, "*/", 2);
		return end != NULL ? (size_t)(end - text.ptr) + 2 : text.len;
	}
	if (text.ptr[0] == '#' || slice_starts_with(text, SLICE("//"))) {
		ptrdiff_t end = slice_find(text, '\n');
		return end >= 0 ? (size_t)end : text.len;
	}
	return 0;
}

static bool is_word(char c)
{
	return isalnum((unsigned char)c) || c == '_' || c == '-' || c == '.' || c == '*';
}

static void check_word(struct scan *scan, struct slice word)
{
	uint64_t value;
	const char *wrong = NULL;

	if (word.ptr[0] == '-')
		word = slice_part(word, 1, word.len);
	if (word.len == 0 || !isdigit((unsigned char)word.ptr[0]))
		return;
	int r = slice_to_u64(word, &value);
	if (r == -EINVAL)
		wrong = "is not a plain number; write it in quotes";
	else if (r < 0 || value > INT32_MAX)
		wrong = "is too large to stand without quotes; write it as \"…\"";
	else if (word.len > 1 && word.ptr[0] == '0')
		wrong = "begins with 0; leave the zero out";
	if (wrong == NULL)
		return;
	scan->found++;
	(void)!buf_printf(scan->errors, "%s:%u: %.*s %s\n", scan->file, scan->line,
	        (int)MIN_OF(word.len, (size_t)40), word.ptr, wrong);
}

static void scan_text(struct scan *scan)
{
	while (scan->left.len > 0) {
		size_t comment = comment_length(scan->left);
		if (comment > 0) {
			skip(scan, comment);
		} else if (scan->left.ptr[0] == '"') {
			skip(scan, string_length(scan->left));
		} else if (is_word(scan->left.ptr[0])) {
			size_t len = 1;
			while (len < scan->left.len && is_word(scan->left.ptr[len]))
				len++;
			check_word(scan, slice_of(scan->left.ptr, len));
			skip(scan, len);
		} else {
			skip(scan, 1);
		}
	}
}

static int check_file(const char *path, struct buf *errors)
{
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct buf text;
	int found = 0;

	buf_init(&text, FILE_MAX);
	/* Unreadable now though libconfig has just read it: nothing to compare. */
	if (fd >= 0 && buf_read_fd(&text, fd) == 0) {
		struct scan scan = {
		        .file = path, .left = buf_slice(&text), .line = 1, .errors = errors};
		scan_text(&scan);
		found = scan.found;
	}
	buf_done(&text);
	return found;
}

/* The files that settings below `setting` came from; the depth is that of the options, 3. */
static size_t collect_files(
        const config_setting_t *setting, const char **files, size_t count, unsigned depth)
{
	for (int i = 0; depth > 0 && i < config_setting_length(setting); i++) {
		const config_setting_t *at = config_setting_get_elem(setting, (unsigned)i);
		const char *file = config_setting_source_file(at);
		bool known = file == NULL || count == FILES_MAX;
		for (size_t k = 0; !known && k < count; k++)
			known = strcmp(files[k], file) == 0;
		if (!known)
			files[count++] = file;
		if (config_setting_is_aggregate(at) && depth > 1)
			count = collect_files(at, files, count, depth - 1);
	}
	return count;
}

int numbers_check(const config_t *tree, const char *path, struct buf *errors)
{
	const char *files[FILES_MAX] = {path};
	size_t count = collect_files(config_root_setting(tree), files, 1, 3);
	int found = 0;

	for (size_t i = 0; i < count; i++)
		found += check_file(files[i], errors);
	return found;
}

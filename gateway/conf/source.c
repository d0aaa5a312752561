/* SPDX-License-Identifier: ISC */
/* The source text of a configuration; see source.h. */
#include "gateway/conf/source.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gateway/base/slice.h"

#define FILE_MAX  (4U << 20)
#define FILES_MAX 64 /* also of those that include each other */
#define PATH_SIZE 4096UL

/* What the files of one configuration share. */
struct source {
	const char *folder; /* that includes are relative to */
	struct buf *errors, *numbers;
	struct buf files; /* to read: paths, each with its zero */
	unsigned file_count;
	int result;
};

struct scan {
	struct source *source;
	const char *file;
	struct slice left;
	unsigned line;
	bool at_line_start; /* nothing but blanks stands before, in this line */
};

static void skip(struct scan *scan, size_t count)
{
	for (size_t i = 0; i < count && i < scan->left.len; i++) {
		char c = scan->left.ptr[i];
		scan->line += c == '\n';
		scan->at_line_start = c == '\n' || (scan->at_line_start && (c == ' ' || c == '\t'));
	}
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
	(void)!buf_printf(scan->source->numbers, "%s:%u: %.*s %s\n", scan->file, scan->line,
	        (int)MIN_OF(word.len, (size_t)40), word.ptr, wrong);
}

/* The file that is named in quotes at the front, relative to the folder as libconfig takes it. */
static void include(struct scan *scan)
{
	struct source *source = scan->source;
	char path[PATH_SIZE];
	struct stat status;

	size_t len = (size_t)snprintf(path, sizeof(path), "%s/", source->folder);
	if (len >= sizeof(path))
		return;
	for (size_t i = 1; i < scan->left.len && scan->left.ptr[i] != '"'; i++) {
		if (scan->left.ptr[i] == '\\' && i + 1 < scan->left.len)
			i++;
		if (len + 1 >= sizeof(path))
			return;
		path[len++] = scan->left.ptr[i];
	}
	path[len] = '\0';
	if (stat(path, &status) == 0 && S_ISDIR(status.st_mode)) {
		(void)!buf_printf(source->errors, "%s:%u: cannot include %s: it is a folder\n",
		        scan->file, scan->line, path);
		source->result = -EISDIR;
	} else if (source->file_count < FILES_MAX &&
	           buf_append(&source->files, path, len + 1) == 0) {
		source->file_count++;
	}
}

/* Length of "@include " at the front up to its quote, 0 for anything else. */
static size_t include_length(const struct scan *scan)
{
	struct slice text = scan->left;
	size_t word = sizeof("@include") - 1, len = word;

	if (!scan->at_line_start || !slice_starts_with(text, SLICE("@include")))
		return 0;
	while (len < text.len && (text.ptr[len] == ' ' || text.ptr[len] == '\t'))
		len++;
	return len > word && len < text.len && text.ptr[len] == '"' ? len : 0;
}

static void scan_text(struct scan *scan)
{
	size_t len;

	while (scan->left.len > 0) {
		if ((len = comment_length(scan->left)) > 0) {
			skip(scan, len);
		} else if ((len = include_length(scan)) > 0) {
			skip(scan, len);
			include(scan);
			skip(scan, string_length(scan->left));
		} else if (scan->left.ptr[0] == '"') {
			skip(scan, string_length(scan->left));
		} else if (is_word(scan->left.ptr[0])) {
			len = 1;
			while (len < scan->left.len && is_word(scan->left.ptr[len]))
				len++;
			check_word(scan, slice_of(scan->left.ptr, len));
			skip(scan, len);
		} else {
			skip(scan, 1);
		}
	}
}

static void read_file(struct source *source, const char *path)
{
	struct stat status;
	struct buf text;

	/* A pipe can be read only once, and that is libconfig's. */
	if (stat(path, &status) < 0 || !S_ISREG(status.st_mode))
		return;
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_CLOEXEC);
	buf_init(&text, FILE_MAX);
	if (fd >= 0 && buf_read_fd(&text, fd) == 0) {
		struct scan scan = {
		        .source = source,
		        .file = path,
		        .left = buf_slice(&text),
		        .line = 1,
		        .at_line_start = true,
		};
		scan_text(&scan);
	}
	buf_done(&text);
}

int source_check(const char *path, const char *folder, struct buf *errors, struct buf *ret_numbers)
{
	struct source source = {.folder = folder, .errors = errors, .numbers = ret_numbers};
	char included[PATH_SIZE];

	buf_init(&source.files, FILES_MAX * PATH_SIZE);
	read_file(&source, path);
	while (buf_len(&source.files) > 0) {
		struct slice left = buf_slice(&source.files);
		struct slice next = slice_until(&left, '\0');
		snprintf(included, sizeof(included), "%.*s", SLICE_ARGS(next));
		buf_consume(&source.files, next.len + 1);
		read_file(&source, included);
	}
	buf_done(&source.files);
	return source.result;
}

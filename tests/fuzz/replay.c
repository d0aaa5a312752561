/* SPDX-License-Identifier: ISC */
/* Runs a target once on each file of a folder, or on the files named: a plain test, in TAP. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "gateway/base/buf.h"
#include "tests/fuzz/fuzz.h"

#define INPUT_MAX (4U << 20)

static unsigned count, failed;

static bool run_file(const char *path)
{
	struct buf content;
	FILE *file = fopen(path, "rb");
	bool done = false;

	buf_init(&content, INPUT_MAX);
	if (file != NULL && buf_read_fd(&content, fileno(file)) == 0) {
		/* A copy of just that size: the sanitizer then sees one octet too many. */
		size_t size = buf_len(&content);
		uint8_t *data = malloc(size);
		if (data != NULL || size == 0) {
			if (size > 0)
				memcpy(data, buf_slice(&content).ptr, size);
			(void)LLVMFuzzerTestOneInput(data, size);
			done = true;
		}
		free(data);
	}
	buf_done(&content);
	if (file != NULL)
		fclose(file);
	return done;
}

static void run(const char *path)
{
	/* Before it runs: a target that fails ends the program. */
	fprintf(stderr, "%s\n", path);
	bool done = run_file(path);
	failed += !done;
	printf("%sok %u - %s\n", done ? "" : "not ", ++count, path);
	fflush(stdout);
}

static int is_visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static void run_folder(const char *folder)
{
	struct dirent **entries;
	char path[4096];
	int n = scandir(folder, &entries, is_visible, alphasort);

	for (int i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/%s", folder, entries[i]->d_name);
		run(path);
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
}

int main(int argc, char **argv)
{
	struct stat status;

	for (int i = 1; i < argc; i++) {
		if (stat(argv[i], &status) == 0 && S_ISDIR(status.st_mode))
			run_folder(argv[i]);
		else
			run(argv[i]);
	}
	printf("1..%u\n", count);
	return count > 0 && failed == 0 ? 0 : 1;
}

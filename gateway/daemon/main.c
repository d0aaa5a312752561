/* SPDX-License-Identifier: ISC */
/* posternd: the supervisor, a check of the configuration, or (by its name) one of the children. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/conf/conf.h"
#include "gateway/daemon/child.h"
#include "gateway/daemon/files_check.h"
#include "gateway/daemon/supervisor.h"

#define CONF_PATH  "/etc/postern/postern.conf"
#define CHILD_ARGV "posternd: "
#define USAGE_EXIT 2

static void usage(FILE *to)
{
	fprintf(to, "usage: posternd [-c FILE] [-t]\n"
	            "\n"
	            "  -c FILE    configuration (default " CONF_PATH ")\n"
	            "  -t         check the configuration and the files it names, then exit\n"
	            "  --version  version\n"
	            "  --help     this text\n"
	            "\n"
	            "Runs in the foreground and logs to standard error. SIGHUP reloads, SIGTERM "
	            "ends.\n");
}

static int check(const char *path)
{
	const struct conf *conf;
	struct buf errors;
	struct why why;

	buf_init(&errors, CONF_ERRORS_MAX);
	int r = conf_load(path, &errors, &conf);
	if (r < 0) {
		fprintf(stderr, "%.*s", SLICE_ARGS(buf_slice(&errors)));
	} else {
		r = files_check(conf, &why);
		if (r < 0)
			fprintf(stderr, "%s: %s\n", path, why.text);
		else
			printf("%s: fine\n", path);
		conf_unref(conf);
	}
	buf_done(&errors);
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* A child is started under a name of its own. -1 for a call by a person. */
static int child_kind_of(const char *name)
{
	for (unsigned i = 0; i < CHILD_COUNT; i++) {
		if (strncmp(name, CHILD_ARGV, strlen(CHILD_ARGV)) == 0 &&
		        strcmp(name + strlen(CHILD_ARGV), child_name((enum child_kind)i)) == 0)
			return (int)i;
	}
	return -1;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
	        {"version", no_argument, NULL, 'V'},
	        {"help", no_argument, NULL, 'h'},
	        {NULL, 0, NULL, 0},
	};
	const char *path = CONF_PATH;
	bool check_only = false;
	int choice;

	int kind = argc > 0 ? child_kind_of(argv[0]) : -1;
	if (kind >= 0)
		return child_main((enum child_kind)kind);
	/* NOLINTNEXTLINE(concurrency-mt-unsafe): one thread */
	while ((choice = getopt_long(argc, argv, "c:t", options, NULL)) != -1) {
		switch (choice) {
		case 'c':
			path = optarg;
			break;
		case 't':
			check_only = true;
			break;
		case 'V':
			printf("posternd %s\n", POSTERN_VERSION);
			return EXIT_SUCCESS;
		case 'h':
			usage(stdout);
			return EXIT_SUCCESS;
		default:
			usage(stderr);
			return USAGE_EXIT;
		}
	}
	if (optind < argc) {
		usage(stderr);
		return USAGE_EXIT;
	}
	return check_only ? check(path) : supervisor_main(path);
}

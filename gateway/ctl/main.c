/* SPDX-License-Identifier: ISC */
/* postern: the admin's tool. Each group of verbs has a file. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/ctl/ctl.h"

#define CONF_PATH "/etc/postern/postern.conf"

static const struct group {
	const char *name;
	int (*run)(struct ctl *ctl, int argc, char **argv);
	const char *usage;
} groups[] = {
        {"account", ctl_account,
                "  account create [--plan PLAN] LOGIN\n"
                "  account password LOGIN             the password is asked for, or read from\n"
                "                                     the variable POSTERN_PASSWORD\n"
                "  account import [--plan PLAN] LOGIN so is the crypt hash\n"
                "  account suspend LOGIN REASON       account resume|close|show LOGIN\n"
                "  account list                       account plan LOGIN PLAN\n"
                "  account route LOGIN [UPSTREAM]     none: the default route\n"
                "  account sender grant|revoke LOGIN PATTERN\n"
                "  account app-password [--mechanisms NAME,...] [--networks CIDR,...]\n"
                "                       [--sender ADDRESS] [--expires TIME] LOGIN LABEL\n"
                "  account revoke LOGIN LABEL         account certificate LOGIN SHA256 LABEL\n"
                "  account network grant|revoke LOGIN CIDR\n"
                "  account limit LOGIN MEASURE INTERVAL [AMOUNT]    none: removes it\n"
                "  account usage LOGIN\n"},
        {"database", ctl_database, "  database migrate|status\n"},
        {"dkim", ctl_dkim,
                "  dkim create [--algorithm rsa-sha256|ed25519-sha256] [--selector S] DOMAIN\n"},
        {"queue", ctl_queue,
                "  queue list [--count]               queue show|delete ID\n"
                "  queue retry ID|all\n"},
        {"status", ctl_status, "  status\n"},
        {"trace", ctl_trace,
                "  trace ID|MESSAGE-ID                what became of a message, also long after "
                "it\n"
                "                                     left the queue\n"},
};

static void usage(FILE *to)
{
	fprintf(to, "usage: postern [-c FILE] [--json] VERB ...\n"
	            "\n"
	            "  -c FILE     configuration (default " CONF_PATH ")\n"
	            "  --json      answers as JSON, one object a line\n"
	            "  --version   version\n"
	            "\n");
	for (size_t i = 0; i < ARRAY_LEN(groups); i++)
		fputs(groups[i].usage, to);
	fputs("\nExit status: 0 done, 1 refused, not found or not written, 2 wrong usage.\n", to);
}

int ctl_usage(const char *group)
{
	for (size_t i = 0; i < ARRAY_LEN(groups); i++)
		if (strcmp(groups[i].name, group) == 0)
			fprintf(stderr, "usage: postern [-c FILE] [--json]\n%s", groups[i].usage);
	return CTL_USAGE;
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct buf errors;

	for (size_t i = 0; i < ARRAY_LEN(groups); i++) {
		if (strcmp(groups[i].name, argv[0]) != 0)
			continue;
		if (argc < 2 && groups[i].run != ctl_status)
			return ctl_usage(groups[i].name);
		buf_init(&errors, CONF_ERRORS_MAX);
		int r = conf_load(ctl->conf_path, &errors, &ctl->conf);
		if (r < 0)
			fprintf(stderr, "%.*s", SLICE_ARGS(buf_slice(&errors)));
		buf_done(&errors);
		if (r < 0)
			return CTL_REFUSED;
		int status = groups[i].run(ctl, argc - 1, argv + 1);
		conf_unref(ctl->conf);
		return status;
	}
	fprintf(stderr, "postern: unknown verb \"%s\"; postern --help lists them\n", argv[0]);
	return CTL_USAGE;
}

static int obey(int argc, char **argv)
{
	static const struct option options[] = {
	        {"json", no_argument, NULL, 'j'},
	        {"version", no_argument, NULL, 'v'},
	        {"help", no_argument, NULL, 'h'},
	        {NULL, 0, NULL, 0},
	};
	struct ctl ctl = {.conf_path = CONF_PATH};
	int option;

	/* "+": what follows the verb belongs to it. */
	/* NOLINTNEXTLINE(concurrency-mt-unsafe): one thread */
	while ((option = getopt_long(argc, argv, "+c:h", options, NULL)) >= 0) {
		switch (option) {
		case 'c':
			ctl.conf_path = optarg;
			break;
		case 'j':
			ctl.json = true;
			break;
		case 'v':
			puts("postern " POSTERN_VERSION);
			return CTL_DONE;
		case 'h':
			usage(stdout);
			return CTL_DONE;
		default:
			usage(stderr);
			return CTL_USAGE;
		}
	}
	if (optind == argc) {
		usage(stderr);
		return CTL_USAGE;
	}
	return run(&ctl, argc - optind, argv + optind);
}

int main(int argc, char **argv)
{
	int status = obey(argc, argv);

	if (fflush(stdout) != 0 || ferror(stdout) != 0) {
		fputs("postern: the answer cannot be written\n", stderr);
		return CTL_REFUSED;
	}
	return status;
}

/* SPDX-License-Identifier: ISC */
/* posternd: the supervisor, a check of the configuration, or (by its name) one of the children. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "db/db.h"
#include "gateway/base/pack.h"
#include "gateway/conf/conf.h"
#include "gateway/daemon/child.h"
#include "gateway/daemon/secrets_file.h"
#include "gateway/daemon/supervisor.h"
#include "gateway/net/tls.h"

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

/* Whether the certificate and its key can serve. */
static int check_tls(const struct conf *conf, struct why *why)
{
	struct secrets secrets;
	struct tls_server *tls;

	secrets_init(&secrets);
	int r = secrets_pack(conf, CHILD_SUBMIT, &secrets.room, why);
	struct unpack unpack = unpack_start(buf_slice(&secrets.room));
	if (r == 0) {
		struct slice certificate = unpack_bytes(&unpack, 1U << 20);
		struct slice key = unpack_bytes(&unpack, 1U << 20);
		r = tls_server_new(certificate, key, &tls, why);
		if (r == 0)
			tls_server_unref(tls);
	}
	secrets_done(&secrets);
	return r;
}

/* The secrets of the other processes: that their files can be read. */
static int check_passwords(const struct conf *conf, struct why *why)
{
	struct buf room;
	int r = 0;

	buf_init(&room, 1U << 20);
	for (unsigned kind = CHILD_AUTH; r == 0 && kind < CHILD_COUNT; kind++) {
		buf_clear(&room);
		r = secrets_pack(conf, (enum child_kind)kind, &room, why);
	}
	buf_wipe(&room);
	return r;
}

/* That libpq can read the connection string. Whether the server is there is another matter. */
static int check_database(const struct conf *conf, struct why *why)
{
	struct db *db;
	int r = db_new(&(struct db_settings){.conninfo = conf->database}, &db, why);

	if (r == 0)
		db_free(db);
	return r;
}

/* The authorities of upstreams whose certificates are verified. */
static int check_authorities(const struct conf *conf, struct why *why)
{
	struct tls_client *tls;
	int r = 0;

	for (size_t i = 0; r == 0 && i < conf->upstream_count; i++) {
		if (conf->upstreams[i].tls != CONF_TLS_VERIFY)
			continue;
		r = tls_client_new(TLS_CHECK_NAME, conf->upstreams[i].ca_file, &tls, why);
		if (r == 0)
			tls_client_unref(tls);
	}
	return r;
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
		r = check_tls(conf, &why);
		if (r == 0)
			r = check_passwords(conf, &why);
		if (r == 0)
			r = check_database(conf, &why);
		if (r == 0)
			r = check_authorities(conf, &why);
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

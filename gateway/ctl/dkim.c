/* SPDX-License-Identifier: ISC */
/* postern dkim create: makes keys, stores them, prints the DNS records to publish. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "gateway/ctl/ctl.h"
#include "gateway/dkim/dkim.h"

#define PEM_MAX    CTL_SECRET_MAX
#define RECORD_MAX 4096
#define STRING_MAX 250 /* of a TXT record: 255 octets */

/* A zone file's line; long values are several strings, which DNS joins. */
static void print_zone(const char *name, struct slice record)
{
	printf("%s. IN TXT (", name);
	for (size_t at = 0; at < record.len; at += STRING_MAX) {
		struct slice part = slice_part(record, at, STRING_MAX);
		printf(" \"%.*s\"", SLICE_ARGS(part));
	}
	puts(" )");
}

static void print_key(struct ctl *ctl, const char *domain, const char *selector,
        enum dkim_algorithm algorithm, struct slice record, const char *state)
{
	char name[600];

	snprintf(name, sizeof(name), "%s._domainkey.%s", selector, domain);
	if (!ctl->json) {
		if (strcmp(state, "active") != 0)
			printf("; another key of %s is active; this one is %s\n",
			        dkim_algorithm_name(algorithm), state);
		print_zone(name, record);
		return;
	}
	printf("{\"name\":\"%s\",\"algorithm\":\"%s\",\"state\":\"%s\",\"record\":\"%.*s\"}\n",
	        name, dkim_algorithm_name(algorithm), state, SLICE_ARGS(record));
}

static int store(struct ctl *ctl, struct db *db, const char *domain, const char *selector,
        enum dkim_algorithm algorithm, struct buf *pem, struct buf *record, struct why *why)
{
	PGresult *result;
	const char *params[] = {domain, selector, dkim_algorithm_name(algorithm), buf_str(record)};

	int r = ctl_database_secret(db, buf_slice(pem), why);
	if (r == 0)
		r = db_exec(db, "select postern.dkim_key_add($1, $2, $3, " CTL_SECRET ", $4)", 4,
		        params, &result, why);
	if (r != 0)
		return r;
	print_key(ctl, domain, selector, algorithm, buf_slice(record), PQgetvalue(result, 0, 0));
	PQclear(result);
	return 0;
}

static int create(struct ctl *ctl, struct db *db, const char *domain, const char *selector,
        enum dkim_algorithm algorithm)
{
	struct dkim_key *key = NULL;
	struct buf pem, record;
	struct why why;

	buf_init(&pem, PEM_MAX);
	buf_init(&record, RECORD_MAX);
	why_set(&why, "out of memory");
	int r = dkim_key_generate(algorithm, &pem, &why);
	if (r == 0)
		r = dkim_key_load(algorithm, buf_slice(&pem), &key, &why);
	if (r == 0)
		r = dkim_key_record(key, &record);
	if (r == 0)
		r = store(ctl, db, domain, selector, algorithm, &pem, &record, &why);
	dkim_key_unref(key);
	buf_wipe(&pem);
	buf_done(&record);
	return r < 0 ? ctl_database_failed(&why) : CTL_DONE;
}

/* "r20261124" and "e20261124": the algorithm and the day, so that a roll-over gets new names. */
static void default_selector(enum dkim_algorithm algorithm, char selector[16])
{
	time_t now = time(NULL);
	struct tm day;

	gmtime_r(&now, &day);
	strftime(selector, 16, algorithm == DKIM_RSA_SHA256 ? "r%Y%m%d" : "e%Y%m%d", &day);
}

struct request {
	const char *domain, *selector;
	bool wanted[2]; /* by enum dkim_algorithm */
};

static int parse(int argc, char **argv, struct request *request)
{
	static const struct option options[] = {
	        {"algorithm", required_argument, NULL, 'a'},
	        {"selector", required_argument, NULL, 's'},
	        {NULL, 0, NULL, 0},
	};
	enum dkim_algorithm algorithm;
	int option;

	*request = (struct request){.wanted = {true, true}};
	optind = 1;
	/* NOLINTNEXTLINE(concurrency-mt-unsafe): one thread */
	while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (option == 's') {
			request->selector = optarg;
		} else if (option == 'a' &&
		           dkim_algorithm_parse(slice_str(optarg), &algorithm) == 0) {
			request->wanted[DKIM_RSA_SHA256] = algorithm == DKIM_RSA_SHA256;
			request->wanted[DKIM_ED25519_SHA256] = algorithm == DKIM_ED25519_SHA256;
		} else {
			return CTL_USAGE;
		}
	}
	if (optind + 1 != argc)
		return CTL_USAGE;
	request->domain = argv[optind];
	if (request->selector != NULL && request->wanted[0] && request->wanted[1]) {
		fputs("postern: --selector names one key: give --algorithm too\n", stderr);
		return CTL_USAGE;
	}
	return CTL_DONE;
}

int ctl_dkim(struct ctl *ctl, int argc, char **argv)
{
	struct request request;
	char selector[16];
	int status = CTL_DONE;

	if (strcmp(argv[0], "create") != 0 || parse(argc, argv, &request) != CTL_DONE)
		return ctl_usage("dkim");
	struct db *db = ctl_database_open(ctl);
	if (db == NULL)
		return CTL_REFUSED;
	for (unsigned i = 0; status == CTL_DONE && i < 2; i++) {
		if (!request.wanted[i])
			continue;
		default_selector((enum dkim_algorithm)i, selector);
		status = create(ctl, db, request.domain,
		        request.selector != NULL ? request.selector : selector,
		        (enum dkim_algorithm)i);
	}
	db_free(db);
	return status;
}

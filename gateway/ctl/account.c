/* SPDX-License-Identifier: ISC */
/* postern account: thin over the SQL functions of the same names. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "gateway/ctl/ctl.h"

#define SECRET_MAX  1024
#define SECRET_ROOM (SECRET_MAX + 2) /* with the end of the line and a zero */
#define OPTIONS_MAX 4
#define PARAMS_MAX  DB_PARAMS_MAX
#define SQL_MAX     600

enum answer { NOTHING, ROWS, ACCOUNT /* a row; none: there is no such account */ };

/* A verb of one word or two, and its statement. $1 and on: the arguments, then the options; null if
 * absent. */
static const struct verb {
	const char *name, *second;
	unsigned arguments, optional; /* that must, and that may follow */
	const char *options[OPTIONS_MAX];
	const char *secret; /* what is asked for as CTL_SECRET, or NULL */
	enum answer answer;
	const char *sql;
} verbs[] = {
        {.name = "create",
                .arguments = 1,
                .options = {"plan"},
                .secret = "Password",
                .sql = "select postern.account_create($1, " CTL_SECRET
                       ", coalesce($2, 'default'))"},
        {.name = "password",
                .arguments = 1,
                .secret = "Password",
                .sql = "select postern.account_set_password($1, " CTL_SECRET ")"},
        {.name = "import",
                .arguments = 1,
                .options = {"plan"},
                .secret = "Hash",
                .sql = "select postern.account_import($1, " CTL_SECRET
                       ", coalesce($2, 'default'))"},
        {.name = "suspend", .arguments = 2, .sql = "select postern.account_suspend($1, $2)"},
        {.name = "resume", .arguments = 1, .sql = "select postern.account_resume($1)"},
        {.name = "close", .arguments = 1, .sql = "select postern.account_close($1)"},
        {.name = "show",
                .arguments = 1,
                .answer = ACCOUNT,
                .sql = "select * from postern.account_overview"
                       " where lower(login collate \"C\") = lower($1 collate \"C\")"},
        {.name = "list",
                .answer = ROWS,
                .sql = "select * from postern.account_overview order by login"},
        {.name = "plan", .arguments = 2, .sql = "select postern.account_set_plan($1, $2)"},
        {.name = "route",
                .arguments = 1,
                .optional = 1,
                .sql = "select postern.account_set_route($1, $2)"},
        {.name = "sender",
                .second = "grant",
                .arguments = 2,
                .sql = "select postern.sender_grant($1, $2)"},
        {.name = "sender",
                .second = "revoke",
                .arguments = 2,
                .sql = "select postern.sender_revoke($1, $2)"},
        {.name = "app-password",
                .arguments = 2,
                .options = {"mechanisms", "networks", "sender", "expires"},
                .answer = ROWS,
                .sql = "select postern.app_password_create($1, $2, string_to_array($3, ','),"
                       " string_to_array($4, ',')::cidr[], $5, $6::timestamptz) as password"},
        {.name = "revoke", .arguments = 2, .sql = "select postern.credential_revoke($1, $2)"},
        {.name = "certificate",
                .arguments = 3,
                .sql = "select postern.certificate_grant($1, $2, $3)"},
        {.name = "network",
                .second = "grant",
                .arguments = 2,
                .sql = "select postern.network_grant($1, $2)"},
        {.name = "network",
                .second = "revoke",
                .arguments = 2,
                .sql = "select postern.network_revoke($1, $2)"},
        {.name = "limit",
                .arguments = 3,
                .optional = 1,
                .sql = "select postern.limit_set($1, $2, $3::interval, $4::bigint)"},
        {.name = "usage", .arguments = 1, .answer = ROWS, .sql = "select * from postern.usage($1)"},
};

/*
 * From the environment, else from the terminal without echo, else a line of the input.
 * Whether there is one: half of one that is too long is none.
 */
static bool read_secret(const char *what, char secret[SECRET_ROOM])
{
	const char *given = getenv("POSTERN_PASSWORD");
	struct termios before, silent;
	bool terminal = tcgetattr(STDIN_FILENO, &before) == 0;

	if (given != NULL) {
		int len = snprintf(secret, SECRET_ROOM, "%s", given);
		return len > 0 && len <= SECRET_MAX;
	}
	if (terminal) {
		silent = before;
		silent.c_lflag &= ~(tcflag_t)ECHO;
		fprintf(stderr, "%s: ", what);
		tcsetattr(STDIN_FILENO, TCSAFLUSH, &silent);
	}
	bool got = fgets(secret, SECRET_ROOM, stdin) != NULL;
	if (terminal) {
		tcsetattr(STDIN_FILENO, TCSAFLUSH, &before);
		fputc('\n', stderr);
	}
	if (got)
		secret[strcspn(secret, "\r\n")] = '\0';
	return got && secret[0] != '\0' && strlen(secret) <= SECRET_MAX;
}

/* As "name=value", in quotes where it would end too early. */
static void print_value(const char *name, const char *value)
{
	printf("%s=", name);
	if (strpbrk(value, " \"\n") != NULL)
		ctl_print_json(value);
	else
		ctl_print_text(value);
}

static void print_rows(struct ctl *ctl, const PGresult *rows)
{
	for (int i = 0; i < PQntuples(rows); i++) {
		bool first = true;
		for (int k = 0; k < PQnfields(rows); k++) {
			const char *value = PQgetvalue(rows, i, k);
			if (ctl->json) {
				/* Whatever steers a terminal stands within its strings. */
				ctl_print_text(value);
			} else if (value[0] != '\0') {
				fputs(first ? "" : " ", stdout);
				print_value(PQfname(rows, k), value);
				first = false;
			}
		}
		puts("");
	}
}

/* 0, or -errno with the reason. */
static int send_secret(const struct verb *verb, struct db *db, struct why *why)
{
	char secret[SECRET_ROOM];
	int r = -EINVAL;

	if (read_secret(verb->secret, secret))
		r = ctl_database_secret(db, slice_str(secret), why);
	else
		why_set(why, "no %s of 1 to %d octets was given", verb->secret, SECRET_MAX);
	explicit_bzero(secret, sizeof(secret));
	return r;
}

static int run(struct ctl *ctl, const struct verb *verb, struct db *db, unsigned count,
        const char *const params[])
{
	char sql[SQL_MAX];
	PGresult *result;
	struct why why;

	/* The server knows what is a number, a null, an array. */
	snprintf(sql, sizeof(sql), ctl->json ? "select row_to_json(t) from (%s) t" : "%s",
	        verb->sql);
	int r = verb->secret != NULL ? send_secret(verb, db, &why) : 0;
	if (r == 0)
		r = db_exec(db, sql, count, params, &result, &why);
	if (r != 0)
		return ctl_database_failed(&why);
	int rows = PQntuples(result);
	if (verb->answer != NOTHING)
		print_rows(ctl, result);
	PQclear(result);
	if (verb->answer == ACCOUNT && rows == 0) {
		fputs("postern: no such account\n", stderr);
		return CTL_REFUSED;
	}
	return CTL_DONE;
}

/* Fills in the parameters from what follows the verb; false for wrong usage. */
static bool parse(const struct verb *verb, int argc, char **argv, const char *params[PARAMS_MAX],
        unsigned *ret_count)
{
	struct option options[OPTIONS_MAX + 1] = {{0}};
	unsigned option_count = 0, most = verb->arguments + verb->optional;
	int option;

	for (; option_count < OPTIONS_MAX && verb->options[option_count] != NULL; option_count++)
		options[option_count] = (struct option){
		        verb->options[option_count], required_argument, NULL, (int)option_count};
	optind = 1;
	opterr = 0; /* the usage says it all */
	/* NOLINTNEXTLINE(concurrency-mt-unsafe): one thread */
	while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (option >= (int)option_count)
			return false;
		params[most + (unsigned)option] = optarg;
	}
	unsigned given = (unsigned)(argc - optind);
	if (given < verb->arguments || given > most)
		return false;
	for (unsigned i = 0; i < given; i++)
		params[i] = argv[optind + (int)i];
	*ret_count = most + option_count;
	return true;
}

static const struct verb *find(int argc, char **argv)
{
	for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
		const struct verb *verb = &verbs[i];
		if (strcmp(verb->name, argv[0]) == 0 &&
		        (verb->second == NULL || (argc > 1 && strcmp(verb->second, argv[1]) == 0)))
			return verb;
	}
	return NULL;
}

int ctl_account(struct ctl *ctl, int argc, char **argv)
{
	const char *params[PARAMS_MAX] = {NULL};
	const struct verb *verb = find(argc, argv);
	int words = verb != NULL && verb->second != NULL ? 1 : 0;
	unsigned count;
	bool right = verb != NULL && parse(verb, argc - words, argv + words, params, &count);

	if (!right)
		return ctl_usage("account");
	struct db *db = ctl_database_open(ctl);
	if (db == NULL)
		return CTL_REFUSED;
	int status = run(ctl, verb, db, count, params);
	db_free(db);
	return status;
}

/* SPDX-License-Identifier: ISC */
/* postern account: thin over the SQL functions of the same names. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "gateway/ctl/ctl.h"

#define PASSWORD_MAX  1024
#define PASSWORD_ROOM (PASSWORD_MAX + 2) /* with the end of the line and a zero */

static const struct verb {
	const char *name;
	int argc; /* after the verb */
	const char *sql;
	bool password; /* the second parameter, asked for */
} verbs[] = {
        {"create", 1, "select postern.account_create($1, $2)", true},
        {"password", 1, "select postern.account_set_password($1, $2)", true},
        {"suspend", 2, "select postern.account_suspend($1, $2)", false},
        {"resume", 1, "select postern.account_resume($1)", false},
        {"close", 1, "select postern.account_close($1)", false},
        {"show", 1, "select * from postern.account_overview where lower(login) = lower($1)", false},
        {"list", 0, "select * from postern.account_overview order by login", false},
};

/*
 * From the environment, else from the terminal without echo, else a line of the input.
 * Whether there is one: half of one that is too long is none.
 */
static bool read_password(char password[PASSWORD_ROOM])
{
	const char *given = getenv("POSTERN_PASSWORD");
	struct termios before, silent;
	bool terminal = tcgetattr(STDIN_FILENO, &before) == 0;

	if (given != NULL) {
		int len = snprintf(password, PASSWORD_ROOM, "%s", given);
		return len > 0 && len <= PASSWORD_MAX;
	}
	if (terminal) {
		silent = before;
		silent.c_lflag &= ~(tcflag_t)ECHO;
		fputs("Password: ", stderr);
		tcsetattr(STDIN_FILENO, TCSAFLUSH, &silent);
	}
	bool got = fgets(password, PASSWORD_ROOM, stdin) != NULL;
	if (terminal) {
		tcsetattr(STDIN_FILENO, TCSAFLUSH, &before);
		fputc('\n', stderr);
	}
	if (got)
		password[strcspn(password, "\r\n")] = '\0';
	return got && password[0] != '\0' && strlen(password) <= PASSWORD_MAX;
}

void ctl_print_json(const char *text)
{
	putchar('"');
	for (; *text != '\0'; text++) {
		unsigned char c = (unsigned char)*text;
		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < 0x20 || c == 0x7f)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
	putchar('"');
}

static void print_rows(struct ctl *ctl, const PGresult *rows)
{
	for (int i = 0; i < PQntuples(rows); i++) {
		for (int k = 0; k < PQnfields(rows); k++) {
			const char *value = PQgetvalue(rows, i, k);
			if (ctl->json) {
				printf("%s\"%s\":", k == 0 ? "{" : ",", PQfname(rows, k));
				ctl_print_json(value);
			} else if (value[0] != '\0') {
				printf("%s%s=%s", k == 0 ? "" : " ", PQfname(rows, k), value);
			}
		}
		puts(ctl->json ? "}" : "");
	}
}

static int run(struct ctl *ctl, const struct verb *verb, struct db *db, char **argv)
{
	char password[PASSWORD_ROOM];
	const char *params[2] = {argv[1], verb->argc > 1 ? argv[2] : NULL};
	PGresult *result;
	struct why why;

	if (verb->password) {
		if (!read_password(password)) {
			fprintf(stderr, "postern: no password of 1 to %d octets was given\n",
			        PASSWORD_MAX);
			return CTL_REFUSED;
		}
		params[1] = password;
	}
	int r = db_exec(
	        db, verb->sql, (unsigned)verb->argc + verb->password, params, &result, &why);
	explicit_bzero(password, sizeof(password));
	if (r < 0)
		return ctl_database_failed(&why);
	bool shows = strncmp(verb->sql, "select *", 8) == 0;
	int rows = PQntuples(result);
	if (shows)
		print_rows(ctl, result);
	PQclear(result);
	if (shows && rows == 0 && verb->argc > 0) {
		fputs("postern: no such account\n", stderr);
		return CTL_REFUSED;
	}
	return CTL_DONE;
}

int ctl_account(struct ctl *ctl, int argc, char **argv)
{
	for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
		if (strcmp(verbs[i].name, argv[0]) != 0)
			continue;
		if (argc - 1 != verbs[i].argc)
			return ctl_usage("account");
		struct db *db = ctl_database_open(ctl);
		if (db == NULL)
			return CTL_REFUSED;
		int status = run(ctl, &verbs[i], db, argv);
		db_free(db);
		return status;
	}
	return ctl_usage("account");
}

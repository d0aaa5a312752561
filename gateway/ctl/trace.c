/* SPDX-License-Identifier: ISC */
/* postern trace: the story of a message, from the database. */
#include <stdio.h>

#include "gateway/ctl/ctl.h"

/* Times in UTC, ISO 8601. */
#define QUERY                                                                                      \
	"select to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as at, event," \
	" recipient, detail from postern.trace($1)"

static void print_line(const PGresult *rows, int row)
{
	const char *recipient = PQgetvalue(rows, row, 2);

	printf("%s %-9s ", PQgetvalue(rows, row, 0), PQgetvalue(rows, row, 1));
	ctl_print_text(recipient);
	fputs(*recipient != '\0' ? " " : "", stdout);
	ctl_print_text(PQgetvalue(rows, row, 3));
	putchar('\n');
}

/* Whatever steers a terminal stands within its strings. */
static void print_object(const PGresult *rows, int row)
{
	ctl_print_text(PQgetvalue(rows, row, 0));
	putchar('\n');
}

int ctl_trace(struct ctl *ctl, int argc, char **argv)
{
	const char *params[] = {argv[0]};
	PGresult *rows;
	struct why why;

	if (argc != 1)
		return ctl_usage("trace");
	struct db *db = ctl_database_open(ctl);
	if (db == NULL)
		return CTL_REFUSED;
	int r = db_exec(db, ctl->json ? "select row_to_json(t) from (" QUERY ") t" : QUERY, 1,
	        params, &rows, &why);
	db_free(db);
	if (r < 0)
		return ctl_database_failed(&why);
	int count = PQntuples(rows);
	for (int i = 0; i < count; i++)
		if (ctl->json)
			print_object(rows, i);
		else
			print_line(rows, i);
	PQclear(rows);
	if (count > 0)
		return CTL_DONE;
	fputs("postern: nothing is known of such a message; it may be older than history is kept,\n"
	      "or lost (table postern.history_gap)\n",
	        stderr);
	return CTL_REFUSED;
}

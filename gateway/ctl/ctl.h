/* SPDX-License-Identifier: ISC */
/* What the verb groups of the `postern` tool share. One thread. */
#pragma once

#include <stdbool.h>

#include "db/db.h"
#include "gateway/conf/conf.h"

/* Exit status of the tool and of every verb. */
enum ctl_status { CTL_DONE = 0, CTL_REFUSED = 1, CTL_USAGE = 2 };

struct ctl {
	const char *conf_path;
	const struct conf *conf; /* loaded and checked */
	bool json;
};

/* Prints how a group is used; CTL_USAGE. */
int ctl_usage(const char *group);

/* A JSON string with its quotes, for values of any octets. */
void ctl_print_json(const char *text);

/* As it is, but for what steers a terminal: that as \uNNNN. */
void ctl_print_text(const char *text);

/* A connection to the database as the caller's psql makes it; NULL after telling why not. */
struct db *ctl_database_open(struct ctl *ctl);

/*
 * Gives the database a secret for the next statement, which names it CTL_SECRET. By COPY into a
 * temporary table of the connection: with log_statement the server's log has the parameters of
 * statements, but never what was copied. 0, or -errno with the reason.
 */
#define CTL_SECRET_MAX 16384
int ctl_database_secret(struct db *db, struct slice secret, struct why *why) must_check;
#define CTL_SECRET "(select convert_from(decode(hex, 'hex'), 'UTF8') from pg_temp.secret)"

/* Tells what the database said no to; CTL_REFUSED. */
int ctl_database_failed(const struct why *why);

/* One function a verb group; argv[0] is the verb after the group's name. */
int ctl_queue(struct ctl *ctl, int argc, char **argv);
int ctl_database(struct ctl *ctl, int argc, char **argv);
int ctl_dkim(struct ctl *ctl, int argc, char **argv);
int ctl_account(struct ctl *ctl, int argc, char **argv);
int ctl_status(struct ctl *ctl, int argc, char **argv);
int ctl_trace(struct ctl *ctl, int argc, char **argv);

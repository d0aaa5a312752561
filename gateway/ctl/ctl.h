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

/* A connection to the database as the caller's psql makes it; NULL after telling why not. */
struct db *ctl_database_open(struct ctl *ctl);

/* Tells what the database said no to; CTL_REFUSED. */
int ctl_database_failed(const struct why *why);

/* One function a verb group; argv[0] is the verb after the group's name. */
int ctl_queue(struct ctl *ctl, int argc, char **argv);
int ctl_database(struct ctl *ctl, int argc, char **argv);
int ctl_dkim(struct ctl *ctl, int argc, char **argv);
int ctl_account(struct ctl *ctl, int argc, char **argv);
int ctl_status(struct ctl *ctl, int argc, char **argv);

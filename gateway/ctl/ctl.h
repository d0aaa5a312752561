/* SPDX-License-Identifier: ISC */
/* What the verb groups of the `postern` tool share. One thread. */
#pragma once

#include <stdbool.h>

#include "gateway/conf/conf.h"

/* Exit status of the tool and of every verb. */
enum ctl_status { CTL_DONE = 0, CTL_REFUSED = 1, CTL_USAGE = 2 };

struct ctl {
	const char *conf_path;
	const struct conf *conf; /* loaded and checked */
	bool json;
};

/* One function a verb group; argv[0] is the verb after the group's name. */
int ctl_queue(struct ctl *ctl, int argc, char **argv);
int ctl_database(struct ctl *ctl, int argc, char **argv);
int ctl_dkim(struct ctl *ctl, int argc, char **argv);
int ctl_account(struct ctl *ctl, int argc, char **argv);

/* SPDX-License-Identifier: ISC */
/*
 * The networks that slots remember, in a file, so that who has logged in before is no stranger to a
 * process that was started amid a flood. One line for each, the oldest login first: the network,
 * and the second of the last login since 1970: "192.0.2.1 1764500000", "2001:db8::/56 1764500000".
 *
 * What cannot be read or written is told in the log and does no other harm than that.
 * The loop's thread only.
 */
#pragma once

#include <stdbool.h>

#include "gateway/base/compiler.h"
#include "gateway/base/file.h"
#include "gateway/net/loop.h"
#include "gateway/submit/slots.h"

struct networks_file;

/*
 * Has `slots` remember what is in the file in/networks of that spool (in/ is where this process may
 * write), and begins to write it anew once a minute, on a thread of its own; `slots` and `ops` must
 * stay. 0 or -errno.
 */
int networks_file_new(struct loop *loop, struct slots *slots, const struct file_ops *ops,
        const char *spool, struct networks_file **ret_file) must_check;

/*
 * Writes it once more. False: the disk has hung for a second, and nothing was freed; its thread and
 * `slots`, which that uses, are left to the end of the process. NULL is fine.
 */
bool networks_file_free(struct networks_file *file) must_check;

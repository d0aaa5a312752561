/* SPDX-License-Identifier: ISC */
/*
 * The control socket, for the tool `postern`: a line of words asks, lines answer;
 * the first is "ok" or "error TEXT", then the connection closes.
 *
 *     count                    a number
 *     list                     a line of logfmt a message, in no order
 *     show ID                  everything about one
 *     retry ID|all             makes waiting messages due now
 *     delete ID                forgets one, without a bounce
 */
#pragma once

#include "gateway/base/compiler.h"

struct control;
struct relay;

/* Takes the listening descriptor over, also on failure. 0 or -errno. */
int control_new(struct relay *relay, int fd, struct control **ret_control) must_check;
void control_free(struct control *control);

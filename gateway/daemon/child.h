/* SPDX-License-Identifier: ISC */
/*
 * The glue between the supervisor's link and the three processes: waits for START,
 * attaches the board, runs the process until STOP or the end of the link.
 */
#pragma once

#include "gateway/daemon/start.h"

enum child_kind { CHILD_SUBMIT, CHILD_AUTH, CHILD_RELAY, CHILD_COUNT };

/* "submit", "auth", "relay". */
const char *child_name(enum child_kind kind);

/* The whole life of a child; returns its exit status. */
int child_main(enum child_kind kind);

/* One for each kind, in child_<kind>.c: 0 after a clean stop, -errno with the reason. */
int child_run_submit(struct start *start, struct why *why) must_check;
int child_run_auth(struct start *start, struct why *why) must_check;
int child_run_relay(struct start *start, struct why *why) must_check;

/* For these: tells the supervisor. `text` "" means that the reload is in force. */
void child_tell_ready(void);
void child_tell_reloaded(const char *text);

/*
 * The next message of the link, for a loop's watch or a blocking loop: its type, with
 * *ret_start filled for RELOAD and the descriptors for SIBLINGS. The end of the link
 * shows as STOP.
 */
enum link_type child_receive(
        struct link_message *ret_message, struct start *ret_start, struct why *why);

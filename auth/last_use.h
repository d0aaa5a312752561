/* SPDX-License-Identifier: ISC */
/*
 * When credentials were used last: gathered in memory, written by a thread of its own every
 * ten seconds, many in one statement, so that no login waits for it. What was gathered since is
 * lost when the process is killed.
 */
#pragma once

#include <stdint.h>

#include "db/db.h"
#include "gateway/base/compiler.h"

struct last_use;

/* Starts the thread; the database need not be there. Copies. 0 or -errno. */
int last_use_start(const struct db_settings *settings, struct last_use **ret_last_use) must_check;

/* A login with that credential. Any thread; less than a microsecond. */
void last_use_note(struct last_use *last_use, uint64_t credential);

/* Writes what is there, if the database is, and ends the thread. NULL is fine. */
void last_use_stop(struct last_use *last_use);

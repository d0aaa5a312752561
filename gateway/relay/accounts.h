/* SPDX-License-Identifier: ISC */
/*
 * The accounts whose mail is held because they are suspended, and the tasks of such
 * mail, which wait here without ageing.
 *
 * Until the database has told for the first time since the start, nobody knows, and
 * all mail waits; after that the last word stands, however long the database is away.
 * Notifications of ours are never held: they only tell the sender of a failure.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gateway/base/compiler.h"

struct accounts;
struct db;
struct loop;
struct spool_entry;
struct task;

/* 0 or -errno. */
int accounts_new(struct loop *loop, struct accounts **ret_accounts) must_check;
/* No task waits here, and nobody tells any more. */
void accounts_free(struct accounts *accounts);

/* ---- the loop's thread ---- */

/* Whether the message must wait, and the word for it in the queue's list; NULL: it may leave. */
const char *accounts_hold_reason(const struct accounts *accounts, const struct spool_entry *entry);

/* Lets the task wait here if its message must; whether it does. */
bool accounts_hold(struct accounts *accounts, struct task *task);

/* ---- the thread that listens to the database ---- */

/* Asks for all that are held. 0; -errno as of db_exec(), or -ENOMEM. */
int accounts_load(struct accounts *accounts, struct db *db) must_check;

/* Asks about these, of which something has changed, and loads if it was that. They are sorted. */
int accounts_check(
        struct accounts *accounts, struct db *db, uint64_t *changed, size_t count) must_check;

/* These are held, in ascending order, and no others: put in force on the loop. 0 or -ENOMEM. */
int accounts_tell(struct accounts *accounts, const uint64_t *held, size_t count) must_check;

/* Whether it has been told ever since the start. */
bool accounts_were_told(const struct accounts *accounts);

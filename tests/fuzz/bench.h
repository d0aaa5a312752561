/* SPDX-License-Identifier: ISC */
/* For the targets that run a whole process: a spool in memory, and a loop that turns until told. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>

#include "gateway/net/loop.h"

/* A new folder on a file system in memory where there is one, removed at the exit. */
const char *bench_folder(void);

/* Empties it. */
void bench_empty(void);

/* Octets sent to a socket of this machine that its other side has not read. */
bool bench_has_unread(int fd);

/*
 * Turns the loop until `is_quiet` has said so in a few turns on end: what the turn itself
 * has deferred then happened too. An assertion after seconds.
 */
void bench_turn(struct loop *loop, bool (*is_quiet)(void *arg), void *arg);

/*
 * On this thread the harness runs, and not the gateway: its allocations do not fail. Each
 * thread begins as the gateway's; bench_turn() is the gateway's turn.
 */
extern _Thread_local bool bench_in_harness;

/* memory.c: in this run an allocation of the gateway is going to fail, and has failed. */
extern bool bench_memory_fails;
extern atomic_bool bench_memory_failed;

/* SPDX-License-Identifier: ISC */
/*
 * The board of counters: one file in the runtime folder, mapped by every process,
 * one slot for each thread that counts. Counting is a relaxed add to the thread's
 * own slot; whoever reads sums the slots. Counters live as long as the supervisor:
 * a restarted process goes on in its slots.
 */
#pragma once

#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/why.h"

enum counter {
#define COUNTER(id, name, help) CT_##id,
#include "gateway/base/counters.def"
#undef COUNTER
	COUNTER_COUNT
};

/* Slots of a process: its threads take them in turn, sharing the last one if there are more. */
enum board_process { BOARD_SUBMIT, BOARD_AUTH, BOARD_RELAY, BOARD_PROCESSES };

/*
 * Makes a new board `path` (under another name, then renamed in) and returns its
 * descriptor, to be handed to the processes; -errno.
 */
int board_create(const char *path, struct why *why) must_check;

/* Maps it for this process; until then counts go to private memory. Once, before threads. */
int board_attach(int fd, enum board_process process, struct why *why) must_check;

/* Adds in the calling thread's slot; wait-free. */
void counter_add(enum counter counter, uint64_t amount);

/* Sums all slots of a board file into ret_values[COUNTER_COUNT]; 0 or -errno. */
int board_read(const char *path, uint64_t *ret_values) must_check;

const char *counter_name(enum counter counter);
const char *counter_help(enum counter counter);

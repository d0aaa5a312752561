/* SPDX-License-Identifier: ISC */
/*
 * Both sides of a spool in a folder of its own, for the tests of it: one step for each
 * thing that a test does with it. What cannot be done fails the test. One thread, one
 * bench at a time.
 */
#pragma once

#include "tests/unit/unit.h"

#include "gateway/net/timer.h"
#include "gateway/spool/spool.h"

#define BENCH_ENTRIES_MAX  64
#define BENCH_PATIENCE_MS  20000 /* with what must happen */
#define BENCH_SEGMENT_SIZE (1 << 20)

struct bench {
	char path[64];
	struct file_ops ops;
	_Atomic int bad_syncs;  /* so many fail, in whichever thread */
	_Atomic int good_syncs; /* before those */
	struct loop *loop;
	struct jobs *jobs;
	struct spool_in *in;   /* or NULL */
	struct spool_out *out; /* or NULL, as at first */
	char in_alarm[200], alarm[200];
	unsigned recovered;
	size_t giving, marking;         /* callbacks outstanding */
	int results[BENCH_ENTRIES_MAX]; /* of each message, by its number */
	int bounced;                    /* of the last bounce, when it was first written */
	/* That came out since out/ was opened. */
	struct spool_entry *entries[BENCH_ENTRIES_MAX];
	size_t entry_count;
	/* private */
	size_t wanted;
	struct timer patience, look;
	char file[128];
};

/* Before and after each test. in/ is open then; out/ may be left open. */
int bench_set_up(void **state);
int bench_tear_down(void **state);

/* The same on other file operations; only fdatasync is the bench's own. */
int bench_set_up_on(void **state, const struct file_ops *ops);

#define BENCH_TEST(test) cmocka_unit_test_setup_teardown(test, bench_set_up, bench_tear_down)

/* ---- files ---- */

/* The path of a file of the spool, until the next call. */
const char *bench_file(struct bench *bench, const char *name);

bool bench_has(struct bench *bench, const char *name);
bool bench_has_segment(struct bench *bench, unsigned number); /* in/ has it */

/* ---- opening, closing, waiting ---- */

void bench_open_in(struct bench *bench);
void bench_close_in(struct bench *bench);
void bench_reopen_in(struct bench *bench);

/* 0, or -errno with the reason. */
int bench_try_open_out(struct bench *bench, struct why *why) must_check;

/* Opens it, closing it first if it is open, and waits: just so many entries come out. */
void bench_open_out(struct bench *bench, size_t entries);
void bench_close_out(struct bench *bench);

/* Until all that was asked for has been answered, out/ is idle and has so many entries or more. */
void bench_wait(struct bench *bench, size_t entries);

/* Turns the loop for so long, whatever happens. */
void bench_turn_for(struct bench *bench, uint64_t ms);

/* ---- messages ---- */

/* A message, for the test to commit; its result comes to bench->results. */
struct spool_tx *bench_begin(
        struct bench *bench, size_t number, struct message_id id, size_t body_len);

/* A whole one, committed: for two recipients, and its account is its number. */
struct message_id bench_give(struct bench *bench, size_t number, size_t body_len);

/* The same, answered: its result. */
int bench_give_now(struct bench *bench, size_t number, size_t body_len) must_check;

/* Messages 0 to count - 1, all accepted: at once, or each after the one before was accepted. */
void bench_give_at_once(struct bench *bench, size_t count, size_t body_len);
void bench_give_each(struct bench *bench, size_t count, size_t body_len);

void bench_expect_body(struct bench *bench, const struct spool_entry *entry, size_t body_len);

/* Settles a recipient, or both by a mark each. The marks must be written: bench_wait(). */
void bench_settle(struct bench *bench, struct spool_entry *entry, uint32_t recipient);
void bench_settle_both(struct bench *bench, struct spool_entry *entry);

/* A bounce about both recipients, when it has come out; its result comes to bench->bounced. */
struct spool_entry *bench_bounce(struct bench *bench, struct spool_entry *entry, struct slice body);

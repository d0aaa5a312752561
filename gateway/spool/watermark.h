/* SPDX-License-Identifier: ISC */
/*
 * `in/lock`: the lock of the journal, and the watermark below which its records
 * are committed. Mapped by both processes, written by `submit` alone, never
 * truncated or replaced. `out/lock` is only a lock. Locking blocks; the writer's side is
 * one thread's at a time, reading is for any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/why.h"

struct watermark_file;

struct watermark {
	int fd;
	struct watermark_file *file;
};

/*
 * Opens and locks the file for its writer, waiting 15 s for a predecessor. Sets
 * *ret_fresh when it did not exist. 0, or -EBUSY, -errno with the reason.
 */
int watermark_lock(const char *folder, struct watermark *ret_watermark, bool *ret_fresh,
        struct why *why) must_check;

/* Maps it for reading. 0 or -errno (-ENOENT: no writer has ever been). */
int watermark_open(const char *folder, struct watermark *ret_watermark) must_check;
void watermark_close(struct watermark *watermark);

/* Whether it was written since this machine started. */
bool watermark_is_of_this_boot(const struct watermark *watermark);

/* The first publish of a run also sets the boot id and the run. Release order. */
void watermark_start(struct watermark *watermark, uint32_t run, uint64_t offset);
void watermark_publish(struct watermark *watermark, uint32_t segment, uint64_t offset);

/* Acquire order. */
void watermark_read(const struct watermark *watermark, uint32_t *ret_segment, uint64_t *ret_offset);
uint32_t watermark_run(const struct watermark *watermark);

/* SPDX-License-Identifier: ISC */
/* Random numbers from the kernel; unpredictable. Any thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Fills the memory. Cannot fail on any kernel that we run on; aborts if it does. */
void random_bytes(void *memory, size_t len);

/* A number in [0, bound), bound > 0; its bias of bound/2^64 does not matter for jitter. */
uint64_t random_below(uint64_t bound);

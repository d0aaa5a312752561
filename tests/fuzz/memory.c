/* SPDX-License-Identifier: ISC */
/*
 * Put in front of a target that runs a whole process: each of its inputs is run once to
 * count the allocations of the gateway, then again and again while each of them fails in
 * turn, and at the end once more as if nothing had been.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/bench.h"
#include "tests/fuzz/fuzz.h"

static _Atomic unsigned asked, failing; /* allocations so far; which of them fails, 0: none */

/* ---- the linker puts these in front of the C library ---- */

void *__real_malloc(size_t len);
void *__real_calloc(size_t count, size_t len);
void *__real_realloc(void *old, size_t len);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t len);
void *__wrap_calloc(size_t count, size_t len);
void *__wrap_realloc(void *old, size_t len);
char *__wrap_strdup(const char *text);

static bool fails(void)
{
	if (bench_in_harness || atomic_fetch_add(&asked, 1) + 1 != atomic_load(&failing))
		return false;
	bench_memory_failed = true;
	return true;
}

void *__wrap_malloc(size_t len)
{
	return fails() ? NULL : __real_malloc(len);
}

void *__wrap_calloc(size_t count, size_t len)
{
	return fails() ? NULL : __real_calloc(count, len);
}

void *__wrap_realloc(void *old, size_t len)
{
	return fails() ? NULL : __real_realloc(old, len);
}

char *__wrap_strdup(const char *text)
{
	return fails() ? NULL : __real_strdup(text);
}

/* ---- and this in front of the target ---- */

int __real_LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int __wrap_LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Runs it while that allocation fails; 0: none does. How many there were. */
static unsigned run_while(unsigned number, const uint8_t *data, size_t size)
{
	atomic_store(&asked, 0);
	atomic_store(&failing, number);
	bench_memory_fails = number != 0;
	bench_memory_failed = false;
	(void)__real_LLVMFuzzerTestOneInput(data, size);
	atomic_store(&failing, 0);
	return atomic_load(&asked);
}

int __wrap_LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned failed = 0;

	(void)run_while(0, data, size); /* what is made once is made */
	unsigned count = run_while(0, data, size);
	for (unsigned number = 1; number <= count; number++) {
		(void)run_while(number, data, size);
		failed += bench_memory_failed;
	}
	(void)run_while(0, data, size);
	printf("# %u allocations failed\n", failed);
	return 0;
}

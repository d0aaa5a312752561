/* SPDX-License-Identifier: ISC */
/* A clock that can be moved; see test_clock.h. */
#include "tests/unit/test_clock.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gateway/base/clock.h"
#include "gateway/base/compiler.h"

static _Atomic int64_t *shift_us; /* mapped from the file that moves the clock */

void test_clock_open(void)
{
	char path[] = "/tmp/postern-clock-XXXXXX";
	int fd = mkstemp(path);

	assert_bug(fd >= 0 && ftruncate(fd, sizeof(*shift_us)) == 0);
	shift_us = mmap(NULL, sizeof(*shift_us), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_bug(shift_us != MAP_FAILED);
	setenv("POSTERN_TEST_CLOCK", path, 1);
	clock_init();
	unlink(path);
	close(fd);
}

void test_clock_pass_ms(int64_t ms)
{
	*shift_us += ms * 1000;
}

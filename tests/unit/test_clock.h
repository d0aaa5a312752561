/* SPDX-License-Identifier: ISC */
/* The clock of a test program, which can be moved in a build with test hooks. One thread. */
#pragma once

#include <stdint.h>

/* At the start of the program. What cannot be done fails it. */
void test_clock_open(void);

void test_clock_pass_ms(int64_t ms);

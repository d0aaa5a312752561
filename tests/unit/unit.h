/* SPDX-License-Identifier: ISC */
/* cmocka, with the headers it wants in the order it wants. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "gateway/base/slice.h"

static inline void assert_slice_equal(struct slice slice, const char *text)
{
	assert_int_equal(slice.len, strlen(text));
	if (slice.len > 0)
		assert_memory_equal(slice.ptr, text, slice.len);
}

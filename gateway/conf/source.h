/* SPDX-License-Identifier: ISC */
/*
 * A look at the source text of a configuration before libconfig 1.5 has it, at what
 * that does not tell. An included folder ends the process. Integers over 32 bits are
 * wrapped, and 010 is read as 10: both would put another value in force than the one
 * that stands in the file. Blocking; any thread.
 */
#pragma once

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"

/*
 * Reads the file and what it includes, which stands in `folder` unless it says more.
 * Appends a line to `ret_numbers` for each number that libconfig would read as another
 * one. 0, or -EISDIR with a line in `errors`: libconfig must not have it. What cannot be
 * read is left to libconfig to tell.
 */
int source_check(const char *path, const char *folder, struct buf *errors,
        struct buf *ret_numbers) must_check;

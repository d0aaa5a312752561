/* SPDX-License-Identifier: ISC */
/*
 * A second look at the numbers of a configuration in its source text. libconfig
 * 1.5 wraps integers over 32 bits without a word and reads 010 as 10; both would
 * put another value in force than the one that stands in the file.
 */
#pragma once

#include <libconfig.h>

#include "gateway/base/buf.h"

/*
 * Reads the files of `tree` (`path` and what it includes) again and appends a line
 * to `errors` for each such number; returns how many there were.
 */
int numbers_check(const config_t *tree, const char *path, struct buf *errors);

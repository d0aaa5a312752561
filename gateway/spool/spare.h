/* SPDX-License-Identifier: ISC */
/*
 * The spare of out/: a file whose blocks are on the disk already, kept so that marks
 * can be written when the disk is full. Without them no settled message could be
 * removed, and the disk would stay full. The writer thread, or before it runs.
 */
#pragma once

#include "gateway/base/compiler.h"
#include "gateway/base/file.h"

/* Room for some ten thousand marks. */
#define SPARE_SIZE (1U << 20)

/* Makes it unless it is there. 0 or -errno. */
int spare_make(const struct file_ops *ops, const char *folder) must_check;

/* Turns it into the file `path`, opened for writing over what is there. A descriptor or -errno. */
int spare_take(const struct file_ops *ops, const char *folder, const char *path) must_check;

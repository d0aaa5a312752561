/* SPDX-License-Identifier: ISC */
/*
 * The file operations on which "nothing is ever lost" rests, as one table of
 * functions, so that tests can fail, tear or lose any of them. Each returns what
 * the system call does, with -errno instead of -1. Any thread.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "gateway/base/compiler.h"

struct file_ops {
	int (*open)(const char *path, int flags, mode_t mode);
	ssize_t (*pread)(int fd, void *room, size_t len, off_t offset);
	ssize_t (*pwritev)(int fd, const struct iovec *parts, int count, off_t offset);
	int (*fdatasync)(int fd);
	int (*sync_folder)(const char *path);
	int (*rename)(const char *from, const char *to);
	int (*unlink)(const char *path);
	int (*shorten)(const char *path, off_t len); /* synced when it returns */
	/* Octets that this process may still write on the file system of `path`. */
	int (*space)(const char *path, uint64_t *ret_free);
};

/* The real ones. */
extern const struct file_ops file_system;

/* Reads exactly `len` octets; -ENODATA when the file ends before. */
int file_read_exactly(
        const struct file_ops *ops, int fd, void *room, size_t len, off_t offset) must_check;

/* Writes all parts; a short write is -ENOSPC. `parts` is not changed. */
int file_write_exactly(const struct file_ops *ops, int fd, const struct iovec *parts, int count,
        off_t offset) must_check;

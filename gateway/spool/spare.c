/* SPDX-License-Identifier: ISC */
/* The spare segment; see spare.h. */
#include "gateway/spool/spare.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "gateway/spool/segment.h"

#define PIECE 65536

static const char *spare_path(const char *folder, const char *name, char path[SEGMENT_PATH])
{
	snprintf(path, SEGMENT_PATH, "%s/%s", folder, name);
	return path;
}

static int fill(const struct file_ops *ops, int fd)
{
	static const char zeros[PIECE];
	const struct iovec part = {(void *)(uintptr_t)zeros, PIECE};
	int r = 0;

	for (off_t at = 0; r == 0 && at < SPARE_SIZE; at += PIECE)
		r = file_write_exactly(ops, fd, &part, 1, at);
	return r == 0 ? ops->fdatasync(fd) : r;
}

int spare_make(const struct file_ops *ops, const char *folder)
{
	char path[SEGMENT_PATH], making[SEGMENT_PATH];

	int fd = ops->open(spare_path(folder, "spare", path), O_WRONLY, 0);
	if (fd >= 0) {
		close(fd);
		return 0;
	}
	/* Under another name until it is whole. */
	fd = ops->open(spare_path(folder, "spare.new", making), O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		return fd;
	int r = fill(ops, fd);
	close(fd);
	if (r == 0)
		r = ops->rename(making, path);
	if (r < 0)
		(void)ops->unlink(making);
	return r;
}

int spare_take(const struct file_ops *ops, const char *folder, const char *path)
{
	char spare[SEGMENT_PATH];

	int r = ops->rename(spare_path(folder, "spare", spare), path);
	return r < 0 ? r : ops->open(path, O_WRONLY, 0);
}

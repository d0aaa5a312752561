/* SPDX-License-Identifier: ISC */
/* The real file operations; see file.h. */
#include "gateway/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int real_open(const char *path, int flags, mode_t mode)
{
	int fd = open(path, flags | O_CLOEXEC, mode);

	return fd < 0 ? -errno : fd;
}

static ssize_t real_pread(int fd, void *room, size_t len, off_t offset)
{
	ssize_t got;

	do
		got = pread(fd, room, len, offset);
	while (got < 0 && errno == EINTR);
	return got < 0 ? -errno : got;
}

static ssize_t real_pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
	ssize_t wrote;

	do
		wrote = pwritev(fd, parts, count, offset);
	while (wrote < 0 && errno == EINTR);
	return wrote < 0 ? -errno : wrote;
}

static int real_fdatasync(int fd)
{
	return fdatasync(fd) < 0 ? -errno : 0;
}

static int real_sync_folder(const char *path)
{
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return fsync(fd) < 0 ? -errno : 0;
}

static int real_rename(const char *from, const char *to)
{
	return rename(from, to) < 0 ? -errno : 0;
}

static int real_unlink(const char *path)
{
	return unlink(path) < 0 ? -errno : 0;
}

static int real_shorten(const char *path, off_t len)
{
	_cleanup_(closep) int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return ftruncate(fd, len) < 0 || fdatasync(fd) < 0 ? -errno : 0;
}

static int real_space(const char *path, uint64_t *ret_free)
{
	struct statvfs fs;

	if (statvfs(path, &fs) < 0)
		return -errno;
	*ret_free = (uint64_t)fs.f_bavail * fs.f_frsize;
	return 0;
}

const struct file_ops file_system = {
        .open = real_open,
        .pread = real_pread,
        .pwritev = real_pwritev,
        .fdatasync = real_fdatasync,
        .sync_folder = real_sync_folder,
        .rename = real_rename,
        .unlink = real_unlink,
        .shorten = real_shorten,
        .space = real_space,
};

int file_read_exactly(const struct file_ops *ops, int fd, void *room, size_t len, off_t offset)
{
	for (size_t done = 0; done < len;) {
		ssize_t got = ops->pread(fd, (char *)room + done, len - done, offset + (off_t)done);
		if (got < 0)
			return (int)got;
		if (got == 0)
			return -ENODATA;
		done += (size_t)got;
	}
	return 0;
}

int file_write_exactly(
        const struct file_ops *ops, int fd, const struct iovec *parts, int count, off_t offset)
{
	size_t want = 0;

	for (int i = 0; i < count; i++)
		want += parts[i].iov_len;
	ssize_t wrote = ops->pwritev(fd, parts, count, offset);
	if (wrote < 0)
		return (int)wrote;
	return (size_t)wrote == want ? 0 : -ENOSPC;
}

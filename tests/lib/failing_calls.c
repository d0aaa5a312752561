/* SPDX-License-Identifier: ISC */
/*
 * Loaded in front of the C library, and of a sanitizer's, of a whole gateway (LD_PRELOAD): system
 * calls of one process fail, with the errno that a test has written for each into a file that all
 * of them map. tests/lib/failing_calls.py is the other side.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

struct failures {
	_Atomic int32_t pid;
	_Atomic int32_t recv, pwritev, fdatasync; /* an errno; 0: it works */
};

static struct failures none;
static struct failures *failures = &none;

__attribute__((constructor)) static void map_failures(void)
{
	const char *path = getenv("POSTERN_FAILING_CALLS");
	int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
	void *mapped =
	        fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(*failures), PROT_READ, MAP_SHARED, fd, 0);

	if (fd >= 0)
		close(fd);
	if (mapped != MAP_FAILED)
		failures = mapped;
}

static int failure(const _Atomic int32_t *call)
{
	int32_t error = failures->pid == getpid() ? *call : 0;

	if (error != 0)
		errno = error;
	return error;
}

#define REAL(call) ((__typeof__(&(call)))dlsym(RTLD_NEXT, #call))

/* Their parameters have glibc's reserved names there.
   NOLINTBEGIN(readability-inconsistent-declaration-parameter-name) */
ssize_t recv(int fd, void *room, size_t len, int flags)
{
	return failure(&failures->recv) != 0 ? -1 : REAL(recv)(fd, room, len, flags);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
	return failure(&failures->pwritev) != 0 ? -1 : REAL(pwritev)(fd, parts, count, offset);
}

int fdatasync(int fd)
{
	return failure(&failures->fdatasync) != 0 ? -1 : REAL(fdatasync)(fd);
}
/* NOLINTEND(readability-inconsistent-declaration-parameter-name) */

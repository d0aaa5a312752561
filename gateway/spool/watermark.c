/* SPDX-License-Identifier: ISC */
/* The lock file of a journal; see watermark.h. */
#include "gateway/spool/watermark.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "gateway/base/clock.h"

#define LOCK_WAIT_MS 15000
#define LOCK_TRY_MS  50
#define BOOT_ID_SIZE 40

struct boot_id {
	uint64_t words[BOOT_ID_SIZE / 8];
};

struct watermark_file {
	_Atomic uint64_t boot_id[BOOT_ID_SIZE / 8];
	_Atomic uint32_t run;
	_Atomic uint64_t position; /* segment << 32 | offset */
};

static struct boot_id this_boot(void)
{
	_cleanup_(closep) int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	char text[BOOT_ID_SIZE] = "";
	struct boot_id id;

	/* Without /proc every start is like one after a power cut: slower, and safe. */
	if (fd < 0 || read(fd, text, 36) != 36)
		snprintf(text, sizeof(text), "unknown-%d", getpid());
	memcpy(&id, text, sizeof(id));
	return id;
}

static int map_file(struct watermark *watermark, int protection)
{
	void *mapped =
	        mmap(NULL, sizeof(struct watermark_file), protection, MAP_SHARED, watermark->fd, 0);

	if (mapped == MAP_FAILED)
		return -errno;
	watermark->file = mapped;
	return 0;
}

static int lock_patiently(int fd)
{
	uint64_t give_up = clock_mono_ms() + LOCK_WAIT_MS;

	while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		if (clock_mono_ms() > give_up)
			return -EBUSY;
		nanosleep(&(struct timespec){.tv_nsec = LOCK_TRY_MS * 1000000L}, NULL);
	}
	return 0;
}

int watermark_lock(
        const char *folder, struct watermark *ret_watermark, bool *ret_fresh, struct why *why)
{
	char path[4160];
	struct watermark watermark = {0};

	snprintf(path, sizeof(path), "%s/lock", folder);
	watermark.fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0640);
	if (watermark.fd < 0)
		return why_errno(why, errno, "cannot open %s", path);
	int r = lock_patiently(watermark.fd);
	bool fresh = lseek(watermark.fd, 0, SEEK_END) < (off_t)sizeof(struct watermark_file);
	if (r == 0 && fresh)
		/* With its block: on a full disk the first store would end the process. */
		r = -posix_fallocate(watermark.fd, 0, sizeof(struct watermark_file));
	if (r == 0)
		r = map_file(&watermark, PROT_READ | PROT_WRITE);
	if (r < 0) {
		close(watermark.fd);
		return why_errno(why, r,
		        r == -EBUSY ? "%s is locked by another process" : "cannot lock %s", path);
	}
	*ret_fresh = fresh;
	*ret_watermark = watermark;
	return 0;
}

int watermark_open(const char *folder, struct watermark *ret_watermark)
{
	char path[4160];
	struct watermark watermark = {0};

	snprintf(path, sizeof(path), "%s/lock", folder);
	watermark.fd = open(path, O_RDONLY | O_CLOEXEC);
	if (watermark.fd < 0)
		return -errno;
	int r = lseek(watermark.fd, 0, SEEK_END) < (off_t)sizeof(struct watermark_file) ? -ENOENT
	                                                                                : 0;
	if (r == 0)
		r = map_file(&watermark, PROT_READ);
	if (r < 0) {
		close(watermark.fd);
		return r;
	}
	*ret_watermark = watermark;
	return 0;
}

void watermark_close(struct watermark *watermark)
{
	if (watermark->file == NULL)
		return;
	munmap(watermark->file, sizeof(*watermark->file));
	close(watermark->fd);
	watermark->file = NULL;
}

bool watermark_is_of_this_boot(const struct watermark *watermark)
{
	struct boot_id id = this_boot();
	bool same = true;

	for (size_t i = 0; same && i < ARRAY_LEN(id.words); i++)
		same = id.words[i] ==
		       atomic_load_explicit(&watermark->file->boot_id[i], memory_order_acquire);
	return same;
}

void watermark_publish(struct watermark *watermark, uint32_t segment, uint64_t offset)
{
	assert_bug(offset <= UINT32_MAX);
	atomic_store_explicit(
	        &watermark->file->position, (uint64_t)segment << 32 | offset, memory_order_release);
}

void watermark_start(struct watermark *watermark, uint32_t run, uint64_t offset)
{
	struct boot_id id = this_boot();

	/*
	 * The position goes first: a reader that sees this boot's id must never find
	 * an old position beside it.
	 */
	watermark_publish(watermark, run, offset);
	atomic_store_explicit(&watermark->file->run, run, memory_order_release);
	for (size_t i = 0; i < ARRAY_LEN(id.words); i++)
		atomic_store_explicit(
		        &watermark->file->boot_id[i], id.words[i], memory_order_release);
}

void watermark_read(const struct watermark *watermark, uint32_t *ret_segment, uint64_t *ret_offset)
{
	uint64_t position = atomic_load_explicit(&watermark->file->position, memory_order_acquire);

	*ret_segment = (uint32_t)(position >> 32);
	*ret_offset = position & UINT32_MAX;
}

uint32_t watermark_run(const struct watermark *watermark)
{
	return atomic_load_explicit(&watermark->file->run, memory_order_acquire);
}

/* SPDX-License-Identifier: ISC */
/* The board of counters; see board.h. */
#include "gateway/base/board.h"

#include <errno.h>
#include <fcntl.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC             0x3164726f6250ULL /* "Pbord1" */
#define SLOTS_PER_PROCESS 16

/* Slots on cache lines of their own, so that threads do not slow each other. */
struct slot {
	alignas(64) _Atomic uint64_t values[COUNTER_COUNT];
};

struct board {
	uint64_t magic;
	uint64_t counters; /* COUNTER_COUNT of the program that made it */
	struct slot slots[BOARD_PROCESSES][SLOTS_PER_PROCESS];
};

static const struct {
	const char *name, *help;
} counters[] = {
#define COUNTER(id, name, help) [CT_##id] = {name, help},
#include "gateway/base/counters.def"
#undef COUNTER
};

static struct slot private_slots[SLOTS_PER_PROCESS];
static struct slot *process_slots = private_slots;
static _Atomic unsigned slots_taken;
static _Thread_local struct slot *thread_slot;

const char *counter_name(enum counter counter)
{
	return counters[counter].name;
}

const char *counter_help(enum counter counter)
{
	return counters[counter].help;
}

int board_create(const char *path, struct why *why)
{
	const struct board head = {.magic = MAGIC, .counters = COUNTER_COUNT};
	char fresh[4096];

	if (snprintf(fresh, sizeof(fresh), "%s.new", path) >= (int)sizeof(fresh))
		return why_errno(why, ENAMETOOLONG, "%s", path);
	(void)unlink(fresh);
	int fd = open(fresh, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
	if (fd < 0)
		return why_errno(why, errno, "cannot make %s", fresh);
	/* With its blocks: on a full disk the first count would end the process. */
	int error = posix_fallocate(fd, 0, sizeof(head));
	if (error == 0 && (pwrite(fd, &head, offsetof(struct board, slots), 0) < 0 ||
	                          rename(fresh, path) < 0))
		error = errno;
	if (error != 0) {
		close(fd);
		return why_errno(why, error, "cannot make %s", path);
	}
	return fd;
}

static bool board_is_ours(const struct board *board)
{
	return board->magic == MAGIC && board->counters == COUNTER_COUNT;
}

/* NULL with errno when it cannot be mapped or is another program's. */
static struct board *map_board(int fd, int protection)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return NULL;
	if ((size_t)st.st_size != sizeof(struct board)) {
		errno = EPROTO;
		return NULL;
	}
	struct board *board = mmap(NULL, sizeof(*board), protection, MAP_SHARED, fd, 0);
	if (board == MAP_FAILED)
		return NULL;
	if (!board_is_ours(board)) {
		munmap(board, sizeof(*board));
		errno = EPROTO;
		return NULL;
	}
	return board;
}

int board_attach(int fd, enum board_process process, struct why *why)
{
	struct board *board = map_board(fd, PROT_READ | PROT_WRITE);

	if (board == NULL)
		return why_errno(why, errno, "cannot map the board of counters");
	process_slots = board->slots[process];
	return 0;
}

void counter_add(enum counter counter, uint64_t amount)
{
	if (thread_slot == NULL) {
		unsigned n = atomic_fetch_add_explicit(&slots_taken, 1, memory_order_relaxed);
		thread_slot = &process_slots[MIN_OF(n, SLOTS_PER_PROCESS - 1U)];
	}
	atomic_fetch_add_explicit(&thread_slot->values[counter], amount, memory_order_relaxed);
}

int board_read(const char *path, uint64_t *ret_values)
{
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	struct board *board = map_board(fd, PROT_READ);
	if (board == NULL)
		return -errno;
	memset(ret_values, 0, COUNTER_COUNT * sizeof(*ret_values));
	for (unsigned p = 0; p < BOARD_PROCESSES; p++) {
		for (unsigned s = 0; s < SLOTS_PER_PROCESS; s++) {
			for (unsigned c = 0; c < COUNTER_COUNT; c++)
				ret_values[c] += atomic_load_explicit(
				        &board->slots[p][s].values[c], memory_order_relaxed);
		}
	}
	munmap(board, sizeof(*board));
	return 0;
}

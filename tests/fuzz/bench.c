/* SPDX-License-Identifier: ISC */
/* See bench.h. */
#include "tests/fuzz/bench.h"

#include <ftw.h>
#include <linux/sockios.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "gateway/base/clock.h"
#include "gateway/base/compiler.h"

#define QUIET_TURNS 3
#define DEADLINE_MS 20000

_Thread_local bool bench_in_harness;
bool bench_memory_fails;
atomic_bool bench_memory_failed;

static char folder[64];

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *at)
{
	(void)status;
	(void)type;
	return at->level > 0 ? remove(path) : 0;
}

void bench_empty(void)
{
	(void)nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void remove_folder(void)
{
	bench_empty();
	(void)rmdir(folder);
}

const char *bench_folder(void)
{
	const char *parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";

	snprintf(folder, sizeof(folder), "%s/pn-fuzz-XXXXXX", parent);
	assert_bug(mkdtemp(folder) != NULL && atexit(remove_folder) == 0);
	return folder;
}

bool bench_has_unread(int fd)
{
	int octets = 0;

	return ioctl(fd, SIOCOUTQ, &octets) == 0 && octets > 0;
}

struct turning {
	struct defer defer;
	struct loop *loop;
	bool (*is_quiet)(void *arg);
	void *arg;
	unsigned quiet;
	uint64_t until_ms;
};

static void turn(struct defer *defer)
{
	struct turning *turning = container_of(defer, struct turning, defer);

	turning->quiet = turning->is_quiet(turning->arg) ? turning->quiet + 1 : 0;
	assert_bug(clock_mono_ms() < turning->until_ms);
	if (turning->quiet == 0)
		sched_yield(); /* to the thread that it waits for */
	if (turning->quiet == QUIET_TURNS)
		loop_stop(turning->loop);
	else
		loop_defer(turning->loop, defer);
}

void bench_turn(struct loop *loop, bool (*is_quiet)(void *arg), void *arg)
{
	struct turning turning = {
	        .defer.run = turn,
	        .loop = loop,
	        .is_quiet = is_quiet,
	        .arg = arg,
	        .until_ms = clock_mono_ms() + DEADLINE_MS,
	};

	loop_defer(loop, &turning.defer);
	bench_in_harness = false;
	loop_run(loop);
	bench_in_harness = true;
	loop_defer_cancel(&turning.defer);
}

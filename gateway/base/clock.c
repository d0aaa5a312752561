/* SPDX-License-Identifier: ISC */
/* The clocks; see clock.h. */
#include "gateway/base/clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#if POSTERN_TEST_HOOKS
#include <fcntl.h>
#include <unistd.h>

static _Atomic int64_t no_shift;
static _Atomic int64_t *shift = &no_shift;

void clock_init(void)
{
	const char *path = getenv("POSTERN_TEST_CLOCK");

	if (path == NULL || shift != &no_shift)
		return;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	void *mapped = mmap(NULL, sizeof(*shift), PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (mapped != MAP_FAILED)
		shift = mapped;
}

static int64_t clock_shift_us(void)
{
	return atomic_load_explicit(shift, memory_order_relaxed);
}

uint64_t clock_longest_sleep_ms(void)
{
	return shift == &no_shift ? UINT64_MAX : 100;
}
#else
void clock_init(void)
{
}

static int64_t clock_shift_us(void)
{
	return 0;
}

uint64_t clock_longest_sleep_ms(void)
{
	return UINT64_MAX;
}
#endif

static int64_t read_clock(clockid_t id)
{
	struct timespec now;

	clock_gettime(id, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000 + clock_shift_us();
}

uint64_t clock_mono_us(void)
{
	return (uint64_t)read_clock(CLOCK_BOOTTIME);
}

uint64_t clock_mono_ms(void)
{
	return clock_mono_us() / 1000;
}

int64_t clock_wall_us(void)
{
	return read_clock(CLOCK_REALTIME);
}

int64_t clock_wall_s(void)
{
	return clock_wall_us() / 1000000;
}

/* Not strftime: month and day names must not follow a locale. */
static const char day_names[7][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
static const char month_names[12][4] = {
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};

static struct tm utc_of(int64_t wall_s)
{
	time_t seconds = (time_t)wall_s;
	struct tm tm = {.tm_mday = 1};

	gmtime_r(&seconds, &tm);
	return tm;
}

const char *clock_iso(int64_t wall_s, char ret_text[CLOCK_TEXT_SIZE])
{
	struct tm tm = utc_of(wall_s);

	snprintf(ret_text, CLOCK_TEXT_SIZE, "%04u-%02u-%02uT%02u:%02u:%02uZ",
	        (unsigned)(tm.tm_year + 1900) % 10000U, (unsigned)(tm.tm_mon + 1) % 100U,
	        (unsigned)tm.tm_mday % 100U, (unsigned)tm.tm_hour % 100U,
	        (unsigned)tm.tm_min % 100U, (unsigned)tm.tm_sec % 100U);
	return ret_text;
}

const char *clock_rfc5322(int64_t wall_s, char ret_text[CLOCK_TEXT_SIZE])
{
	struct tm tm = utc_of(wall_s);

	snprintf(ret_text, CLOCK_TEXT_SIZE, "%s, %u %s %04u %02u:%02u:%02u +0000",
	        day_names[(unsigned)tm.tm_wday % 7], (unsigned)tm.tm_mday % 100U,
	        month_names[(unsigned)tm.tm_mon % 12], (unsigned)(tm.tm_year + 1900) % 10000U,
	        (unsigned)tm.tm_hour % 100U, (unsigned)tm.tm_min % 100U,
	        (unsigned)tm.tm_sec % 100U);
	return ret_text;
}

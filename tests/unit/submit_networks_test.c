/* SPDX-License-Identifier: ISC */
/* The remembered networks, from one process to the next. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gateway/base/buf.h"
#include "gateway/base/clock.h"
#include "gateway/submit/networks_file.h"
#include "tests/unit/test_clock.h"

#define MINUTE_MS 60000L
#define DAY_MS    86400000L

static char spool[] = "/tmp/postern-networks-XXXXXX";
static char in[sizeof(spool) + 3];
static char path[sizeof(in) + 9];
static char new_path[sizeof(path) + 4];
static _Atomic bool writes_fail, syncs_fail;
static _Atomic unsigned failures, renames; /* so far */
static _Atomic bool disk_hangs;            /* until somebody posts this: */
static sem_t disk;

static ssize_t failing_write(int fd, const struct iovec *parts, int count, off_t offset)
{
	failures += writes_fail;
	return writes_fail ? -ENOSPC : file_system.pwritev(fd, parts, count, offset);
}

static int failing_sync(int fd)
{
	if (disk_hangs)
		sem_wait(&disk);
	return syncs_fail ? -EIO : file_system.fdatasync(fd);
}

static int counting_rename(const char *from, const char *to)
{
	renames++;
	return file_system.rename(from, to);
}

static struct file_ops ops;

/* As much of `submit` as it takes. */
struct process {
	struct loop *loop;
	struct slots *slots;
	struct networks_file *file;
};

static struct process start(void)
{
	struct process process;

	assert_int_equal(loop_new(&process.loop), 0);
	assert_int_equal(slots_new(&process.slots), 0);
	assert_int_equal(
	        networks_file_new(process.loop, process.slots, &ops, spool, &process.file), 0);
	return process;
}

static void stop(struct process *process)
{
	assert_true(networks_file_free(process->file));
	slots_free(process->slots);
	loop_free(process->loop);
}

static struct addr address(const char *text)
{
	struct addr_net net;

	assert_int_equal(addr_net_parse(slice_str(text), &net), 0);
	return net.addr;
}

static void log_in(struct process *process, const char *from)
{
	const struct slot_limits limits = {.connections = 10, .connections_per_address = 10};
	struct addr peer = address(from);

	assert_int_equal(slots_take(process->slots, &limits, &peer), SLOT_TAKEN);
	slots_log_in(process->slots, &peer);
	slots_give_back(process->slots, &peer, true);
}

static bool remembers(struct process *process, const char *text)
{
	struct addr peer = address(text);

	return slots_remember(process->slots, &peer);
}

static void write_text(struct slice text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text.ptr, text.len), text.len);
	close(fd);
}

static int set_up(void **state)
{
	(void)state;
	ops = file_system;
	ops.pwritev = failing_write;
	ops.fdatasync = failing_sync;
	ops.rename = counting_rename;
	writes_fail = syncs_fail = false;
	failures = renames = 0;
	return unlink(path) < 0 && errno != ENOENT ? -1 : 0;
}

static void the_next_process_knows_who_has_logged_in(void **state)
{
	struct process process = start();

	(void)state;
	assert_false(remembers(&process, "192.0.2.1"));
	log_in(&process, "192.0.2.1");
	log_in(&process, "2001:db8:1:2ff::5");
	stop(&process);
	/* And the one after that, although nobody has logged in to the one in between. */
	for (unsigned i = 0; i < 2; i++) {
		process = start();
		assert_true(remembers(&process, "192.0.2.1"));
		assert_true(remembers(&process, "2001:db8:1:200::1"));
		assert_false(remembers(&process, "192.0.2.2"));
		assert_false(remembers(&process, "2001:db8:1:300::1"));
		stop(&process);
	}
}

static void what_is_no_line_is_passed_over(void **state)
{
	const struct slice malformed[] = {
	        SLICE(""),
	        SLICE("nothing"),
	        SLICE("192.0.2.1x"),
	        SLICE("192.0.2.2\0"),
	        SLICE("\0\xff 192.0.2.3"),
	        SLICE("192.0.2.4 1"),
	};
	const int64_t week_s = 7 * DAY_MS / 1000;
	int64_t now_s = clock_wall_s();
	struct process process;
	struct buf text;

	(void)state;
	buf_init(&text, 4096);
	for (size_t i = 0; i < ARRAY_LEN(malformed); i++) {
		assert_int_equal(buf_append_slice(&text, malformed[i]), 0);
		assert_int_equal(buf_printf(&text, " %" PRId64 "\n", now_s), 0);
	}
	assert_int_equal(buf_append_str(&text, "192.0.2.5\n192.0.2.6 soon\n192.0.2.7 -1\n"), 0);
	assert_int_equal(buf_append_str(&text, "192.0.2.8 99999999999999999999\n192.0.2.9 0\n"), 0);
	assert_int_equal(buf_printf(&text, "192.0.2.10 %" PRId64 "\n", now_s - week_s - 1), 0);
	assert_int_equal(buf_printf(&text, "192.0.2.11 %" PRIu64 "\n", UINT64_MAX), 0);
	assert_int_equal(buf_printf(&text, "192.0.2.12 %" PRId64 "\n", now_s), 0);
	assert_int_equal(buf_printf(&text, "192.0.2.12 %" PRId64 "\n", now_s), 0);
	assert_int_equal(buf_printf(&text, "2001:db8::/56 %" PRId64, now_s - week_s + 60), 0);
	write_text(buf_slice(&text));
	buf_done(&text);
	process = start();
	for (unsigned i = 1; i < 11; i++) {
		char ip[ADDR_TEXT];
		snprintf(ip, sizeof(ip), "192.0.2.%u", i);
		assert_false(remembers(&process, ip));
	}
	/* Of a time to come: the clock was put back. */
	assert_true(remembers(&process, "192.0.2.11"));
	assert_true(remembers(&process, "192.0.2.12"));
	assert_true(remembers(&process, "2001:db8::77"));
	stop(&process);
}

static void those_with_the_latest_logins_are_kept(void **state)
{
	int64_t now_s = clock_wall_s();
	struct process process;
	struct buf text;

	(void)state;
	buf_init(&text, 4 << 20);
	for (unsigned i = 0; i < SLOTS_REMEMBERED_MAX + 2; i++)
		assert_int_equal(buf_printf(&text, "10.%u.%u.%u %" PRId64 "\n", i >> 16,
		                         i >> 8 & 255, i & 255, now_s - 100000 + i),
		        0);
	write_text(buf_slice(&text));
	buf_done(&text);
	process = start();
	assert_false(remembers(&process, "10.0.0.1"));
	assert_true(remembers(&process, "10.0.0.2"));
	/* One more, and again the oldest goes: that order outlives the process. */
	log_in(&process, "192.0.2.1");
	stop(&process);
	process = start();
	assert_false(remembers(&process, "10.0.0.2"));
	assert_true(remembers(&process, "10.0.0.3"));
	assert_true(remembers(&process, "10.0.128.1"));
	assert_true(remembers(&process, "192.0.2.1"));
	stop(&process);
}

static void a_file_that_cannot_be_ours_does_no_harm(void **state)
{
	struct process process;

	(void)state;
	write_text(SLICE("192.0.2.1 1\n"));
	assert_int_equal(truncate(path, 100 << 20), 0);
	process = start();
	log_in(&process, "192.0.2.1");
	stop(&process);
	process = start();
	assert_true(remembers(&process, "192.0.2.1"));
	stop(&process);
}

static void a_failed_write_leaves_the_old_file(void **state)
{
	struct process process = start();

	(void)state;
	log_in(&process, "192.0.2.1");
	stop(&process);
	for (unsigned i = 0; i < 2; i++) {
		writes_fail = i == 0;
		syncs_fail = i == 1;
		process = start();
		log_in(&process, "192.0.2.2");
		stop(&process);
		process = start();
		assert_true(remembers(&process, "192.0.2.1"));
		assert_false(remembers(&process, "192.0.2.2"));
		stop(&process);
		assert_int_equal(access(new_path, F_OK), -1);
	}
}

static void nobody_waits_for_a_disk_that_hangs(void **state)
{
	struct process process = start();

	(void)state;
	log_in(&process, "192.0.2.1");
	disk_hangs = true;
	assert_false(networks_file_free(process.file));
	/* What it still uses is there. */
	disk_hangs = false;
	sem_post(&disk);
	while (renames == 0)
		usleep(1000);
	stop(&process);
	process = start();
	assert_true(remembers(&process, "192.0.2.1"));
	stop(&process);
}

/* ---- with a clock that can be moved ---- */

static void the_week_goes_on(void **state)
{
	struct process process = start();

	(void)state;
	log_in(&process, "192.0.2.1");
	stop(&process);
	for (unsigned day = 0; day < 8; day += 2) {
		process = start();
		assert_true(remembers(&process, "192.0.2.1"));
		log_in(&process, "192.0.2.2");
		stop(&process);
		test_clock_pass_ms(2 * DAY_MS);
	}
	process = start();
	assert_false(remembers(&process, "192.0.2.1"));
	assert_true(remembers(&process, "192.0.2.2"));
	stop(&process);
}

static void pass_a_minute(struct process *process)
{
	test_clock_pass_ms(MINUTE_MS);
	usleep(2000); /* for the thread: how much it has done by then decides nothing */
	loop_stop(process->loop);
	loop_run(process->loop);
}

static void pass_minutes_until(
        struct process *process, const _Atomic unsigned *count, unsigned most)
{
	for (unsigned i = 0; *count < most && i < 10000; i++)
		pass_a_minute(process);
	assert_int_equal(*count, most);
}

static void it_is_written_once_when_somebody_has_logged_in(void **state)
{
	struct process process = start();

	(void)state;
	for (unsigned i = 1; i <= 3; i++) {
		log_in(&process, "192.0.2.1");
		pass_minutes_until(&process, &renames, i);
		/* All that is to be written is, before the thread is asked again. */
		for (unsigned minute = 0; minute < 3; minute++)
			pass_a_minute(&process);
	}
	assert_int_equal(renames, 3);
	/* What fails is tried again. */
	writes_fail = true;
	log_in(&process, "192.0.2.1");
	pass_minutes_until(&process, &failures, 2);
	writes_fail = false;
	pass_minutes_until(&process, &renames, 4);
	stop(&process);
	assert_int_equal(renames, 4);
}

#define UNTIMED                                                                                    \
	cmocka_unit_test_setup(the_next_process_knows_who_has_logged_in, set_up),                  \
	        cmocka_unit_test_setup(what_is_no_line_is_passed_over, set_up),                    \
	        cmocka_unit_test_setup(those_with_the_latest_logins_are_kept, set_up),             \
	        cmocka_unit_test_setup(a_file_that_cannot_be_ours_does_no_harm, set_up),           \
	        cmocka_unit_test_setup(a_failed_write_leaves_the_old_file, set_up),                \
	        cmocka_unit_test_setup(nobody_waits_for_a_disk_that_hangs, set_up)

int main(void)
{
	const struct CMUnitTest untimed[] = {UNTIMED};
	const struct CMUnitTest all[] = {
	        UNTIMED,
	        cmocka_unit_test_setup(the_week_goes_on, set_up),
	        cmocka_unit_test_setup(it_is_written_once_when_somebody_has_logged_in, set_up),
	};

	if (mkdtemp(spool) == NULL)
		return 1;
	snprintf(in, sizeof(in), "%s/in", spool);
	snprintf(path, sizeof(path), "%s/networks", in);
	snprintf(new_path, sizeof(new_path), "%s.new", path);
	if (mkdir(in, 0700) < 0)
		return 1;
	sem_init(&disk, 0, 0);
	test_clock_open();
	int failed = POSTERN_TEST_HOOKS ? cmocka_run_group_tests(all, NULL, NULL)
	                                : cmocka_run_group_tests(untimed, NULL, NULL);
	unlink(path);
	rmdir(in);
	rmdir(spool);
	return failed;
}

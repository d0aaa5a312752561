/* SPDX-License-Identifier: ISC */
/* The remembered networks, from one process to the next. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "gateway/base/buf.h"
#include "gateway/base/clock.h"
#include "gateway/submit/networks_file.h"
#include "tests/unit/test_clock.h"

#define MINUTE_MS (60 * 1000L)
#define DAY_MS    (24 * 60 * MINUTE_MS)

static char folder[] = "/tmp/postern-networks-XXXXXX";
static char path[sizeof(folder) + sizeof("/networks")];
static _Atomic bool writes_fail, syncs_fail;
static _Atomic unsigned failures;

static ssize_t failing_write(int fd, const struct iovec *parts, int count, off_t offset)
{
	failures += writes_fail;
	return writes_fail ? -ENOSPC : file_system.pwritev(fd, parts, count, offset);
}

static int failing_sync(int fd)
{
	return syncs_fail ? -EIO : file_system.fdatasync(fd);
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
	        networks_file_new(process.loop, process.slots, &ops, folder, &process.file), 0);
	return process;
}

static void stop(struct process *process)
{
	networks_file_free(process->file);
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
	writes_fail = syncs_fail = false;
	failures = 0;
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
	const int64_t week_s = 7 * DAY_MS / 1000;
	int64_t now_s = clock_wall_s();
	struct process process;
	struct buf text;

	(void)state;
	buf_init(&text, 4096);
	assert_int_equal(
	        buf_append_str(&text, "\n\nnothing\n192.0.2.1\n192.0.2.2 soon\n192.0.2.3 -1\n"
	                              "999.0.2.4 1\n192.0.2.5 99999999999999999999\n"),
	        0);
	assert_int_equal(buf_append(&text, "\0\xff\n192.0.2.6\0 1\n", 16), 0);
	assert_int_equal(buf_printf(&text, "192.0.2.7 %" PRId64 "\n", now_s - week_s - 1), 0);
	assert_int_equal(buf_printf(&text, "192.0.2.8 0\n192.0.2.9 %" PRIu64 "\n", UINT64_MAX), 0);
	assert_int_equal(buf_printf(&text, "192.0.2.10 %" PRId64 "\n", now_s), 0);
	assert_int_equal(buf_printf(&text, "192.0.2.10 %" PRId64 "\n", now_s), 0);
	assert_int_equal(buf_printf(&text, "2001:db8::/56 %" PRId64, now_s - week_s + 60), 0);
	write_text(buf_slice(&text));
	buf_done(&text);
	process = start();
	for (unsigned i = 1; i < 9; i++) {
		char ip[ADDR_TEXT];
		snprintf(ip, sizeof(ip), "192.0.2.%u", i);
		assert_false(remembers(&process, ip));
	}
	/* Of a time to come: the clock was put back. */
	assert_true(remembers(&process, "192.0.2.9"));
	assert_true(remembers(&process, "192.0.2.10"));
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
	}
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

/* The loop has gone round so often that the thread has had its time. */
static void run_for_a_while(struct process *process)
{
	for (unsigned i = 0; i < 5; i++) {
		usleep(2000);
		loop_stop(process->loop);
		loop_run(process->loop);
	}
}

static void pass_minutes_until(struct process *process, bool (*condition)(void))
{
	for (unsigned i = 0; !condition() && i < 1000; i++) {
		test_clock_pass_ms(MINUTE_MS);
		run_for_a_while(process);
	}
	assert_true(condition());
}

static bool has_come(void)
{
	return access(path, F_OK) == 0;
}

static bool has_failed_twice(void)
{
	return failures >= 2;
}

static void it_is_written_each_minute_when_somebody_has_logged_in(void **state)
{
	struct process process = start();

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		log_in(&process, "192.0.2.1");
		run_for_a_while(&process);
		assert_false(has_come());
		pass_minutes_until(&process, has_come);
		assert_int_equal(unlink(path), 0);
	}
	for (unsigned i = 0; i < 3; i++) {
		test_clock_pass_ms(MINUTE_MS);
		run_for_a_while(&process);
		assert_false(has_come());
	}
	/* What fails is tried again. */
	writes_fail = true;
	log_in(&process, "192.0.2.1");
	pass_minutes_until(&process, has_failed_twice);
	writes_fail = false;
	pass_minutes_until(&process, has_come);
	stop(&process);
}

#define UNTIMED                                                                                    \
	cmocka_unit_test_setup(the_next_process_knows_who_has_logged_in, set_up),                  \
	        cmocka_unit_test_setup(what_is_no_line_is_passed_over, set_up),                    \
	        cmocka_unit_test_setup(those_with_the_latest_logins_are_kept, set_up),             \
	        cmocka_unit_test_setup(a_file_that_cannot_be_ours_does_no_harm, set_up),           \
	        cmocka_unit_test_setup(a_failed_write_leaves_the_old_file, set_up)

int main(void)
{
	const struct CMUnitTest untimed[] = {UNTIMED};
	const struct CMUnitTest all[] = {
	        UNTIMED,
	        cmocka_unit_test_setup(the_week_goes_on, set_up),
	        cmocka_unit_test_setup(
	                it_is_written_each_minute_when_somebody_has_logged_in, set_up),
	};

	if (mkdtemp(folder) == NULL)
		return 1;
	snprintf(path, sizeof(path), "%s/networks", folder);
	test_clock_open();
	int failed = POSTERN_TEST_HOOKS ? cmocka_run_group_tests(all, NULL, NULL)
	                                : cmocka_run_group_tests(untimed, NULL, NULL);
	unlink(path);
	rmdir(folder);
	return failed;
}

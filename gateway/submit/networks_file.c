/* SPDX-License-Identifier: ISC */
/* The remembered networks in a file; see networks_file.h. */
#include "gateway/submit/networks_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "gateway/base/addr.h"
#include "gateway/base/buf.h"
#include "gateway/base/clock.h"
#include "gateway/base/log.h"
#include "gateway/base/why.h"
#include "gateway/net/timer.h"

#define EVERY_MS  60000
#define LAST_S    1
#define PATH_ROOM 4200
#define LINE_ROOM (ADDR_TEXT + 24)
#define TEXT_MAX  ((size_t)SLOTS_REMEMBERED_MAX * LINE_ROOM) /* we never write more */

struct networks_file {
	struct slots *slots;
	const struct file_ops *ops;
	char path[PATH_ROOM], new_path[PATH_ROOM + 4];
	struct timer timer;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wakeup; /* one of these has changed, which are the lock's: */
	bool due, ending, ended;
	/* owner: the thread */
	uint64_t logins_written; /* slots_logins() when it was */
	bool failing;            /* which has been told */
};

static void tell_failure(const struct networks_file *file, const char *what, int error)
{
	struct why why;

	why_errno(&why, error, "cannot %s %s", what, file->path);
	LOG(NULL, EV_NETWORKS_FAILING, "why=%s", LOG_VALUE(slice_str(why.text)));
}

/* One that is none is passed over. */
static void read_line(struct networks_file *file, struct slice line, uint64_t now_s)
{
	struct slice second = line, network = slice_until(&second, ' ');
	struct addr_net net;
	uint64_t login_s;

	if (addr_net_parse(network, &net) < 0 || slice_to_u64(second, &login_s) < 0)
		return;
	/* When the clock was put back since, it was just now. */
	slots_recall(file->slots, &net.addr, login_s < now_s ? now_s - login_s : 0);
}

static int read_all(struct networks_file *file)
{
	uint64_t now_s = (uint64_t)clock_wall_s();
	struct buf text;

	/* Whatever stands there: nobody is waited for, and no link is followed. */
	_cleanup_(closep) int fd =
	        file->ops->open(file->path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW, 0);
	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	buf_init(&text, TEXT_MAX);
	int r = buf_read_fd(&text, fd);
	struct slice rest = buf_slice(&text);
	while (r == 0 && rest.len > 0)
		read_line(file, slice_until(&rest, '\n'), now_s);
	buf_done(&text);
	return r == -ENOBUFS ? -EFBIG : r;
}

static int format(const struct slots_network *networks, size_t count, struct buf *text)
{
	uint64_t now_s = (uint64_t)clock_wall_s();
	int r = 0;

	for (size_t i = 0; i < count && r == 0; i++) {
		const struct slots_network *network = &networks[i];
		bool v6 = network->addr.u.sa.sa_family == AF_INET6;
		char ip[ADDR_TEXT];
		r = buf_printf(text, "%s%s %" PRIu64 "\n", addr_format_ip(&network->addr, ip),
		        v6 ? "/56" : "", now_s - network->age_s);
	}
	return r;
}

/* Under another name first: whatever happens, the old file is there or the new one. */
static int replace(struct networks_file *file, struct slice text)
{
	const struct file_ops *ops = file->ops;
	const struct iovec part = {(void *)(uintptr_t)text.ptr, text.len};

	_cleanup_(closep) int fd = ops->open(
	        file->new_path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_NOFOLLOW, 0600);
	if (fd < 0)
		return fd;
	int r = file_write_exactly(ops, fd, &part, 1, 0);
	if (r == 0)
		r = ops->fdatasync(fd);
	if (r == 0)
		r = ops->rename(file->new_path, file->path);
	/* The disk may be full. */
	if (r < 0)
		(void)ops->unlink(file->new_path);
	return r;
}

static int write_all(struct networks_file *file)
{
	struct slots_network *networks;
	struct buf text;
	size_t count;

	int r = slots_list(file->slots, &networks, &count);
	if (r < 0)
		return r;
	buf_init(&text, TEXT_MAX);
	r = format(networks, count, &text);
	free(networks);
	if (r == 0)
		r = replace(file, buf_slice(&text));
	buf_done(&text);
	return r;
}

/* A failure is told once, until it has gone well again. */
static void write_if_changed(struct networks_file *file)
{
	uint64_t logins = slots_logins(file->slots);

	if (logins == file->logins_written)
		return;
	int r = write_all(file);
	if (r == 0)
		file->logins_written = logins;
	else if (!file->failing)
		tell_failure(file, "write", r);
	file->failing = r < 0;
}

static void *run(void *arg)
{
	struct networks_file *file = arg;
	bool is_last = false;

	while (!is_last) {
		pthread_mutex_lock(&file->lock);
		while (!file->due && !file->ending)
			pthread_cond_wait(&file->wakeup, &file->lock);
		file->due = false;
		is_last = file->ending;
		pthread_mutex_unlock(&file->lock);
		write_if_changed(file);
	}
	pthread_mutex_lock(&file->lock);
	file->ended = true;
	pthread_cond_broadcast(&file->wakeup);
	pthread_mutex_unlock(&file->lock);
	return NULL;
}

static void on_time(void *arg)
{
	struct networks_file *file = arg;

	pthread_mutex_lock(&file->lock);
	file->due = true;
	pthread_cond_broadcast(&file->wakeup);
	pthread_mutex_unlock(&file->lock);
	timer_start(&file->timer, EVERY_MS);
}

int networks_file_new(struct loop *loop, struct slots *slots, const struct file_ops *ops,
        const char *spool, struct networks_file **ret_file)
{
	struct networks_file *file = calloc(1, sizeof(*file));

	if (file == NULL)
		return -ENOMEM;
	file->slots = slots;
	file->ops = ops;
	snprintf(file->path, sizeof(file->path), "%s/in/networks", spool);
	snprintf(file->new_path, sizeof(file->new_path), "%s.new", file->path);
	pthread_mutex_init(&file->lock, NULL);
	pthread_cond_init(&file->wakeup, NULL);
	int r = read_all(file);
	if (r < 0)
		tell_failure(file, "read", r);
	r = -pthread_create(&file->thread, NULL, run, file);
	if (r < 0) {
		free(file);
		return r;
	}
	timer_init(&file->timer, loop, on_time, file);
	timer_start(&file->timer, EVERY_MS);
	*ret_file = file;
	return 0;
}

/* Has it written once more; whether it is done with that within a second. */
static bool write_last(struct networks_file *file)
{
	struct timespec until;
	int r = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += LAST_S;
	pthread_mutex_lock(&file->lock);
	file->ending = true;
	pthread_cond_broadcast(&file->wakeup);
	while (!file->ended && r != ETIMEDOUT)
		r = pthread_cond_clockwait(&file->wakeup, &file->lock, CLOCK_MONOTONIC, &until);
	bool ended = file->ended;
	pthread_mutex_unlock(&file->lock);
	return ended;
}

bool networks_file_free(struct networks_file *file)
{
	if (file == NULL)
		return true;
	timer_stop(&file->timer);
	if (!write_last(file)) {
		tell_failure(file, "write", ETIMEDOUT);
		return false;
	}
	pthread_join(file->thread, NULL);
	pthread_cond_destroy(&file->wakeup);
	pthread_mutex_destroy(&file->lock);
	free(file);
	return true;
}

/* SPDX-License-Identifier: ISC */
/* The remembered networks in a file; see networks_file.h. */
#include "gateway/submit/networks_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gateway/base/addr.h"
#include "gateway/base/buf.h"
#include "gateway/base/clock.h"
#include "gateway/base/log.h"
#include "gateway/base/why.h"
#include "gateway/net/jobs.h"
#include "gateway/net/timer.h"

#define EVERY_MS 60000
#define PATH     4200
#define LINE_MAX (ADDR_TEXT + 24)
#define TEXT_MAX ((size_t)SLOTS_REMEMBERED_MAX * LINE_MAX) /* of no more we have written */

struct networks_file {
	struct slots *slots;
	const struct file_ops *ops;
	char path[PATH], new_path[PATH + 4];
	struct timer timer;
	struct jobs *jobs;
	struct job job;
	/* owner: the job, while it runs */
	uint64_t written; /* so many logins there were when it was */
	bool failing;     /* which has been told */
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

	_cleanup_(closep) int fd = file->ops->open(file->path, O_RDONLY, 0);
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

	_cleanup_(closep) int fd = ops->open(file->new_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		return fd;
	int r = file_write_exactly(ops, fd, &part, 1, 0);
	if (r == 0)
		r = ops->fdatasync(fd);
	return r < 0 ? r : ops->rename(file->new_path, file->path);
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

	if (logins == file->written)
		return;
	int r = write_all(file);
	if (r == 0)
		file->written = logins;
	else if (!file->failing)
		tell_failure(file, "write", r);
	file->failing = r < 0;
}

static void run_write(struct job *job)
{
	write_if_changed(container_of(job, struct networks_file, job));
}

static void written(struct job *job)
{
	struct networks_file *file = container_of(job, struct networks_file, job);

	timer_start(&file->timer, EVERY_MS);
}

static void on_time(void *arg)
{
	struct networks_file *file = arg;

	/* There is room for one, and it is the only one. */
	assert_bug(jobs_submit(file->jobs, &file->job) == 0);
}

int networks_file_new(struct loop *loop, struct slots *slots, const struct file_ops *ops,
        const char *folder, struct networks_file **ret_file)
{
	struct networks_file *file = calloc(1, sizeof(*file));

	if (file == NULL)
		return -ENOMEM;
	int r = jobs_new(1, 1, &file->jobs);
	if (r < 0) {
		free(file);
		return r;
	}
	file->slots = slots;
	file->ops = ops;
	snprintf(file->path, sizeof(file->path), "%s/networks", folder);
	snprintf(file->new_path, sizeof(file->new_path), "%s.new", file->path);
	file->job = (struct job){.loop = loop, .run = run_write, .done = written};
	timer_init(&file->timer, loop, on_time, file);
	timer_start(&file->timer, EVERY_MS);
	r = read_all(file);
	if (r < 0)
		tell_failure(file, "read", r);
	*ret_file = file;
	return 0;
}

void networks_file_free(struct networks_file *file)
{
	if (file == NULL)
		return;
	timer_stop(&file->timer);
	jobs_free(file->jobs);
	write_if_changed(file);
	free(file);
}

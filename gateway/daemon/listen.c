/* SPDX-License-Identifier: ISC */
/* Binding the sockets; see listen.h. */
#include "gateway/daemon/listen.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "gateway/base/clock.h"

#define BACKLOG          1024
#define BIND_FOR_MS      15000
#define BIND_INTERVAL_MS 200

static int listen_once(const struct addr *addr)
{
	int fd = socket(addr->u.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	/* So that "[::]:587" and "0.0.0.0:587" can stand side by side, whatever the sysctl says. */
	if (addr->u.sa.sa_family == AF_INET6)
		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &(int){1}, sizeof(int));
	if (bind(fd, &addr->u.sa, addr->len) == 0 && listen(fd, BACKLOG) == 0)
		return fd;
	int error = errno;
	close(fd);
	return -error;
}

/* The supervisor reads its signals later; a stop need not wait until then. */
static bool is_told_to_stop(void)
{
	sigset_t pending;

	return sigpending(&pending) == 0 &&
	       (sigismember(&pending, SIGTERM) == 1 || sigismember(&pending, SIGINT) == 1);
}

static int listen_patiently(const char *text, uint64_t give_up_ms, struct why *why)
{
	struct addr addr;

	int r = addr_parse(slice_str(text), &addr);
	if (r < 0)
		return why_errno(why, r, "listener address %s", text);
	while ((r = listen_once(&addr)) == -EADDRINUSE && clock_mono_ms() < give_up_ms &&
	        !is_told_to_stop())
		nanosleep(&(struct timespec){.tv_nsec = BIND_INTERVAL_MS * 1000000L}, NULL);
	return r < 0 ? why_errno(why, r, "cannot listen on %s", text) : r;
}

int listen_all(const struct conf *conf, int ret_fds[LISTEN_MAX], size_t *ret_count, struct why *why)
{
	uint64_t give_up_ms = clock_mono_ms() + BIND_FOR_MS;
	size_t count = 0;
	int r = 0;

	for (size_t i = 0; i < conf->listener_count; i++) {
		const struct conf_listener *listener = &conf->listeners[i];
		for (size_t k = 0; r >= 0 && k < listener->address_count; k++) {
			if (count == LISTEN_MAX)
				r = why_errno(
				        why, E2BIG, "more than %d listening sockets", LISTEN_MAX);
			else
				r = listen_patiently(listener->address[k], give_up_ms, why);
			if (r >= 0)
				ret_fds[count++] = r;
		}
	}
	if (r < 0) {
		while (count > 0)
			close(ret_fds[--count]);
		return r;
	}
	*ret_count = count;
	return 0;
}

int listen_control(const char *path, struct why *why)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	if (strlen(path) >= sizeof(addr.sun_path))
		return why_errno(why, ENAMETOOLONG, "control socket %s", path);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return why_errno(why, errno, "control socket");
	/* The runtime folder is locked by now: whoever made this one is gone. */
	(void)unlink(path);
	mode_t before = umask(0117);
	int bound = bind(fd, (struct sockaddr *)&addr, sizeof(addr));
	int error = errno;
	umask(before);
	if (bound == 0 && listen(fd, 16) == 0)
		return fd;
	error = bound == 0 ? errno : error;
	close(fd);
	return why_errno(why, error, "cannot make the control socket %s", path);
}

/* SPDX-License-Identifier: ISC */
/* Accepting connections; see listener.h. */
#include "gateway/net/listener.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "gateway/net/timer.h"

#define PAUSE_MS        500
#define ACCEPT_PER_TURN 64 /* so that a flood of newcomers does not starve the others */

struct listener {
	int fd;
	listener_fn fn;
	void *arg;
	struct watch *watch;
	struct timer pause;
};

static void on_pause_end(void *arg)
{
	struct listener *listener = arg;

	watch_set(listener->watch, WATCH_READ);
}

static void on_ready(void *arg, unsigned events)
{
	struct listener *listener = arg;

	(void)events;
	for (unsigned i = 0; i < ACCEPT_PER_TURN; i++) {
		struct addr peer = {.len = sizeof(peer.u)};
		int fd = accept4(listener->fd, &peer.u.sa, &peer.len, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			listener->fn(listener->arg, fd, &peer);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
			watch_set(listener->watch, 0);
			timer_start(&listener->pause, PAUSE_MS);
			return;
		}
		if (errno == EAGAIN)
			return;
		/* Anything else concerns one connection that is already gone. */
	}
}

int listener_new(
        struct loop *loop, int fd, listener_fn fn, void *arg, struct listener **ret_listener)
{
	struct listener *listener = calloc(1, sizeof(*listener));

	if (listener == NULL)
		return -ENOMEM;
	*listener = (struct listener){.fd = fd, .fn = fn, .arg = arg};
	int r = watch_new(loop, fd, on_ready, listener, &listener->watch);
	if (r < 0) {
		free(listener);
		return r;
	}
	timer_init(&listener->pause, loop, on_pause_end, listener);
	watch_set(listener->watch, WATCH_READ);
	*ret_listener = listener;
	return 0;
}

void listener_free(struct listener *listener)
{
	if (listener == NULL)
		return;
	timer_stop(&listener->pause);
	watch_free(listener->watch);
	close(listener->fd);
	free(listener);
}

/* SPDX-License-Identifier: ISC */
/*
 * Newcomers that say whom they speak for; see proxied.h.
 *
 * Of the socket nothing may be read but the header: what follows is the client's, perhaps TLS. So
 * it is looked at first, and read as far as it is the header's.
 */
#include "gateway/submit/proxied.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway/base/board.h"
#include "gateway/base/log.h"
#include "gateway/net/proxy.h"
#include "gateway/net/timer.h"

#define HEADER_MS 5000

struct proxied {
	struct list link; /* in waiting->list */
	struct proxied_waiting *waiting;
	int fd;
	struct addr peer;
	struct watch *watch;
	struct timer timer;
	proxied_fn fn;
	void *arg;
	size_t len; /* of the header, as far as it has been read */
	char header[PROXY_HEADER_MAX];
};

static void tell_refused(
        struct proxied_waiting *waiting, const struct addr *peer, enum proxied_answer why)
{
	static const char *const texts[] = {
	        [PROXIED_NO_PROXY] = "it is none of the listener's proxies",
	        [PROXIED_TOO_MANY] = "too many have not sent their header yet",
	        [PROXIED_MEMORY] = "out of memory",
	        [PROXIED_NO_HEADER] = "it sent no header of the PROXY protocol",
	        [PROXIED_CLOSED] = "it closed before its header",
	        [PROXIED_LATE] = "no header came in time",
	        [PROXIED_UNREADABLE] = "it cannot be read",
	};
	char ip[ADDR_TEXT];

	counter_add(CT_PROXIES_REFUSED, 1);
	if (log_is_due(&waiting->told_ms[why]))
		LOG(NULL, EV_PROXY_REFUSED, "ip=%s why=\"%s\"", addr_format_ip(peer, ip),
		        texts[why]);
}

/* Everything but the descriptor. */
static void release(struct proxied *proxied)
{
	timer_stop(&proxied->timer);
	watch_free(proxied->watch);
	list_remove(&proxied->link);
	proxied->waiting->count--;
	free(proxied);
}

static void refuse(struct proxied *proxied, enum proxied_answer why)
{
	int fd = proxied->fd;

	tell_refused(proxied->waiting, &proxied->peer, why);
	release(proxied);
	close(fd);
}

static void on_timeout(void *arg)
{
	refuse(arg, PROXIED_LATE);
}

/* The header is complete: it has been read, and nothing else. */
static void hand_on(struct proxied *proxied, const struct proxy_header *header)
{
	struct addr client = header->has_source ? header->source : proxied->peer;
	proxied_fn fn = proxied->fn;
	void *arg = proxied->arg;
	int fd = proxied->fd;

	release(proxied);
	fn(arg, fd, &client);
}

static void on_ready(void *arg, unsigned events)
{
	struct proxied *proxied = arg;
	char *room = proxied->header + proxied->len;
	struct proxy_header header;

	(void)events;
	ssize_t seen = recv(proxied->fd, room, sizeof(proxied->header) - proxied->len, MSG_PEEK);
	if (seen < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (seen <= 0) {
		refuse(proxied, PROXIED_CLOSED);
		return;
	}
	ssize_t len =
	        proxy_header_parse(slice_of(proxied->header, proxied->len + (size_t)seen), &header);
	if (len < 0) {
		refuse(proxied, PROXIED_NO_HEADER);
		return;
	}
	/* As long as it is not complete all of it is the header's. */
	size_t own = len > 0 ? (size_t)len - proxied->len : (size_t)seen;
	if (recv(proxied->fd, room, own, 0) != (ssize_t)own) {
		refuse(proxied, PROXIED_UNREADABLE);
		return;
	}
	proxied->len += own;
	if (len > 0)
		hand_on(proxied, &header);
}

void proxied_init(struct proxied_waiting *waiting, struct loop *loop)
{
	*waiting = (struct proxied_waiting){.loop = loop};
	list_init(&waiting->list);
}

void proxied_done(struct proxied_waiting *waiting)
{
	list_for_each_safe (at, &waiting->list) {
		struct proxied *proxied = list_entry(at, struct proxied, link);
		int fd = proxied->fd;
		release(proxied);
		close(fd);
	}
}

static bool is_proxy(const struct conf_listener *listener, const struct addr *peer)
{
	for (size_t i = 0; i < listener->proxies_count; i++) {
		if (addr_net_holds(&listener->proxy_nets[i], peer))
			return true;
	}
	return false;
}

static enum proxied_answer take(
        struct proxied_waiting *waiting, int fd, const struct addr *peer, proxied_fn fn, void *arg)
{
	if (waiting->count >= waiting->most)
		return PROXIED_TOO_MANY;
	struct proxied *proxied = calloc(1, sizeof(*proxied));
	if (proxied == NULL)
		return PROXIED_MEMORY;
	*proxied = (struct proxied){
	        .waiting = waiting,
	        .fd = fd,
	        .peer = *peer,
	        .fn = fn,
	        .arg = arg,
	};
	if (watch_new(waiting->loop, fd, on_ready, proxied, &proxied->watch) < 0) {
		free(proxied);
		return PROXIED_MEMORY;
	}
	timer_init(&proxied->timer, waiting->loop, on_timeout, proxied);
	timer_start(&proxied->timer, HEADER_MS);
	list_append(&waiting->list, &proxied->link);
	waiting->count++;
	watch_set(proxied->watch, WATCH_READ);
	return PROXIED_TAKEN;
}

void proxied_take(struct proxied_waiting *waiting, const struct conf_listener *listener, int fd,
        const struct addr *peer, proxied_fn fn, void *arg)
{
	enum proxied_answer answer =
	        is_proxy(listener, peer) ? take(waiting, fd, peer, fn, arg) : PROXIED_NO_PROXY;

	if (answer == PROXIED_TAKEN)
		return;
	tell_refused(waiting, peer, answer);
	close(fd);
}

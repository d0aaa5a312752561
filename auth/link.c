/* SPDX-License-Identifier: ISC */
/* Links from `submit`; see link.h. */
#include "auth/link.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "gateway/base/clock.h"

#define ANSWER_WAIT_MS 5000

int link_new(int fd, struct link **ret_link)
{
	struct link *link = calloc(1, sizeof(*link));

	if (link == NULL) {
		close(fd);
		return -ENOMEM;
	}
	atomic_init(&link->refs, 1);
	link->fd = fd;
	*ret_link = link;
	return 0;
}

struct link *link_ref(struct link *link)
{
	atomic_fetch_add(&link->refs, 1);
	return link;
}

void link_unref(struct link *link)
{
	if (atomic_fetch_sub(&link->refs, 1) > 1)
		return;
	close(link->fd);
	free(link);
}

/*
 * A loop of `submit` that hands over many logins in one turn reads their answers only after it.
 * Whether it left.
 */
static bool send_patiently(int fd, struct slice datagram)
{
	struct pollfd room = {.fd = fd, .events = POLLOUT};
	uint64_t give_up_ms = clock_mono_ms() + ANSWER_WAIT_MS;
	int r;

	while ((r = protocol_send(fd, datagram)) == -EAGAIN) {
		uint64_t now = clock_mono_ms();
		if (now >= give_up_ms)
			break;
		(void)!poll(&room, 1, (int)(give_up_ms - now));
	}
	return r == 0;
}

static bool answer(
        struct link *link, const struct auth_message *message, const struct auth_account *account)
{
	struct buf datagram;
	struct auth_message instead = {.type = AUTH_UNAVAILABLE, .number = message->number};
	bool sent = false;

	buf_init(&datagram, PROTOCOL_DATAGRAM_MAX);
	if (protocol_encode(message, account, &datagram) == 0 ||
	        protocol_encode(&instead, NULL, &datagram) == 0)
		sent = send_patiently(link->fd, buf_slice(&datagram));
	buf_wipe(&datagram);
	return sent;
}

void link_answer(
        struct link *link, const struct auth_message *message, const struct auth_account *account)
{
	uint64_t missed = atomic_exchange(&link->missed, 0);
	const struct auth_message any = {.type = AUTH_CHANGED, .era = missed};

	if (missed != 0 && !answer(link, &any, NULL))
		atomic_store(&link->missed, missed);
	if (!answer(link, message, account) && message->type == AUTH_CHANGED)
		atomic_store(&link->missed, message->era);
}

void link_answer_type(struct link *link, uint32_t number, enum auth_type type)
{
	const struct auth_message message = {.type = type, .number = number};

	link_answer(link, &message, NULL);
}

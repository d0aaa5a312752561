/* SPDX-License-Identifier: ISC */
/* The life of a child; see child.h. One thread here; the processes make their own. */
#include "gateway/daemon/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "gateway/base/clock.h"
#include "gateway/base/log.h"

static struct buf link_room; /* what the last message's body points into */

static const struct {
	const char *name;
	enum board_process board;
	int (*run)(struct start *start, struct why *why);
} children[CHILD_COUNT] = {
        [CHILD_SUBMIT] = {"submit", BOARD_SUBMIT, child_run_submit},
        [CHILD_AUTH] = {"auth", BOARD_AUTH, child_run_auth},
        [CHILD_RELAY] = {"relay", BOARD_RELAY, child_run_relay},
};

const char *child_name(enum child_kind kind)
{
	return children[kind].name;
}

void child_tell_ready(void)
{
	(void)!link_send(LINK_FD, LINK_READY, SLICE(""), NULL, 0);
}

void child_tell_reloaded(const char *text)
{
	(void)!link_send(LINK_FD, LINK_RELOADED, slice_str(text), NULL, 0);
}

enum link_type child_receive(
        struct link_message *ret_message, struct start *ret_start, struct why *why)
{
	int r = link_receive(LINK_FD, &link_room, ret_message);

	if (r <= 0)
		return LINK_STOP;
	if (ret_message->type == LINK_RELOAD && start_take(ret_message, ret_start, why) < 0) {
		child_tell_reloaded(why->text);
		conf_unref(ret_start->conf);
		secrets_done(&ret_start->secrets);
		return LINK_RELOADED;
	}
	return ret_message->type;
}

static int run(enum child_kind kind, struct why *why)
{
	struct link_message message;
	struct start start;

	int r = link_receive(LINK_FD, &link_room, &message);
	if (r <= 0)
		return r < 0 ? why_errno(why, r, "no start message") : 0;
	if (message.type != LINK_START) {
		link_close_fds(&message);
		return message.type == LINK_STOP ? 0 : why_errno(why, EPROTO, "no start message");
	}
	r = start_take(&message, &start, why);
	if (r == 0)
		r = board_attach(start.board, children[kind].board, why);
	if (r == 0)
		r = children[kind].run(&start, why);
	secrets_done(&start.secrets);
	conf_unref(start.conf);
	return r;
}

int child_main(enum child_kind kind)
{
	struct why why = {{0}};
	char name[16];

	/* What top and pkill see: without it the last part of /proc/self/exe's link. */
	snprintf(name, sizeof(name), "postern-%s", children[kind].name);
	prctl(PR_SET_NAME, name);
	log_init(children[kind].name, LOG_INFO);
	clock_init();
	/* The supervisor decides; a Ctrl-C at the terminal reaches the whole group. */
	sigset_t stops;
	sigemptyset(&stops);
	sigaddset(&stops, SIGINT);
	sigaddset(&stops, SIGTERM);
	sigaddset(&stops, SIGHUP);
	sigaddset(&stops, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &stops, NULL);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	fcntl(LINK_FD, F_SETFD, FD_CLOEXEC);
	buf_init(&link_room, 8192);
	int r = run(kind, &why);
	buf_done(&link_room);
	if (r < 0)
		LOG(NULL, EV_FATAL, "reason=%s", LOG_VALUE(slice_str(why.text)));
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* SPDX-License-Identifier: ISC */
/* Glue of the process `relay`. Secrets: its database password, then one for each upstream. */
#include "gateway/daemon/child.h"
#include "gateway/net/loop.h"
#include "gateway/relay/relay.h"

struct glue {
	struct loop *loop;
	struct watch *watch;
	struct relay *relay;
	bool stopping;
};

static void on_stopped(void *arg)
{
	struct glue *glue = arg;

	loop_stop(glue->loop);
}

static void reload(struct glue *glue, struct start *start, struct why *why)
{
	int r = relay_reload(glue->relay, start->conf, start->secrets.items + 1,
	        start->secrets.count > 0 ? start->secrets.count - 1 : 0, why);

	child_tell_reloaded(r < 0 ? why->text : "");
	secrets_done(&start->secrets);
	conf_unref(start->conf);
}

static void on_link(void *arg, unsigned events)
{
	struct glue *glue = arg;
	struct link_message message;
	struct start start;
	struct why why;

	(void)events;
	switch (child_receive(&message, &start, &why)) {
	case LINK_RELOAD:
		reload(glue, &start, &why);
		break;
	case LINK_STOP:
		watch_set(glue->watch, 0);
		if (!glue->stopping)
			relay_stop(glue->relay, on_stopped, glue);
		glue->stopping = true;
		break;
	default:
		break;
	}
}

int child_run_relay(struct start *start, struct why *why)
{
	struct glue glue = {0};
	struct relay_settings settings = {
	        .conf = start->conf,
	        .wake_fd = start->wake,
	        .control_fd = start->own_count > 0 ? start->own[0] : -1,
	        .database_password = secrets_get(&start->secrets, 0),
	        .passwords = start->secrets.items + 1,
	        .password_count = start->secrets.count > 0 ? start->secrets.count - 1 : 0,
	};

	int r = loop_new(&glue.loop);
	if (r == 0)
		r = watch_new(glue.loop, LINK_FD, on_link, &glue, &glue.watch);
	if (r < 0)
		return why_errno(why, r, "event loop");
	settings.main_loop = glue.loop;
	r = relay_new(&settings, &glue.relay, why);
	secrets_done(&start->secrets);
	if (r < 0)
		return r;
	watch_set(glue.watch, WATCH_READ);
	child_tell_ready();
	loop_run(glue.loop);
	watch_free(glue.watch);
	relay_free(glue.relay);
	loop_free(glue.loop);
	return 0;
}

/* SPDX-License-Identifier: ISC */
/* Glue of the process `submit`. Secrets: certificate, key. */
#include "gateway/daemon/child.h"
#include "gateway/net/loop.h"
#include "gateway/submit/submit.h"

struct glue {
	struct loop *loop;
	struct watch *watch;
	struct submit *submit;
	bool stopping;
};

static void on_stopped(void *arg)
{
	struct glue *glue = arg;

	loop_stop(glue->loop);
}

static void reload(struct glue *glue, struct start *start, struct why *why)
{
	int r = submit_reload(glue->submit, start->conf, secrets_get(&start->secrets, 0),
	        secrets_get(&start->secrets, 1), why);

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
	case LINK_SIBLINGS:
		submit_auth_links(glue->submit, message.fds, message.fd_count);
		break;
	case LINK_RELOAD:
		reload(glue, &start, &why);
		break;
	case LINK_STOP:
		watch_set(glue->watch, 0);
		if (!glue->stopping)
			submit_stop(glue->submit, on_stopped, glue);
		glue->stopping = true;
		break;
	default:
		break;
	}
}

int child_run_submit(struct start *start, struct why *why)
{
	struct glue glue = {0};
	struct submit_settings settings = {
	        .conf = start->conf,
	        .listeners = start->own,
	        .listener_count = start->own_count,
	        .wake_fd = start->wake,
	        .loops = (unsigned)start->sibling_count,
	        .certificate = secrets_get(&start->secrets, 0),
	        .key = secrets_get(&start->secrets, 1),
	};

	int r = loop_new(&glue.loop);
	if (r == 0)
		r = watch_new(glue.loop, LINK_FD, on_link, &glue, &glue.watch);
	if (r < 0)
		return why_errno(why, r, "event loop");
	settings.main_loop = glue.loop;
	r = submit_new(&settings, &glue.submit, why);
	secrets_done(&start->secrets);
	if (r < 0)
		return r;
	submit_auth_links(glue.submit, start->siblings, start->sibling_count);
	watch_set(glue.watch, WATCH_READ);
	child_tell_ready();
	loop_run(glue.loop);
	watch_free(glue.watch);
	submit_free(glue.submit);
	loop_free(glue.loop);
	return 0;
}

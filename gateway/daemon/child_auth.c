/* SPDX-License-Identifier: ISC */
/* Glue of the process `auth`. Secrets: its database password. */
#include <stdlib.h>
#include <string.h>

#include "auth/auth.h"
#include "gateway/daemon/child.h"

int child_run_auth(struct start *start, struct why *why)
{
	struct auth_settings settings = {.conf = start->conf};
	_cleanup_(freep) char *password = slice_dup(secrets_get(&start->secrets, 0));
	struct link_message message;
	struct start again;
	struct auth *auth;
	bool stop = false;

	settings.database_password = password;
	int r = auth_new(&settings, &auth, why);
	if (password != NULL)
		explicit_bzero(password, strlen(password));
	secrets_done(&start->secrets);
	if (r < 0)
		return r;
	auth_links(auth, start->siblings, start->sibling_count);
	child_tell_ready();
	while (!stop) {
		switch (child_receive(&message, &again, why)) {
		case LINK_SIBLINGS:
			auth_links(auth, message.fds, message.fd_count);
			break;
		case LINK_RELOAD:
			/* None of its settings can change while it runs. */
			secrets_done(&again.secrets);
			conf_unref(again.conf);
			child_tell_reloaded("");
			break;
		case LINK_STOP:
			stop = true;
			break;
		default:
			break;
		}
	}
	auth_free(auth);
	return 0;
}

/* SPDX-License-Identifier: ISC */
/* postern status: what the processes have counted since posternd started. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "gateway/base/board.h"
#include "gateway/ctl/ctl.h"

int ctl_status(struct ctl *ctl, int argc, char **argv)
{
	uint64_t values[COUNTER_COUNT];
	char path[4200];

	(void)argv;
	if (argc > 0)
		return ctl_usage("status");
	snprintf(path, sizeof(path), "%s/board", ctl->conf->runtime);
	int r = board_read(path, values);
	if (r < 0) {
		fprintf(stderr, "postern: cannot read %s: %s\n", path, strerrordesc_np(-r));
		return CTL_REFUSED;
	}
	for (unsigned i = 0; i < COUNTER_COUNT; i++) {
		if (ctl->json)
			printf("%s\"%s\":%" PRIu64, i == 0 ? "{" : ",", counter_name(i), values[i]);
		else
			printf("%-22s %12" PRIu64 "  %s\n", counter_name(i), values[i],
			        counter_help(i));
	}
	if (ctl->json)
		puts("}");
	return CTL_DONE;
}

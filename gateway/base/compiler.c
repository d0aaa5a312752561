/* SPDX-License-Identifier: ISC */
/* The few functions behind the macros of compiler.h. Any thread. */
#include "gateway/base/compiler.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void bug_abort(const char *condition, const char *file, int line)
{
	fprintf(stderr, "event=bug condition=\"%s\" place=%s:%d\n", condition, file, line);
	abort();
}

void freep(void *pointer_to_pointer)
{
	free(*(void **)pointer_to_pointer);
}

void closep(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

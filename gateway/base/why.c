/* SPDX-License-Identifier: ISC */
/* Operator-facing failure texts; see why.h. */
#include "gateway/base/why.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void why_set(struct why *why, const char *format, ...)
{
	va_list args;

	if (why == NULL)
		return;
	va_start(args, format);
	vsnprintf(why->text, sizeof(why->text), format, args);
	va_end(args);
}

int why_errno(struct why *why, int error, const char *format, ...)
{
	error = abs(error);
	if (why == NULL)
		return -error;

	va_list args;
	va_start(args, format);
	vsnprintf(why->text, sizeof(why->text), format, args);
	va_end(args);

	size_t used = strlen(why->text);
	const char *description = strerrordesc_np(error);
	snprintf(why->text + used, sizeof(why->text) - used, ": %s",
	        description != NULL ? description : "unknown error");
	return -error;
}

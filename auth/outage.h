/* SPDX-License-Identifier: ISC */
/* Whether the database can tell: whoever sees a change first logs it, once. Any thread. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>

#include "gateway/base/why.h"

struct outage {
	_Atomic bool lasts;
};

/* After a question to the database: why it could not tell, or NULL. */
void outage_note(struct outage *outage, const struct why *why);

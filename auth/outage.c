/* SPDX-License-Identifier: ISC */
/* Telling of the database once; see outage.h. */
#include "auth/outage.h"

#include "gateway/base/log.h"

void outage_note(struct outage *outage, const struct why *why)
{
	bool away = why != NULL;

	if (atomic_exchange(&outage->lasts, away) == away)
		return;
	if (away)
		LOG(NULL, EV_DATABASE_AWAY, "why=%s", LOG_VALUE(slice_str(why->text)));
	else
		LOG(NULL, EV_DATABASE_BACK, "");
}

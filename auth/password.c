/* SPDX-License-Identifier: ISC */
/* SASLprep; see password.h. */
#include "auth/password.h"

#include <string.h>
#include <stringprep.h>

struct slice password_prepare(struct slice typed, char room[PASSWORD_MAX * 4])
{
	bool has_more_than_ascii = !slice_is_ascii(typed);

	if (!has_more_than_ascii || typed.len > PASSWORD_MAX || !slice_is_utf8(typed))
		return typed;
	memcpy(room, typed.ptr, typed.len);
	room[typed.len] = '\0';
	if (stringprep(room, PASSWORD_MAX * 4, (Stringprep_profile_flags)0, stringprep_saslprep) !=
	        STRINGPREP_OK)
		return typed;
	return slice_str(room);
}

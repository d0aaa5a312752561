/* SPDX-License-Identifier: ISC */
/* SASLprep; see password.h. */
#include "auth/password.h"

#include <string.h>
#include <stringprep.h>

#include "gateway/base/compiler.h"

#define STEPS_MAX 32

/* SASLprep but for its rule that letters from right to left stand alone: in a password that nobody
 * sees it keeps nobody from being deceived. */
static void choose_steps(Stringprep_profile ret_steps[STEPS_MAX])
{
	const Stringprep_profile *step = stringprep_saslprep;
	size_t count = 0;

	for (; step->operation != 0; step++) {
		assert_bug(count < STEPS_MAX - 1);
		if (step->operation != STRINGPREP_BIDI &&
		        step->operation != STRINGPREP_BIDI_PROHIBIT_TABLE &&
		        step->operation != STRINGPREP_BIDI_RAL_TABLE &&
		        step->operation != STRINGPREP_BIDI_L_TABLE)
			ret_steps[count++] = *step;
	}
	ret_steps[count] = (Stringprep_profile){0};
}

struct slice password_prepare(struct slice typed, char room[PASSWORD_MAX * 4])
{
	Stringprep_profile steps[STEPS_MAX];

	if (slice_is_ascii(typed) || typed.len > PASSWORD_MAX || !slice_is_utf8(typed))
		return typed;
	memcpy(room, typed.ptr, typed.len);
	room[typed.len] = '\0';
	choose_steps(steps);
	if (stringprep(room, PASSWORD_MAX * 4, (Stringprep_profile_flags)0, steps) != STRINGPREP_OK)
		return typed;
	return slice_str(room);
}

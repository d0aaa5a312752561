/* SPDX-License-Identifier: ISC */
/* What an upstream offers in its EHLO reply. Pure. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/slice.h"

struct ehlo {
	bool starttls, pipelining, eightbitmime, smtputf8, has_size, auth_plain;
	uint64_t size; /* 0: no limit told */
};

/* Takes one line of the reply, without code; the first line (the name) is not for this. */
void ehlo_take_line(struct ehlo *ehlo, struct slice line);

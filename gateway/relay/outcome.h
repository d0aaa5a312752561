/* SPDX-License-Identifier: ISC */
/* What became of an attempt. The loop's thread only. */
#pragma once

struct attempt;

/* Records failures and what is left to do; the attempt is freed, its task maybe too. */
void outcome_record(struct attempt *attempt);

/* SPDX-License-Identifier: ISC */
/*
 * Why an operation failed, for an operator to read: fixed text beside the int
 * that code acts upon. The caller owns it, usually on its stack, and need not empty
 * it: whoever takes one sets it whenever it fails, unless its declaration says when. A
 * NULL `why` is allowed everywhere and means that nobody will read it. Any thread.
 */
#pragma once

#include "gateway/base/compiler.h"

struct why {
	char text[200];
};

/* Sets the text (cut at the end if too long). Never put a secret here. */
void why_set(struct why *why, const char *format, ...) printf_like(2, 3);

/* "what: description of errno value `error`" (error positive or negative); returns -|error|. */
int why_errno(struct why *why, int error, const char *format, ...) printf_like(3, 4);

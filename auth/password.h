/* SPDX-License-Identifier: ISC */
/* Passwords as they come from clients. Pure, any thread. */
#pragma once

#include "gateway/base/slice.h"

#define PASSWORD_MAX 1024UL

/*
 * What a client of SCRAM makes of a password that was typed (SASLprep, RFC 4013), and prepared()
 * of the schema: the same text for all ways to write it. As it is when SASLprep forbids it:
 * then it fits only verifiers that were made elsewhere. Points into `room` or to `typed`.
 */
struct slice password_prepare(struct slice typed, char room[PASSWORD_MAX * 4]);

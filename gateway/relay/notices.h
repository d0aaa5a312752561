/* SPDX-License-Identifier: ISC */
/*
 * The thread that listens to the database and tells whom it concerns: keys that were
 * changed, accounts that were suspended or resumed. It listens first and asks then, so that
 * no change is missed; after each new connection everything counts as changed.
 */
#pragma once

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

struct accounts;
struct keys;
struct notices;

struct notices_settings {
	const char *database;
	struct slice password;
	struct keys *keys; /* both outlive it */
	struct accounts *accounts;
};

/* Starts it; it connects by and by. Copies. 0 or -errno. */
int notices_new(const struct notices_settings *settings, struct notices **ret_notices) must_check;
/* Ends it: within the deadline of a question at worst. */
void notices_free(struct notices *notices);

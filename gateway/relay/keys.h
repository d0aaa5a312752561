/* SPDX-License-Identifier: ISC */
/*
 * The DKIM keys of the senders' domains: fetched from the database when first
 * needed, kept until somebody says that they have changed.
 */
#pragma once

#include <stdbool.h>

#include "gateway/base/list.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"
#include "gateway/dkim/dkim.h"
#include "gateway/net/jobs.h"

#define KEYSET_MAX 4

struct signing_key {
	char selector[64];
	struct dkim_key *key;
};

/* The active keys of a domain, immutable, shared by reference. */
struct keyset {
	_Atomic unsigned refs;
	size_t count; /* 0: mail of the domain leaves unsigned */
	struct signing_key keys[KEYSET_MAX];
};

void keyset_unref(struct keyset *keyset);

struct keys;

struct keys_settings {
	struct loop *loop;
	const char *database;
	struct slice password;
};

/* Starts its thread; connects by and by. 0 or -errno with the reason. */
int keys_new(
        const struct keys_settings *settings, struct keys **ret_keys, struct why *why) must_check;
/* No question is outstanding. */
void keys_free(struct keys *keys);

/* A reference to what is known of the domain, or NULL: ask. Any thread. */
struct keyset *keys_find(struct keys *keys, struct slice domain);

/* The keys of the domain (empty: of all) may have changed. Any thread. */
void keys_changed(struct keys *keys, struct slice domain);

/* A question, embedded in who asks it. */
struct key_wait {
	struct job job; /* private */
	struct keys *keys;
	char domain[256];
	int result;
	struct why why;
	struct keyset *keyset;
	/* On the loop: the keyset (a reference), or NULL when the database cannot tell. */
	void (*done)(struct key_wait *wait);
};

/* Asks the database. -EAGAIN: too many wait, or a name that is too long; no call follows. */
int keys_ask(struct keys *keys, struct slice domain, struct key_wait *wait) must_check;

/* SPDX-License-Identifier: ISC */
/*
 * The identity of a message: 80 random bits, made at MAIL, shown as 16
 * characters of base32 (RFC 4648 6, lower case, no padding). It names the message
 * everywhere, for ever. Any thread.
 */
#pragma once

#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

#define ID_SIZE 10
#define ID_TEXT 16

struct message_id {
	uint8_t bytes[ID_SIZE];
};

struct message_id id_new(void);

/* `ret_text` is terminated; returns it. */
const char *id_format(const struct message_id *id, char ret_text[ID_TEXT + 1]);

/* Either case of letters; 0 or -EINVAL. */
int id_parse(struct slice text, struct message_id *ret_id) must_check;

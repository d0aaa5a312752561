/* SPDX-License-Identifier: ISC */
/* Encoded-words (RFC 2047) in fields that say who sent a message. Pure. */
#pragma once

#include <stdbool.h>

#include "gateway/base/slice.h"

/*
 * Whether no encoded-word in the text hides a control character, an angle bracket or an "@": a
 * reader that decodes a field before it looks for addresses would find another one. One
 * whose charset is not known here, or that readers decode differently, may hide anything.
 */
bool encoded_words_are_plain(struct slice text);

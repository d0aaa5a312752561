/* SPDX-License-Identifier: ISC */
/* Reading the secret files that the configuration names. Blocking; any thread. */
#pragma once

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/why.h"
#include "gateway/conf/conf.h"
#include "gateway/daemon/child.h"

/*
 * Packs the secrets of a process, in the order that its glue expects (wipe them). 0 or
 * -errno with the reason.
 */
int secrets_pack(
        const struct conf *conf, enum child_kind kind, struct buf *out, struct why *why) must_check;

/* SPDX-License-Identifier: ISC */
/* Whether what a configuration names can be used: for posternd -t, and before a reload. */
#pragma once

#include "gateway/base/compiler.h"
#include "gateway/base/why.h"
#include "gateway/conf/conf.h"

/*
 * The certificate with its key, the password files, the authorities of upstreams, and
 * that libpq can read the connection string. 0, or -errno with the reason. Any thread.
 */
int files_check(const struct conf *conf, struct why *why) must_check;

/* SPDX-License-Identifier: ISC */
/* What the connection of a session reports. The loop's thread only. */
#pragma once

#include "gateway/net/conn.h"

/* Their argument is the session. */
extern const struct conn_events session_input;

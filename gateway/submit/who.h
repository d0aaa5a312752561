/* SPDX-License-Identifier: ISC */
/*
 * Who a session is: the account that it has from a login on, or by its address, and what `auth` is
 * asked before MAIL: whose an address is, on listeners where that is enough, and whether somebody
 * still is who he was. The session's loop only.
 */
#pragma once

#include "auth/protocol.h"
#include "gateway/base/compiler.h"

struct session;

/*
 * The session is that account's from now on. 0; -ENOMEM; -EUSERS when the account has too many
 * sessions, and this one has ended.
 */
int who_enter(struct session *session, const struct auth_account *facts) must_check;

/* It is nobody's any more. */
void who_leave(struct session *session);

/*
 * Asks whose the address is, or of somebody whether he is still who he was; the MAIL stays, and is
 * read again when the answer is there.
 */
void who_ask(struct session *session);

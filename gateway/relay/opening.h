/* SPDX-License-Identifier: ISC */
/*
 * What is said on a connection before mail: greeting, EHLO, STARTTLS, login. When all is said the
 * session is idle. The loop's thread only.
 */
#pragma once

struct session;

/* It is connected, and has said nothing. */
void opening_connected(struct session *session);

/* The handshake is done: what was said before counts no more. */
void opening_secure(struct session *session);

/* It has a reply, in a state before SESSION_IDLE. */
void opening_reply(struct session *session);

/* Wipes its copies of user name and password. */
void opening_wipe_login(struct session *session);

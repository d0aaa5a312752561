/* SPDX-License-Identifier: ISC */
/*
 * A connection: the one object that owns a stream socket and its TLS session.
 *
 * Input waits in a window that the owner consumes; output is queued, bounded, and
 * sent at the end of the loop's turn, so that everything written in one turn
 * leaves together. Once TLS has started the socket is never read bare; a
 * close_notify or any error means that the connection is dead.
 *
 * All calls and callbacks happen on the loop's thread. No callback runs from
 * inside a call that the owner makes. Every callback may free the connection.
 */
#pragma once

#include <stdbool.h>

#include "gateway/base/addr.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"
#include "gateway/net/loop.h"
#include "gateway/net/tls.h"

/* The window: a line of AUTH (12,288 octets) must fit. */
#define CONN_INPUT_MAX 16384

struct conn;

enum conn_end {
	CONN_END_EOF,      /* the peer closed */
	CONN_END_ERROR,    /* a socket error */
	CONN_END_TLS,      /* the handshake or the certificate failed, or TLS broke */
	CONN_END_OVERFLOW, /* the peer does not take what it asked for */
};

/* Any of them may be NULL. */
struct conn_events {
	void (*on_connected)(void *arg);
	/* There is input; called again when more has come, not for what was left unconsumed. */
	void (*on_data)(void *arg);
	/* Everything written has been handed to the kernel. */
	void (*on_drained)(void *arg);
	void (*on_secure)(void *arg);
	/* At most once; the owner then frees the connection. Unconsumed input is still there. */
	void (*on_closed)(void *arg, enum conn_end end, const char *text);
	/* One that was given up (conn_close_when_sent()) is gone, its descriptor is closed. */
	void (*on_gone)(void *arg);
};

/* Takes the connected descriptor over, also on failure. `output_max` octets may wait unsent. */
int conn_new(struct loop *loop, int fd, size_t output_max, const struct conn_events *events,
        void *arg, struct conn **ret_conn) must_check;

/* Starts to connect; on_connected or on_closed follows. Deadlines are the owner's timers. */
int conn_connect(struct loop *loop, const struct addr *addr, size_t output_max,
        const struct conn_events *events, void *arg, struct conn **ret_conn) must_check;

/* Closes at once, also one that was given up; no callback follows. NULL is fine. */
void conn_free(struct conn *conn);

/*
 * Gives the connection up: what was written is still sent, then it closes in
 * order, within a few seconds whatever the peer does. A server that has not
 * answered its client's handshake closes at once. Until on_gone, the only
 * callback that follows, it has its descriptor and may only be freed.
 */
void conn_close_when_sent(struct conn *conn);

/* Ends it as an error of its socket would: on_closed follows. */
void conn_fail(struct conn *conn, const char *text);

/* What has come and is not consumed; valid until consumed or the callback returns. */
struct slice conn_input(const struct conn *conn);
void conn_consume(struct conn *conn, size_t len);

/*
 * Makes the room for what the peer says and keeps it, so that hearing it cannot lack memory.
 * Otherwise an idle connection has none. 0 or -ENOMEM.
 */
int conn_keep_room(struct conn *conn) must_check;

/* While paused nothing is read beyond the window and on_data is not called. */
void conn_pause(struct conn *conn);
void conn_resume(struct conn *conn);

/*
 * Calls on_data at the end of this turn if there is input, read or not, or of
 * the next if this one ends already. The end of the connection comes behind that.
 */
void conn_kick(struct conn *conn);

/*
 * Queues output. Beyond the maximum the connection ends with CONN_END_OVERFLOW;
 * nothing else is reported here.
 */
void conn_write(struct conn *conn, struct slice data);

/* Octets queued and not yet with the kernel. */
size_t conn_unsent(const struct conn *conn);

/* In a crowd its handshake goes before most of the others'. To be called before TLS starts. */
void conn_prefer(struct conn *conn);

/*
 * Starts TLS once the output so far has left in the clear; on_secure or on_closed
 * follows. Input in the window was sent in the clear: it is the caller's duty to
 * refuse a peer that sent any (RFC 3207 6), what is there is thrown away.
 */
void conn_start_tls_server(struct conn *conn, struct tls_server *server, enum tls_ask ask);
void conn_start_tls_client(struct conn *conn, struct tls_client *client, const char *host);

bool conn_is_secure(const struct conn *conn);

/* "TLS1.3" and "AES-256-GCM"; NULL before TLS. */
const char *conn_tls_version(const struct conn *conn);
const char *conn_tls_cipher(const struct conn *conn);

/* Of the certificate that the peer has shown under TLS; false: none. */
bool conn_fingerprint(const struct conn *conn, char ret_text[TLS_FINGERPRINT]);

uint64_t conn_bytes_in(const struct conn *conn);
uint64_t conn_bytes_out(const struct conn *conn);

/* SPDX-License-Identifier: ISC */
/*
 * TLS credentials. Made once, shared by reference between connections (any
 * thread), replaced by new ones on a reload while live sessions keep theirs.
 * TLS 1.2 with ECDHE and AEAD, and TLS 1.3; nothing older, no renegotiation.
 */
#pragma once

#include <gnutls/gnutls.h>
#include <stdbool.h>

#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"
#include "gateway/base/why.h"

struct tls_server;
struct tls_client;

/* From PEM texts; 0, or -EINVAL with the reason (no certificate, a key that does not fit). */
int tls_server_new(struct slice certificate_pem, struct slice key_pem,
        struct tls_server **ret_server, struct why *why) must_check;
struct tls_server *tls_server_ref(struct tls_server *server);
void tls_server_unref(struct tls_server *server);

enum tls_check {
	TLS_CHECK_NAME, /* the chain must be valid and name the host */
	TLS_CHECK_NONE, /* any certificate will do */
};

/* `ca_file` "" means the system's authorities. 0 or -errno with the reason. */
int tls_client_new(enum tls_check check, const char *ca_file, struct tls_client **ret_client,
        struct why *why) must_check;
struct tls_client *tls_client_ref(struct tls_client *client);
void tls_client_unref(struct tls_client *client);

/*
 * What a server wants of its client: nothing, or a certificate. It may have none, and any will
 * do: nobody says whom it names. That the client has its key is proven.
 */
enum tls_ask { TLS_ASK_NOTHING, TLS_ASK_CERTIFICATE };

/* For conn.c: a session on `fd`, non-blocking; the credentials must outlive it. */
int tls_server_session(struct tls_server *server, enum tls_ask ask, int fd,
        gnutls_session_t *ret_session) must_check;
int tls_client_session(struct tls_client *client, int fd, const char *host,
        gnutls_session_t *ret_session) must_check;

/* SHA-256 in lower-case hex, and its terminator. */
#define TLS_FINGERPRINT 65

/* After the handshake, of the peer's certificate; false: it has shown none. */
bool tls_fingerprint(gnutls_session_t session, char ret_text[TLS_FINGERPRINT]);

/* After the handshake: 0, or -EACCES with what is wrong with the certificate. */
int tls_client_verify(struct tls_client *client, gnutls_session_t session, const char *host,
        struct why *why) must_check;

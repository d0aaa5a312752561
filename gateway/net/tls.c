/* SPDX-License-Identifier: ISC */
/* TLS credentials and sessions of GnuTLS; see tls.h. */
#include "gateway/net/tls.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/x509-ext.h>
#include <gnutls/x509.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/encode.h"

/*
 * X25519 first: it makes the handshake 13 % cheaper than P-256. A client that
 * asks for renegotiation is an error in reading to conn.c, which ends the
 * connection: one handshake each.
 */
static const char priorities[] = "NONE:+VERS-TLS1.3:+VERS-TLS1.2:+ECDHE-ECDSA:+ECDHE-RSA"
                                 ":+AES-256-GCM:+CHACHA20-POLY1305:+AES-128-GCM:+AEAD"
                                 ":+GROUP-X25519:+GROUP-SECP256R1:+GROUP-SECP384R1"
                                 ":+SIGN-ALL:-SIGN-RSA-SHA1:-SIGN-ECDSA-SHA1:-SIGN-DSA-SHA1"
                                 ":+COMP-NULL:+CTYPE-X509:%SERVER_PRECEDENCE";

/* Octets of a handshake where the peer may send a chain of certificates. */
#define HANDSHAKE_MAX 32768
/* Of a chain of an upstream: certificates above its own, and bits of a key, that are computed with.
 */
#define CHAIN_MAX    8
#define KEY_BITS_MAX 8192

struct tls_server {
	_Atomic unsigned refs;
	gnutls_certificate_credentials_t credentials;
	gnutls_priority_t priority;
	gnutls_datum_t ticket_key;
};

struct tls_client {
	_Atomic unsigned refs;
	enum tls_check check;
	gnutls_certificate_credentials_t credentials;
	gnutls_priority_t priority;
};

static int tls_why(struct why *why, int code, const char *what)
{
	why_set(why, "%s: %s", what, gnutls_strerror(code));
	return code == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL;
}

int tls_server_new(struct slice certificate_pem, struct slice key_pem,
        struct tls_server **ret_server, struct why *why)
{
	const gnutls_datum_t certificate = {
	        (unsigned char *)(uintptr_t)certificate_pem.ptr, (unsigned)certificate_pem.len};
	const gnutls_datum_t key = {(unsigned char *)(uintptr_t)key_pem.ptr, (unsigned)key_pem.len};
	struct tls_server *server = calloc(1, sizeof(*server));

	if (server == NULL)
		return why_errno(why, ENOMEM, "TLS");
	atomic_init(&server->refs, 1);
	int r = gnutls_certificate_allocate_credentials(&server->credentials);
	if (r >= 0)
		r = gnutls_priority_init(&server->priority, priorities, NULL);
	if (r >= 0)
		r = gnutls_session_ticket_key_generate(&server->ticket_key);
	if (r < 0) {
		r = tls_why(why, r, "TLS");
	} else {
		r = gnutls_certificate_set_x509_key_mem2(
		        server->credentials, &certificate, &key, GNUTLS_X509_FMT_PEM, NULL, 0);
		r = r < 0 ? tls_why(why, r, "the TLS certificate or its key") : 0;
	}
	if (r < 0) {
		tls_server_unref(server);
		return r;
	}
	*ret_server = server;
	return 0;
}

struct tls_server *tls_server_ref(struct tls_server *server)
{
	atomic_fetch_add_explicit(&server->refs, 1, memory_order_relaxed);
	return server;
}

void tls_server_unref(struct tls_server *server)
{
	if (server == NULL || atomic_fetch_sub_explicit(&server->refs, 1, memory_order_acq_rel) > 1)
		return;
	if (server->credentials != NULL)
		gnutls_certificate_free_credentials(server->credentials);
	if (server->priority != NULL)
		gnutls_priority_deinit(server->priority);
	if (server->ticket_key.data != NULL) {
		gnutls_memset(server->ticket_key.data, 0, server->ticket_key.size);
		gnutls_free(server->ticket_key.data);
	}
	free(server);
}

int tls_client_new(
        enum tls_check check, const char *ca_file, struct tls_client **ret_client, struct why *why)
{
	struct tls_client *client = calloc(1, sizeof(*client));

	if (client == NULL)
		return why_errno(why, ENOMEM, "TLS");
	atomic_init(&client->refs, 1);
	client->check = check;
	int r = gnutls_certificate_allocate_credentials(&client->credentials);
	if (r >= 0)
		r = gnutls_priority_init(&client->priority, priorities, NULL);
	if (r >= 0)
		gnutls_certificate_set_verify_limits(client->credentials, KEY_BITS_MAX, CHAIN_MAX);
	if (r >= 0 && check == TLS_CHECK_NAME && *ca_file != '\0') {
		r = gnutls_certificate_set_x509_trust_file(
		        client->credentials, ca_file, GNUTLS_X509_FMT_PEM);
		if (r == 0)
			r = GNUTLS_E_NO_CERTIFICATE_FOUND;
	} else if (r >= 0 && check == TLS_CHECK_NAME) {
		r = gnutls_certificate_set_x509_system_trust(client->credentials);
	}
	if (r < 0) {
		r = tls_why(why, r, *ca_file != '\0' ? ca_file : "the system's authorities");
		tls_client_unref(client);
		return r;
	}
	*ret_client = client;
	return 0;
}

struct tls_client *tls_client_ref(struct tls_client *client)
{
	atomic_fetch_add_explicit(&client->refs, 1, memory_order_relaxed);
	return client;
}

void tls_client_unref(struct tls_client *client)
{
	if (client == NULL || atomic_fetch_sub_explicit(&client->refs, 1, memory_order_acq_rel) > 1)
		return;
	if (client->credentials != NULL)
		gnutls_certificate_free_credentials(client->credentials);
	if (client->priority != NULL)
		gnutls_priority_deinit(client->priority);
	free(client);
}

static int start_session(gnutls_session_t session, int fd, gnutls_priority_t priority,
        gnutls_certificate_credentials_t credentials)
{
	int r = gnutls_priority_set(session, priority);
	if (r >= 0)
		r = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
	gnutls_transport_set_int(session, fd);
	gnutls_handshake_set_timeout(session, GNUTLS_INDEFINITE_TIMEOUT);
	return r;
}

int tls_server_session(
        struct tls_server *server, enum tls_ask ask, int fd, gnutls_session_t *ret_session)
{
	/*
	 * Registered by nobody, yet what mail servers take. Without ALPN all is well; a client that
	 * names only other protocols is a browser led astray (ALPACA), and gets an alert.
	 */
	static const gnutls_datum_t smtp = {(unsigned char *)(uintptr_t) "smtp", 4};
	gnutls_session_t session;

	int r = gnutls_init(&session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
	if (r < 0)
		return -ENOMEM;
	r = start_session(session, fd, server->priority, server->credentials);
	if (r >= 0)
		r = gnutls_alpn_set_protocols(session, &smtp, 1, GNUTLS_ALPN_MANDATORY);
	if (r >= 0)
		r = gnutls_session_ticket_enable_server(session, &server->ticket_key);
	gnutls_certificate_server_set_request(
	        session, ask == TLS_ASK_CERTIFICATE ? GNUTLS_CERT_REQUEST : GNUTLS_CERT_IGNORE);
	if (ask == TLS_ASK_CERTIFICATE)
		gnutls_handshake_set_max_packet_length(session, HANDSHAKE_MAX);
	if (r < 0) {
		gnutls_deinit(session);
		return -ENOMEM;
	}
	*ret_session = session;
	return 0;
}

bool tls_fingerprint(gnutls_session_t session, char ret_text[TLS_FINGERPRINT])
{
	uint8_t digest[TLS_FINGERPRINT / 2];
	unsigned count = 0;
	const gnutls_datum_t *chain = gnutls_certificate_get_peers(session, &count);

	if (chain == NULL || count == 0 ||
	        gnutls_hash_fast(GNUTLS_DIG_SHA256, chain[0].data, chain[0].size, digest) < 0)
		return false;
	hex_encode(digest, sizeof(digest), ret_text);
	return true;
}

/* Whether SNI may carry it: a name, not an address (RFC 6066 3). */
static bool is_name(const char *host)
{
	return strchr(host, ':') == NULL && strspn(host, "0123456789.") != strlen(host);
}

int tls_client_session(
        struct tls_client *client, int fd, const char *host, gnutls_session_t *ret_session)
{
	gnutls_session_t session;

	int r = gnutls_init(&session, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
	if (r < 0)
		return -ENOMEM;
	/* No ALPN: some upstreams know none and some take offence. */
	r = start_session(session, fd, client->priority, client->credentials);
	if (r >= 0 && is_name(host))
		r = gnutls_server_name_set(session, GNUTLS_NAME_DNS, host, strlen(host));
	gnutls_handshake_set_max_packet_length(session, HANDSHAKE_MAX);
	if (r < 0) {
		gnutls_deinit(session);
		return -ENOMEM;
	}
	*ret_session = session;
	return 0;
}

/* Whether a name of the DNS stands where it belongs. */
static bool has_dns_name(gnutls_x509_crt_t certificate)
{
	gnutls_subject_alt_names_t names = NULL;
	gnutls_datum_t extension = {0}, name;
	unsigned type = 0;
	bool found = false;

	/* All are parsed once: asking the certificate for each would parse all each time. */
	int r = gnutls_x509_crt_get_extension_by_oid2(
	        certificate, GNUTLS_X509EXT_OID_SAN, 0, &extension, NULL);
	if (r >= 0)
		r = gnutls_subject_alt_names_init(&names);
	if (r >= 0)
		r = gnutls_x509_ext_import_subject_alt_names(&extension, names, 0);
	for (unsigned i = 0; r >= 0 && !found; i++) {
		r = gnutls_subject_alt_names_get(names, i, &type, &name, NULL);
		found = r >= 0 && type == GNUTLS_SAN_DNSNAME;
	}
	if (names != NULL)
		gnutls_subject_alt_names_deinit(names);
	gnutls_free(extension.data);
	return found;
}

/*
 * RFC 9525 2: a common name names nobody. GnuTLS takes it where the certificate has no name of the
 * DNS, and has no flag against that.
 */
static bool is_named_by_common_name(gnutls_session_t session, const char *host)
{
	gnutls_x509_crt_t certificate;
	unsigned count = 0;
	const gnutls_datum_t *chain = gnutls_certificate_get_peers(session, &count);

	if (!is_name(host))
		return false; /* an address is compared with addresses alone */
	if (chain == NULL || count == 0 || gnutls_x509_crt_init(&certificate) < 0)
		return true;
	bool named = gnutls_x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER) >= 0 &&
	             has_dns_name(certificate);
	gnutls_x509_crt_deinit(certificate);
	return !named;
}

int tls_client_verify(
        struct tls_client *client, gnutls_session_t session, const char *host, struct why *why)
{
	gnutls_datum_t text;
	unsigned status;

	if (client->check == TLS_CHECK_NONE)
		return 0;
	/* RFC 9525: the configured name, never one that the DNS gave; and made for a server. */
	gnutls_typed_vdata_st wanted[] = {
	        {.type = GNUTLS_DT_DNS_HOSTNAME, .data = (unsigned char *)(uintptr_t)host},
	        {.type = GNUTLS_DT_KEY_PURPOSE_OID,
	                .data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_SERVER},
	};
	int r = gnutls_certificate_verify_peers(session, wanted, ARRAY_LEN(wanted), &status);
	if (r < 0)
		return tls_why(why, r, "the certificate cannot be checked");
	if (status == 0 && is_named_by_common_name(session, host)) {
		why_set(why, "certificate refused: it has no name but a common name");
		return -EACCES;
	}
	if (status == 0)
		return 0;
	r = gnutls_certificate_verification_status_print(
	        status, gnutls_certificate_type_get(session), &text, 0);
	why_set(why, "certificate refused: %s", r < 0 ? "not valid" : (const char *)text.data);
	if (r >= 0)
		gnutls_free(text.data);
	return -EACCES;
}

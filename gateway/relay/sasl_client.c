/* SPDX-License-Identifier: ISC */
/* Login at an upstream; see sasl_client.h. */
#include "gateway/relay/sasl_client.h"

#include <errno.h>
#include <sasl/sasl.h>
#include <stdlib.h>
#include <string.h>

#define CALLBACK(fn) ((int (*)(void))(void (*)(void))(fn))

struct login {
	const char *username;
	sasl_secret_t *secret;
};

/*
 * Which modules the library may load: without this it opens all that are
 * installed, Kerberos and database drivers among them.
 */
static int verify_file(void *context, const char *file, sasl_verify_type_t type)
{
	const char *name = strrchr(file, '/');

	(void)context;
	name = name != NULL ? name + 1 : file;
	return type == SASL_VRFY_PLUGIN && strncmp(name, "libplain.so", 11) == 0 ? SASL_OK
	                                                                         : SASL_CONTINUE;
}

static int get_conf_path(void *context, char **path)
{
	static char nowhere[] = "";

	(void)context;
	*path = nowhere;
	return SASL_OK;
}

static int log_nothing(void *context, int level, const char *message)
{
	(void)context;
	(void)level;
	(void)message;
	return SASL_OK;
}

static int get_name(void *context, int id, const char **result, unsigned *len)
{
	const struct login *login = context;

	(void)id;
	*result = login->username;
	if (len != NULL)
		*len = (unsigned)strlen(login->username);
	return SASL_OK;
}

static int get_secret(sasl_conn_t *conn, void *context, int id, sasl_secret_t **secret)
{
	const struct login *login = context;

	(void)conn;
	(void)id;
	*secret = login->secret;
	return SASL_OK;
}

int sasl_client_prepare(struct why *why)
{
	static const sasl_callback_t callbacks[] = {
	        {SASL_CB_VERIFYFILE, CALLBACK(verify_file), NULL},
	        {SASL_CB_GETCONFPATH, CALLBACK(get_conf_path), NULL},
	        {SASL_CB_LOG, CALLBACK(log_nothing), NULL},
	        {SASL_CB_LIST_END, NULL, NULL},
	};

	int r = sasl_client_init(callbacks);
	if (r == SASL_OK)
		return 0;
	why_set(why, "Cyrus SASL: %s", sasl_errstring(r, NULL, NULL));
	return -EIO;
}

static int converse(sasl_conn_t *conn, struct buf *ret_response, struct why *why)
{
	/* The session's TLS protects it; the library would hide PLAIN otherwise. */
	static const sasl_ssf_t external = 256;
	const char *response = NULL, *mechanism;
	unsigned len = 0;

	int r = sasl_setprop(conn, SASL_SSF_EXTERNAL, &external);
	if (r == SASL_OK)
		r = sasl_client_start(conn, "PLAIN", NULL, &response, &len, &mechanism);
	if (r != SASL_OK && r != SASL_CONTINUE) {
		why_set(why, "Cyrus SASL: %s", sasl_errstring(r, NULL, NULL));
		return -EIO;
	}
	r = buf_append(ret_response, response, len);
	return r < 0 ? why_errno(why, r, "Cyrus SASL") : 0;
}

int sasl_client_plain(const char *host, const char *username, const char *password,
        struct buf *ret_response, struct why *why)
{
	size_t len = strlen(password);
	struct login login = {.username = username};
	const sasl_callback_t callbacks[] = {
	        {SASL_CB_USER, CALLBACK(get_name), &login},
	        {SASL_CB_AUTHNAME, CALLBACK(get_name), &login},
	        {SASL_CB_PASS, CALLBACK(get_secret), &login},
	        {SASL_CB_LIST_END, NULL, NULL},
	};
	sasl_conn_t *conn = NULL;

	login.secret = calloc(1, sizeof(*login.secret) + len);
	if (login.secret == NULL)
		return why_errno(why, ENOMEM, "Cyrus SASL");
	login.secret->len = len;
	memcpy(login.secret->data, password, len);
	int r = sasl_client_new("smtp", host, NULL, NULL, callbacks, 0, &conn);
	if (r == SASL_OK) {
		r = converse(conn, ret_response, why);
	} else {
		why_set(why, "Cyrus SASL: %s", sasl_errstring(r, NULL, NULL));
		r = -EIO;
	}
	sasl_dispose(&conn);
	explicit_bzero(login.secret, sizeof(*login.secret) + len);
	free(login.secret);
	return r;
}

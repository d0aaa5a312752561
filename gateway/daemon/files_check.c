/* SPDX-License-Identifier: ISC */
/* The files that a configuration names; see files_check.h. */
#include "gateway/daemon/files_check.h"

#include "db/db.h"
#include "gateway/base/pack.h"
#include "gateway/daemon/secrets_file.h"
#include "gateway/daemon/start.h"
#include "gateway/net/tls.h"

/* Whether the certificate and its key can serve. */
static int check_tls(const struct conf *conf, struct why *why)
{
	struct secrets secrets;
	struct tls_server *tls;

	secrets_init(&secrets);
	int r = secrets_pack(conf, CHILD_SUBMIT, &secrets.room, why);
	struct unpack unpack = unpack_start(buf_slice(&secrets.room));
	if (r == 0) {
		struct slice certificate = unpack_bytes(&unpack, 1U << 20);
		struct slice key = unpack_bytes(&unpack, 1U << 20);
		r = tls_server_new(certificate, key, &tls, why);
		if (r == 0)
			tls_server_unref(tls);
	}
	secrets_done(&secrets);
	return r;
}

/* The secrets of the other processes: that their files can be read. */
static int check_passwords(const struct conf *conf, struct why *why)
{
	struct buf room;
	int r = 0;

	buf_init(&room, START_SECRETS_SIZE);
	for (unsigned kind = CHILD_AUTH; r == 0 && kind < CHILD_COUNT; kind++) {
		buf_clear(&room);
		r = secrets_pack(conf, (enum child_kind)kind, &room, why);
	}
	buf_wipe(&room);
	return r;
}

/* That libpq can read the connection string. Whether the server is there is another matter. */
static int check_database(const struct conf *conf, struct why *why)
{
	struct db *db;
	int r = db_new(&(struct db_settings){.conninfo = conf->database}, &db, why);

	if (r == 0)
		db_free(db);
	return r;
}

/* The authorities of upstreams whose certificates are verified. */
static int check_authorities(const struct conf *conf, struct why *why)
{
	struct tls_client *tls;
	int r = 0;

	for (size_t i = 0; r == 0 && i < conf->upstream_count; i++) {
		if (conf->upstreams[i].tls != CONF_TLS_VERIFY)
			continue;
		r = tls_client_new(TLS_CHECK_NAME, conf->upstreams[i].ca_file, &tls, why);
		if (r == 0)
			tls_client_unref(tls);
	}
	return r;
}

int files_check(const struct conf *conf, struct why *why)
{
	int r = check_tls(conf, why);

	if (r == 0)
		r = check_passwords(conf, why);
	if (r == 0)
		r = check_database(conf, why);
	return r == 0 ? check_authorities(conf, why) : r;
}

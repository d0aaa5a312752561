/* SPDX-License-Identifier: ISC */
/*
 * The configuration: one immutable snapshot of /etc/postern/postern.conf.
 *
 * options.def lists every option with its type, default and range: the checks and the
 * defaults come from it. Loading reports all errors at once, each with file and line; it
 * blocks, on any thread. A loaded snapshot is shared by reference (conf_ref, conf_unref
 * from any thread) and never changes: a reload makes a new one.
 *
 * Times are in milliseconds, sizes in octets. Optional strings are "" when not
 * given. Secrets are never here: only the names of their files.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gateway/base/addr.h"
#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/why.h"

/* How a listener speaks TLS: the command STARTTLS, or from the first octet. */
enum conf_tls_mode { CONF_TLS_STARTTLS, CONF_TLS_IMPLICIT };

/* What an upstream's TLS must prove; strictest first. */
enum conf_tls_policy {
	CONF_TLS_VERIFY,        /* TLS, certificate valid for the host's name */
	CONF_TLS_REQUIRE,       /* TLS, certificate not checked */
	CONF_TLS_OPPORTUNISTIC, /* TLS when offered */
	CONF_TLS_NONE,          /* never TLS; the start says so in the log */
};

/* What a bare CR or a bare LF of a client is. */
enum conf_newline {
	CONF_NEWLINE_REFUSE,    /* an error: RFC 5321 2.3.8 */
	CONF_NEWLINE_NORMALIZE, /* the end of a line, but of no message */
};

struct conf_listener {
	const char *name;
	const char *const *address; /* as written; each parses with addr_parse() */
	size_t address_count;
	const char *const
	        *proxies; /* as written; each parses with addr_net_parse(). None: no proxy */
	size_t proxies_count;
	const struct addr_net *proxy_nets; /* the same, parsed */
	enum conf_tls_mode tls;
	bool networks;            /* who stands in an account's network needs no login */
	bool client_certificates; /* TLS asks for one */
	enum conf_newline bare_newline;
};

struct conf_tls {
	const char *certificate, *key; /* PEM files */
};

struct conf_submission {
	uint64_t message_size;            /* octets as received, ceiling; a plan may set less */
	uint64_t recipients;              /* of one message, ceiling */
	uint64_t login_timeout;           /* from connect to logged in */
	uint64_t command_timeout;         /* between commands */
	uint64_t data_timeout;            /* between pieces of a message */
	uint64_t connections;             /* in all */
	uint64_t connections_per_address; /* from one IPv4 address, /56 of IPv6 */
	uint64_t account_memory;          /* octets of an account's unfinished messages */
	uint64_t login_failures;          /* on one connection, then 421 */
	uint64_t refusal_delay;           /* 535 leaves so long after its AUTH */
	uint64_t threads;                 /* event loops; 0: one for each core */
};

struct conf_upstream {
	const char *name;
	const char *const *hosts; /* "host:port", in the order in which they are tried */
	size_t hosts_count;
	enum conf_tls_policy tls;
	enum conf_tls_mode tls_mode;
	const char *ca_file;       /* "": the system's authorities */
	const char *username;      /* "": no AUTH */
	const char *password_file; /* read by the supervisor, never by `relay` */
	uint64_t connections;
	uint64_t connect_timeout, greeting_timeout, command_timeout, data_timeout;
	uint64_t idle_timeout; /* a kept connection without work is closed */
};

#define CONF_LOOPS_MAX     64  /* as many as the option `threads` allows */
#define CONF_UPSTREAMS_MAX 256 /* `relay` is handed a password for each */

struct conf_retry {
	uint64_t first, max, delay_notice, expire;
	uint64_t bounces_per_hour; /* of one account; and as many notices of delay */
};

struct conf_domain_route {
	const char *domain, *route;
};

struct conf {
	const char *hostname;
	const char *database; /* libpq connection string */
	const char *database_auth_password_file, *database_relay_password_file;
	const char *spool, *runtime;
	const char *route; /* name of the default upstream */
	uint64_t auth_workers;

	struct conf_tls tls;
	struct conf_submission submission;
	struct conf_retry retry;

	struct conf_listener *listeners;
	size_t listener_count;
	struct conf_upstream *upstreams;
	size_t upstream_count;
	struct conf_domain_route *domain_routes;
	size_t domain_route_count;
};

/* Errors are appended to `errors` as lines "FILE:LINE: text\n". */
#define CONF_ERRORS_MAX 65536

/*
 * Reads and checks a file. 0 and a reference, -EINVAL with the errors in the
 * buffer (the caller's), -ENOMEM. An unreadable file is an error like any other.
 */
int conf_load(const char *path, struct buf *errors, const struct conf **ret_conf) must_check;

/*
 * As conf_load, from text (what conf_format wrote: how the supervisor hands the
 * configuration to its children). `name` stands for the file's name in errors.
 */
int conf_parse(const char *text, const char *name, struct buf *errors,
        const struct conf **ret_conf) must_check;

/* Whether a running gateway can change from one to the other: 0, or -EBUSY with what cannot. */
int conf_check_reload(const struct conf *old, const struct conf *fresh, struct why *why) must_check;

/* Writes the whole snapshot, defaults included, as a configuration that conf_parse reads. */
int conf_format(const struct conf *conf, struct buf *out) must_check;

const struct conf *conf_ref(const struct conf *conf);
void conf_unref(const struct conf *conf);

/* The upstream of that name, or NULL. */
const struct conf_upstream *conf_find_upstream(const struct conf *conf, const char *name);

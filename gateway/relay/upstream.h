/* SPDX-License-Identifier: ISC */
/*
 * An upstream: its hosts and how they fare, its sessions, and what waits for it. The loop's thread
 * only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gateway/base/compiler.h"
#include "gateway/base/list.h"
#include "gateway/base/slice.h"
#include "gateway/net/loop.h"
#include "gateway/net/timer.h"
#include "gateway/relay/lookup.h"

#define HOSTS_MAX 32

struct conf;
struct conf_upstream;
struct delivery;
struct relay;
struct session;
struct task;
struct tls_client;
struct why;

struct host {
	char *name; /* as configured, without port: what its certificate must name */
	uint16_t port;
	struct addresses addresses;
	bool is_address;      /* its name is one: never looked up */
	uint64_t resolved_ms; /* 0: never */
	/* Its breaker: open from a failure until a transaction has ended. It rests, then one
	 * connection probes it, which carries one message after the other. */
	bool is_open;
	uint64_t rest_ms; /* the last rest's length; 0: it has served since */
	uint64_t failed_ms, rests_until_ms;
	bool probed;       /* by a connection that has not served yet */
	size_t broken_off; /* so many times at its addresses, since it served */
	/* Under these settings: */
	bool login_works; /* it was ready once, and has not refused it since */
	bool takes_mail;  /* it has accepted a sender */
};

struct upstream {
	struct list link;
	struct relay *relay;
	const struct conf *conf; /* that `settings` is part of */
	const struct conf_upstream *settings;
	char *password;
	struct tls_client *tls; /* NULL: never TLS */
	struct host hosts[HOSTS_MAX];
	size_t host_count;
	unsigned generation; /* of the settings: sessions of older ones are not kept */
	struct list waiting; /* deliveries without a session */
	size_t waiting_count;
	struct list sessions;       /* all of them */
	struct list idle;           /* those without work */
	size_t session_count;       /* without those that have ended, or have no host of it now */
	size_t connecting, probing; /* of these: on their way to be ready, for mail or as probes */
	struct list held;           /* tasks that wait for it */
	struct defer catch_up;
	size_t coming; /* of these: woken, and not yet here with a delivery */
	bool removed, stopped, down;
	struct timer resume;   /* tries it again when it is stopped */
	struct timer rest;     /* the first rest of a host ends */
	struct timer patience; /* with who tries a new login */
	uint64_t tried_ms;     /* when the last connection set out */
};

/* All of a reload that can fail. 0 or -errno with the reason. The password is copied. */
int upstream_new(struct relay *relay, const struct conf *conf, const struct conf_upstream *settings,
        struct slice password, struct upstream **ret_upstream, struct why *why) must_check;

/* Puts the settings of a fresh one of the same name in force; the fresh one is freed. */
void upstream_renew(struct upstream *upstream, struct upstream *fresh);

/* No session is left. */
void upstream_free(struct upstream *upstream);

/* Takes a delivery; it comes back through attempt_delivery_done() or _held(). */
void upstream_deliver(struct upstream *upstream, struct delivery *delivery);

/* Sessions for what waits, as far as they are allowed and can be had: also when a probe has found
 * a host ready. */
void upstream_serve(struct upstream *upstream);

/* The task waits for it, for its time at most; frozen: without ageing. */
void upstream_hold(struct upstream *upstream, struct task *task, bool frozen);

/* Tries it again although it was stopped or down. */
void upstream_resume(struct upstream *upstream);

/* It is not configured any more: what waits is deferred, sessions end. */
void upstream_remove(struct upstream *upstream);

/* The first host from `from` on whose breaker is closed, or host_count. */
size_t upstream_choose_host(const struct upstream *upstream, size_t from);

/* A task that an upstream has woken has a delivery for it now, or will not have one. */
void upstream_task_came(struct task *task);

/* From its sessions: one is ready. */
void upstream_session_ready(struct session *session);
/* MAIL was accepted. */
void upstream_takes_mail(struct session *session);
/* A transaction came to the end of its dialogue, however it ended: the host serves. */
void upstream_transaction_ended(struct session *session);
/* Whether another address or another host could be tried in place of what this session has. */
bool upstream_has_other_way(const struct session *session);
/*
 * The host of one broke off in a transaction, maybe with the code of a reply (else 0). If it has
 * ended none on this session its next address is tried, or it rests, if there is another host, it
 * said that it does not serve, or it has rested and not served since. Whether mail could go another
 * way at once.
 */
bool upstream_session_broke_off(struct session *session, unsigned code);
/* A host did not serve a session that set out to it at `since_ms`. */
void upstream_host_failed(
        struct upstream *upstream, size_t index, uint64_t since_ms, const char *text);
/* It has ended. */
void upstream_session_ended(struct session *session, bool was_connecting);

/* From a session that is idle: the next delivery, or NULL. */
struct delivery *upstream_next_delivery(struct upstream *upstream);

/* From a session whose host refuses our login: whether another host has accepted it, so that this
 * one alone does not serve. */
bool upstream_login_refused(struct session *session);

/* From a session whose host wants a login: whether that is so of all mail; else of one sender. */
bool upstream_wants_login(const struct session *session);

/* From a session: the upstream refuses our login. Its mail waits and does not age. */
void upstream_stop(struct upstream *upstream, const char *host, const char *text);

/* The gateway stops: only final dots that were sent are waited for. */
void upstream_shut(struct upstream *upstream);

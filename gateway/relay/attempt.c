/* SPDX-License-Identifier: ISC */
/*
 * One attempt to deliver a message: load and sign on a worker, split by route,
 * hand over, wait for all deliveries to come back.
 */
#include "gateway/relay/attempt.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/board.h"
#include "gateway/base/clock.h"
#include "gateway/conf/conf.h"
#include "gateway/mail/address.h"
#include "gateway/mail/header.h"
#include "gateway/relay/bounce_limit.h"
#include "gateway/relay/history.h"
#include "gateway/relay/keys.h"
#include "gateway/relay/outcome.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/task.h"
#include "gateway/relay/upstream.h"

#define ARENA_MAX      (64U << 20)
#define SIGNATURES_MAX 65536
#define CANNOT_SIGN    "cannot sign for the sender's domain"
/* RFC 6376 8.15: a signature that ends limits replay; longer than any retry. */
#define SIGNATURE_LIFE_S (7L * 24 * 3600)

/* ---- on a worker ---- */

static int sign(struct attempt *attempt)
{
	struct slice domain = attempt->envelope.from_domain;

	for (size_t i = 0; i < attempt->keyset->count; i++) {
		const struct signing_key *key = &attempt->keyset->keys[i];
		const struct dkim_signing signing = {
		        .domain = domain,
		        .selector = slice_str(key->selector),
		        .key = key->key,
		        .now_s = clock_wall_s(),
		        .expires_s = clock_wall_s() + SIGNATURE_LIFE_S,
		};
		int r = dkim_sign(&signing, attempt->message.stored.header,
		        attempt->envelope.body_hash, &attempt->signatures, &attempt->why);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Keys are asked for in lower case, and signatures name the domain so. */
static int lower_domain(struct attempt *attempt)
{
	struct slice from = attempt->envelope.from_domain;
	char *copy = arena_str(&attempt->arena, from);

	if (copy == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < from.len; i++)
		copy[i] = ascii_lower(copy[i]);
	attempt->envelope.from_domain = slice_of(copy, from.len);
	return 0;
}

static void prepare(struct job *job)
{
	struct attempt *attempt = container_of(job, struct attempt, job);
	struct relay *relay = attempt->task->relay;

	attempt->error = spool_message_load(relay->spool, attempt->task->entry, &attempt->message);
	if (attempt->error < 0)
		return;
	attempt->loaded = true;
	attempt->error = envelope_decode(
	        attempt->message.stored.envelope, &attempt->arena, &attempt->envelope);
	if (attempt->error == 0 &&
	        attempt->envelope.recipient_count != attempt->task->entry->recipients) {
		attempt->envelope = (struct envelope){0};
		attempt->error = -EBADMSG;
	}
	if (attempt->error == 0)
		attempt->error = lower_domain(attempt);
	if (!attempt->task->in_history)
		attempt->message_id = header_message_id(attempt->message.stored.header);
	if (attempt->error < 0 || attempt->envelope.from_domain.len == 0)
		return;
	attempt->keyset = keys_find(relay->keys, attempt->envelope.from_domain);
	if (attempt->keyset != NULL)
		attempt->error = sign(attempt);
}

static void sign_only(struct job *job)
{
	struct attempt *attempt = container_of(job, struct attempt, job);

	attempt->error = sign(attempt);
}

/* ---- on the loop ---- */

void attempt_set_fate(struct attempt *attempt, uint32_t recipient, enum fate fate,
        const char *status, const char *host, const char *diagnostic)
{
	struct result *result = &attempt->results[recipient];
	size_t len = MIN_OF(strlen(status), sizeof(result->status) - 1);

	result->fate = fate;
	memcpy(result->status, status, len);
	result->status[len] = '\0';
	result->host = host == NULL ? NULL : arena_str(&attempt->arena, slice_str(host));
	const char *copy = arena_str(&attempt->arena, slice_str(diagnostic));
	result->diagnostic = copy != NULL ? copy : "";
}

void delivery_set_fate(struct delivery *delivery, enum fate fate, const char *status,
        const char *host, const char *diagnostic)
{
	for (uint32_t i = 0; i < delivery->count; i++) {
		uint32_t recipient = delivery->recipients[i];
		enum fate now = delivery->attempt->results[recipient].fate;
		if (now == FATE_OPEN || now == FATE_ACCEPTED)
			attempt_set_fate(
			        delivery->attempt, recipient, fate, status, host, diagnostic);
	}
}

static void tell_message(struct attempt *attempt)
{
	struct task *task = attempt->task;
	const struct envelope *envelope = &attempt->envelope;
	const struct history_message message = {
	        .id = &task->entry->id,
	        .account = envelope->account,
	        .size = envelope->size,
	        .accepted_us = task->entry->accepted_us,
	        .recipients = envelope->recipient_count,
	        .login = envelope->login,
	        .session = envelope->session,
	        .sender = envelope->sender,
	        .from_domain = envelope->from_domain,
	        .message_id = attempt->message_id,
	};

	history_tell_message(task->relay->history, &message);
	task->in_history = true;
}

/* Names of the keys that have signed, with blanks between. */
static struct slice selectors_of(const struct attempt *attempt, char *text, size_t size)
{
	size_t len = 0;

	for (size_t i = 0; attempt->keyset != NULL && i < attempt->keyset->count; i++)
		len += (size_t)snprintf(text + len, size - len, "%s%s", i > 0 ? " " : "",
		        attempt->keyset->keys[i].selector);
	return slice_of(text, len);
}

void attempt_tell_history(struct attempt *attempt, uint32_t recipient, const char *outcome,
        const struct message_id *notice)
{
	const struct spool_entry *entry = attempt->task->entry;
	const struct result *result = &attempt->results[recipient];
	char selectors[KEYSET_MAX * sizeof(attempt->keyset->keys[0].selector)];
	char notice_text[ID_TEXT + 1];
	struct history_delivery delivery = {
	        .message = &entry->id,
	        .at_us = clock_wall_us(),
	        .attempt = entry->attempt + 1,
	        .number = recipient,
	        .outcome = outcome,
	        .recipient = attempt->envelope.recipients[recipient],
	        .host = slice_str(result->host),
	        .reply = slice_str(result->diagnostic),
	};

	if (result->upstream != NULL)
		delivery.upstream = slice_str(result->upstream->settings->name);
	if (notice != NULL)
		delivery.notice = slice_str(id_format(notice, notice_text));
	if (result->fate == FATE_DELIVERED)
		delivery.selectors = selectors_of(attempt, selectors, sizeof(selectors));
	/* What we tell a sender is no mail of the account. */
	if (result->fate == FATE_DELIVERED && !entry->is_dsn) {
		delivery.seen_by = entry->account;
		delivery.recipient_hash = address_hash(delivery.recipient);
	}
	history_tell_delivery(attempt->task->relay->history, &delivery);
}

/* It is prepared, or will not be. */
static void make_room(struct attempt *attempt)
{
	if (attempt->handed_over)
		return;
	attempt->handed_over = true;
	upstream_task_came(attempt->task);
	attempt->task->relay->preparing--;
	relay_dispatch_soon(attempt->task->relay);
}

static void finish(struct attempt *attempt)
{
	make_room(attempt);
	attempt->task->relay->running--;
	outcome_record(attempt);
	if (attempt->loaded)
		spool_message_done(&attempt->message);
	keyset_unref(attempt->keyset);
	buf_done(&attempt->signatures);
	arena_reset(&attempt->arena);
	free(attempt);
}

static void one_less(struct attempt *attempt)
{
	if (--attempt->open == 0)
		finish(attempt);
}

void attempt_delivery_done(struct delivery *delivery)
{
	one_less(delivery->attempt);
}

void attempt_delivery_held(struct delivery *delivery, bool frozen)
{
	delivery->held = true;
	delivery->frozen = frozen;
	one_less(delivery->attempt);
}

/* A domain's own route, else the account's, else the default. */
static struct slice route_of(struct attempt *attempt, struct slice recipient)
{
	const struct conf *conf = attempt->task->relay->conf;
	ptrdiff_t at = slice_find_last(recipient, '@');
	struct slice domain = at < 0 ? SLICE("") : slice_part(recipient, (size_t)at + 1, SIZE_MAX);

	for (size_t i = 0; i < conf->domain_route_count; i++)
		if (slice_equal_nocase(slice_str(conf->domain_routes[i].domain), domain))
			return slice_str(conf->domain_routes[i].route);
	return attempt->envelope.route.len > 0 ? attempt->envelope.route : slice_str(conf->route);
}

/* The delivery to that upstream, made when there is none yet; NULL without memory. */
static struct delivery *delivery_to(struct attempt *attempt, struct upstream *upstream)
{
	struct delivery *delivery;

	for (uint32_t i = 0; i < attempt->delivery_count; i++)
		if (attempt->deliveries[i].upstream == upstream)
			return &attempt->deliveries[i];
	delivery = &attempt->deliveries[attempt->delivery_count];
	delivery->recipients = arena_alloc(
	        &attempt->arena, attempt->task->entry->unsettled * sizeof(*delivery->recipients));
	if (delivery->recipients == NULL)
		return NULL;
	delivery->attempt = attempt;
	delivery->upstream = upstream;
	attempt->delivery_count++;
	return delivery;
}

static int split(struct attempt *attempt)
{
	struct relay *relay = attempt->task->relay;
	struct spool_entry *entry = attempt->task->entry;
	size_t upstreams = 0;

	list_for_each (at, &relay->upstreams)
		upstreams++;
	attempt->deliveries =
	        arena_alloc(&attempt->arena, (upstreams + 1) * sizeof(*attempt->deliveries));
	if (attempt->deliveries == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < entry->recipients; i++) {
		if (spool_entry_is_settled(entry, i)) {
			attempt->results[i].fate = FATE_DELIVERED;
			continue;
		}
		struct slice route = route_of(attempt, attempt->envelope.recipients[i]);
		struct upstream *upstream = relay_find_upstream(relay, route);
		if (upstream == NULL) {
			if (!attempt->route_unknown)
				LOG(&attempt->log, EV_ROUTE_UNKNOWN, "route=%s", LOG_VALUE(route));
			attempt->route_unknown = true;
			attempt_set_fate(attempt, i, FATE_DEFERRED, "4.3.5", NULL,
			        "the route of this mail is not configured");
			continue;
		}
		struct delivery *delivery = delivery_to(attempt, upstream);
		if (delivery == NULL)
			return -ENOMEM;
		delivery->recipients[delivery->count++] = i;
		attempt->results[i].upstream = upstream;
	}
	return 0;
}

static void defer_all(struct attempt *attempt, const char *status, const char *text)
{
	for (uint32_t i = 0; i < attempt->task->entry->recipients; i++)
		if (!spool_entry_is_settled(attempt->task->entry, i))
			attempt_set_fate(attempt, i, FATE_DEFERRED, status, NULL, text);
	finish(attempt);
}

static void fail(struct attempt *attempt, const char *text)
{
	if (attempt->results == NULL)
		attempt->results = arena_alloc(&attempt->arena,
		        attempt->task->entry->recipients * sizeof(*attempt->results));
	if (attempt->results == NULL)
		finish(attempt);
	else
		defer_all(attempt, "4.3.0", text);
}

static void hand_over(struct attempt *attempt)
{
	/* Held by one more, so that the last delivery to come back is not missed here. */
	attempt->open = 1;
	if (split(attempt) < 0) {
		fail(attempt, "out of memory");
		return;
	}
	make_room(attempt);
	attempt->open += attempt->delivery_count;
	for (uint32_t i = 0, count = attempt->delivery_count; i < count; i++)
		upstream_deliver(attempt->deliveries[i].upstream, &attempt->deliveries[i]);
	one_less(attempt);
}

static void signed_(struct job *job)
{
	struct attempt *attempt = container_of(job, struct attempt, job);

	attempt->task->relay->busy--;
	if (attempt->error < 0)
		fail(attempt, CANNOT_SIGN);
	else
		hand_over(attempt);
}

static int work(struct attempt *attempt, void (*run)(struct job *), void (*done)(struct job *))
{
	struct relay *relay = attempt->task->relay;

	attempt->job = (struct job){.loop = relay->loop, .run = run, .done = done};
	int r = jobs_submit(relay->jobs, &attempt->job);
	if (r == 0)
		relay->busy++;
	return r;
}

/* There is no key: the plan decides. */
static void without_key(struct attempt *attempt)
{
	LOG(&attempt->log, EV_MESSAGE_UNSIGNED, "domain=%s",
	        LOG_VALUE(attempt->envelope.from_domain));
	if (attempt->envelope.sign_required)
		fail(attempt, "the sender's domain has no DKIM key, and must be signed");
	else
		hand_over(attempt);
}

static void have_keys(struct key_wait *wait)
{
	struct attempt *attempt = container_of(wait, struct attempt, key_wait);

	attempt->task->relay->busy--;
	attempt->keyset = wait->keyset;
	if (attempt->keyset == NULL) {
		/* Better late than unsigned: receivers were promised a signature. */
		fail(attempt, "the DKIM keys of the sender's domain cannot be fetched now");
		return;
	}
	if (attempt->keyset->count == 0) {
		without_key(attempt);
		return;
	}
	if (work(attempt, sign_only, signed_) < 0)
		fail(attempt, "too much to do");
}

/*
 * Whether it is a bounce, and its account has got as many as it gets within an hour. One that
 * was tried already was counted then, or before a restart.
 */
static bool must_wait_for_hour(struct attempt *attempt)
{
	struct task *task = attempt->task;
	const struct spool_entry *entry = task->entry;
	struct bounce_wait wait;
	char until[CLOCK_TEXT_SIZE];

	if (!entry->is_dsn || entry->is_delay || entry->attempt > 0 || task->is_counted)
		return false;
	task->is_counted = bounce_limit_take(&task->relay->bounces, entry->account,
	        task->relay->conf->retry.bounces_per_hour, clock_mono_ms(), &wait);
	if (task->is_counted)
		return false;
	if (wait.is_first)
		LOG(&attempt->log, EV_BOUNCES_WITHHELD, "account=%s until=%s",
		        LOG_VALUE(attempt->envelope.login),
		        clock_iso(clock_wall_s() + (int64_t)(wait.ms / 1000), until));
	counter_add(CT_BOUNCES_WITHHELD, !task->was_withheld);
	task->was_withheld = true;
	attempt->hour_left_ms = wait.ms;
	return true;
}

static void prepared(struct job *job)
{
	struct attempt *attempt = container_of(job, struct attempt, job);
	struct relay *relay = attempt->task->relay;

	relay->busy--;
	if (attempt->error == -EBADMSG && !attempt_is_readable(attempt))
		LOG(&attempt->log, EV_MESSAGE_DAMAGED, "");
	if (attempt_is_readable(attempt) && !attempt->task->in_history)
		tell_message(attempt);
	if (attempt->error < 0) {
		fail(attempt, attempt_is_readable(attempt) ? CANNOT_SIGN
		              : attempt->error == -EBADMSG ? "the message is damaged in the spool"
		                                           : "the message cannot be read now");
		return;
	}
	attempt->results = arena_alloc(
	        &attempt->arena, attempt->task->entry->recipients * sizeof(*attempt->results));
	if (attempt->results == NULL) {
		fail(attempt, "out of memory");
	} else if (must_wait_for_hour(attempt)) {
		finish(attempt);
	} else if (attempt->envelope.from_domain.len == 0 || /* a bounce of ours */
	           (attempt->keyset != NULL && attempt->keyset->count > 0)) {
		hand_over(attempt);
	} else if (attempt->keyset != NULL) {
		without_key(attempt);
	} else {
		attempt->key_wait.done = have_keys;
		if (keys_ask(relay->keys, attempt->envelope.from_domain, &attempt->key_wait) < 0)
			fail(attempt, "too much to do");
		else
			relay->busy++;
	}
}

void attempt_start(struct task *task)
{
	struct attempt *attempt = calloc(1, sizeof(*attempt));
	char id[ID_TEXT + 1];

	task->state = TASK_RUNNING;
	if (attempt == NULL) {
		upstream_task_came(task);
		task->state = TASK_WAITING;
		timer_start(&task->timer, NO_MEMORY_WAIT_MS);
		return;
	}
	task->relay->running++;
	task->relay->preparing++;
	attempt->task = task;
	arena_init(&attempt->arena, ARENA_MAX);
	buf_init(&attempt->signatures, SIGNATURES_MAX);
	log_ctx_init(&attempt->log);
	log_ctx_add(&attempt->log, "qid", slice_str(id_format(&task->entry->id, id)));
	if (work(attempt, prepare, prepared) < 0)
		fail(attempt, "too much to do");
}

/* SPDX-License-Identifier: ISC */
/*
 * What became of an attempt: failures go back to the sender in a bounce whose
 * record is also their mark; the rest is tried again later.
 */
#include "gateway/relay/outcome.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/board.h"
#include "gateway/base/clock.h"
#include "gateway/base/log.h"
#include "gateway/base/random.h"
#include "gateway/conf/conf.h"
#include "gateway/mail/dsn.h"
#include "gateway/relay/accounts.h"
#include "gateway/relay/attempt.h"
#include "gateway/relay/bounce_limit.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/task.h"
#include "gateway/relay/upstream.h"

/* So that a bounce's record stays below its limit however much the upstream said. */
#define BOUNCE_RECIPIENTS_MAX 300
#define BOUNCE_MAX            (1U << 20)

static void on_marked(void *arg, int result)
{
	struct relay *relay = arg;

	/* A mark that could not be written is tried again by the spool. */
	(void)result;
	relay->busy--;
}

/* What a notification is about. */
struct about {
	struct message_id id; /* of the notification */
	const struct stored_result *results;
	uint32_t count;
	int64_t retry_until_s; /* they are delayed; 0: they have failed */
};

static int write_dsn(struct attempt *attempt, const struct about *what, struct buf *header,
        struct buf *body, struct buf *envelope)
{
	const struct envelope *about = &attempt->envelope;
	struct dsn_recipient recipients[BOUNCE_RECIPIENTS_MAX];
	char id[ID_TEXT + 1], original_id[ID_TEXT + 1];
	struct slice to = about->sender;

	for (uint32_t i = 0; i < what->count; i++) {
		uint32_t recipient = what->results[i].recipient;
		const struct result *result = &attempt->results[recipient];
		recipients[i] = (struct dsn_recipient){
		        .address = about->recipients[recipient],
		        .status = result->status,
		        .remote_mta = result->host,
		        .diagnostic = result->diagnostic,
		};
	}
	const struct dsn dsn = {
	        .hostname = attempt->task->relay->conf->hostname,
	        .id = id_format(&what->id, id),
	        .original_id = id_format(&attempt->task->entry->id, original_id),
	        .sender = about->sender,
	        .wall_s = clock_wall_s(),
	        .accepted_s = attempt->task->entry->accepted_us / 1000000,
	        .retry_until_s = what->retry_until_s,
	        .recipients = recipients,
	        .recipient_count = what->count,
	        .original_header = attempt->message.stored.header,
	};
	int r = dsn_write(&dsn, header, body);
	const struct envelope own = {
	        .account = about->account,
	        .login = about->login,
	        .session = about->session,
	        .recipients = &to,
	        .recipient_count = 1,
	        .body_8bit = true,
	        .smtputf8 = !slice_is_ascii(to),
	        .size = buf_len(header) + buf_len(body),
	        .route = about->route,
	};
	return r == 0 ? envelope_encode(&own, envelope) : r;
}

/*
 * Tells the sender that recipients have failed, or (until when they are tried) are delayed.
 * 0 or -errno.
 */
static int notify(struct attempt *attempt, const struct stored_result *results, uint32_t count,
        int64_t retry_until_s, struct message_id *ret_id)
{
	uint32_t settled = retry_until_s == 0 ? count : 0;
	const struct about what = {
	        .id = spool_bounce_id(attempt->task->entry, results, settled),
	        .results = results,
	        .count = count,
	        .retry_until_s = retry_until_s,
	};
	struct buf header, body, envelope;

	buf_init(&header, BOUNCE_MAX);
	buf_init(&body, BOUNCE_MAX);
	buf_init(&envelope, BOUNCE_MAX);
	int r = write_dsn(attempt, &what, &header, &body, &envelope);
	const struct spool_dsn dsn = {
	        .account = attempt->envelope.account,
	        .accepted_us = clock_wall_us(),
	        .envelope = buf_slice(&envelope),
	        .header = buf_slice(&header),
	        .body = buf_slice(&body),
	};
	if (r == 0)
		r = spool_bounce(attempt->task->relay->spool, attempt->task->entry, results,
		        settled, &dsn, on_marked, attempt->task->relay);
	if (r == 0) {
		attempt->task->relay->busy++;
		*ret_id = what.id;
	}
	buf_done(&header);
	buf_done(&body);
	buf_done(&envelope);
	return r;
}

static void tell_failed(struct attempt *attempt, const struct stored_result *failed, uint32_t count,
        const struct message_id *notice)
{
	enum event event = attempt->task->entry->is_dsn ? EV_MESSAGE_DROPPED : EV_MESSAGE_BOUNCED;

	for (uint32_t i = 0; i < count; i++) {
		const struct result *result = &attempt->results[failed[i].recipient];
		attempt_tell_history(attempt, failed[i].recipient,
		        result->expired ? "expired" : "refused", notice);
		LOG(&attempt->log, event, "to=%s status=%s host=%s reply=%s notice=%s",
		        LOG_VALUE(attempt->envelope.recipients[failed[i].recipient]),
		        result->status, result->host != NULL ? result->host : "-",
		        LOG_VALUE(slice_str(result->diagnostic)), notice != NULL ? "sent" : "none");
	}
	counter_add(CT_RECIPIENTS_FAILED, count);
}

/* Nobody is told of a notification, nor where there is nobody to tell. */
static bool may_notify(const struct attempt *attempt)
{
	return attempt->envelope.sender.len > 0 && !attempt->task->entry->is_dsn;
}

/* Settles recipients that failed, with a bounce where somebody can get one. */
static void give_back(struct attempt *attempt, const struct stored_result *failed, uint32_t count)
{
	struct relay *relay = attempt->task->relay;
	struct spool_entry *entry = attempt->task->entry;
	bool is_told = may_notify(attempt);
	struct message_id notice;
	int r;

	if (is_told) {
		r = notify(attempt, failed, count, 0, &notice);
	} else {
		r = spool_settle(relay->spool, entry, failed, count, on_marked, relay);
		relay->busy += r == 0;
	}
	if (r < 0) {
		/* Without memory: they fail again at the next attempt. */
		for (uint32_t i = 0; i < count; i++)
			attempt->results[failed[i].recipient].fate = FATE_DEFERRED;
		return;
	}
	tell_failed(attempt, failed, count, is_told ? &notice : NULL);
}

static void give_back_failed(struct attempt *attempt)
{
	struct stored_result failed[BOUNCE_RECIPIENTS_MAX];
	uint32_t count = 0;

	for (uint32_t i = 0; i < attempt->task->entry->recipients; i++) {
		if (attempt->results[i].fate != FATE_FAILED)
			continue;
		failed[count++] = (struct stored_result){.recipient = i, .outcome = OUTCOME_FAILED};
		if (count == BOUNCE_RECIPIENTS_MAX) {
			give_back(attempt, failed, count);
			count = 0;
		}
	}
	if (count > 0)
		give_back(attempt, failed, count);
}

static void expire(struct attempt *attempt)
{
	/* What cannot be read cannot be given back either: it stays until an operator decides. */
	if (!attempt_is_readable(attempt) ||
	        task_age(attempt->task) < attempt->task->relay->conf->retry.expire)
		return;
	for (uint32_t i = 0; i < attempt->task->entry->recipients; i++) {
		struct result *result = &attempt->results[i];
		if (result->fate != FATE_DEFERRED)
			continue;
		attempt_set_fate(
		        attempt, i, FATE_FAILED, "4.4.7", result->host, result->diagnostic);
		result->expired = true;
	}
}

/* Once a message, when it has waited for long, its sender is told. */
static void tell_delay(struct attempt *attempt)
{
	const struct conf_retry *retry = &attempt->task->relay->conf->retry;
	struct stored_result delayed[BOUNCE_RECIPIENTS_MAX];
	struct spool_entry *entry = attempt->task->entry;
	struct message_id notice;
	struct bounce_wait wait;
	uint32_t count = 0;

	if (entry->delay_told || !attempt_is_readable(attempt) || !may_notify(attempt) ||
	        entry->age_ms < retry->delay_notice || retry->delay_notice >= retry->expire)
		return;
	for (uint32_t i = 0; i < entry->recipients && count < BOUNCE_RECIPIENTS_MAX; i++)
		if (attempt->results[i].fate == FATE_DEFERRED)
			delayed[count++] = (struct stored_result){.recipient = i};
	/* Told of too many lately: at the next attempt. */
	if (count == 0 || !bounce_limit_take(&attempt->task->relay->delays, entry->account,
	                          retry->bounces_per_hour, clock_mono_ms(), &wait))
		return;
	int64_t until_s = clock_wall_s() + (int64_t)(retry->expire - entry->age_ms) / 1000;
	/* Without memory: at the next attempt. */
	if (notify(attempt, delayed, count, until_s, &notice) < 0)
		return;
	for (uint32_t i = 0; i < count; i++)
		attempt_tell_history(attempt, delayed[i].recipient, "delayed", &notice);
	LOG(&attempt->log, EV_MESSAGE_DELAYED, "recipients=%" PRIu32 " to=%s", count,
	        LOG_VALUE(attempt->envelope.recipients[delayed[0].recipient]));
}

/* The wait doubles, and is spread, so that what failed together does not come back together. */
static uint64_t retry_delay(const struct conf_retry *retry, uint32_t attempt)
{
	uint64_t wait = retry->first;

	for (uint32_t i = 1; i < attempt && wait < retry->max; i++)
		wait *= 2;
	wait = MIN_OF(wait, retry->max);
	return wait / 2 + random_below(wait / 2 + 1);
}

static const struct result *first_deferred(const struct attempt *attempt, uint32_t *ret_recipient)
{
	for (uint32_t i = 0; i < attempt->task->entry->recipients; i++)
		if (attempt->results[i].fate == FATE_DEFERRED) {
			*ret_recipient = i;
			return &attempt->results[i];
		}
	return NULL;
}

static void tell_deferred(struct attempt *attempt)
{
	if (!attempt_is_readable(attempt))
		return;
	for (uint32_t i = 0; i < attempt->task->entry->recipients; i++)
		if (attempt->results[i].fate == FATE_DEFERRED)
			attempt_tell_history(attempt, i, "deferred", NULL);
}

static void try_later(struct attempt *attempt, uint32_t recipient, const struct result *result)
{
	struct task *task = attempt->task;
	struct spool_entry *entry = task->entry;
	char next[CLOCK_TEXT_SIZE];

	tell_deferred(attempt);
	entry->attempt++;
	uint64_t delay = retry_delay(&task->relay->conf->retry, entry->attempt);
	entry->next_us = clock_wall_us() + (int64_t)delay * 1000;
	task_set_last(task, result->diagnostic);
	LOG(&attempt->log, EV_MESSAGE_DEFERRED,
	        "attempt=%" PRIu32 " recipients=%" PRIu32
	        " to=%s status=%s host=%s reply=%s next=%s",
	        entry->attempt, entry->unsettled,
	        LOG_VALUE(attempt_is_readable(attempt) ? attempt->envelope.recipients[recipient]
	                                               : SLICE("?")),
	        result->status, result->host != NULL ? result->host : "-",
	        LOG_VALUE(slice_str(result->diagnostic)),
	        clock_iso(entry->next_us / 1000000, next));
	counter_add(CT_ATTEMPTS_DEFERRED, 1);
	spool_defer(task->relay->spool, entry);
	task_wait(task);
}

/*
 * The delivery that waits for its upstream, whose recovery should wake the message; or NULL. One
 * that waits without ageing only if all do: the others could leave.
 */
static struct delivery *find_waiting(struct attempt *attempt)
{
	struct delivery *frozen = NULL;

	for (uint32_t i = 0; i < attempt->delivery_count; i++) {
		struct delivery *delivery = &attempt->deliveries[i];
		if (!delivery->held && !delivery->upstream->down)
			continue;
		if (!delivery->frozen)
			return delivery;
		frozen = delivery;
	}
	return frozen;
}

/* Waits for its time; also for its upstream, or for a route to be configured. */
static void wait_for_time(
        struct attempt *attempt, uint32_t recipient, const struct result *deferred)
{
	struct task *task = attempt->task;
	struct delivery *waiting = find_waiting(attempt);

	try_later(attempt, recipient, deferred);
	if (task->state != TASK_WAITING)
		return;
	if (attempt->route_unknown)
		task_hold(task, &task->relay->routeless, true);
	else if (waiting != NULL && waiting->stopped_it)
		task->frozen = true; /* its time comes after that of what only waits */
	else if (waiting != NULL)
		upstream_hold(waiting->upstream, task, false);
}

/* A bounce that its account may not get yet. */
static void wait_for_hour(struct task *task, uint64_t ms)
{
	task->frozen = true;
	task->entry->next_us = clock_wall_us() + (int64_t)ms * 1000;
	task_wait(task);
}

void outcome_record(struct attempt *attempt)
{
	struct task *task = attempt->task;
	struct delivery *waiting;
	const struct result *deferred;
	uint32_t recipient = 0;

	if (attempt->results == NULL) { /* not even memory for the results */
		task->state = TASK_WAITING;
		timer_start(&task->timer, NO_MEMORY_WAIT_MS);
		return;
	}
	(void)task_age(task);
	expire(attempt);
	give_back_failed(attempt);
	if (!task->relay->stopping)
		tell_delay(attempt);
	if (task->entry->unsettled == 0) {
		task_end(task);
		return;
	}
	waiting = find_waiting(attempt);
	deferred = first_deferred(attempt, &recipient);
	if (task->relay->stopping) {
		task->state =
		        TASK_WAITING; /* as if this attempt had not been: the next start tries */
	} else if (deferred != NULL) {
		wait_for_time(attempt, recipient, deferred);
	} else if (attempt->hour_left_ms > 0) {
		wait_for_hour(task, attempt->hour_left_ms);
	} else if (accounts_hold(task->relay->accounts, task)) {
		return; /* suspended while it waited for a connection */
	} else if (waiting != NULL) {
		upstream_hold(waiting->upstream, task, waiting->frozen);
	} else {
		task->state = TASK_WAITING;
		timer_start(&task->timer, NO_MEMORY_WAIT_MS);
	}
}

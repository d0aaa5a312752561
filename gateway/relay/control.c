/* SPDX-License-Identifier: ISC */
/* The control socket; see control.h. */
#include "gateway/relay/control.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway/base/arena.h"
#include "gateway/base/clock.h"
#include "gateway/base/log.h"
#include "gateway/mail/envelope.h"
#include "gateway/net/conn.h"
#include "gateway/net/jobs.h"
#include "gateway/net/listener.h"
#include "gateway/relay/accounts.h"
#include "gateway/relay/history.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/task.h"
#include "gateway/relay/upstream.h"
#include "gateway/spool/spool.h"

#define CLIENTS_MAX  16
#define REQUEST_MS   10000
#define ANSWER_MS    60000 /* without progress */
#define REQUEST_MAX  200
#define OUTPUT_MAX   (8U << 20)
#define LINES_A_TURN 500

struct control {
	struct relay *relay;
	struct listener *listener;
	struct list clients;
	size_t count;
};

struct client {
	struct list link;
	struct relay *relay;
	struct control *control; /* NULL once the client has gone and its job has not */
	struct conn *conn;
	struct timer timer;
	unsigned uid;
	/* list: what is still to be told */
	struct message_id *ids;
	size_t id_count, id_at;
	/* show: read by a job */
	struct job job;
	bool job_runs;
	struct message_id id;
	struct spool_entry copy; /* of the entry, which may be settled and freed meanwhile */
	struct spool_message message;
	int result;
};

static void client_free(struct client *client)
{
	if (client->control != NULL) {
		list_remove(&client->link);
		client->control->count--;
		client->control = NULL;
	}
	timer_stop(&client->timer);
	conn_free(TAKE(client->conn));
	if (client->job_runs)
		return; /* its job frees it */
	free(client->ids);
	free(client);
}

static void on_timeout(void *arg)
{
	client_free(arg);
}

static void say(struct client *client, const char *text)
{
	conn_write(client->conn, slice_str(text));
}

/* The answer is complete. */
static void done(struct client *client)
{
	conn_close_when_sent(TAKE(client->conn));
	client_free(client);
}

static void refuse(struct client *client, const char *text)
{
	say(client, "error ");
	say(client, text);
	say(client, "\n");
	done(client);
}

/* ---- what is told of a message ---- */

static const char *state_of(const struct spool_entry *entry)
{
	const struct task *task = task_of(entry);
	const char *held = accounts_hold_reason(task->relay->accounts, entry);

	if (held != NULL && task->state != TASK_RUNNING)
		return held;
	switch (task->state) {
	case TASK_RUNNING:
		return "sending";
	case TASK_READY:
		return "ready";
	case TASK_WAITING:
	case TASK_GONE:
		break;
	}
	if (task->was_withheld && !task->is_counted)
		return "withheld";
	if (!task->frozen)
		return "waiting";
	/* The message that stopped its upstream waits for its time alone. */
	return list_contains_link(&task->link) && timer_is_running(&task->timer)
	               ? "route-unknown"
	               : "upstream-stopped";
}

static int describe(const struct spool_entry *entry, struct buf *out)
{
	const struct task *task = task_of(entry);
	char id[ID_TEXT + 1], accepted[CLOCK_TEXT_SIZE], next[CLOCK_TEXT_SIZE];

	return buf_printf(out,
	        "qid=%s account=%" PRIu64 " accepted=%s recipients=%" PRIu32 "/%" PRIu32
	        " attempts=%" PRIu32 " state=%s next=%s bounce=%s last=%s\n",
	        id_format(&entry->id, id), entry->account,
	        clock_iso(entry->accepted_us / 1000000, accepted), entry->unsettled,
	        entry->recipients, entry->attempt, state_of(entry),
	        entry->next_us > 0 ? clock_iso(entry->next_us / 1000000, next) : "now",
	        entry->is_dsn ? "yes" : "no",
	        LOG_VALUE(slice_str(task->last != NULL ? task->last : "")));
}

/* A message in the queue; NULL when there is none of that name, or it is settled. */
static struct spool_entry *find(struct control *control, const struct message_id *id)
{
	struct spool_entry *entry = spool_out_find(control->relay->spool, id);

	return entry != NULL && task_of(entry) != NULL ? entry : NULL;
}

static size_t count_messages(struct control *control)
{
	const struct spool_entry *entry;
	size_t count = 0, position = 0;

	while ((entry = spool_out_next(control->relay->spool, &position)) != NULL)
		count += task_of(entry) != NULL;
	return count;
}

/* ---- verbs ---- */

static void do_count(struct client *client, struct slice argument)
{
	char text[40];

	(void)argument;
	snprintf(text, sizeof(text), "ok\ncount=%zu\n", count_messages(client->control));
	say(client, text);
	done(client);
}

static void list_some(struct client *client)
{
	struct buf lines;

	buf_init(&lines, OUTPUT_MAX / 2);
	for (unsigned i = 0; i < LINES_A_TURN && client->id_at < client->id_count; i++) {
		const struct spool_entry *entry =
		        find(client->control, &client->ids[client->id_at++]);
		if (entry != NULL)
			(void)!describe(entry, &lines);
	}
	conn_write(client->conn, buf_slice(&lines));
	buf_done(&lines);
	timer_start(&client->timer, ANSWER_MS);
	if (client->id_at == client->id_count)
		done(client);
}

/* Messages come and go while it is told, so it goes by their names. */
static void do_list(struct client *client, struct slice argument)
{
	struct spool_out *spool = client->relay->spool;
	const struct spool_entry *entry;
	size_t position = 0;

	(void)argument;
	client->ids = calloc(spool_out_count(spool) + 1, sizeof(*client->ids));
	if (client->ids == NULL) {
		refuse(client, "out of memory");
		return;
	}
	while ((entry = spool_out_next(spool, &position)) != NULL)
		client->ids[client->id_count++] = entry->id;
	say(client, "ok\n");
	list_some(client);
}

static void load(struct job *job)
{
	struct client *client = container_of(job, struct client, job);

	client->result = spool_message_load(client->relay->spool, &client->copy, &client->message);
}

static int describe_envelope(
        struct client *client, const struct spool_entry *entry, struct buf *out)
{
	struct envelope envelope;
	struct arena arena;

	arena_init(&arena, 16U << 20);
	int r = envelope_decode(client->message.stored.envelope, &arena, &envelope);
	if (r == 0)
		r = buf_printf(out, "login=%s sid=%s from=%s size=%" PRIu64 " domain=%s\n",
		        LOG_VALUE(envelope.login), LOG_VALUE(envelope.session),
		        LOG_VALUE(envelope.sender), envelope.size, LOG_VALUE(envelope.from_domain));
	for (uint32_t i = 0; r == 0 && i < envelope.recipient_count; i++)
		r = buf_printf(out, "to=%s settled=%s\n", LOG_VALUE(envelope.recipients[i]),
		        spool_entry_is_settled(entry, i) ? "yes" : "no");
	arena_reset(&arena);
	return r;
}

static void show(struct client *client, const struct spool_entry *entry)
{
	struct buf out;

	buf_init(&out, OUTPUT_MAX / 2);
	say(client, "ok\n");
	(void)!describe(entry, &out);
	(void)!describe_envelope(client, entry, &out);
	conn_write(client->conn, buf_slice(&out));
	buf_done(&out);
	done(client);
}

static void loaded(struct job *job)
{
	struct client *client = container_of(job, struct client, job);
	struct spool_message message = client->message;
	bool was_loaded = client->result == 0;

	client->job_runs = false;
	client->relay->busy--;
	if (client->control == NULL) {
		client_free(client);
	} else {
		const struct spool_entry *entry = find(client->control, &client->id);
		if (entry == NULL)
			refuse(client, "no such message in the queue");
		else if (!was_loaded)
			refuse(client, "the message cannot be read");
		else
			show(client, entry);
	}
	if (was_loaded)
		spool_message_done(&message);
}

/* The spool frees an entry when its last mark is written; nothing writes one for a waiting task. */
static struct spool_entry *find_waiting(struct client *client, struct slice argument)
{
	struct spool_entry *entry = NULL;

	if (id_parse(argument, &client->id) == 0)
		entry = find(client->control, &client->id);
	if (entry == NULL) {
		refuse(client, "no such message in the queue");
		return NULL;
	}
	const struct task *task = task_of(entry);
	if (task->state == TASK_RUNNING) {
		refuse(client, "the message is being sent now; try again");
		return NULL;
	}
	return entry;
}

static void do_show(struct client *client, struct slice argument)
{
	struct relay *relay = client->relay;
	struct spool_entry *entry = NULL;

	if (id_parse(argument, &client->id) == 0)
		entry = find(client->control, &client->id);
	if (entry == NULL) {
		refuse(client, "no such message in the queue");
		return;
	}
	client->copy = *entry;
	client->job = (struct job){.loop = relay->loop, .run = load, .done = loaded};
	if (jobs_submit(relay->jobs, &client->job) < 0) {
		refuse(client, "too much to do");
		return;
	}
	client->job_runs = true;
	relay->busy++;
	timer_stop(&client->timer);
}

static void make_due(struct spool_entry *entry)
{
	struct task *task = task_of(entry);

	entry->next_us = 0;
	task_wake(task);
}

static void do_retry(struct client *client, struct slice argument)
{
	struct spool_out *spool = client->relay->spool;
	struct spool_entry *entry;
	size_t position = 0;

	if (slice_equal(argument, SLICE("all"))) {
		while ((entry = spool_out_next(spool, &position)) != NULL)
			if (task_of(entry) != NULL)
				make_due(entry);
	} else {
		entry = find_waiting(client, argument);
		if (entry == NULL)
			return;
		make_due(entry);
	}
	/* Somebody asks for it: hosts that rest are tried too. */
	list_for_each (at, &client->relay->upstreams)
		upstream_resume(list_entry(at, struct upstream, link));
	say(client, "ok\n");
	done(client);
}

static void deleted(void *arg, int result)
{
	struct relay *relay = arg;

	(void)result;
	relay->busy--;
}

static int settle_all(struct relay *relay, struct spool_entry *entry)
{
	struct stored_result *results = calloc(entry->unsettled, sizeof(*results));
	uint32_t count = 0;

	if (results == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < entry->recipients; i++)
		if (!spool_entry_is_settled(entry, i))
			results[count++] =
			        (struct stored_result){.recipient = i, .outcome = OUTCOME_DELETED};
	int r = spool_settle(relay->spool, entry, results, count, deleted, relay);
	if (r == 0)
		relay->busy++;
	free(results);
	return r;
}

/* Its recipients are not known here: their names are in the spool. */
static void tell_deleted(const struct client *client, const struct spool_entry *entry)
{
	char id[ID_TEXT + 1], who[24];

	LOG(NULL, EV_MESSAGE_DELETED, "qid=%s uid=%u", id_format(&entry->id, id), client->uid);
	snprintf(who, sizeof(who), "uid=%u", client->uid);
	const struct history_delivery delivery = {
	        .message = &entry->id,
	        .at_us = clock_wall_us(),
	        .attempt = entry->attempt,
	        .number = -1,
	        .outcome = "deleted",
	        .reply = slice_str(who),
	};
	history_tell_delivery(client->relay->history, &delivery);
}

static void do_delete(struct client *client, struct slice argument)
{
	struct relay *relay = client->relay;
	struct spool_entry *entry = find_waiting(client, argument);

	if (entry == NULL)
		return;
	struct task *task = task_of(entry);
	if (settle_all(relay, entry) < 0) {
		refuse(client, "out of memory");
		return;
	}
	tell_deleted(client, entry);
	task_end(task);
	say(client, "ok\n");
	done(client);
}

static const struct verb {
	const char *name;
	void (*run)(struct client *client, struct slice argument);
} verbs[] = {
        {"count", do_count},
        {"list", do_list},
        {"show", do_show},
        {"retry", do_retry},
        {"delete", do_delete},
};

/* ---- clients ---- */

static void on_data(void *arg)
{
	struct client *client = arg;
	struct slice line = conn_input(client->conn);
	ptrdiff_t end = slice_find(line, '\n');

	if (end < 0 && line.len <= REQUEST_MAX)
		return;
	line = slice_part(line, 0, end < 0 ? 0 : (size_t)end);
	conn_pause(client->conn);
	struct slice argument = line;
	struct slice name = slice_until(&argument, ' ');
	for (size_t i = 0; i < ARRAY_LEN(verbs); i++)
		if (slice_equal(name, slice_str(verbs[i].name))) {
			timer_start(&client->timer, ANSWER_MS);
			verbs[i].run(client, argument);
			return;
		}
	refuse(client, "unknown request");
}

static void on_drained(void *arg)
{
	struct client *client = arg;

	if (client->id_count > 0)
		list_some(client);
}

static void on_closed(void *arg, enum conn_end end, const char *text)
{
	(void)end;
	(void)text;
	client_free(arg);
}

static int client_new(struct control *control, int fd, unsigned uid)
{
	static const struct conn_events events = {
	        .on_data = on_data, .on_drained = on_drained, .on_closed = on_closed};
	struct client *client = calloc(1, sizeof(*client));

	if (client == NULL) {
		close(fd);
		return -ENOMEM;
	}
	client->relay = control->relay;
	client->control = control;
	client->uid = uid;
	timer_init(&client->timer, control->relay->loop, on_timeout, client);
	int r = conn_new(control->relay->loop, fd, OUTPUT_MAX, &events, client, &client->conn);
	if (r < 0) {
		free(client);
		return r;
	}
	list_append(&control->clients, &client->link);
	control->count++;
	timer_start(&client->timer, REQUEST_MS);
	return 0;
}

/* The socket's mode lets in the group; who it is goes into the log. */
static void on_client(void *arg, int fd, const struct addr *peer)
{
	struct control *control = arg;
	struct ucred who;
	socklen_t len = sizeof(who);

	(void)peer;
	if (control->count >= CLIENTS_MAX ||
	        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0)
		close(fd);
	else
		(void)!client_new(control, fd, who.uid);
}

int control_new(struct relay *relay, int fd, struct control **ret_control)
{
	struct control *control = calloc(1, sizeof(*control));

	if (control == NULL) {
		close(fd);
		return -ENOMEM;
	}
	control->relay = relay;
	list_init(&control->clients);
	int r = listener_new(relay->loop, fd, on_client, control, &control->listener);
	if (r < 0) {
		free(control);
		return r;
	}
	*ret_control = control;
	return 0;
}

void control_free(struct control *control)
{
	if (control == NULL)
		return;
	listener_free(control->listener);
	list_for_each_safe (at, &control->clients)
		client_free(list_entry(at, struct client, link));
	free(control);
}

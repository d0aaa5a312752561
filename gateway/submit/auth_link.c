/* SPDX-License-Identifier: ISC */
/* Talking to `auth`; see auth_link.h. */
#include "gateway/submit/auth_link.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "gateway/base/log.h"
#include "gateway/base/map.h"
#include "gateway/net/timer.h"

#define QUEUE_MAX 4096  /* requests that wait for the socket */
#define ANSWER_MS 20000 /* the deadlines of `auth` itself are shorter */
#define LATE_MS   2000  /* enough to show that it is there again */

struct auth_call {
	uint32_t number; /* key of the map */
	struct auth_link *link;
	enum auth_type type;
	auth_answer_fn on_answer; /* NULL: cancelled */
	void *arg;
	struct timer timer;   /* while an answer is due */
	uint64_t said_before; /* `said` of the link when it was asked */
	struct list failed;   /* to be answered "unavailable" at the end of the turn */
};

/* A datagram that the socket did not take. */
struct queued {
	struct list link;
	struct buf datagram;
};

struct auth_link {
	struct loop *loop;
	int fd;
	struct watch *watch;
	uint32_t next_number;
	struct map calls;
	struct list queue;
	size_t queue_len;
	struct list failed;
	struct defer tell_failed;
	struct buf request; /* being sent */
	uint64_t said;      /* how many messages have come */
	bool late;          /* for ANSWER_MS none has come to a question, nor since */
	/* Of its own: to hear an answer must not take memory that may be lacking. */
	char answer[PROTOCOL_DATAGRAM_MAX];
	auth_changed_fn on_changed;
	void *arg;
};

static struct slice call_key(const struct auth_call *call)
{
	return slice_of(&call->number, sizeof(call->number));
}

/* Takes the call out of the books. */
static void drop(struct auth_call *call)
{
	timer_stop(&call->timer);
	list_remove(&call->failed);
	(void)map_remove(&call->link->calls, call_key(call));
	free(call);
}

static void finish(struct auth_call *call, const struct auth_message *answer,
        const struct auth_account *account)
{
	auth_answer_fn on_answer = call->on_answer;
	void *arg = call->arg;

	drop(call);
	if (on_answer != NULL)
		on_answer(arg, answer, account);
}

static void tell_failed(struct defer *defer)
{
	struct auth_link *link = container_of(defer, struct auth_link, tell_failed);
	const struct auth_message unavailable = {.type = AUTH_UNAVAILABLE};
	struct list *at;

	while ((at = list_pop(&link->failed)) != NULL)
		finish(list_entry(at, struct auth_call, failed), &unavailable, NULL);
}

static void fail(struct auth_call *call)
{
	if (!list_contains_link(&call->failed))
		list_append(&call->link->failed, &call->failed);
	loop_defer(call->link->loop, &call->link->tell_failed);
}

static void queued_free(struct queued *queued)
{
	buf_wipe(&queued->datagram);
	free(queued);
}

/* The queue is not empty. */
static void drop_first(struct auth_link *link)
{
	struct list *first = list_pop(&link->queue);

	link->queue_len--;
	queued_free(list_entry(first, struct queued, link));
}

/* The link is gone: so is every answer. */
static void disconnect(struct auth_link *link)
{
	size_t position = 0;
	struct auth_call *call;

	if (link->fd < 0)
		return;
	watch_free(link->watch);
	link->watch = NULL;
	close(link->fd);
	link->fd = -1;
	while (!list_is_empty(&link->queue))
		drop_first(link);
	while ((call = map_next(&link->calls, &position)) != NULL)
		fail(call);
}

static int enqueue(struct auth_link *link, struct slice datagram)
{
	struct queued *queued = link->queue_len < QUEUE_MAX ? calloc(1, sizeof(*queued)) : NULL;

	if (queued == NULL)
		return -ENOBUFS;
	buf_init(&queued->datagram, PROTOCOL_DATAGRAM_MAX);
	if (buf_append_slice(&queued->datagram, datagram) < 0) {
		queued_free(queued);
		return -ENOMEM;
	}
	list_append(&link->queue, &queued->link);
	link->queue_len++;
	watch_set(link->watch, WATCH_READ | WATCH_WRITE);
	return 0;
}

/* 0: sent or queued. */
static int send_message(struct auth_link *link, const struct auth_message *message)
{
	if (link->fd < 0)
		return -ENOTCONN;
	int r = protocol_encode(message, NULL, &link->request);
	if (r == 0)
		r = list_is_empty(&link->queue) ? protocol_send(link->fd, buf_slice(&link->request))
		                                : -EAGAIN;
	if (r == -EAGAIN)
		r = enqueue(link, buf_slice(&link->request));
	buf_wipe(&link->request);
	return r;
}

static void send_queued(struct auth_link *link)
{
	while (!list_is_empty(&link->queue)) {
		struct queued *first = list_entry(link->queue.next, struct queued, link);
		int r = protocol_send(link->fd, buf_slice(&first->datagram));
		if (r == -EAGAIN)
			return;
		drop_first(link);
		if (r < 0)
			return; /* the end of the link shows as readable */
	}
	watch_set(link->watch, WATCH_READ);
}

static void take_answer(struct auth_link *link, const struct auth_message *answer,
        const struct auth_account *account)
{
	link->said++;
	link->late = false;
	if (answer->type == AUTH_HELLO)
		return;
	if (answer->type == AUTH_CHANGED) {
		link->on_changed(link->arg, answer->charge.account, answer->era);
		return;
	}
	struct auth_call *call =
	        map_get(&link->calls, slice_of(&answer->number, sizeof(answer->number)));
	if (call == NULL)
		return;
	if (call->on_answer == NULL && answer->type == AUTH_ADMITTED)
		auth_settle(link, &answer->charge);
	/* A login goes on; the call stays. */
	if (answer->type == AUTH_MORE && call->on_answer != NULL) {
		timer_stop(&call->timer);
		call->on_answer(call->arg, answer, NULL);
	} else {
		finish(call, answer, account);
	}
}

static void on_ready(void *arg, unsigned events)
{
	struct auth_link *link = arg;
	struct auth_message answer;
	struct auth_account_room account;
	struct slice datagram;
	int r = 1;

	if ((events & WATCH_WRITE) != 0)
		send_queued(link);
	for (unsigned i = 0; i < 64 && r == 1 && link->fd >= 0; i++) {
		r = protocol_receive(link->fd, link->answer, &datagram);
		if (r == 1 && protocol_decode(datagram, &answer, &account) < 0)
			r = -EBADMSG;
		if (r == 1)
			take_answer(link, &answer, &account.account);
	}
	if (r == 1 || r == -EAGAIN)
		return;
	LOG(NULL, EV_AUTH_AWAY, "");
	disconnect(link);
}

int auth_link_new(
        struct loop *loop, auth_changed_fn on_changed, void *arg, struct auth_link **ret_link)
{
	struct auth_link *link = calloc(1, sizeof(*link));

	if (link == NULL)
		return -ENOMEM;
	*link = (struct auth_link){
	        .loop = loop,
	        .fd = -1,
	        .tell_failed.run = tell_failed,
	        .on_changed = on_changed,
	        .arg = arg,
	};
	map_init(&link->calls);
	list_init(&link->queue);
	list_init(&link->failed);
	buf_init(&link->request, PROTOCOL_DATAGRAM_MAX);
	*ret_link = link;
	return 0;
}

void auth_link_free(struct auth_link *link)
{
	if (link == NULL)
		return;
	disconnect(link);
	tell_failed(&link->tell_failed);
	loop_defer_cancel(&link->tell_failed);
	map_done(&link->calls);
	buf_done(&link->request);
	free(link);
}

void auth_link_connect(struct auth_link *link, int fd)
{
	const struct auth_message hello = {.type = AUTH_HELLO};

	disconnect(link);
	if (fd < 0)
		return;
	if (watch_new(link->loop, fd, on_ready, link, &link->watch) < 0) {
		close(fd);
		return;
	}
	link->fd = fd;
	watch_set(link->watch, WATCH_READ);
	(void)!send_message(link, &hello);
}

/*
 * Who waits is told now, and what comes later is for nobody. Whether it says nothing at all, or
 * this one is behind others, as a guess in a crowd may be, makes a difference to who asks next.
 */
static void on_late(void *arg)
{
	struct auth_call *call = arg;
	struct auth_link *link = call->link;
	const struct auth_message unavailable = {.type = AUTH_UNAVAILABLE};
	auth_answer_fn on_answer = call->on_answer;
	void *answer_arg = call->arg;

	if (!link->late && link->said == call->said_before) {
		link->late = true;
		LOG(NULL, EV_AUTH_LATE, "");
	}
	auth_call_cancel(call);
	on_answer(answer_arg, &unavailable, NULL);
}

static void await_answer(struct auth_call *call)
{
	call->said_before = call->link->said;
	timer_start(&call->timer, call->link->late ? LATE_MS : ANSWER_MS);
}

struct auth_call *auth_call_new(struct auth_link *link, const struct auth_message *request,
        auth_answer_fn on_answer, void *arg)
{
	struct auth_message numbered = *request;
	struct auth_call *call = calloc(1, sizeof(*call));

	if (call == NULL)
		return NULL;
	*call = (struct auth_call){
	        .number = ++link->next_number,
	        .link = link,
	        .type = request->type,
	        .on_answer = on_answer,
	        .arg = arg,
	};
	if (map_put(&link->calls, call_key(call), call) < 0) {
		free(call);
		return NULL;
	}
	numbered.number = call->number;
	timer_init(&call->timer, link->loop, on_late, call);
	await_answer(call);
	if (send_message(link, &numbered) < 0)
		fail(call);
	return call;
}

void auth_call_step(struct auth_call *call, struct slice response)
{
	const struct auth_message step = {
	        .type = AUTH_LOGIN_STEP, .number = call->number, .data = response};

	await_answer(call);
	if (send_message(call->link, &step) < 0)
		fail(call);
}

void auth_call_cancel(struct auth_call *call)
{
	if (call == NULL)
		return;
	call->on_answer = NULL;
	call->arg = NULL;
	timer_stop(&call->timer);
	if (call->type == AUTH_LOGIN_START) {
		const struct auth_message cancel = {
		        .type = AUTH_LOGIN_CANCEL, .number = call->number};
		(void)!send_message(call->link, &cancel);
		drop(call);
	}
}

void auth_settle(struct auth_link *link, const struct auth_charge *charge)
{
	const struct auth_message settle = {.type = AUTH_SETTLE, .charge = *charge};

	/* Lost at worst: then it stays charged. */
	(void)!send_message(link, &settle);
}

/* SPDX-License-Identifier: ISC */
/*
 * Names of hosts become addresses, each on a thread of its own: a name server may be silent for
 * long, and then it must hold up neither other names nor the end of the process. One look-up of a
 * name at a time, however many sessions wait and however often the settings change. Who waits has a
 * deadline of its own; what is found later counts for the next one.
 */
#include "gateway/relay/lookup.h"

#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/base/list.h"
#include "gateway/net/loop.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/session.h"
#include "gateway/relay/session_host.h"
#include "gateway/relay/upstream.h"

struct lookup {
	struct list link; /* in relay.lookups */
	struct post post;
	struct relay *relay;
	char *name;
	uint16_t port;
	struct addresses found; /* owner, also of what follows: the thread, until it is posted */
	int result;             /* of getaddrinfo() */
	bool posted, abandoned;
};

/* Of `abandoned` and `posted`, and held while a look-up is posted. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void free_lookup(struct lookup *lookup)
{
	free(lookup->name);
	free(lookup);
}

static void look_up(struct lookup *lookup)
{
	struct addresses *found = &lookup->found;
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	struct addrinfo *first = NULL;
	char port[8];

	snprintf(port, sizeof(port), "%u", lookup->port);
	lookup->result = getaddrinfo(lookup->name, port, &hints, &first);
	if (lookup->result != 0)
		return;
	for (struct addrinfo *at = first; at != NULL; at = at->ai_next)
		if (found->count < HOST_ADDRS_MAX && addr_from_sockaddr(at->ai_addr, at->ai_addrlen,
		                                             &found->at[found->count]) == 0)
			found->count++;
	freeaddrinfo(first);
}

static void *run(void *arg)
{
	struct lookup *lookup = arg;

	look_up(lookup);
	pthread_mutex_lock(&lock);
	lookup->posted = !lookup->abandoned;
	if (lookup->posted)
		loop_post(lookup->relay->loop, &lookup->post);
	else
		free_lookup(lookup);
	pthread_mutex_unlock(&lock);
	return NULL;
}

static bool is_about(const struct lookup *lookup, const struct host *host)
{
	return lookup->port == host->port && strcmp(lookup->name, host->name) == 0;
}

/* One host of an upstream has addresses now, or `text` says why not. */
static void take(
        struct upstream *upstream, size_t index, const struct lookup *lookup, const char *text)
{
	struct host *host = &upstream->hosts[index];

	if (text == NULL) {
		host->addresses = lookup->found;
		host->resolved_ms = clock_mono_ms();
	}
	list_for_each_safe (at, &upstream->sessions) {
		struct session *session = list_entry(at, struct session, member);
		if (session->waits_for_name && session->host == index &&
		        session->generation == upstream->generation)
			session_resolved(session, text);
	}
}

static void done(struct post *post)
{
	struct lookup *lookup = container_of(post, struct lookup, post);
	struct relay *relay = lookup->relay;
	char text[200];

	list_remove(&lookup->link);
	snprintf(text, sizeof(text), "the name of the host cannot be resolved: %s",
	        lookup->result != 0 ? gai_strerror(lookup->result) : "no address");
	list_for_each (at, &relay->upstreams) {
		struct upstream *upstream = list_entry(at, struct upstream, link);
		for (size_t i = 0; i < upstream->host_count; i++)
			if (is_about(lookup, &upstream->hosts[i]))
				take(upstream, i, lookup, lookup->found.count > 0 ? NULL : text);
	}
	free_lookup(lookup);
}

static int start_thread(struct lookup *lookup)
{
	pthread_t thread;

	int r = -pthread_create(&thread, NULL, run, lookup);
	if (r == 0)
		pthread_detach(thread);
	return r;
}

int lookup_start(struct relay *relay, const struct host *host)
{
	struct lookup *lookup;

	list_for_each (at, &relay->lookups)
		if (is_about(list_entry(at, struct lookup, link), host))
			return 0;
	lookup = calloc(1, sizeof(*lookup));
	if (lookup == NULL)
		return -ENOMEM;
	*lookup = (struct lookup){
	        .post.run = done,
	        .relay = relay,
	        .name = strdup(host->name),
	        .port = host->port,
	};
	int r = lookup->name != NULL ? start_thread(lookup) : -ENOMEM;
	if (r < 0) {
		free_lookup(lookup);
		return r;
	}
	list_append(&relay->lookups, &lookup->link);
	return 0;
}

void lookups_abandon(struct relay *relay)
{
	struct list *link;

	pthread_mutex_lock(&lock);
	while ((link = list_pop(&relay->lookups)) != NULL) {
		struct lookup *lookup = list_entry(link, struct lookup, link);
		lookup->abandoned = true;
		if (lookup->posted)
			free_lookup(lookup);
	}
	pthread_mutex_unlock(&lock);
}

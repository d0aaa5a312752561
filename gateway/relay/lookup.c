/* SPDX-License-Identifier: ISC */
/*
 * Names of hosts become addresses, on workers of their own: one look-up of a host at a time,
 * however many sessions wait, because a name server may be silent for long and then keeps the
 * worker. Who waits has a deadline of its own; what is found later counts for the next one.
 */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/base/clock.h"
#include "gateway/relay/inner.h"

struct lookup {
	struct job job;
	struct upstream *upstream;
	unsigned generation; /* of its settings */
	size_t index;
	struct host host; /* owner: the job, while it runs */
	int result;       /* of getaddrinfo() */
};

static void run(struct job *job)
{
	struct lookup *lookup = container_of(job, struct lookup, job);
	struct host *host = &lookup->host;
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	struct addrinfo *found = NULL;
	char port[8];

	snprintf(port, sizeof(port), "%u", host->port);
	host->addr_count = 0;
	lookup->result = getaddrinfo(host->name, port, &hints, &found);
	if (lookup->result != 0)
		return;
	for (struct addrinfo *at = found; at != NULL; at = at->ai_next)
		if (host->addr_count < HOST_ADDRS_MAX &&
		        addr_from_sockaddr(
		                at->ai_addr, at->ai_addrlen, &host->addrs[host->addr_count]) == 0)
			host->addr_count++;
	freeaddrinfo(found);
}

static void take(const struct lookup *lookup)
{
	struct upstream *upstream = lookup->upstream;
	struct host *host = &upstream->hosts[lookup->index];
	char text[200];
	bool good = lookup->host.addr_count > 0;

	host->looked_up = false;
	if (good) {
		memcpy(host->addrs, lookup->host.addrs, sizeof(host->addrs));
		host->addr_count = lookup->host.addr_count;
		host->resolved_ms = clock_mono_ms();
	}
	snprintf(text, sizeof(text), "the name of the host cannot be resolved: %s",
	        lookup->result != 0 ? gai_strerror(lookup->result) : "no address");
	list_for_each_safe (at, &upstream->sessions) {
		struct session *session = list_entry(at, struct session, member);
		if (session->waits_for_name && session->host == lookup->index &&
		        session->generation == lookup->generation)
			session_resolved(session, good ? NULL : text);
	}
}

static void done(struct job *job)
{
	struct lookup *lookup = container_of(job, struct lookup, job);

	lookup->upstream->relay->busy--;
	if (lookup->generation == lookup->upstream->generation)
		take(lookup);
	free(lookup->host.name);
	free(lookup);
}

int lookup_start(struct upstream *upstream, size_t index)
{
	struct host *host = &upstream->hosts[index];
	struct relay *relay = upstream->relay;
	struct lookup *lookup;

	if (host->looked_up)
		return 0;
	lookup = calloc(1, sizeof(*lookup));
	if (lookup == NULL)
		return -ENOMEM;
	*lookup = (struct lookup){
	        .job = {.loop = relay->loop, .run = run, .done = done},
	        .upstream = upstream,
	        .generation = upstream->generation,
	        .index = index,
	        .host = {.name = strdup(host->name), .port = host->port},
	};
	int r = lookup->host.name != NULL ? jobs_submit(relay->names, &lookup->job) : -ENOMEM;
	if (r < 0) {
		free(lookup->host.name);
		free(lookup);
		return r;
	}
	relay->busy++;
	host->looked_up = true;
	return 0;
}

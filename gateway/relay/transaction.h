/* SPDX-License-Identifier: ISC */
/* One message over a session, from MAIL to the final dot. The loop's thread only. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct delivery;
struct session;
struct spool_mark;

struct transaction {
	uint32_t sent, answered, accepted; /* of its recipients */
	bool mail_sent, mail_answered, mail_refused, data_sent;
	bool too_many;  /* recipients for one transaction */
	bool dot_waits; /* for the mark of the last one */
	bool in_doubt;  /* the connection was lost after the final dot */
	bool elsewhere; /* another host or address may take it at once */
	/* It said what was no answer: which of its answers was to what is not known. */
	bool out_of_step;
	unsigned part; /* of the content: signatures, header, body */
	size_t part_used;
	bool at_line_start;
	/* That its recipients are delivered: made before the final dot leaves. */
	struct spool_mark *mark;
};

/* A session that is idle gets work. */
void transaction_start(struct session *session, struct delivery *delivery);
/* It has a reply. */
void transaction_reply(struct session *session);
/* Output has left: there is room for more of the content. */
void transaction_drained(struct session *session);
/* The connection is gone: the delivery goes back. */
void transaction_lost(struct session *session);

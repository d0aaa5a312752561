/* SPDX-License-Identifier: ISC */
/*
 * What `submit` and `auth` say to each other: one datagram a message over a
 * SOCK_SEQPACKET pair, one pair for each loop of `submit`. The first message of
 * either side is HELLO with the version. A malformed datagram ends the link.
 *
 * A request carries a number that `submit` chooses; the answer repeats it. A login
 * keeps its number through all its steps. SETTLE and LOGIN_CANCEL have no answer;
 * CHANGED comes unasked. Nobody gives an admission back but `submit`: when an
 * ADMITTED answer comes that it no longer wants, it sends SETTLE.
 *
 * Pure but for protocol_send and protocol_receive. Any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "gateway/base/buf.h"
#include "gateway/base/compiler.h"
#include "gateway/base/slice.h"

#define PROTOCOL_VERSION      3
#define PROTOCOL_DATAGRAM_MAX 65536
#define PROTOCOL_SENDERS_MAX  512
#define PROTOCOL_HASH_SIZE    8
#define PROTOCOL_HASHES_MAX   8000 /* in one datagram */

enum auth_type {
	/* submit to auth */
	AUTH_HELLO = 1,   /* both directions */
	AUTH_LOGIN_START, /* → MORE, DONE, REFUSED, BLOCKED, MALFORMED, SLOWED, UNAVAILABLE */
	AUTH_LOGIN_STEP,  /* likewise */
	AUTH_LOGIN_CANCEL,
	AUTH_LOGIN_NETWORK, /* whose address is that? → DONE, REFUSED, BLOCKED, UNAVAILABLE */
	AUTH_LOGIN_AGAIN,   /* is it still what a login has brought? likewise */
	AUTH_ADMIT,         /* → ADMITTED, LIMITED, BLOCKED, UNAVAILABLE */
	AUTH_SETTLE,
	/* auth to submit */
	AUTH_MORE,        /* 334 with the challenge */
	AUTH_DONE,        /* 235 */
	AUTH_REFUSED,     /* 535 */
	AUTH_MALFORMED,   /* 501 */
	AUTH_UNAVAILABLE, /* 454: cannot tell now */
	AUTH_ADMITTED,
	AUTH_LIMITED, /* over a rate */
	AUTH_BLOCKED, /* the account may not send: suspended (also to a right password) or closed */
	AUTH_CHANGED, /* this account (0: every account) has changed: what is known is old */
	AUTH_SLOWED,  /* 454: not tried, there were too many wrong ones; later */
	AUTH_TYPE_COUNT
};

/* The account as a login brings it. */
struct auth_account {
	uint64_t id;
	struct slice login, route;
	uint64_t message_bytes;           /* 0: no limit of the plan */
	uint32_t recipients, connections; /* likewise */
	bool sign_required;
	const struct slice *senders; /* patterns of sender_right.h */
	uint32_t sender_count;
	bool add_sender;            /* the field Sender with the login, where From is another */
	bool counts_new_recipients; /* ADMIT should bring their hashes */
	/*
	 * No change up to then is missing here, even if its CHANGED comes later. Counted by `auth`;
	 * what a later process counts is higher.
	 */
	uint64_t era;
	uint64_t valid_until_ms; /* clock_mono_ms() at which something of it expires */
	uint64_t credential;     /* what it logged in with; 0: where it stands */
};

/* To decode an account into: its `senders` are those here. */
struct auth_account_room {
	struct auth_account account;
	struct slice senders[PROTOCOL_SENDERS_MAX];
};

struct auth_charge {
	uint64_t account;
	int64_t charged_at; /* SETTLE: what ADMITTED said */
	uint32_t messages, recipients;
	uint64_t bytes;
	bool bytes_counted; /* ADMITTED: a limit counts them, so what more comes is to be charged */
	uint32_t new_recipients; /* ADMITTED, SETTLE: how many it charged */
};

struct auth_limited {
	bool never; /* more than can ever pass */
	struct slice measure, per;
	int64_t used, amount;
	int64_t next_s; /* wall clock */
};

/* Any message; which fields count follows from the type. Slices point into the datagram. */
struct auth_message {
	enum auth_type type;
	uint32_t number;
	/* LOGIN_START; LOGIN_NETWORK and LOGIN_AGAIN without the mechanism */
	struct slice mechanism, client_address, session;
	bool has_initial;
	/*
	 * LOGIN_START: initial response; LOGIN_STEP: response; MORE: challenge (not base64).
	 * LOGIN_AGAIN: the login
	 */
	struct slice data;
	uint64_t credential;      /* LOGIN_AGAIN: see auth_account */
	struct slice fingerprint; /* LOGIN_START: SHA-256 of the client's certificate, hex; or "" */
	struct slice reason;      /* BLOCKED: what the admin wrote; may be empty */
	uint32_t waited_ms;       /* MORE, REFUSED, BLOCKED: because others were wrong before */
	uint64_t era;             /* CHANGED: when; see auth_account */
	/* ADMIT, SETTLE, ADMITTED (charged_at), CHANGED (account) */
	struct auth_charge charge;
	/* ADMIT: address_hash() of recipients, little-endian; one whose hash is left out is new */
	struct slice recipients;
	struct auth_limited limited;
};

/*
 * Appends the datagram of a message; of DONE with the account. `out` is emptied
 * first and has PROTOCOL_DATAGRAM_MAX as its maximum: -ENOBUFS for too much.
 */
int protocol_encode(const struct auth_message *message, const struct auth_account *account,
        struct buf *out) must_check;

/* Takes a datagram apart; `ret_room` is filled for DONE. 0 or -EBADMSG. */
int protocol_decode(struct slice datagram, struct auth_message *ret_message,
        struct auth_account_room *ret_room) must_check;

/* 0; -EAGAIN when the socket is full; -EPIPE and others: the link is gone. */
int protocol_send(int link, struct slice datagram) must_check;

/*
 * One datagram, into the caller's room. 1; 0 at the end of the link; -EAGAIN; -EMSGSIZE
 * for a truncated one; -errno.
 */
int protocol_receive(
        int link, char room[PROTOCOL_DATAGRAM_MAX], struct slice *ret_datagram) must_check;

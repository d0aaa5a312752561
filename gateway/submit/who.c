/* SPDX-License-Identifier: ISC */
/* Who a session is; see who.h. */
#include "gateway/submit/who.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "gateway/submit/commands.h"

static void account_free(struct account *account)
{
	arena_reset(&account->arena);
	free(account);
}

/* What the login brought, all of it copied; NULL without memory. */
static struct account *copy_account(const struct serving *serving, const struct auth_account *facts)
{
	struct account *account = calloc(1, sizeof(*account));

	if (account == NULL)
		return NULL;
	arena_init(&account->arena, 256U << 10);
	account->facts = *facts;
	account->facts.login = arena_slice(&account->arena, facts->login);
	account->facts.route = arena_slice(&account->arena, facts->route);
	struct slice *senders =
	        arena_alloc(&account->arena, facts->sender_count * sizeof(*senders));
	account->facts.senders = senders;
	account->unsure = recent_since(&serving->changed, 0, facts->era);
	bool whole = account->facts.login.ptr != NULL && account->facts.route.ptr != NULL &&
	             senders != NULL;
	for (uint32_t i = 0; whole && i < facts->sender_count; i++) {
		senders[i] = arena_slice(&account->arena, facts->senders[i]);
		whole = senders[i].ptr != NULL;
	}
	if (whole)
		return account;
	account_free(account);
	return NULL;
}

int who_enter(struct session *session, const struct auth_account *facts)
{
	struct serving *serving = session->serving;

	int r = shares_take_connection(serving->shares, facts->id, facts->connections);
	if (r == -EUSERS)
		session_close_with(session, CLOSING_CONNECTIONS, REPLY_TOO_MANY_CONNECTIONS);
	if (r < 0)
		return r;
	session->account = copy_account(serving, facts);
	if (session->account == NULL) {
		shares_give_connection_back(serving->shares, facts->id);
		return -ENOMEM;
	}
	log_ctx_add(&session->log, "account", session->account->facts.login);
	if (!session->has_logged_in)
		slots_log_in(serving->slots, &session->peer);
	session->has_logged_in = true;
	return 0;
}

void who_leave(struct session *session)
{
	struct account *account = TAKE(session->account);

	if (account == NULL)
		return;
	shares_give_connection_back(session->serving->shares, account->facts.id);
	account_free(account);
}

/* ---- before MAIL ---- */

/* The MAIL that waits gets this reply. */
static void refuse_mail(struct session *session, enum reply reply, const struct reply_args *args)
{
	struct slice input = conn_input(session->conn);

	conn_consume(session->conn, (size_t)slice_find(input, '\n') + 1);
	session->refused = true;
	session_reply(session, reply, args);
}

static void refuse_suspended(struct session *session, struct slice reason)
{
	char text[512];

	snprintf(text, sizeof(text), "%.*s", SLICE_ARGS(reason));
	refuse_mail(session, REPLY_NETWORK_SUSPENDED, REPLY_ARGS(reason.len > 0 ? ": " : "", text));
}

/* Who it still is; what the last login brought is replaced. */
static int stay(struct session *session, const struct auth_account *facts)
{
	struct account *account = copy_account(session->serving, facts);

	if (account == NULL)
		return -ENOMEM;
	account->by_network = session->account->by_network;
	account_free(session->account);
	session->account = account;
	return 0;
}

/* Somebody who has logged in, or was known by his network, is asked about again. */
static void on_again(struct session *session, const struct auth_message *answer,
        const struct auth_account *account, bool stale)
{
	bool is_another = answer->type == AUTH_DONE && account->id != session->account->facts.id;
	int r = -EAGAIN;

	if (is_another || answer->type == AUTH_REFUSED || answer->type == AUTH_BLOCKED) {
		session_close_with(session, CLOSING_ACCOUNT, REPLY_ACCOUNT_CHANGED);
		return;
	}
	if (answer->type == AUTH_DONE && !stale)
		r = stay(session, account);
	session_move(session, ST_READY);
	if (r < 0 && !stale)
		refuse_mail(session, REPLY_TRY_LATER, NULL);
	session_continue(session);
}

static void on_network(struct session *session, const struct auth_message *answer,
        const struct auth_account *account, bool stale)
{
	int r = -EAGAIN;

	if (answer->type == AUTH_DONE && !stale)
		r = who_enter(session, account);
	if (r == -EUSERS)
		return;
	session_move(session, ST_READY);
	if (answer->type != AUTH_REFUSED)
		session->nobody_at = 0;
	if (r == 0)
		session->account->by_network = true;
	else if (answer->type == AUTH_REFUSED)
		refuse_mail(session, reply_to_nobody(session), NULL);
	else if (answer->type == AUTH_BLOCKED)
		refuse_suspended(session, answer->reason);
	else if (!stale)
		refuse_mail(session, REPLY_TRY_LATER, NULL);
	session_continue(session);
}

static void on_who(void *arg, const struct auth_message *answer, const struct auth_account *account)
{
	struct session *session = arg;

	session->call = NULL;
	/* What is stale is asked again: the line is still there. */
	bool stale = answer->type == AUTH_DONE && serving_login_is_stale(session->serving, account);
	if (session->account != NULL)
		on_again(session, answer, account, stale);
	else
		on_network(session, answer, account, stale);
}

void who_ask(struct session *session)
{
	const struct account *account = session->account;
	char ip[ADDR_TEXT];
	const struct auth_message question = {
	        .type = account != NULL ? AUTH_LOGIN_AGAIN : AUTH_LOGIN_NETWORK,
	        .client_address = slice_str(addr_format_ip(&session->peer, ip)),
	        .session = slice_str(session->sid),
	        .data = account != NULL ? account->facts.login : SLICE(""),
	        .credential = account != NULL ? account->facts.credential : 0,
	};

	session->nobody_at =
	        session->serving->changed.count + 1; /* until the answer says something else */
	session->call = auth_call_new(session->serving->auth, &question, on_who, session);
	if (session->call == NULL) {
		session->nobody_at = 0;
		refuse_mail(session, REPLY_TRY_LATER, NULL);
		session_continue(session);
		return;
	}
	session_move(session, ST_WHO);
}

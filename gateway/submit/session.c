/* SPDX-License-Identifier: ISC */
/* One client connection: states, input, deadlines, end; see session.h. */
#include "gateway/submit/session.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gateway/base/board.h"
#include "gateway/base/clock.h"
#include "gateway/base/encode.h"
#include "gateway/base/random.h"
#include "gateway/submit/commands.h"
#include "gateway/submit/who.h"

/* Replies that may wait for a client that does not read; beyond half of it no command is run. */
#define OUTPUT_MAX    65536
#define LINE_MAX_SMTP 4096  /* RFC 5321 4.5.3.1.4 asks for 512 */
#define LINE_MAX_AUTH 12290 /* RFC 4954 4: 12,288 without CRLF */
#define LAST_WORDS_MS 300   /* for the rest of a message that will not be taken */
/* Lines run in one turn of the loop, before the others get theirs. */
#define TURN_LINES_STRANGER 8
#define TURN_LINES_ACCOUNT  64
#define TURN_LINES_SESSIONS 1024 /* of all sessions of an account; one of each at least */
#define ARENA_MAX           1024
/*
 * Nobody who speaks SMTP comes near them: who keeps an idle connection alive with NOOP has days,
 * and a relay may have as many recipients refused in one message.
 */
#define ERRORS_MAX    20
#define FRUITLESS_MAX 10000
#define REFUSALS_TOLD 20 /* by lines of the log, behind each message that was taken */

#define LOGIN_OK   (S(READY) | S(CLOSED))
#define COMMAND_OK (S(TLS) | S(START) | S(READY) | S(DISCARD) | S(CLOSED))

/*
 * The time of a state is that of a session with an account; before the login there is only
 * login_timeout, so that the states of a handshake and of a login have none. Nor have those that
 * wait for `auth`, since auth_link brings an answer in its own time, nor those of a message, which
 * has its pace.
 */
static const struct {
	unsigned successors;
	size_t timeout; /* offset in struct conf_submission; 0: none */
	const char *name;
} states[ST_COUNT] = {
#define T(field) offsetof(struct conf_submission, field)
        /*            may go to                            deadline            in the log */
        [ST_TLS] = {S(START) | S(CLOSED), 0, "handshake"},
        [ST_START] = {COMMAND_OK, T(command_timeout), "before EHLO"},
        [ST_READY] = {COMMAND_OK | S(AUTH_WAIT) | S(AUTH_MORE) | S(WHO) | S(MAIL),
                T(command_timeout), "between transactions"},
        [ST_AUTH_WAIT] = {LOGIN_OK | S(AUTH_MORE), 0, "login"},
        [ST_AUTH_MORE] = {LOGIN_OK | S(AUTH_WAIT), 0, "login response"},
        [ST_WHO] = {LOGIN_OK, 0, "look-up before MAIL"},
        [ST_MAIL] = {COMMAND_OK | S(RCPT), T(command_timeout), "MAIL"},
        [ST_RCPT] = {COMMAND_OK | S(RCPT) | S(ADMIT), T(command_timeout), "RCPT"},
        [ST_ADMIT] = {LOGIN_OK | S(DATA) | S(CHUNK), 0, "DATA"},
        [ST_DATA] = {LOGIN_OK | S(DATA) | S(COMMIT), 0, "message"},
        [ST_CHUNK] = {LOGIN_OK | S(BDAT) | S(COMMIT), 0, "chunk"},
        [ST_BDAT] = {COMMAND_OK | S(CHUNK), 0, "between chunks"},
        [ST_DISCARD] = {S(START) | S(READY) | S(CLOSED), 0, "refused chunk"},
        [ST_COMMIT] = {LOGIN_OK, T(data_timeout), "storing"},
        [ST_CLOSED] = {0, 0, "closed"},
#undef T
};

static const char *const closing_names[] = {
#define CLOSING(id, name) [CLOSING_##id] = (name),
#include "gateway/submit/closing.def"
#undef CLOSING
};

/* While a message comes, its chunks and what is between them too, there is one pace. */
static bool is_message(enum session_state state)
{
	return (S(DATA) | S(CHUNK) | S(BDAT) | S(DISCARD)) & 1U << state;
}

/* Until the login one deadline covers everything; so does the last one of a blocked account. */
static bool has_deadline(const struct session *session)
{
	return session->account != NULL && !session->account_blocked;
}

void session_move(struct session *session, enum session_state to)
{
	uint64_t timeout;

	assert_bug(session->state == to || (states[session->state].successors & 1U << to) != 0);
	if (is_message(to) && !is_message(session->state))
		pace_start(&session->pace, clock_mono_ms(), session->conf->submission.data_timeout);
	session->state = to;
	if (!has_deadline(session) || to == ST_CLOSED)
		return;
	if (is_message(to)) {
		timer_start(&session->timer, pace_left_ms(&session->pace, clock_mono_ms()));
	} else if (states[to].timeout != 0) {
		memcpy(&timeout, (const char *)&session->conf->submission + states[to].timeout,
		        sizeof(timeout));
		timer_start(&session->timer, timeout);
	} else {
		timer_stop(&session->timer);
	}
}

static void restart_timer(struct session *session, uint64_t ms)
{
	if (has_deadline(session))
		timer_start(&session->timer, ms);
}

void session_message_took(struct session *session, uint64_t octets)
{
	uint64_t now = clock_mono_ms();

	pace_add(&session->pace, octets, now, session->conf->submission.data_timeout);
	restart_timer(session, pace_left_ms(&session->pace, now));
}

void session_message_pause(struct session *session)
{
	pace_pause(&session->pace, clock_mono_ms());
	conn_pause(session->conn);
	restart_timer(session, session->conf->submission.data_timeout);
}

void session_message_resume(struct session *session)
{
	uint64_t now = clock_mono_ms();

	pace_resume(&session->pace, now);
	conn_resume(session->conn);
	restart_timer(session, pace_left_ms(&session->pace, now));
}

/*
 * A client that speaks SMTP does not get these often. What policy or we refuse is not its fault,
 * nor are malformed addresses: a relay has them from its users, many in one message maybe, and
 * would come back with them for days if they ended the session.
 */
static bool is_protocol_error(enum reply reply)
{
	switch (reply) {
	case REPLY_UNKNOWN_COMMAND:
	case REPLY_LINE_TOO_LONG:
	case REPLY_RESPONSE_TOO_LONG:
	case REPLY_BAD_CHARACTERS:
	case REPLY_SYNTAX:
	case REPLY_BAD_BASE64:
	case REPLY_BAD_SEQUENCE:
	case REPLY_ALREADY_LOGGED_IN:
	case REPLY_ALREADY_TLS:
	case REPLY_UNKNOWN_MECHANISM:
	case REPLY_UNKNOWN_PARAMETER:
		return true;
	default:
		return false;
	}
}

static bool leads_on(enum reply reply)
{
	switch (reply) {
	case REPLY_LOGGED_IN:
	case REPLY_RECIPIENT_OK:
	case REPLY_CHUNK_OK: /* without octets it ends by its pace */
	case REPLY_QUEUED:
		return true;
	default:
		return false;
	}
}

bool session_tells_refusal(struct session *session)
{
	return session->refusals++ - session->refusals_before < REFUSALS_TOLD;
}

void session_count(struct session *session, enum reply reply)
{
	session->errors += is_protocol_error(reply);
	if (reply == REPLY_QUEUED) {
		session->errors = 0;
		session->refusals_before = session->refusals;
	}
	session->fruitless++;
	if (leads_on(reply))
		session->fruitless = 0;
}

void session_reply(struct session *session, enum reply reply, const struct reply_args *args)
{
	struct buf line;

	if (session->state == ST_CLOSED)
		return;
	session_count(session, reply);
	buf_init(&line, OUTPUT_MAX / 2);
	if (reply_write(&line, reply, args) == 0)
		conn_write(session->conn, buf_slice(&line));
	else
		/* A client that gets no reply would wait, and mistake the next one for it. */
		conn_fail(session->conn, "out of memory");
	buf_done(&line);
}

uint64_t session_size_limit(const struct session *session)
{
	uint64_t limit = session->conf->submission.message_size;
	uint64_t plan = session->account->facts.message_bytes;

	return plan != 0 && plan < limit ? plan : limit;
}

bool session_has_input(const struct session *session)
{
	return conn_input(session->conn).len > 0;
}

static bool between_messages(const struct session *session)
{
	return (S(START) | S(READY)) & 1U << session->state;
}

static bool between_commands(const struct session *session)
{
	return (S(START) | S(READY) | S(MAIL) | S(RCPT)) & 1U << session->state;
}

static bool takes_lines(const struct session *session)
{
	return (S(START) | S(READY) | S(MAIL) | S(RCPT) | S(BDAT) | S(AUTH_MORE)) &
	       1U << session->state;
}

/* In a message, so that only what blocks the account ends it. */
static bool in_message(const struct session *session)
{
	return (S(DATA) | S(CHUNK) | S(BDAT)) & 1U << session->state;
}

/* Between two commands: whether it ends instead of taking the next one; then it is gone. */
static bool must_end(struct session *session)
{
	if (between_commands(session) && session->account_changed)
		session_close_with(session, CLOSING_ACCOUNT, REPLY_ACCOUNT_CHANGED);
	else if (between_messages(session) && session->serving->stopping)
		session_close_with(session, CLOSING_STOP, REPLY_SHUTTING_DOWN);
	else if (takes_lines(session) && session->errors > ERRORS_MAX)
		session_close_with(session, CLOSING_ERRORS, REPLY_TOO_MANY_ERRORS);
	else if (takes_lines(session) && session->fruitless > FRUITLESS_MAX)
		session_close_with(session, CLOSING_NO_PROGRESS, REPLY_NO_PROGRESS);
	else
		return false;
	return true;
}

void session_continue(struct session *session)
{
	if (session->state == ST_CLOSED)
		return;
	/* What was being stored when the stop or the change came has been answered now. */
	if (!must_end(session))
		conn_resume(session->conn);
}

/* Gives back what was charged, unless the message was taken or may be yet. */
static void drop_transaction(struct session *session)
{
	struct transaction *transaction = TAKE(session->transaction);

	if (transaction == NULL)
		return;
	if (transaction->charged.account != 0 && !transaction->committing)
		auth_settle(session->serving->auth, &transaction->charged);
	transaction_free(transaction);
}

bool session_hold(struct session *session)
{
	static const char *const whats[] = {
	        [HOLDING_MEMORY_FULL] = "memory",
	        [HOLDING_DISK_FULL] = "disk",
	};
	const struct serving *serving = session->serving;
	const struct disk_room disk = {
	        .left = spool_in_left(serving->spool),
	        /* As much as the spool keeps free for whoever says MAIL. */
	        .least = 2 * session->conf->submission.message_size,
	};
	uint64_t account = session->account->facts.id;

	enum holding_answer answer = transaction_hold(session->transaction, disk);
	if (answer == HOLDING_FINE || session->transaction->refusal != REPLY_COUNT)
		return true;
	counter_add(CT_SHARES_FULL, 1);
	if (shares_is_due(serving->shares, account))
		LOG(&session->log, EV_SHARE_FULL, "what=%s connections=%" PRIu64, whats[answer],
		        shares_connections(serving->shares, account));
	return false;
}

void session_reset(struct session *session)
{
	drop_transaction(session);
	if (session->state != ST_START)
		session_move(session, ST_READY);
}

static void log_end(const struct session *session, enum closing why)
{
	LOG(&session->log, EV_SESSION_CLOSED,
	        "reason=%s state=\"%s\" messages=%u refused=%u in=%" PRIu64 " out=%" PRIu64
	        " ms=%" PRIu64,
	        closing_names[why], states[session->state].name, session->messages,
	        session->refusals, conn_bytes_in(session->conn), conn_bytes_out(session->conn),
	        clock_mono_ms() - session->opened_ms);
}

/* What every line of its log has. */
static void begin_log(struct session *session)
{
	char ip[ADDR_TEXT];

	log_ctx_init(&session->log);
	log_ctx_add(&session->log, "sid", slice_str(session->sid));
	log_ctx_add(&session->log, "ip", slice_str(addr_format_ip(&session->peer, ip)));
}

void session_start_tls(struct session *session)
{
	/* Our customers do not wait for a crowd of strangers. */
	if (slots_remember(session->serving->slots, &session->peer))
		conn_prefer(session->conn);
	conn_start_tls_server(session->conn, session->tls,
	        session->listener->client_certificates ? TLS_ASK_CERTIFICATE : TLS_ASK_NOTHING);
}

bool session_fingerprint(const struct session *session, char ret_text[TLS_FINGERPRINT])
{
	/* A resumed session of another listener may have one that was not asked for here. */
	return session->listener->client_certificates && conn_fingerprint(session->conn, ret_text);
}

void session_forget_login(struct session *session)
{
	if (session->account == NULL)
		return;
	who_leave(session);
	begin_log(session);
	timer_start(&session->timer, session->conf->submission.login_timeout);
}

/* The connection is gone too: the last of all. */
static void give_place_back(struct session *session)
{
	struct serving *serving = session->serving;
	struct addr peer = session->peer;
	bool logged_in = session->has_logged_in;

	list_remove(&session->link);
	free(session);
	slots_give_back(serving->slots, &peer, logged_in);
}

/* Everything but the connection and its place. */
static void take_down(struct session *session, enum closing why)
{
	struct serving *serving = session->serving;

	log_end(session, why);
	timer_stop(&session->timer);
	timer_stop(&session->answer_timer);
	auth_call_cancel(session->call);
	auth_call_cancel(session->check);
	drop_transaction(session);
	session_move(session, ST_CLOSED);
	who_leave(session);
	free(session->suspended_reason);
	chunk_reset(&session->chunk);
	free(session->challenge);
	arena_reset(&session->arena);
	tls_server_unref(session->tls);
	conf_unref(session->conf);
	list_remove(&session->link);
	if (serving->running == session)
		serving->running = NULL;
	serving->on_session_ended(serving);
}

void session_close_with(struct session *session, enum closing why, enum reply reply)
{
	if (reply != REPLY_COUNT)
		session_reply(session, reply, NULL);
	take_down(session, why);
	list_append(&session->serving->lingering, &session->link);
	conn_close_when_sent(session->conn);
}

static void on_gone(void *arg)
{
	give_place_back(arg);
}

void sessions_cut_off(struct serving *serving)
{
	list_for_each_safe (at, &serving->lingering) {
		struct session *session = list_entry(at, struct session, link);
		conn_free(session->conn);
		give_place_back(session);
	}
}

/* Whether the client waits for `auth` or the spool, and not we for it. */
static bool waits_for_us(const struct session *session)
{
	return (S(AUTH_WAIT) | S(WHO) | S(COMMIT)) & 1U << session->state ||
	       (is_message(session->state) && session->pace.paused);
}

static void on_timeout(void *arg)
{
	struct session *session = arg;

	if (session->account_blocked)
		session_close_with(session, CLOSING_ACCOUNT, REPLY_ACCOUNT_CHANGED);
	else if (waits_for_us(session))
		session_close_with(session, CLOSING_TIMEOUT, REPLY_HELD_UP);
	else
		session_close_with(session, CLOSING_TIMEOUT, REPLY_TIMED_OUT);
}

/* Whether it may be run: RFC 5321 2.3.8, a line ends with CR LF and nothing else does. */
static bool is_fine(const struct session *session, const struct line *line)
{
	return (line->crlf || session->listener->bare_newline == CONF_NEWLINE_NORMALIZE) &&
	       line_is_clean(line->text);
}

/* Whether it is a BDAT, also one with a control character where the blank should be. */
static bool is_bdat(const struct session *session, struct slice line)
{
	return session->state != ST_AUTH_MORE && slice_starts_with_nocase(line, SLICE("BDAT")) &&
	       (line.len == 4 || line.ptr[4] == ' ' || line_has_controls(slice_part(line, 4, 1)));
}

/* A BDAT that is not run: where its chunk ends cannot be known, and a chunk must not be run. */
static void end_at_bdat(struct session *session)
{
	session_close_with(session, CLOSING_BAD_CHUNK, REPLY_BAD_CHUNK);
}

static void run_line(struct session *session, const struct line *line)
{
	if (!is_fine(session, line)) {
		if (session->state == ST_AUTH_MORE)
			auth_fail(session, REPLY_BAD_BASE64);
		else if (is_bdat(session, line->text))
			end_at_bdat(session);
		else
			session_reply(session, REPLY_BAD_CHARACTERS, NULL);
	} else if (session->state == ST_AUTH_MORE) {
		auth_response(session, line->text);
	} else {
		/* The wait for the next one begins anew, whatever comes of this one. */
		session_move(session, session->state);
		command_run(session, line->text);
	}
}

/* How long a line may be here, its LF not counted. */
static size_t line_max(const struct session *session, struct slice input)
{
	return session->state == ST_AUTH_MORE || slice_starts_with_nocase(input, SLICE("AUTH "))
	               ? LINE_MAX_AUTH
	               : LINE_MAX_SMTP;
}

/* One line of input: true if there was one. */
static bool take_line(struct session *session)
{
	struct slice input = conn_input(session->conn);
	uninitialized_ char copy[LINE_MAX_AUTH];
	struct line line;
	size_t used;

	bool begins = !session->lines.skipping;
	enum line_found found =
	        line_find(&session->lines, input, line_max(session, input) - 1, &line, &used);
	bool too_long = found == LINE_TOO_LONG || session->lines.skipping;
	bool lost_chunk = begins && too_long && is_bdat(session, input);
	/* A copy: running it may change the window. It may hold a password. */
	if (found == LINE_WHOLE) {
		memcpy(copy, line.text.ptr, line.text.len);
		line.text.ptr = copy;
	}
	conn_consume(session->conn, used);
	if (found == LINE_WHOLE) {
		run_line(session, &line);
		explicit_bzero(copy, line.text.len);
	} else if (lost_chunk) {
		end_at_bdat(session);
	} else if (found == LINE_TOO_LONG) {
		if (session->state == ST_AUTH_MORE)
			auth_fail(session, REPLY_RESPONSE_TOO_LONG);
		else
			session_reply(session, REPLY_LINE_TOO_LONG, NULL);
	}
	return found != LINE_NONE;
}

/* Whether `auth` must say who the client is, or whether he still is, before he may send. */
static bool is_doubtful(const struct session *session)
{
	const struct account *account = session->account;

	if (account != NULL)
		return account->unsure || clock_mono_ms() >= account->facts.valid_until_ms;
	return session->listener->networks &&
	       session->nobody_at != session->serving->changed.count + 1;
}

/* Whether the next line is a MAIL that may be run. */
static bool mail_comes(const struct session *session)
{
	struct slice input = conn_input(session->conn);

	struct line_reader reader = session->lines;
	struct line line;
	size_t used;

	return session->state == ST_READY && slice_starts_with_nocase(input, SLICE("MAIL ")) &&
	       line_find(&reader, input, LINE_MAX_SMTP - 1, &line, &used) == LINE_WHOLE &&
	       is_fine(session, &line);
}

/* How many lines of it may be run in one turn. */
static unsigned share_of_turn(const struct session *session)
{
	if (session->account == NULL)
		return TURN_LINES_STRANGER;
	/* This one is counted. */
	uint64_t sessions =
	        shares_connections(session->serving->shares, session->account->facts.id);
	return (unsigned)MIN_OF(
	        MAX_OF(TURN_LINES_SESSIONS / sessions, 1UL), (uint64_t)TURN_LINES_ACCOUNT);
}

/* Whether it has had its share of this turn; what is left of its input comes in the next. */
static bool turn_is_over(struct session *session)
{
	uint64_t turn = loop_turn(session->serving->loop);

	if (session->turn != turn) {
		session->turn = turn;
		session->turn_left = share_of_turn(session);
	}
	if (session->turn_left > 0)
		return false;
	conn_kick(session->conn);
	return true;
}

static void on_data(void *arg)
{
	struct session *session = arg;
	struct serving *serving = session->serving;

	/* take_down() clears it: the session may be gone after each line. */
	serving->running = session;
	while (serving->running == session) {
		if (session->state == ST_DATA) {
			data_take(session);
			return;
		}
		if (session->state == ST_CHUNK || session->state == ST_DISCARD) {
			if (!chunk_take(session))
				return;
			continue;
		}
		if (!takes_lines(session))
			return;
		/* RFC 2920 lets a client say all it has at once, as long as it reads meanwhile. */
		session->replies_wait = conn_unsent(session->conn) > OUTPUT_MAX / 2;
		if (session->replies_wait) {
			conn_pause(session->conn);
			return;
		}
		/* Small chunks, one behind the other, wait for the spool as a large one does. */
		if (session->state == ST_BDAT && session->transaction->must_wait) {
			session_message_pause(session);
			return;
		}
		if (must_end(session) || turn_is_over(session))
			return;
		if (mail_comes(session) && is_doubtful(session)) {
			who_ask(session);
			return;
		}
		session->turn_left--;
		if (!take_line(session))
			return;
	}
}

static void on_drained(void *arg)
{
	struct session *session = arg;

	if (!session->replies_wait)
		return;
	session->replies_wait = false;
	conn_resume(session->conn);
}

static void on_secure(void *arg)
{
	struct session *session = arg;

	session_move(session, ST_START);
	if (session->listener->tls == CONF_TLS_IMPLICIT)
		session_reply(session, REPLY_GREETING, REPLY_ARGS(session->conf->hostname));
}

static void on_closed(void *arg, enum conn_end end, const char *text)
{
	static const enum closing closings[] = {
	        [CONN_END_EOF] = CLOSING_PEER,
	        [CONN_END_ERROR] = CLOSING_ERROR,
	        [CONN_END_TLS] = CLOSING_TLS,
	        /* Not from here: no command is run while half as much waits (on_data()). */
	        [CONN_END_OVERFLOW] = CLOSING_ERROR,
	};
	struct session *session = arg;

	(void)text;
	take_down(session, closings[end]);
	conn_free(session->conn);
	give_place_back(session);
}

static const struct conn_events conn_events = {
        .on_data = on_data,
        .on_drained = on_drained,
        .on_secure = on_secure,
        .on_closed = on_closed,
        .on_gone = on_gone,
};

int session_new(struct serving *serving, int fd, const struct addr *peer, size_t listener)
{
	struct session *session = calloc(1, sizeof(*session));
	uint32_t number;

	if (session == NULL) {
		close(fd);
		return -ENOMEM;
	}
	int r = conn_new(serving->loop, fd, OUTPUT_MAX, &conn_events, session, &session->conn);
	if (r < 0) {
		free(session);
		return r;
	}
	session->serving = serving;
	session->conf = conf_ref(serving->conf);
	session->tls = tls_server_ref(serving->tls);
	session->listener = &session->conf->listeners[listener];
	session->peer = *peer;
	session->opened_ms = clock_mono_ms();
	session->state = ST_START;
	session->helo = SLICE("");
	random_bytes(&number, sizeof(number));
	hex_encode(&number, sizeof(number), session->sid);
	arena_init(&session->arena, ARENA_MAX);
	buf_init(&session->chunk.answer, OUTPUT_MAX);
	begin_log(session);
	timer_init(&session->timer, serving->loop, on_timeout, session);
	timer_init(&session->answer_timer, serving->loop, auth_answer_due, session);
	timer_start(&session->timer, session->conf->submission.login_timeout);
	list_append(&serving->sessions, &session->link);
	counter_add(CT_CONNECTIONS, 1);
	if (session->listener->tls == CONF_TLS_IMPLICIT) {
		session->state = ST_TLS;
		session_start_tls(session);
	} else {
		session_reply(session, REPLY_GREETING, REPLY_ARGS(session->conf->hostname));
	}
	return 0;
}

void session_stop(struct session *session)
{
	if (between_messages(session) || session->state == ST_TLS)
		session_close_with(session, CLOSING_STOP, REPLY_SHUTTING_DOWN);
}

static void on_checked(
        void *arg, const struct auth_message *answer, const struct auth_account *account)
{
	struct session *session = arg;

	(void)account;
	session->check = NULL;
	/* When its final dot has come meanwhile, it is taken or refused as any. */
	if (answer->type != AUTH_BLOCKED || !in_message(session))
		return;
	session->account_blocked = true;
	if (session_tells_refusal(session))
		LOG(&session->log, EV_MESSAGE_REFUSED, "qid=%s reply=%s",
		        session->transaction->id_text, reply_name(REPLY_ACCOUNT_CHANGED));
	timer_start(&session->timer, LAST_WORDS_MS);
}

/*
 * Whether the message that is coming may still be sent: a charge of nothing tells. Without an
 * answer it goes on; should it be stored, `relay` holds it.
 */
static void check_account(struct session *session)
{
	const struct auth_message question = {
	        .type = AUTH_ADMIT, .charge = {.account = session->account->facts.id}};

	auth_call_cancel(session->check); /* what it says may be old */
	session->check = auth_call_new(session->serving->auth, &question, on_checked, session);
}

static void account_changed(struct session *session)
{
	session->account_changed = true;
	if (between_commands(session))
		session_close_with(session, CLOSING_ACCOUNT, REPLY_ACCOUNT_CHANGED);
	else if (in_message(session))
		check_account(session);
}

void sessions_account_changed(struct serving *serving, uint64_t account, uint64_t era)
{
	recent_note(&serving->changed, account, era);
	/* Thousands may change in one transaction, of which few are here. */
	if (account != 0 && shares_connections(serving->shares, account) == 0)
		return;
	/*
	 * 0: a plan has changed, or the database was away, and nobody knows what changed. Who
	 * sends again is asked about then; ending every session would punish all for a restart.
	 */
	list_for_each_safe (at, &serving->sessions) {
		struct session *session = list_entry(at, struct session, link);
		if (session->account == NULL)
			continue;
		if (account == 0)
			session->account->unsure |= session->account->facts.era < era;
		else if (session->account->facts.id == account && session->account->facts.era < era)
			account_changed(session);
	}
}

bool serving_login_is_stale(const struct serving *serving, const struct auth_account *account)
{
	return recent_since(&serving->changed, account->id, account->era);
}

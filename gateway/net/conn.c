/* SPDX-License-Identifier: ISC */
/*
 * A connection; see conn.h.
 *
 * Three things move it: the socket is ready (on_ready), the turn ends after the
 * owner wrote, resumed or consumed (on_turn_end), and the answer to a client's
 * first message of TLS has had its turn (on_answer_due). All of them end in
 * advance(), which does whatever is possible now: send, read, tell.
 * A callback may free the connection, so `inside` counts the calls on the stack
 * and the last one out takes the memory down.
 */
#include "gateway/net/conn.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway/base/buf.h"
#include "gateway/net/timer.h"

#define TLS_RECORD    16384
#define LINGER_MS     2000
#define LINGER_OCTETS 65536
/* Octets of the peer in a handshake; where it may send a chain of certificates. */
#define HANDSHAKE_MAX       16384
#define HANDSHAKE_CHAIN_MAX 49152
/* Later, without any for the owner: more than a record has. */
#define UNHEARD_MAX    32768
#define READS_PER_TURN 8 /* then the others get their turn */

enum conn_state {
	STATE_CONNECTING,
	STATE_PLAIN,
	STATE_TLS_WAITS, /* for the clear output to leave */
	STATE_HANDSHAKE,
	STATE_SECURE,
	STATE_DEAD, /* on_closed is due or has been called */
};

struct conn {
	struct loop *loop;
	int fd;
	enum conn_state state;
	struct watch *watch;
	struct defer turn_end;
	struct defer answer_due; /* of a server, in the handshake: a crowd stands in line for it */
	const struct conn_events *events;
	void *arg;

	struct buf input, output;
	gnutls_session_t session;
	struct tls_server *server; /* one of the two, from the start of TLS on */
	enum tls_ask ask;          /* of the server */
	struct tls_client *client;
	char *host;
	size_t record_pending; /* octets of the output that GnuTLS holds half-sent */

	bool readable; /* the socket announced something, and has not been read empty since */
	bool paused, kicked, told_drained, told_closed, freed;
	bool step_due;    /* of the handshake */
	bool preferred;   /* by its owner, in the line for the answer */
	size_t heard;     /* octets that GnuTLS has read, since the last that it gave out */
	bool keeps_room;  /* for input, also while there is none */
	bool closing;     /* given up: send, then close */
	bool bye_sent;    /* close_notify and FIN have left */
	bool peer_closed; /* nothing more will come */
	unsigned inside;
	uint64_t bytes_in, bytes_out;
	struct timer linger; /* of a connection given up */
	size_t lingered;

	enum conn_end end;
	struct why end_text;
};

static void advance(struct conn *conn);

static void release(struct conn *conn)
{
	void (*on_gone)(void *arg) = conn->closing ? conn->events->on_gone : NULL;
	void *arg = conn->arg;

	loop_defer_cancel(&conn->turn_end);
	loop_defer_cancel(&conn->answer_due);
	timer_stop(&conn->linger);
	watch_free(conn->watch);
	if (conn->session != NULL)
		gnutls_deinit(conn->session);
	tls_server_unref(conn->server);
	tls_client_unref(conn->client);
	if (conn->fd >= 0)
		close(conn->fd);
	free(conn->host);
	buf_wipe(&conn->input);
	buf_wipe(&conn->output);
	free(conn);
	if (on_gone != NULL)
		on_gone(arg);
}

static void enter(struct conn *conn)
{
	conn->inside++;
}

static void leave(struct conn *conn)
{
	if (--conn->inside == 0 && conn->freed)
		release(conn);
}

static void printf_like(3, 4) die(struct conn *conn, enum conn_end end, const char *format, ...)
{
	va_list args;

	if (conn->state == STATE_DEAD)
		return;
	conn->state = STATE_DEAD;
	conn->end = end;
	va_start(args, format);
	vsnprintf(conn->end_text.text, sizeof(conn->end_text.text), format, args);
	va_end(args);
	watch_set(conn->watch, 0);
	loop_defer(conn->loop, &conn->turn_end);
}

static void die_errno(struct conn *conn, int error)
{
	if (error == ECONNRESET || error == EPIPE)
		die(conn, CONN_END_EOF, "the peer closed the connection");
	else
		die(conn, CONN_END_ERROR, "%s", strerrordesc_np(error));
}

static size_t heard_max(const struct conn *conn)
{
	if (conn->state != STATE_HANDSHAKE)
		return UNHEARD_MAX;
	return conn->client != NULL || conn->ask == TLS_ASK_CERTIFICATE ? HANDSHAKE_CHAIN_MAX
	                                                                : HANDSHAKE_MAX;
}

static void die_tls(struct conn *conn, int code)
{
	if (conn->heard > heard_max(conn))
		die(conn, CONN_END_TLS, "the peer says too much of TLS");
	else if (code == GNUTLS_E_PREMATURE_TERMINATION || code == GNUTLS_E_PULL_ERROR ||
	         code == GNUTLS_E_PUSH_ERROR)
		die(conn, CONN_END_EOF, "the peer closed the connection");
	else if (code == GNUTLS_E_FATAL_ALERT_RECEIVED)
		die(conn, CONN_END_TLS, "TLS alert from the peer: %s",
		        gnutls_alert_get_name(gnutls_alert_get(conn->session)));
	else
		die(conn, CONN_END_TLS, "TLS: %s", gnutls_strerror(code));
}

/* GnuTLS may hold octets that the socket will not announce again. */
static bool has_pending(const struct conn *conn)
{
	return conn->state == STATE_SECURE && gnutls_record_check_pending(conn->session) > 0;
}

/* Takes what the socket has into the window. Returns octets, 0 for nothing now. */
static size_t receive(struct conn *conn)
{
	char *room;
	ssize_t got;

	size_t want = buf_room(&conn->input);
	if (want == 0 || conn->peer_closed)
		return 0;
	if (!conn->readable && !has_pending(conn))
		return 0;
	if (buf_reserve(&conn->input, want, &room) < 0) {
		die(conn, CONN_END_ERROR, "out of memory");
		return 0;
	}
	if (conn->state == STATE_SECURE) {
		do
			got = gnutls_record_recv(conn->session, room, want);
		while (got == GNUTLS_E_INTERRUPTED);
		/* One that is not full is most often the last for now; the loop tells if not. */
		conn->readable = conn->readable && got >= TLS_RECORD;
		if (got == GNUTLS_E_AGAIN)
			return 0;
		if (got < 0) {
			die_tls(conn, (int)got);
			return 0;
		}
		conn->heard = 0;
	} else {
		do
			got = recv(conn->fd, room, want, 0);
		while (got < 0 && errno == EINTR);
		conn->readable = got >= (ssize_t)want;
		if (got < 0) {
			if (errno != EAGAIN)
				die_errno(conn, errno);
			return 0;
		}
	}
	if (got == 0) {
		conn->peer_closed = true;
		return 0;
	}
	buf_added(&conn->input, (size_t)got);
	conn->bytes_in += (uint64_t)got;
	return (size_t)got;
}

/* One attempt to send; octets that left, 0 when the kernel takes no more now. */
static size_t send_some(struct conn *conn)
{
	struct slice data = buf_slice(&conn->output);
	ssize_t sent;

	if (conn->state == STATE_SECURE) {
		/* A record that was begun must be finished with the same octets. */
		if (conn->record_pending > 0)
			sent = gnutls_record_send(conn->session, NULL, 0);
		else
			sent = gnutls_record_send(
			        conn->session, data.ptr, MIN_OF(data.len, (size_t)TLS_RECORD));
		if (sent == GNUTLS_E_AGAIN || sent == GNUTLS_E_INTERRUPTED) {
			conn->record_pending = MIN_OF(data.len, (size_t)TLS_RECORD);
			return 0;
		}
		conn->record_pending = 0;
		if (sent < 0) {
			die_tls(conn, (int)sent);
			return 0;
		}
		return (size_t)sent;
	}
	do
		sent = send(conn->fd, data.ptr, data.len, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent < 0) {
		if (errno != EAGAIN)
			die_errno(conn, errno);
		return 0;
	}
	return (size_t)sent;
}

static bool may_send(const struct conn *conn)
{
	return conn->state == STATE_PLAIN || conn->state == STATE_TLS_WAITS ||
	       conn->state == STATE_SECURE;
}

static void send_output(struct conn *conn)
{
	while (may_send(conn) && buf_len(&conn->output) > 0) {
		size_t sent = send_some(conn);
		if (sent == 0)
			return;
		buf_consume(&conn->output, sent);
		conn->bytes_out += sent;
	}
	if (buf_len(&conn->output) == 0)
		buf_done(&conn->output);
}

/*
 * What GnuTLS reads. It gathers a message of 128 KiB before it looks at it, be it the hello, what
 * follows its answer, or an update of keys later, and no option of its own bounds that.
 */
static ssize_t pull(gnutls_transport_ptr_t arg, void *room, size_t len)
{
	struct conn *conn = arg;
	ssize_t got = recv(conn->fd, room, len, 0);

	if (got > 0)
		conn->heard += (size_t)got;
	if (conn->heard <= heard_max(conn))
		return got;
	errno = EMSGSIZE;
	return -1;
}

static void begin_handshake(struct conn *conn)
{
	int r;

	/* What came in the clear behind STARTTLS must not be taken for protected input. */
	buf_wipe(&conn->input);
	if (conn->server != NULL)
		r = tls_server_session(conn->server, conn->ask, conn->fd, &conn->session);
	else
		r = tls_client_session(conn->client, conn->fd, conn->host, &conn->session);
	if (r < 0) {
		die(conn, CONN_END_ERROR, "out of memory");
		return;
	}
	gnutls_transport_set_ptr2(conn->session, conn, (gnutls_transport_ptr_t)(intptr_t)conn->fd);
	gnutls_transport_set_pull_function(conn->session, pull);
	conn->state = STATE_HANDSHAKE;
}

/*
 * Whether it is a server that has not answered yet: what that costs, a key exchange and a
 * signature, is most of all. Who has heard the answer is not kept waiting again.
 */
static bool must_answer(const struct conn *conn)
{
	if (conn->state != STATE_HANDSHAKE || conn->client != NULL)
		return false;
	switch (gnutls_handshake_get_last_out(conn->session)) {
	case GNUTLS_HANDSHAKE_SERVER_HELLO_DONE:  /* the last of the answer in TLS 1.2 */
	case GNUTLS_HANDSHAKE_NEW_SESSION_TICKET: /* in TLS 1.3, where it goes along */
	case GNUTLS_HANDSHAKE_FINISHED:           /* without one, or when a session is resumed */
		return false;
	default:
		return true;
	}
}

/* When the line is long, those who have gone are not worth a signature. */
static bool has_left(const struct conn *conn)
{
	struct pollfd fd = {.fd = conn->fd, .events = POLLRDHUP};

	return poll(&fd, 1, 0) > 0;
}

static void handshake(struct conn *conn)
{
	int r;

	do
		r = gnutls_handshake(conn->session);
	while (r == GNUTLS_E_INTERRUPTED || r == GNUTLS_E_WARNING_ALERT_RECEIVED);
	if (r == GNUTLS_E_AGAIN)
		return;
	if (r < 0) {
		/* Tell the peer why; it may be a person with a badly set mail program. */
		(void)gnutls_alert_send_appropriate(conn->session, r);
		die_tls(conn, r);
		return;
	}
	if (conn->client != NULL) {
		struct why why;
		if (tls_client_verify(conn->client, conn->session, conn->host, &why) < 0) {
			(void)gnutls_alert_send(
			        conn->session, GNUTLS_AL_FATAL, GNUTLS_A_BAD_CERTIFICATE);
			die(conn, CONN_END_TLS, "%s", why.text);
			return;
		}
	}
	conn->state = STATE_SECURE;
	conn->heard = 0;
	if (conn->events->on_secure != NULL && !conn->closing)
		conn->events->on_secure(conn->arg);
}

static void finish_connect(struct conn *conn)
{
	int error = 0;
	socklen_t len = sizeof(error);

	if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		error = errno;
	if (error != 0) {
		die(conn, CONN_END_ERROR, "%s", strerrordesc_np(error));
		return;
	}
	conn->state = STATE_PLAIN;
	if (conn->events->on_connected != NULL && !conn->closing)
		conn->events->on_connected(conn->arg);
}

static void tell_input(struct conn *conn)
{
	bool due = conn->kicked && buf_len(&conn->input) > 0;

	conn->kicked = false;
	for (unsigned i = 0; i < READS_PER_TURN; i++) {
		if (conn->freed || conn->closing || conn->paused ||
		        (conn->state != STATE_PLAIN && conn->state != STATE_SECURE))
			return;
		due = receive(conn) > 0 || due;
		if (!due || conn->state == STATE_DEAD)
			break;
		if (conn->events->on_data != NULL)
			conn->events->on_data(conn->arg);
		due = false;
	}
	if (conn->freed)
		return;
	/* It held what was consumed: passwords too. */
	if (buf_len(&conn->input) == 0 && !conn->keeps_room)
		buf_wipe(&conn->input);
	/* An owner that wants to be called again for what there is hears of the end behind it. */
	if (conn->kicked && buf_len(&conn->input) > 0)
		return;
	if (conn->peer_closed && conn->state != STATE_DEAD) {
		/* It may have closed only its own direction, and still read. */
		send_output(conn);
		die(conn, CONN_END_EOF, "the peer closed the connection");
	}
}

/* Given up: say goodbye once everything has left, then wait shortly for the peer to read it. */
static void finish_closing(struct conn *conn)
{
	char waste[4096];
	ssize_t got;

	/* A goodbye is not worth a signature: in a crowd they would all go to who is given up. */
	if (conn->state == STATE_DEAD || must_answer(conn)) {
		conn->freed = true;
		return;
	}
	if (buf_len(&conn->output) > 0 || conn->state == STATE_CONNECTING ||
	        conn->state == STATE_HANDSHAKE || conn->state == STATE_TLS_WAITS)
		return;
	if (!conn->bye_sent) {
		if (conn->state == STATE_SECURE)
			(void)gnutls_bye(conn->session, GNUTLS_SHUT_WR);
		shutdown(conn->fd, SHUT_WR);
		conn->bye_sent = true;
	}
	/* Closing with input unread would reset the connection and take the last reply along. */
	do {
		got = recv(conn->fd, waste, sizeof(waste), 0);
		if (got > 0)
			conn->lingered += (size_t)got;
	} while ((got > 0 || (got < 0 && errno == EINTR)) && conn->lingered < LINGER_OCTETS);
	if (got >= 0 || errno != EAGAIN)
		conn->freed = true;
}

static void set_watch(struct conn *conn)
{
	unsigned events = 0;

	switch (conn->state) {
	case STATE_CONNECTING:
		events = WATCH_WRITE;
		break;
	case STATE_PLAIN:
	case STATE_SECURE:
	case STATE_TLS_WAITS:
		if (buf_len(&conn->output) > 0)
			events |= WATCH_WRITE;
		/* Most pauses are over before the peer says more: then the watch stays as it is. */
		if (conn->bye_sent ||
		        (conn->state != STATE_TLS_WAITS && !conn->closing &&
		                !(conn->paused && conn->readable) && buf_room(&conn->input) > 0))
			events |= WATCH_READ;
		break;
	case STATE_HANDSHAKE:
		if (list_contains_link(&conn->answer_due.link))
			break;
		events = gnutls_record_get_direction(conn->session) == 1 ? WATCH_WRITE : WATCH_READ;
		break;
	case STATE_DEAD:
		break;
	}
	watch_set(conn->watch, events);
}

static void tell_end(struct conn *conn)
{
	if (conn->state != STATE_DEAD || conn->told_closed || conn->freed || conn->closing)
		return;
	conn->told_closed = true;
	if (conn->events->on_closed != NULL)
		conn->events->on_closed(conn->arg, conn->end, conn->end_text.text);
}

static void advance(struct conn *conn)
{
	enter(conn);
	if (conn->step_due && conn->state == STATE_HANDSHAKE)
		handshake(conn);
	conn->step_due = false;
	/* First what is ready: the end of the input must not take it along. */
	if (!conn->freed)
		send_output(conn);
	if (!conn->freed)
		tell_input(conn);
	if (!conn->freed)
		send_output(conn);
	if (!conn->freed && conn->state == STATE_TLS_WAITS && buf_len(&conn->output) == 0) {
		begin_handshake(conn);
		/* The client speaks first. */
		if (conn->state == STATE_HANDSHAKE && conn->client != NULL)
			handshake(conn);
	}
	if (!conn->freed && !conn->told_drained && may_send(conn) && !conn->closing &&
	        buf_len(&conn->output) == 0) {
		conn->told_drained = true;
		if (conn->events->on_drained != NULL)
			conn->events->on_drained(conn->arg);
	}
	if (!conn->freed && conn->closing)
		finish_closing(conn);
	tell_end(conn);
	if (!conn->freed && conn->state != STATE_DEAD) {
		set_watch(conn);
		if (!conn->paused && !conn->closing && buf_room(&conn->input) > 0 &&
		        has_pending(conn))
			loop_defer(conn->loop, &conn->turn_end);
	}
	leave(conn);
}

static void on_ready(void *arg, unsigned events)
{
	struct conn *conn = arg;

	conn->readable |= (events & WATCH_READ) != 0;
	enter(conn);
	if (conn->state == STATE_CONNECTING)
		finish_connect(conn);
	else if (must_answer(conn))
		loop_defer_dear(
		        conn->loop, &conn->answer_due, conn->preferred ? DEAR_FIRST : DEAR_LAST);
	else if (conn->state == STATE_HANDSHAKE)
		conn->step_due = true;
	if (!conn->freed)
		advance(conn);
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): the last leave() frees, and this is it */
	leave(conn);
}

static void on_turn_end(struct defer *defer)
{
	advance(container_of(defer, struct conn, turn_end));
}

static void on_answer_due(struct defer *defer)
{
	struct conn *conn = container_of(defer, struct conn, answer_due);

	if (conn->state == STATE_HANDSHAKE && has_left(conn))
		die(conn, CONN_END_EOF, "the peer closed the connection");
	conn->step_due = true;
	advance(conn);
}

static void on_linger_end(void *arg)
{
	struct conn *conn = arg;

	enter(conn);
	conn->freed = true;
	leave(conn);
}

int conn_new(struct loop *loop, int fd, size_t output_max, const struct conn_events *events,
        void *arg, struct conn **ret_conn)
{
	struct conn *conn = calloc(1, sizeof(*conn));

	if (conn == NULL) {
		close(fd);
		return -ENOMEM;
	}
	*conn = (struct conn){
	        .loop = loop,
	        .fd = fd,
	        .state = STATE_PLAIN,
	        .turn_end.run = on_turn_end,
	        .answer_due.run = on_answer_due,
	        .events = events,
	        .arg = arg,
	        .told_drained = true,
	};
	buf_init(&conn->input, CONN_INPUT_MAX);
	buf_init(&conn->output, output_max);
	timer_init(&conn->linger, loop, on_linger_end, conn);
	/* Without it replies wait 40 ms for the peer's delayed acknowledgement. */
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	int r = watch_new(loop, fd, on_ready, conn, &conn->watch);
	if (r < 0) {
		release(conn);
		return r;
	}
	watch_set(conn->watch, WATCH_READ);
	*ret_conn = conn;
	return 0;
}

int conn_connect(struct loop *loop, const struct addr *addr, size_t output_max,
        const struct conn_events *events, void *arg, struct conn **ret_conn)
{
	struct conn *conn;
	int fd = socket(addr->u.sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (connect(fd, &addr->u.sa, addr->len) < 0 && errno != EINPROGRESS) {
		int error = errno;
		close(fd);
		return -error;
	}
	int r = conn_new(loop, fd, output_max, events, arg, &conn);
	if (r < 0)
		return r;
	conn->state = STATE_CONNECTING;
	watch_set(conn->watch, WATCH_WRITE);
	*ret_conn = conn;
	return 0;
}

void conn_free(struct conn *conn)
{
	if (conn == NULL)
		return;
	enter(conn);
	conn->freed = true;
	conn->closing = false; /* the owner need not be told */
	leave(conn);
}

void conn_fail(struct conn *conn, const char *text)
{
	die(conn, CONN_END_ERROR, "%s", text);
}

void conn_close_when_sent(struct conn *conn)
{
	conn->closing = true;
	timer_start(&conn->linger, LINGER_MS);
	loop_defer(conn->loop, &conn->turn_end);
}

struct slice conn_input(const struct conn *conn)
{
	return buf_slice(&conn->input);
}

void conn_consume(struct conn *conn, size_t len)
{
	bool was_full = buf_room(&conn->input) == 0;

	buf_consume(&conn->input, len);
	if (was_full && conn->state != STATE_DEAD)
		loop_defer(conn->loop, &conn->turn_end);
}

int conn_keep_room(struct conn *conn)
{
	char *room;

	conn->keeps_room = true;
	return buf_reserve(&conn->input, buf_room(&conn->input), &room);
}

void conn_pause(struct conn *conn)
{
	conn->paused = true;
	if (conn->state != STATE_DEAD)
		loop_defer(conn->loop, &conn->turn_end);
}

void conn_resume(struct conn *conn)
{
	conn->paused = false;
	conn_kick(conn);
}

void conn_kick(struct conn *conn)
{
	conn->kicked = true;
	if (conn->state != STATE_DEAD)
		loop_defer(conn->loop, &conn->turn_end);
}

void conn_write(struct conn *conn, struct slice data)
{
	if (conn->state == STATE_DEAD || data.len == 0)
		return;
	if (buf_append_slice(&conn->output, data) < 0)
		die(conn, CONN_END_OVERFLOW, "the peer does not read what it asked for");
	conn->told_drained = false;
	loop_defer(conn->loop, &conn->turn_end);
}

size_t conn_unsent(const struct conn *conn)
{
	return buf_len(&conn->output);
}

void conn_prefer(struct conn *conn)
{
	conn->preferred = true;
}

static void start_tls(struct conn *conn)
{
	assert_bug(conn->state == STATE_PLAIN || conn->state == STATE_DEAD);
	if (conn->state == STATE_DEAD)
		return;
	conn->state = STATE_TLS_WAITS;
	loop_defer(conn->loop, &conn->turn_end);
}

void conn_start_tls_server(struct conn *conn, struct tls_server *server, enum tls_ask ask)
{
	conn->ask = ask;
	conn->server = tls_server_ref(server);
	start_tls(conn);
}

void conn_start_tls_client(struct conn *conn, struct tls_client *client, const char *host)
{
	conn->client = tls_client_ref(client);
	conn->host = strdup(host);
	if (conn->host == NULL)
		die(conn, CONN_END_ERROR, "out of memory");
	start_tls(conn);
}

bool conn_is_secure(const struct conn *conn)
{
	return conn->state == STATE_SECURE;
}

const char *conn_tls_version(const struct conn *conn)
{
	return conn->session != NULL
	               ? gnutls_protocol_get_name(gnutls_protocol_get_version(conn->session))
	               : NULL;
}

const char *conn_tls_cipher(const struct conn *conn)
{
	return conn->session != NULL ? gnutls_cipher_get_name(gnutls_cipher_get(conn->session))
	                             : NULL;
}

bool conn_fingerprint(const struct conn *conn, char ret_text[TLS_FINGERPRINT])
{
	return conn->state == STATE_SECURE && tls_fingerprint(conn->session, ret_text);
}

uint64_t conn_bytes_in(const struct conn *conn)
{
	return conn->bytes_in;
}

uint64_t conn_bytes_out(const struct conn *conn)
{
	return conn->bytes_out;
}

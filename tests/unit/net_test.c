/* SPDX-License-Identifier: ISC */
/* Loops, timers, jobs and connections, over real sockets and real TLS. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <gnutls/x509.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "gateway/base/buf.h"
#include "gateway/base/clock.h"
#include "gateway/base/encode.h"
#include "gateway/net/conn.h"
#include "gateway/net/jobs.h"
#include "gateway/net/listener.h"
#include "gateway/net/loop.h"
#include "gateway/net/proxy.h"
#include "gateway/net/timer.h"
#include "gateway/net/tls.h"

/* A test that hangs is ended by this. */
#define PATIENCE_MS 20000

static struct loop *loop;
static struct timer patience;

static void out_of_patience(void *arg)
{
	(void)arg;
	fail_msg("nothing happens any more");
}

static int start_loop(void **state)
{
	(void)state;
	assert_int_equal(loop_new(&loop), 0);
	timer_init(&patience, loop, out_of_patience, NULL);
	timer_start(&patience, PATIENCE_MS);
	return 0;
}

static void run_some_turns(void)
{
	for (unsigned i = 0; i < 10; i++) {
		loop_stop(loop);
		loop_run(loop);
	}
}

static int end_loop(void **state)
{
	(void)state;
	run_some_turns(); /* those who were given up see that the other end is gone */
	timer_stop(&patience);
	loop_free(loop);
	return 0;
}

/* ---- timers ---- */

#define TIMERS 500

static struct timer timers[TIMERS];
static unsigned fired, expected;
static uint64_t last_due;

static void on_timer(void *arg)
{
	struct timer *timer = arg;

	assert_true(timer->due.key >= last_due && timer->due.key <= clock_mono_ms());
	assert_false(timer_is_running(timer));
	last_due = timer->due.key;
	if (++fired == expected)
		loop_stop(loop);
}

static void timers_run_in_order(void **state)
{
	unsigned seed = 1;

	(void)state;
	fired = expected = 0;
	last_due = 0;
	for (unsigned i = 0; i < TIMERS; i++)
		timer_init(&timers[i], loop, on_timer, &timers[i]);
	for (unsigned i = 0; i < 20 * TIMERS; i++) {
		struct timer *timer = &timers[(unsigned)rand_r(&seed) % TIMERS];
		if (rand_r(&seed) % 3 == 0)
			timer_stop(timer);
		else
			timer_start(timer, (uint64_t)(rand_r(&seed) % 50));
	}
	for (unsigned i = 0; i < TIMERS; i++)
		expected += timer_is_running(&timers[i]);
	assert_true(expected > 0);
	loop_run(loop);
	assert_int_equal(fired, expected);
	assert_ptr_equal(loop_timers(loop)->first, &patience.due);
}

/* ---- posts and jobs ---- */

#define SENDERS 4
#define EACH    2000

struct numbered {
	struct post post;
	struct job job;
	unsigned sender, number;
	_Atomic unsigned runs;
};

static struct numbered numbered[SENDERS][EACH];
static unsigned arrived[SENDERS], total;
static pthread_t loop_thread;

static void on_post(struct post *post)
{
	const struct numbered *one = container_of(post, struct numbered, post);

	assert_true(pthread_equal(pthread_self(), loop_thread));
	assert_int_equal(one->number, arrived[one->sender]++);
	if (++total == SENDERS * EACH)
		loop_stop(loop);
}

static void *send_posts(void *arg)
{
	struct numbered *mine = arg;

	for (unsigned i = 0; i < EACH; i++)
		loop_post(loop, &mine[i].post);
	return NULL;
}

static void posts_arrive_in_order(void **state)
{
	pthread_t threads[SENDERS];

	(void)state;
	loop_thread = pthread_self();
	total = 0;
	for (unsigned s = 0; s < SENDERS; s++) {
		arrived[s] = 0;
		for (unsigned i = 0; i < EACH; i++)
			numbered[s][i] =
			        (struct numbered){.post.run = on_post, .sender = s, .number = i};
		assert_int_equal(pthread_create(&threads[s], NULL, send_posts, numbered[s]), 0);
	}
	loop_run(loop);
	for (unsigned s = 0; s < SENDERS; s++) {
		pthread_join(threads[s], NULL);
		assert_int_equal(arrived[s], EACH);
	}
}

static void run_job(struct job *job)
{
	container_of(job, struct numbered, job)->runs++;
}

static void job_done(struct job *job)
{
	assert_int_equal(container_of(job, struct numbered, job)->runs, 1);
	assert_true(pthread_equal(pthread_self(), loop_thread));
	if (++total == EACH)
		loop_stop(loop);
}

static void jobs_run_once_and_come_back(void **state)
{
	struct jobs *jobs;

	(void)state;
	loop_thread = pthread_self();
	total = 0;
	assert_int_equal(jobs_new(3, EACH, &jobs), 0);
	for (unsigned i = 0; i < EACH; i++) {
		struct numbered *one = &numbered[0][i];
		*one = (struct numbered){.job = {.loop = loop, .run = run_job, .done = job_done}};
		assert_int_equal(jobs_submit(jobs, &one->job), 0);
	}
	/* Those that wait are run, and come back to a loop that runs later. */
	jobs_free(jobs);
	loop_run(loop);
	assert_int_equal(total, EACH);
}

static void a_full_queue_takes_no_job(void **state)
{
	struct jobs *jobs;

	(void)state;
	assert_int_equal(jobs_new(1, 0, &jobs), 0);
	assert_int_equal(jobs_submit(jobs, &numbered[0][0].job), -EAGAIN);
	jobs_free(jobs);
}

/* ---- dear work ---- */

#define DEAR_COUNT 20
#define DEAR_MS    3
#define DEAR_LEFT  7 /* this one is cancelled */

struct dear {
	struct defer defer;
	unsigned number;
};

static struct dear dear[DEAR_COUNT];
static unsigned dear_done, dear_in_turn, dear_turns, dear_between;
static uint64_t dear_turn;

static uint64_t used_ms(void)
{
	struct timespec used;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	return (uint64_t)used.tv_sec * 1000 + (uint64_t)used.tv_nsec / 1000000;
}

static void run_dear(struct defer *defer)
{
	const struct dear *one = container_of(defer, struct dear, defer);
	uint64_t begun = used_ms();

	if (dear_done == DEAR_LEFT)
		dear_done++;
	assert_int_equal(one->number, dear_done++);
	if (dear_turn != loop_turn(loop)) {
		dear_turn = loop_turn(loop);
		dear_turns++;
		dear_in_turn = 0;
	}
	dear_in_turn++;
	assert_in_range(dear_in_turn, 1, 2); /* the second begins within 4 ms, no third does */
	while (used_ms() - begun <= DEAR_MS)
		continue;
	if (dear_done == DEAR_COUNT)
		loop_stop(loop);
}

static void between_dear(void *arg, unsigned ready)
{
	(void)arg;
	(void)ready;
	dear_between++;
}

/* In its order, a few in a turn, and what is ready meanwhile has each of these turns. */
static void dear_work_stands_in_line(void **state)
{
	struct watch *watch;
	int fds[2];

	(void)state;
	dear_done = dear_in_turn = dear_turns = dear_between = 0;
	dear_turn = UINT64_MAX;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(watch_new(loop, fds[0], between_dear, NULL, &watch), 0);
	watch_set(watch, WATCH_WRITE);
	for (unsigned i = 0; i < DEAR_COUNT; i++) {
		dear[i] = (struct dear){.defer.run = run_dear, .number = i};
		loop_defer_dear(loop, &dear[i].defer, DEAR_LAST);
	}
	loop_defer_dear(loop, &dear[0].defer, DEAR_FIRST); /* it keeps its place */
	loop_defer_cancel(&dear[DEAR_LEFT].defer);
	loop_run(loop);
	assert_int_equal(dear_done, DEAR_COUNT);
	assert_in_range(dear_turns, (DEAR_COUNT - 1) / 2, DEAR_COUNT);
	assert_in_range(dear_between, dear_turns - 1, dear_turns + 1);
	watch_free(watch);
	close(fds[0]);
	close(fds[1]);
}

/* ---- two lines of it ---- */

#define LINE_COUNT 50

static struct defer in_line[DEAR_LINES][LINE_COUNT];
static unsigned line_done[DEAR_LINES], line_turns, last_meanwhile;

static void run_in_line(struct defer *defer)
{
	enum dear_line line = defer < in_line[DEAR_LAST] ? DEAR_FIRST : DEAR_LAST;
	uint64_t begun = used_ms();

	line_done[line]++;
	while (used_ms() == begun) /* half a millisecond and more */
		continue;
	if (dear_turn != loop_turn(loop) && line_done[DEAR_FIRST] < LINE_COUNT) {
		dear_turn = loop_turn(loop);
		line_turns++;
	}
	if (line == DEAR_FIRST)
		last_meanwhile = line_done[DEAR_LAST];
	if (line_done[DEAR_FIRST] + line_done[DEAR_LAST] == 2 * LINE_COUNT)
		loop_stop(loop);
}

/* Who is in the last line has come before, and waits; but some of them are next in each turn. */
static void the_first_line_goes_before_the_last(void **state)
{
	(void)state;
	memset(line_done, 0, sizeof(line_done));
	line_turns = 0;
	dear_turn = UINT64_MAX;
	for (unsigned line = DEAR_LINES; line-- > 0;)
		for (unsigned i = 0; i < LINE_COUNT; i++) {
			in_line[line][i].run = run_in_line;
			loop_defer_dear(loop, &in_line[line][i], line);
		}
	loop_run(loop);
	assert_in_range(last_meanwhile, line_turns - 1, LINE_COUNT * 3 / 4);
	assert_true(line_turns > 4);
}

/* ---- connections ---- */

static struct tls_server *server;
static struct tls_client *client;
static char certificate_sha256[TLS_FINGERPRINT];

static struct slice export_pem(int r, const gnutls_datum_t *pem)
{
	assert_int_equal(r, 0);
	return slice_of(pem->data, pem->size);
}

/* A certificate signed by itself, for one host. */
static int make_credentials(void **state)
{
	gnutls_x509_privkey_t key;
	gnutls_x509_crt_t crt;
	gnutls_datum_t key_pem, crt_pem;
	struct why why;

	(void)state;
	assert_int_equal(gnutls_x509_privkey_init(&key), 0);
	assert_int_equal(gnutls_x509_privkey_generate(key, GNUTLS_PK_ECDSA,
	                         GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0),
	        0);
	assert_int_equal(gnutls_x509_crt_init(&crt), 0);
	gnutls_x509_crt_set_version(crt, 3);
	gnutls_x509_crt_set_serial(crt, "\1", 1);
	gnutls_x509_crt_set_activation_time(crt, time(NULL) - 60);
	gnutls_x509_crt_set_expiration_time(crt, time(NULL) + 3600);
	gnutls_x509_crt_set_key(crt, key);
	gnutls_x509_crt_set_subject_alt_name(
	        crt, GNUTLS_SAN_DNSNAME, "host.example", 12, GNUTLS_FSAN_SET);
	assert_int_equal(gnutls_x509_crt_sign2(crt, crt, key, GNUTLS_DIG_SHA256, 0), 0);
	struct slice crt_text =
	        export_pem(gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &crt_pem), &crt_pem);
	uint8_t digest[32];
	size_t size = sizeof(digest);
	assert_int_equal(gnutls_x509_crt_get_fingerprint(crt, GNUTLS_DIG_SHA256, digest, &size), 0);
	hex_encode(digest, size, certificate_sha256);
	struct slice key_text = export_pem(
	        gnutls_x509_privkey_export2(key, GNUTLS_X509_FMT_PEM, &key_pem), &key_pem);
	assert_int_equal(tls_server_new(crt_text, key_text, &server, &why), 0);
	assert_int_equal(tls_client_new(TLS_CHECK_NONE, "", &client, &why), 0);
	gnutls_free(crt_pem.data);
	gnutls_free(key_pem.data);
	gnutls_x509_crt_deinit(crt);
	gnutls_x509_privkey_deinit(key);
	return 0;
}

static int drop_credentials(void **state)
{
	(void)state;
	tls_server_unref(server);
	tls_client_unref(client);
	return 0;
}

/* One end of a connection, and what has happened to it. */
struct peer {
	struct conn *conn;
	struct buf got;
	size_t wanted; /* the loop stops when so much has come */
	unsigned connected, data, drained, secure, closed, gone;
	enum conn_end end;
	/* Frees the connection when this has happened. */
	const unsigned *fatal;
	bool echo, lazy;
};

static void maybe_free(struct peer *peer)
{
	if (peer->fatal != NULL && *peer->fatal > 0) {
		conn_free(TAKE(peer->conn));
		peer->fatal = NULL;
		loop_stop(loop);
	}
}

static void on_connected(void *arg)
{
	struct peer *peer = arg;

	peer->connected++;
	maybe_free(peer);
}

static void on_data(void *arg)
{
	struct peer *peer = arg;
	struct slice input = conn_input(peer->conn);

	peer->data++;
	/* A lazy one takes a part and asks to be called again. */
	if (peer->lazy)
		input.len = (input.len + 1) / 2;
	assert_int_equal(buf_append_slice(&peer->got, input), 0);
	if (peer->echo)
		conn_write(peer->conn, input);
	conn_consume(peer->conn, input.len);
	if (peer->lazy && conn_input(peer->conn).len > 0)
		conn_kick(peer->conn);
	if (peer->wanted > 0 && buf_len(&peer->got) >= peer->wanted)
		loop_stop(loop);
	maybe_free(peer);
}

static void on_drained(void *arg)
{
	struct peer *peer = arg;

	peer->drained++;
	assert_int_equal(conn_unsent(peer->conn), 0);
	maybe_free(peer);
}

static void on_secure(void *arg)
{
	struct peer *peer = arg;

	peer->secure++;
	assert_true(conn_is_secure(peer->conn));
	maybe_free(peer);
}

static void on_closed(void *arg, enum conn_end end, const char *text)
{
	struct peer *peer = arg;

	assert_true(text[0] != '\0');
	assert_int_equal(peer->closed++, 0);
	peer->end = end;
	maybe_free(peer);
	loop_stop(loop);
}

static void on_gone(void *arg)
{
	struct peer *peer = arg;

	peer->conn = NULL;
	peer->gone++;
	loop_stop(loop);
}

static const struct conn_events events = {
        .on_connected = on_connected,
        .on_data = on_data,
        .on_drained = on_drained,
        .on_secure = on_secure,
        .on_closed = on_closed,
        .on_gone = on_gone,
};

#define MUCH (4U << 20)

static void peer_init(struct peer *peer)
{
	*peer = (struct peer){0};
	buf_init(&peer->got, MUCH);
}

static void peer_done(struct peer *peer)
{
	conn_free(TAKE(peer->conn));
	buf_done(&peer->got);
}

static void make_pair(int fds[2])
{
	/* Small, so that sends are partial. */
	int size = 4096;

	assert_int_equal(
	        socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
	for (int i = 0; i < 2; i++) {
		setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
		setsockopt(fds[i], SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	}
}

static void connect_peers(struct peer *a, struct peer *b)
{
	int fds[2];

	peer_init(a);
	peer_init(b);
	make_pair(fds);
	assert_int_equal(conn_new(loop, fds[0], MUCH, &events, a, &a->conn), 0);
	assert_int_equal(conn_new(loop, fds[1], MUCH, &events, b, &b->conn), 0);
}

static void start_tls(struct peer *a, struct peer *b)
{
	conn_start_tls_server(a->conn, server, TLS_ASK_NOTHING);
	conn_start_tls_client(b->conn, client, "host.example");
}

static void run_until(const unsigned *happened)
{
	while (*happened == 0) {
		loop_stop(loop);
		loop_run(loop);
	}
}

enum { PLAIN, TLS };

/* Much goes one way and comes back, octet for octet, in pieces of odd sizes. */
static void everything_comes_back(int kind, bool lazy)
{
	struct peer a, b;
	char *much = malloc(MUCH / 4);
	unsigned seed = 7;

	assert_non_null(much);
	for (size_t i = 0; i < MUCH / 4; i++)
		much[i] = (char)rand_r(&seed);
	connect_peers(&a, &b);
	if (kind == TLS)
		start_tls(&a, &b);
	a.echo = true;
	a.lazy = lazy;
	b.wanted = MUCH / 4;
	if (kind == TLS)
		/* What is written now would leave in the clear, before TLS. */
		run_until(&b.secure);
	for (size_t at = 0; at < MUCH / 4;) {
		size_t len = MIN_OF((size_t)(rand_r(&seed) % 40000), MUCH / 4 - at);
		conn_write(b.conn, slice_of(much + at, len));
		at += len;
	}
	loop_run(loop);
	assert_int_equal(buf_len(&b.got), MUCH / 4);
	assert_memory_equal(buf_slice(&b.got).ptr, much, MUCH / 4);
	assert_int_equal(b.drained, 1);
	assert_int_equal(a.closed + b.closed, 0);
	peer_done(&a);
	peer_done(&b);
	free(much);
}

static void everything_comes_back_in_the_clear(void **state)
{
	(void)state;
	everything_comes_back(PLAIN, false);
	everything_comes_back(PLAIN, true);
}

static void everything_comes_back_over_tls(void **state)
{
	(void)state;
	everything_comes_back(TLS, false);
	everything_comes_back(TLS, true);
}

/* The connection may be freed in any callback. */
static void expect_free_in(int kind, size_t counter)
{
	struct peer a, b;

	connect_peers(&a, &b);
	a.fatal = (const unsigned *)(const void *)((const char *)&a + counter);
	b.echo = true;
	if (kind == TLS)
		start_tls(&a, &b);
	else
		conn_write(a.conn, SLICE("hello"));
	if (counter == offsetof(struct peer, closed))
		conn_free(TAKE(b.conn));
	loop_run(loop);
	if (a.conn != NULL) /* the other one saw its end first */
		loop_run(loop);
	assert_null(a.conn);
	peer_done(&a);
	peer_done(&b);
}

static void every_callback_may_free(void **state)
{
	(void)state;
	expect_free_in(PLAIN, offsetof(struct peer, data));
	expect_free_in(PLAIN, offsetof(struct peer, drained));
	expect_free_in(PLAIN, offsetof(struct peer, closed));
	expect_free_in(TLS, offsetof(struct peer, secure));
	expect_free_in(TLS, offsetof(struct peer, closed));
}

static void what_was_sent_before_the_end_is_read(void **state)
{
	struct peer a, b;

	(void)state;
	connect_peers(&a, &b);
	conn_write(b.conn, SLICE("last words"));
	conn_close_when_sent(b.conn);
	loop_run(loop);
	assert_slice_equal(buf_slice(&a.got), "last words");
	assert_int_equal(a.closed, 1);
	assert_int_equal(a.end, CONN_END_EOF);
	peer_done(&a);
	peer_done(&b);
}

/* Whoever counts descriptors hears when that of a connection given up is free, and not before. */
static void one_given_up_is_gone_with_its_descriptor(void **state)
{
	struct peer a;
	int ends[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
	peer_init(&a);
	assert_int_equal(conn_new(loop, ends[0], MUCH, &events, &a, &a.conn), 0);
	conn_close_when_sent(TAKE(a.conn));
	run_some_turns();
	assert_int_equal(a.gone, 0);
	assert_true(fcntl(ends[0], F_GETFD) >= 0);
	close(ends[1]);
	loop_run(loop);
	assert_int_equal(a.gone, 1);
	assert_int_equal(fcntl(ends[0], F_GETFD), -1);
	/* The other does not hear what it does itself. */
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
	assert_int_equal(conn_new(loop, ends[0], MUCH, &events, &a, &a.conn), 0);
	conn_close_when_sent(a.conn);
	run_some_turns();
	conn_free(TAKE(a.conn));
	assert_int_equal(fcntl(ends[0], F_GETFD), -1);
	assert_int_equal(a.gone, 1);
	assert_int_equal(a.closed, 0);
	close(ends[1]);
	peer_done(&a);
}

/* Its peer never closes: the loop's end is its end, descriptor and memory included. */
static void what_lingers_ends_with_the_loop(void **state)
{
	struct loop *own;
	struct peer a;
	int ends[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
	peer_init(&a);
	assert_int_equal(loop_new(&own), 0);
	assert_int_equal(conn_new(own, ends[0], MUCH, &events, &a, &a.conn), 0);
	conn_close_when_sent(TAKE(a.conn));
	loop_stop(own);
	loop_run(own);
	assert_int_equal(send(ends[1], "x", 1, MSG_NOSIGNAL), 1);
	loop_free(own);
	assert_int_equal(send(ends[1], "x", 1, MSG_NOSIGNAL), -1);
	assert_int_equal(errno, EPIPE);
	assert_int_equal(a.gone, 1);
	close(ends[1]);
	peer_done(&a);
}

/* Who says much and closes is heard to the end, also by an owner that takes it bit by bit. */
static void the_end_comes_behind_what_was_said(void **state)
{
	struct peer a;
	int ends[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
	peer_init(&a);
	a.lazy = true;
	assert_int_equal(conn_new(loop, ends[0], MUCH, &events, &a, &a.conn), 0);
	assert_int_equal(write(ends[1], "all that there is to say", 24), 24);
	close(ends[1]);
	loop_run(loop);
	assert_int_equal(a.closed, 1);
	assert_slice_equal(buf_slice(&a.got), "all that there is to say");
	peer_done(&a);
}

/* A peer that has said its last word still hears the answer. */
static void half_a_close_leaves_the_other_half(void **state)
{
	char answer[16];
	struct peer a;
	int ends[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
	peer_init(&a);
	a.echo = true;
	assert_int_equal(conn_new(loop, ends[0], MUCH, &events, &a, &a.conn), 0);
	assert_int_equal(write(ends[1], "question", 8), 8);
	shutdown(ends[1], SHUT_WR);
	loop_run(loop);
	assert_int_equal(a.closed, 1);
	assert_int_equal(read(ends[1], answer, sizeof(answer)), 8);
	close(ends[1]);
	peer_done(&a);
}

static void a_pause_holds_input_and_end_back(void **state)
{
	struct peer a, b;

	(void)state;
	connect_peers(&a, &b);
	conn_pause(a.conn);
	conn_write(b.conn, SLICE("hello"));
	conn_close_when_sent(b.conn);
	run_some_turns();
	assert_int_equal(a.data + a.closed, 0);
	conn_resume(a.conn);
	loop_run(loop);
	assert_slice_equal(buf_slice(&a.got), "hello");
	assert_int_equal(a.closed, 1);
	peer_done(&a);
	peer_done(&b);
}

static void stop_now(void *arg)
{
	loop_stop(arg);
}

/* The loop goes on announcing what a paused connection leaves unread; it must not turn for that. */
static void a_pause_costs_nothing(void **state)
{
	struct timespec before, after;
	struct timer end;
	struct peer a, b;

	(void)state;
	connect_peers(&a, &b);
	conn_pause(a.conn);
	run_some_turns();
	conn_write(b.conn, SLICE("hello"));
	run_some_turns();
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
	timer_init(&end, loop, stop_now, loop);
	timer_start(&end, 200);
	loop_run(loop);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
	assert_true(
	        (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000 <
	        20);
	conn_resume(a.conn);
	run_some_turns();
	assert_slice_equal(buf_slice(&a.got), "hello");
	peer_done(&a);
	peer_done(&b);
}

static void who_does_not_read_is_left(void **state)
{
	static char octets[65536];
	struct peer a, b;

	(void)state;
	connect_peers(&a, &b);
	conn_pause(b.conn);
	while (conn_unsent(a.conn) + sizeof(octets) <= MUCH)
		conn_write(a.conn, slice_of(octets, sizeof(octets)));
	conn_write(a.conn, slice_of(octets, sizeof(octets)));
	assert_int_equal(a.closed, 0); /* not inside the call */
	loop_run(loop);
	assert_int_equal(a.end, CONN_END_OVERFLOW);
	peer_done(&a);
	peer_done(&b);
}

/* A client that always has more to say than the loop can take. */
#define TALK_RECORDS 3000

static _Atomic bool talk_enough;

static void *talk(void *arg)
{
	static const char octets[16384];
	gnutls_session_t session;
	int fd = *(int *)arg;

	assert_int_equal(tls_client_session(client, fd, "host.example", &session), 0);
	while (gnutls_handshake(session) < 0)
		continue;
	/* After one octet, records that take two reads: no turn ends with all of one read. */
	(void)gnutls_record_send(session, octets, 1);
	for (unsigned i = 0; i < TALK_RECORDS && !talk_enough; i++)
		if (gnutls_record_send(session, octets, sizeof(octets)) < 0)
			break;
	gnutls_deinit(session);
	return NULL;
}

/* Keeps an octet back, as of a line without its end, and needs a while for the others. */
static void take_slowly(void *arg)
{
	struct peer *peer = arg;
	uint64_t until = clock_mono_us() + 500;

	peer->data++;
	conn_consume(peer->conn, conn_input(peer->conn).len - 1);
	while (clock_mono_us() < until)
		continue;
}

static void pause_first(void *arg)
{
	struct peer *peer = arg;

	peer->secure++;
	conn_pause(peer->conn);
}

static struct timer turn;

static void let_talk(void *arg)
{
	conn_resume(((struct peer *)arg)->conn);
	timer_start(&turn, 50);
}

static void have_turn(void *arg)
{
	/* On a busy machine it may be due before anything was read. */
	if (((struct peer *)arg)->data == 0) {
		timer_start(&turn, 1);
		return;
	}
	/* It is due after about 100 reads of half a millisecond. */
	assert_in_range(((struct peer *)arg)->data, 1, 500);
	talk_enough = true;
	loop_stop(loop);
}

static void a_talker_leaves_the_others_their_turn(void **state)
{
	static const struct conn_events slow_events = {
	        .on_data = take_slowly, .on_secure = pause_first};
	struct timer resume;
	struct peer a;
	pthread_t thread;
	int fds[2];

	(void)state;
	talk_enough = false;
	peer_init(&a);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(conn_new(loop, fds[0], MUCH, &slow_events, &a, &a.conn), 0);
	conn_start_tls_server(a.conn, server, TLS_ASK_NOTHING);
	assert_int_equal(pthread_create(&thread, NULL, talk, &fds[1]), 0);
	run_until(&a.secure);
	timer_init(&resume, loop, let_talk, &a);
	timer_start(&resume, 50); /* the socket is full by then */
	timer_init(&turn, loop, have_turn, &a);
	loop_run(loop);
	peer_done(&a);
	pthread_join(thread, NULL);
	close(fds[1]);
}

/* Work that goes before whoever comes into the line now. */
static unsigned waste_left;

static void waste(struct defer *defer)
{
	uint64_t begun = used_ms();

	(void)defer;
	while (used_ms() - begun <= DEAR_MS)
		continue;
	waste_left--;
}

static void fill_the_line(void *arg)
{
	static struct defer wasted[DEAR_COUNT];
	struct peer *peer = arg;

	peer->secure++;
	for (waste_left = 0; waste_left < DEAR_COUNT; waste_left++) {
		wasted[waste_left].run = waste;
		loop_defer_dear(loop, &wasted[waste_left], DEAR_LAST);
	}
}

/* The client has the server's answer when the line fills: what is left does not stand in it. */
static void who_was_answered_stands_in_line_no_more(void **state)
{
	static const struct conn_events filling = {.on_secure = fill_the_line};
	struct peer a, b;
	int fds[2];

	(void)state;
	peer_init(&a);
	peer_init(&b);
	make_pair(fds);
	assert_int_equal(conn_new(loop, fds[0], MUCH, &events, &a, &a.conn), 0);
	assert_int_equal(conn_new(loop, fds[1], MUCH, &filling, &b, &b.conn), 0);
	start_tls(&a, &b);
	run_until(&b.secure);
	run_until(&a.secure);
	assert_in_range(waste_left, DEAR_COUNT / 2, DEAR_COUNT);
	while (waste_left > 0) {
		loop_stop(loop);
		loop_run(loop);
	}
	peer_done(&a);
	peer_done(&b);
}

static void noise_is_no_handshake(void **state)
{
	struct peer a, b;

	(void)state;
	connect_peers(&a, &b);
	conn_start_tls_server(a.conn, server, TLS_ASK_NOTHING);
	conn_write(b.conn, SLICE("EHLO client.example\r\nMAIL FROM:<a@x.example>\r\n"));
	loop_run(loop);
	assert_int_equal(a.closed, 1);
	assert_int_equal(a.end, CONN_END_TLS);
	assert_int_equal(a.secure, 0);
	peer_done(&a);
	peer_done(&b);
}

enum in_line { STAYS, LEAVES, IS_GIVEN_UP };

/* What the server sends to a client of which only this has come, when it is next in the line. */
static size_t answer_to(struct slice hello, enum in_line fate)
{
	static char answer[16384];
	struct peer a;
	int fds[2];

	peer_init(&a);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	assert_int_equal(conn_new(loop, fds[0], MUCH, &events, &a, &a.conn), 0);
	conn_start_tls_server(a.conn, server, TLS_ASK_NOTHING);
	assert_int_equal(send(fds[1], hello.ptr, hello.len, 0), hello.len);
	if (fate == LEAVES)
		shutdown(fds[1], SHUT_WR);
	if (fate == IS_GIVEN_UP) {
		loop_stop(loop);
		loop_run(loop);
		conn_write(a.conn, SLICE("too late"));
		conn_close_when_sent(a.conn);
	}
	run_some_turns();
	assert_int_equal(a.gone, fate == IS_GIVEN_UP);
	assert_int_equal(a.closed, fate == LEAVES);
	assert_true(fate != LEAVES || a.end == CONN_END_EOF);
	ssize_t got = recv(fds[1], answer, sizeof(answer), 0);
	close(fds[1]);
	peer_done(&a);
	return got > 0 ? (size_t)got : 0;
}

/* In a crowd the line may be longer than their patience. */
static void who_has_left_or_was_given_up_is_not_answered(void **state)
{
	char hello[4096];
	struct peer b;
	int fds[2];

	(void)state;
	peer_init(&b);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	assert_int_equal(conn_new(loop, fds[0], MUCH, &events, &b, &b.conn), 0);
	conn_start_tls_client(b.conn, client, "host.example");
	run_some_turns();
	ssize_t len = recv(fds[1], hello, sizeof(hello), 0);
	assert_true(len > 0);
	assert_true(answer_to(slice_of(hello, (size_t)len), STAYS) > 0);
	assert_int_equal(answer_to(slice_of(hello, (size_t)len), LEAVES), 0);
	assert_int_equal(answer_to(slice_of(hello, (size_t)len), IS_GIVEN_UP), 0);
	close(fds[1]);
	peer_done(&b);
}

/* A client of TLS 1.2 up to the server's answer, which it leaves unread. */
static void say_hello(int fd)
{
	gnutls_certificate_credentials_t credentials;
	gnutls_session_t session;

	assert_int_equal(gnutls_init(&session, GNUTLS_CLIENT | GNUTLS_NONBLOCK), 0);
	assert_int_equal(gnutls_certificate_allocate_credentials(&credentials), 0);
	assert_int_equal(gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials), 0);
	assert_int_equal(
	        gnutls_priority_set_direct(session, "NORMAL:-VERS-ALL:+VERS-TLS1.2", NULL), 0);
	gnutls_transport_set_int(session, fd);
	assert_int_equal(gnutls_handshake(session), GNUTLS_E_AGAIN);
	gnutls_deinit(session);
	gnutls_certificate_free_credentials(credentials);
}

/* Whether a server hears this much of a message that is to have 128,000 octets. */
static bool is_heard_out(enum tls_ask ask, size_t octets)
{
	uint8_t record[2005] = {22, 3, 3, 2000 >> 8, 2000 & 0xff};
	struct peer a;
	int fds[2];

	peer_init(&a);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	assert_int_equal(conn_new(loop, fds[0], MUCH, &events, &a, &a.conn), 0);
	conn_start_tls_server(a.conn, server, ask);
	say_hello(fds[1]);
	run_some_turns();
	/* A certificate, or the client's key, of 0x01f400 octets. */
	memcpy(record + 5, ask == TLS_ASK_CERTIFICATE ? "\x0b\1\xf4" : "\x10\1\xf4", 4);
	for (size_t said = 0; said < octets && a.closed == 0; said += 2000) {
		assert_int_equal(
		        send(fds[1], record, sizeof(record), MSG_NOSIGNAL), sizeof(record));
		run_some_turns();
		memset(record + 5, 0, 4);
	}
	assert_true(a.closed == 0 || a.end == CONN_END_TLS);
	bool heard_out = a.closed == 0;
	close(fds[1]);
	peer_done(&a);
	return heard_out;
}

/* GnuTLS would gather all of it, of each of thousands. */
static void who_says_too_much_in_the_handshake_is_cut_off(void **state)
{
	(void)state;
	assert_true(is_heard_out(TLS_ASK_NOTHING, 12000));
	assert_false(is_heard_out(TLS_ASK_NOTHING, 24000));
	assert_true(is_heard_out(TLS_ASK_CERTIFICATE, 40000));
	assert_false(is_heard_out(TLS_ASK_CERTIFICATE, 60000));
}

/* A client of TLS 1.3 after its handshake, and how it may send what it likes. */
struct rude {
	gnutls_certificate_credentials_t credentials;
	gnutls_session_t session;
	gnutls_aead_cipher_hd_t cipher;
	uint8_t iv[12];
	unsigned sent; /* records */
	int fd;
};

static void rude_init(struct rude *rude, int fd)
{
	gnutls_datum_t mac, iv, key;
	uint8_t number[8];
	int r;

	*rude = (struct rude){.fd = fd};
	assert_int_equal(gnutls_init(&rude->session, GNUTLS_CLIENT | GNUTLS_NONBLOCK), 0);
	assert_int_equal(gnutls_certificate_allocate_credentials(&rude->credentials), 0);
	assert_int_equal(
	        gnutls_credentials_set(rude->session, GNUTLS_CRD_CERTIFICATE, rude->credentials),
	        0);
	assert_int_equal(
	        gnutls_priority_set_direct(rude->session, "NORMAL:-VERS-ALL:+VERS-TLS1.3", NULL),
	        0);
	gnutls_transport_set_int(rude->session, fd);
	while ((r = gnutls_handshake(rude->session)) == GNUTLS_E_AGAIN)
		run_some_turns();
	assert_int_equal(r, 0);
	assert_int_equal(gnutls_record_get_state(rude->session, 0, &mac, &iv, &key, number), 0);
	assert_int_equal(iv.size, sizeof(rude->iv));
	memcpy(rude->iv, iv.data, iv.size);
	assert_int_equal(
	        gnutls_aead_cipher_init(&rude->cipher, gnutls_cipher_get(rude->session), &key), 0);
}

static void rude_done(struct rude *rude)
{
	gnutls_aead_cipher_deinit(rude->cipher);
	gnutls_deinit(rude->session);
	gnutls_certificate_free_credentials(rude->credentials);
	close(rude->fd);
}

/* A record of that type of content. */
static void rude_send(struct rude *rude, uint8_t type, const uint8_t *octets, size_t len)
{
	uint8_t plain[4096], record[4096 + 32] = {23, 3, 3}, nonce[12];
	size_t size = len + 1 + 16, sealed = sizeof(record) - 5;

	memcpy(plain, octets, len);
	plain[len] = type;
	record[3] = (uint8_t)(size >> 8);
	record[4] = (uint8_t)size;
	memcpy(nonce, rude->iv, sizeof(nonce));
	nonce[11] ^= (uint8_t)rude->sent++;
	assert_int_equal(gnutls_aead_cipher_encrypt(rude->cipher, nonce, sizeof(nonce), record, 5,
	                         16, plain, len + 1, record + 5, &sealed),
	        0);
	assert_int_equal(sealed, size);
	assert_int_equal(send(rude->fd, record, 5 + size, MSG_NOSIGNAL), 5 + size);
	run_some_turns();
}

static void who_says_too_much_behind_the_handshake_is_cut_off(void **state)
{
	uint8_t part[2000] = {24, 1, 0xf4, 0}; /* an update of the key, of 128,000 octets */
	struct rude rude;
	struct peer a;
	int fds[2];

	(void)state;
	peer_init(&a);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	assert_int_equal(conn_new(loop, fds[0], MUCH, &events, &a, &a.conn), 0);
	conn_start_tls_server(a.conn, server, TLS_ASK_NOTHING);
	rude_init(&rude, fds[1]);
	run_some_turns();
	assert_int_equal(a.secure, 1);
	rude_send(&rude, 23, (const uint8_t *)"hi", 2);
	assert_slice_equal(buf_slice(&a.got), "hi");
	/* What is for the owner may be any number of octets. */
	for (unsigned i = 0; i < 60; i++)
		rude_send(&rude, 23, part, sizeof(part));
	assert_int_equal(a.closed, 0);
	for (unsigned i = 0; i < 30 && a.closed == 0; i++) {
		rude_send(&rude, 22, part, sizeof(part));
		memset(part, 0, 4);
	}
	assert_int_equal(a.closed, 1);
	assert_int_equal(a.end, CONN_END_TLS);
	rude_done(&rude);
	peer_done(&a);
}

/* Of who has shown one; who was asked may have none, and is served. */
static void a_certificate_has_a_fingerprint(void **state)
{
	char text[TLS_FINGERPRINT];
	struct peer a, b;

	(void)state;
	connect_peers(&a, &b);
	assert_false(conn_fingerprint(a.conn, text));
	conn_start_tls_server(a.conn, server, TLS_ASK_CERTIFICATE);
	conn_start_tls_client(b.conn, client, "host.example");
	run_until(&a.secure);
	run_until(&b.secure);
	assert_false(conn_fingerprint(a.conn, text));
	assert_true(conn_fingerprint(b.conn, text));
	assert_string_equal(text, certificate_sha256);
	peer_done(&a);
	peer_done(&b);
}

static void a_certificate_of_nobody_is_refused(void **state)
{
	struct tls_client *strict;
	struct peer a, b;
	struct why why;

	(void)state;
	assert_int_equal(tls_client_new(TLS_CHECK_NAME, "", &strict, &why), 0);
	connect_peers(&a, &b);
	conn_start_tls_server(a.conn, server, TLS_ASK_NOTHING);
	conn_start_tls_client(b.conn, strict, "host.example");
	run_until(&b.closed);
	assert_int_equal(b.end, CONN_END_TLS);
	assert_int_equal(b.secure, 0);
	peer_done(&a);
	peer_done(&b);
	tls_client_unref(strict);
}

/* ---- connecting ---- */

static void on_accept(void *arg, int fd, const struct addr *addr)
{
	struct peer *peer = arg;

	(void)addr;
	assert_int_equal(conn_new(loop, fd, MUCH, &events, peer, &peer->conn), 0);
}

static struct listener *listen_here(struct peer *peer, struct addr *ret_addr)
{
	struct listener *listener;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	*ret_addr = (struct addr){
	        .u.in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)},
	        .len = sizeof(ret_addr->u.in),
	};
	assert_int_equal(bind(fd, &ret_addr->u.sa, ret_addr->len), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(getsockname(fd, &ret_addr->u.sa, &ret_addr->len), 0);
	assert_int_equal(listener_new(loop, fd, on_accept, peer, &listener), 0);
	return listener;
}

static void a_given_up_connection_calls_nobody(void **state)
{
	struct listener *listener;
	struct peer a, b;
	struct addr addr;

	(void)state;
	peer_init(&a);
	peer_init(&b);
	listener = listen_here(&a, &addr);
	assert_int_equal(conn_connect(loop, &addr, MUCH, &events, &b, &b.conn), 0);
	conn_write(b.conn, SLICE("QUIT\r\n"));
	conn_close_when_sent(b.conn);
	run_until(&a.closed);
	assert_int_equal(b.connected + b.drained + b.closed, 0);
	assert_slice_equal(buf_slice(&a.got), "QUIT\r\n");
	listener_free(listener);
	peer_done(&a);
	peer_done(&b);
}

static void lift_limit(void *arg)
{
	assert_int_equal(setrlimit(RLIMIT_NOFILE, arg), 0);
}

static void a_listener_waits_for_descriptors(void **state)
{
	struct listener *listener;
	struct rlimit limit, none;
	struct timer lift;
	struct peer a, b;
	struct addr addr;

	(void)state;
	peer_init(&a);
	peer_init(&b);
	listener = listen_here(&a, &addr);
	assert_int_equal(conn_connect(loop, &addr, MUCH, &events, &b, &b.conn), 0);
	conn_write(b.conn, SLICE("hello"));
	a.wanted = strlen("hello");
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = limit;
	none.rlim_cur = 0;
	lift_limit(&none);
	timer_init(&lift, loop, lift_limit, &limit);
	timer_start(&lift, 50);
	run_until(&b.connected);
	assert_null(a.conn);
	loop_run(loop);
	assert_slice_equal(buf_slice(&a.got), "hello");
	listener_free(listener);
	peer_done(&a);
	peer_done(&b);
}

static void who_refuses_is_an_error(void **state)
{
	struct peer a;
	struct addr addr;

	(void)state;
	peer_init(&a);
	listener_free(listen_here(&a, &addr));
	int r = conn_connect(loop, &addr, MUCH, &events, &a, &a.conn);
	if (r == 0) {
		loop_run(loop);
		assert_int_equal(a.end, CONN_END_ERROR);
		assert_int_equal(a.connected, 0);
	} else {
		assert_int_equal(r, -ECONNREFUSED);
	}
	peer_done(&a);
}

/* ---- the header of a proxy ---- */

#define V2 "\r\n\r\n\0\r\nQUIT\n"

static const struct {
	const char *octets;
	size_t len;
	const char *source; /* NULL: none */
} proxy_headers[] = {
#define H(octets, source)                                                                          \
	{                                                                                          \
		octets, sizeof(octets) - 1, source                                                 \
	}
        H("PROXY TCP4 192.0.2.1 198.51.100.2 56324 587\r\n", "192.0.2.1:56324"),
        H("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255:65535"),
        H("PROXY TCP4 192.0.2.1 198.51.100.2 0 0\r\n", "192.0.2.1:0"),
        H("PROXY TCP6 2001:db8::1 2001:db8::2 1 587\r\n", "[2001:db8::1]:1"),
        H("PROXY TCP6 ::ffff:192.0.2.7 2001:db8::2 25 587\r\n", "192.0.2.7:25"),
        H("PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
          " ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
        H("PROXY UNKNOWN\r\n", NULL),
        H("PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
          " ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
                NULL), /* 107 octets, the longest of all */
        H(V2 "\x21\x11\0\x0c\xc0\0\2\1\xc6\x33\x64\2\xdc\4\2\x4b", "192.0.2.1:56324"),
        H(V2 "\x21\x11\0\x10\xc0\0\2\1\xc6\x33\x64\2\xdc\4\2\x4b\4\0\1x", "192.0.2.1:56324"),
        H(V2 "\x21\x21\0\x24"
             "\x20\1\xd\xb8\0\0\0\0\0\0\0\0\0\0\0\1"
             "\x20\1\xd\xb8\0\0\0\0\0\0\0\0\0\0\0\2\1\0\2\x4b",
                "[2001:db8::1]:256"),
        H(V2 "\x21\x21\0\x24"
             "\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\2\7"
             "\x20\1\xd\xb8\0\0\0\0\0\0\0\0\0\0\0\2\1\0\2\x4b",
                "192.0.2.7:256"),
        H(V2 "\x20\0\0\0", NULL), /* LOCAL: a health check */
        H(V2 "\x20\x11\0\x0c\xc0\0\2\1\xc6\x33\x64\2\xdc\4\2\x4b", NULL),
        H(V2 "\x21\0\0\3abc", NULL), /* PROXY, of nobody knows what */
#undef H
};

static void a_proxy_says_whom_it_speaks_for(void **state)
{
	char text[ADDR_TEXT], input[300];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(proxy_headers); i++) {
		struct proxy_header header;
		size_t len = proxy_headers[i].len;
		const char *source = proxy_headers[i].source;
		memcpy(input, proxy_headers[i].octets, len);
		memcpy(input + len, "EHLO c\r\n", 8);
		/* However it is cut; what follows is not its own. */
		for (size_t k = 0; k < len; k++)
			assert_int_equal(proxy_header_parse(slice_of(input, k), &header), 0);
		assert_int_equal(proxy_header_parse(slice_of(input, len), &header), len);
		assert_int_equal(proxy_header_parse(slice_of(input, len + 8), &header), len);
		assert_int_equal(header.has_source, source != NULL);
		if (source != NULL)
			assert_string_equal(addr_format(&header.source, text), source);
	}
}

static void what_is_no_header_of_a_proxy(void **state)
{
	static const struct {
		const char *octets;
		size_t len;
	} wrong[] = {
#define W(octets) {octets, sizeof(octets) - 1}
	        W("EHLO c\r\n"), W("\x16\3\1"), W("proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n"),
	        W("PROXY  TCP4 192.0.2.1 198.51.100.2 1 2\r\n"),
	        W("PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n"),
	        W("PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n"),
	        W("PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n"),
	        W("PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n"),
	        W("PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n"),
	        W("PROXY TCP4 192.0.2.1 198.51.100.2 65536 2\r\n"),
	        W("PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n"),
	        W("PROXY TCP4 192.0.2.1 198.51.100.2 01 2\r\n"),
	        W("PROXY TCP4 192.0.2.1 198.51.100.2 -1 2\r\n"),
	        W("PROXY TCP4 192.0.2.1 198.51.100.2 1 \r\n"),
	        W("PROXY TCP4 192.0.2.256 198.51.100.2 1 2\r\n"),
	        W("PROXY TCP4 192.0.2 198.51.100.2 1 2\r\n"),
	        W("PROXY TCP4 192.0.2.1\0 198.51.100.2 1 2\r\n"),
	        W("PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n"),
	        W("PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n"),
	        W("PROXY TCP6 2001:db8::1%lo 2001:db8::2 1 2\r\n"),
	        W("PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n"), W("PROXY \r\n"),
	        W("PROXY TCP4\r\n"),
	        /* One octet too long. */
	        W("PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	          " ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 655350\r\n"),
	        W("\r\n\r\n\0\r\nQUIT\r"), W(V2 "\x11\x11\0\x0c"), /* version 1 in binary */
	        W(V2 "\x22\x11\0\x0c"),                            /* a command that there is not */
	        W(V2 "\x21\x12\0\x0c\xc0\0\2\1\xc6\x33\x64\2\xdc\4\2\x4b"), /* datagrams */
	        W(V2 "\x21\x31\0\0"),                                       /* a unix socket */
	        W(V2 "\x21\x11\0\x0b\xc0\0\2\1\xc6\x33\x64\2\xdc\4\2"), /* too short for its kind */
	        W(V2 "\x21\x21\0\x0c\xc0\0\2\1\xc6\x33\x64\2\xdc\4\2\x4b"),
	        W(V2 "\x21\x11\x0f\xf1"), /* 4,097 octets in all */
#undef W
	};
	struct proxy_header header;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		assert_int_equal(
		        proxy_header_parse(slice_of(wrong[i].octets, wrong[i].len), &header),
		        -EBADMSG);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, start_loop, end_loop)

int main(void)
{
	const struct CMUnitTest tests[] = {
	        TEST(timers_run_in_order),
	        TEST(posts_arrive_in_order),
	        TEST(jobs_run_once_and_come_back),
	        TEST(a_full_queue_takes_no_job),
	        TEST(dear_work_stands_in_line),
	        TEST(the_first_line_goes_before_the_last),
	        TEST(everything_comes_back_in_the_clear),
	        TEST(everything_comes_back_over_tls),
	        TEST(every_callback_may_free),
	        TEST(what_was_sent_before_the_end_is_read),
	        TEST(one_given_up_is_gone_with_its_descriptor),
	        TEST(what_lingers_ends_with_the_loop),
	        TEST(the_end_comes_behind_what_was_said),
	        TEST(half_a_close_leaves_the_other_half),
	        TEST(a_pause_holds_input_and_end_back),
	        TEST(a_pause_costs_nothing),
	        TEST(who_does_not_read_is_left),
	        TEST(a_talker_leaves_the_others_their_turn),
	        cmocka_unit_test(a_proxy_says_whom_it_speaks_for),
	        cmocka_unit_test(what_is_no_header_of_a_proxy),
	        TEST(who_was_answered_stands_in_line_no_more),
	        TEST(noise_is_no_handshake),
	        TEST(who_has_left_or_was_given_up_is_not_answered),
	        TEST(who_says_too_much_in_the_handshake_is_cut_off),
	        TEST(who_says_too_much_behind_the_handshake_is_cut_off),
	        TEST(a_certificate_has_a_fingerprint),
	        TEST(a_certificate_of_nobody_is_refused),
	        TEST(a_given_up_connection_calls_nobody),
	        TEST(a_listener_waits_for_descriptors),
	        TEST(who_refuses_is_an_error),
	};

	return cmocka_run_group_tests(tests, make_credentials, drop_credentials);
}

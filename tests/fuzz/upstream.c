/* SPDX-License-Identifier: ISC */
/*
 * `relay` against an upstream that says whatever it likes. The first octet: 1, with a
 * login; 2, with a sender who gets a bounce. Then what the upstream sends, in pieces that
 * end with 0xff, each when the gateway waits; 0xfe alone closes the connection. A message
 * counts as delivered only if a reply of class 2 came behind its final dot, and as failed
 * only if something was said that can mean so.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gateway/base/clock.h"
#include "gateway/base/log.h"
#include "gateway/conf/conf.h"
#include "gateway/mail/envelope.h"
#include "gateway/net/conn.h"
#include "gateway/relay/accounts.h"
#include "gateway/relay/history.h"
#include "gateway/relay/keys.h"
#include "gateway/relay/notices.h"
#include "gateway/relay/parts.h"
#include "gateway/relay/relay.h"
#include "gateway/relay/sasl_client.h"
#include "gateway/relay/session.h"
#include "gateway/relay/upstream.h"
#include "gateway/spool/out.h"
#include "gateway/spool/segment.h"
#include "tests/fuzz/bench.h"
#include "tests/fuzz/fuzz.h"

#define PIECE_MAX  8192
#define PIECES_MAX 64
#define RECIPIENTS 3
#define LOGIN      1
#define SENDER     2

static const char header[] = "Received: x\r\nFrom: a@x.example\r\n\r\n";
static const char body[] = ".\r\n..\r\n.a\r\nb.\r\n\r\n.";
static const char stuffed[] = "..\r\n...\r\n..a\r\nb.\r\n\r\n..\r\n";

const char *const fuzz_phrases[] = {
        "220 mx.example ESMTP\r\n\xff",
        "250-mx.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 10000000\r\n\xff",
        "250 mx.example\r\n\xff",
        "250-mx.example\r\n250 AUTH PLAIN\r\n\xff",
        "235 2.7.0 ok\r\n\xff",
        "535 5.7.8 no\r\n\xff",
        "250 2.1.0 ok\r\n250 2.1.5 ok\r\n250 2.1.5 ok\r\n250 2.1.5 ok\r\n354 go\r\n\xff",
        "250 2.1.0 ok\r\n250 2.1.5 ok\r\n550 5.1.1 no\r\n452 4.5.3 no\r\n354 go\r\n\xff",
        "250 2.0.0 ok\r\n\xff",
        "354 go\r\n\xff",
        "451 4.3.0 later\r\n\xff",
        "552 5.3.4 too big\r\n\xff",
        "421 4.3.2 closing\r\n\xff",
        "530 5.7.0 log in\r\n\xff",
        "250-more\r\n\xff",
        "25\xff",
        "\xfe\xff",
};
const size_t fuzz_phrase_count = ARRAY_LEN(fuzz_phrases);

/* Our side of the newest connection. */
struct peer {
	int fd; /* -1: there is none */
	struct watch *watch;
	struct buf heard; /* what the gateway sent and is not accounted for */
	bool data, content, dot;
	uint64_t sent;
	char first; /* octet of the line that is being said, or 0 */
};

static struct {
	struct loop *loop;
	const char *folder;
	const struct conf *confs[2]; /* without and with a login */
	int listener;
	struct watch *listening;
	struct relay *relay;
	struct peer peer;
	bool refusing, stopped, has_sender;
	bool may_fail;      /* a 5, or a limit, was told */
	unsigned good_dots; /* final dots that class 2 followed */
	unsigned delivered; /* records of that, and their sums: one may be written again */
	uint64_t sums[PIECES_MAX];
} bench;

/* ---- without a database, Cyrus SASL and workers: the linker puts these in front ---- */

int __wrap_jobs_new(unsigned threads, size_t queue_max, struct jobs **ret_jobs);
int __wrap_jobs_submit(struct jobs *jobs, struct job *job);
void __wrap_jobs_free(struct jobs *jobs);
int __wrap_keys_new(const struct keys_settings *settings, struct keys **ret_keys, struct why *why);
int __wrap_history_new(
        const struct history_settings *settings, struct history **ret_history, struct why *why);
void __wrap_history_free(struct history *history);
void __wrap_keys_free(struct keys *keys);
struct keyset *__wrap_keys_find(struct keys *keys, struct slice domain);
int __wrap_notices_new(const struct notices_settings *settings, struct notices **ret_notices);
void __wrap_notices_free(struct notices *notices);
int __wrap_sasl_client_prepare(struct why *why);
int __wrap_sasl_client_plain(const char *host, const char *username, const char *password,
        struct buf *ret_response, struct why *why);

/* Without workers: to make them anew for each run would take most of its time. */
int __wrap_jobs_new(unsigned threads, size_t queue_max, struct jobs **ret_jobs)
{
	(void)threads;
	(void)queue_max;
	*ret_jobs = NULL;
	return 0;
}

void __wrap_jobs_free(struct jobs *jobs)
{
	(void)jobs;
}

static void on_job_done(struct post *post)
{
	struct job *job = container_of(post, struct job, post);

	job->done(job);
}

int __wrap_jobs_submit(struct jobs *jobs, struct job *job)
{
	(void)jobs;
	job->run(job);
	job->post.run = on_job_done;
	loop_post(job->loop, &job->post);
	return 0;
}

int __wrap_keys_new(const struct keys_settings *settings, struct keys **ret_keys, struct why *why)
{
	(void)settings;
	(void)why;
	*ret_keys = NULL;
	return 0;
}

int __wrap_history_new(
        const struct history_settings *settings, struct history **ret_history, struct why *why)
{
	(void)settings;
	(void)why;
	*ret_history = NULL;
	return 0;
}

void __wrap_history_free(struct history *history)
{
	(void)history;
}

void __wrap_keys_free(struct keys *keys)
{
	(void)keys;
}

struct keyset *__wrap_keys_find(struct keys *keys, struct slice domain)
{
	(void)keys;
	(void)domain;
	return NULL;
}

/* The database has told, and nobody is suspended. */
int __wrap_notices_new(const struct notices_settings *settings, struct notices **ret_notices)
{
	*ret_notices = NULL;
	return accounts_tell(settings->accounts, NULL, 0);
}

void __wrap_notices_free(struct notices *notices)
{
	(void)notices;
}

int __wrap_sasl_client_prepare(struct why *why)
{
	(void)why;
	return 0;
}

int __wrap_sasl_client_plain(const char *host, const char *username, const char *password,
        struct buf *ret_response, struct why *why)
{
	(void)host;
	(void)why;
	return buf_printf(ret_response, "%c%s%c%s", 0, username, 0, password);
}

/* ---- what the gateway says ---- */

/* The content as it must come; a bounce of the gateway only has whole lines. */
static void check_content(struct slice content)
{
	struct slice rest = content;

	assert_bug(fuzz_lines_are_whole(content));
	if (content.len == 0 || bench.has_sender)
		return;
	assert_bug(slice_starts_with(rest, slice_str(header)));
	rest = slice_part(rest, strlen(header), rest.len);
	assert_bug(slice_equal(rest, slice_str(stuffed)));
}

/* Takes what is whole of what was heard; false when there is nothing more. */
static bool take_heard(struct peer *peer)
{
	struct slice heard = buf_slice(&peer->heard);

	if (peer->content) {
		bool empty = slice_starts_with(heard, SLICE(".\r\n"));
		const char *end = empty || heard.len == 0
		                          ? NULL
		                          : memmem(heard.ptr, heard.len, "\r\n.\r\n", 5);
		if (!empty && end == NULL)
			return false;
		size_t len = empty ? 0 : (size_t)(end - heard.ptr) + 2;
		check_content(slice_of(heard.ptr, len));
		buf_consume(&peer->heard, len + 3);
		assert_bug(buf_len(&peer->heard) == 0); /* it waits for the reply */
		peer->content = false;
		peer->dot = true;
		return false;
	}
	ptrdiff_t end = slice_find(heard, '\n');
	if (end < 0)
		return false;
	struct slice line = slice_of(heard.ptr, (size_t)end + 1);
	assert_bug(line.len >= 2 && line.ptr[line.len - 2] == '\r');
	bool command = slice_equal(line, SLICE("RSET\r\n")) || slice_equal(line, SLICE("QUIT\r\n"));
	if (peer->data && !command) {
		peer->content = true;
		peer->data = false;
		return true;
	}
	assert_bug(!fuzz_has_controls(slice_of(line.ptr, line.len - 2)));
	peer->data = slice_equal(line, SLICE("DATA\r\n"));
	buf_consume(&peer->heard, line.len);
	return true;
}

static void close_peer(void)
{
	if (bench.peer.fd < 0)
		return;
	watch_free(bench.peer.watch);
	close(bench.peer.fd);
	buf_done(&bench.peer.heard);
	bench.peer.fd = -1;
}

static void on_heard(void *arg, unsigned events)
{
	struct peer *peer = arg;
	char octets[4096];
	ssize_t got;

	(void)events;
	bench_in_harness = true;
	while ((got = recv(peer->fd, octets, sizeof(octets), MSG_DONTWAIT)) > 0) {
		assert_bug(buf_append(&peer->heard, octets, (size_t)got) == 0);
		while (take_heard(peer))
			continue;
	}
	if (got == 0 || errno != EAGAIN)
		close_peer();
	bench_in_harness = false;
}

static void be_connected(int fd)
{
	close_peer();
	/* Without it a second piece waits for the gateway's acknowledgement. */
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	bench.peer = (struct peer){.fd = fd};
	buf_init(&bench.peer.heard, 1U << 20);
	assert_bug(watch_new(bench.loop, fd, on_heard, &bench.peer, &bench.peer.watch) == 0);
	watch_set(bench.peer.watch, WATCH_READ);
}

static void on_connection(void *arg, unsigned events)
{
	int fd = accept4(bench.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	(void)arg;
	(void)events;
	bench_in_harness = true;
	if (fd >= 0 && bench.refusing)
		close(fd);
	else if (fd >= 0)
		be_connected(fd);
	bench_in_harness = false;
}

/* Notes what can follow from what is being said. */
static void note_sent(struct peer *peer, struct slice piece)
{
	if (peer->first == '\0' && piece.len > 0)
		peer->first = piece.ptr[0];
	if (peer->dot && peer->first != '\0') {
		bench.good_dots += peer->first == '2';
		peer->dot = false;
	}
	/* A class, or the limits that EHLO tells. */
	if (slice_find(piece, '5') >= 0 || slice_find(piece, 'S') >= 0 ||
	        slice_find(piece, 's') >= 0)
		bench.may_fail = true;
	ptrdiff_t end = slice_find_last(piece, '\n');
	if (end >= 0)
		peer->first = (size_t)end + 1 < piece.len ? piece.ptr[end + 1] : '\0';
}

static void say(struct peer *peer, struct slice piece)
{
	if (slice_equal(piece, SLICE("\xfe"))) {
		close_peer();
		return;
	}
	note_sent(peer, piece);
	if (piece.len == 0)
		return;
	ssize_t sent = send(peer->fd, piece.ptr, piece.len, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (sent > 0)
		peer->sent += (uint64_t)sent;
}

/* ---- when nothing happens any more but what the upstream begins ---- */

static bool session_waits(const struct session *session)
{
	if (session->state < SESSION_GREETING || session->state == SESSION_CLOSED ||
	        session->state == SESSION_TLS || session->job_runs || session->marks > 0)
		return false;
	return bench.peer.fd >= 0 && conn_unsent(session->conn) == 0 &&
	       conn_bytes_in(session->conn) == bench.peer.sent;
}

static bool is_quiet(void *arg)
{
	struct relay *relay = bench.relay;
	bool any = false;

	(void)arg;
	if (relay->busy > 0 || spool_out_is_busy(relay->spool) || relay->spool->follow.running)
		return false;
	list_for_each (at, &relay->upstreams) {
		struct upstream *upstream = list_entry(at, struct upstream, link);
		list_for_each (member, &upstream->sessions) {
			any = true;
			if (!session_waits(list_entry(member, struct session, member)))
				return false;
		}
	}
	/* Without a session: the end of the connection is still to be seen. */
	return any || bench.peer.fd < 0;
}

static bool is_connected(void *arg)
{
	(void)arg;
	return bench.peer.fd >= 0 || (bench_memory_failed && is_quiet(NULL));
}

static bool has_stopped(void *arg)
{
	(void)arg;
	return bench.stopped;
}

static void on_stopped(void *arg)
{
	(void)arg;
	bench.stopped = true;
}

/* ---- the spool ---- */

static void on_ready(void *arg)
{
	(void)arg;
}

static void on_done(void *arg, int result)
{
	(void)arg;
	assert_bug(result == 0);
	bench.stopped = true;
}

/* One message, in a folder that is copied for each run. */
static void write_message(const char *name, struct slice sender)
{
	static const struct spool_tx_events events = {.on_ready = on_ready, .on_done = on_done};
	struct slice recipients[RECIPIENTS] = {
	        SLICE("b@y.example"), SLICE("\"c d\"@y.example"), SLICE("e@z.example")};
	const struct envelope envelope = {
	        .account = 42,
	        .login = SLICE("alice"),
	        .session = SLICE("0123abcd"),
	        .sender = sender,
	        .recipients = recipients,
	        .recipient_count = RECIPIENTS,
	        .body_8bit = true,
	};
	char path[100];
	struct spool_in *in;
	struct spool_tx *tx;
	struct buf octets;
	struct why why;

	snprintf(path, sizeof(path), "%s/%s", bench.folder, name);
	assert_bug(mkdir(path, 0700) == 0);
	const struct spool_in_settings settings = {
	        .path = path, .ops = &file_system, .wake_fd = -1};
	assert_bug(spool_in_open(&settings, &in, &why) == 0);
	assert_bug(spool_tx_new(in, bench.loop, id_new(), 100, &events, NULL, NULL, &tx) == 0);
	assert_bug(spool_tx_write(tx, slice_str(body)) == 0);
	assert_bug(spool_tx_write(tx, SLICE("\r\n")) == 0);
	buf_init(&octets, 4096);
	assert_bug(envelope_encode(&envelope, &octets) == 0);
	const struct spool_commit commit = {
	        .account = envelope.account,
	        .accepted_us = clock_wall_us(),
	        .recipients = RECIPIENTS,
	        .envelope = buf_slice(&octets),
	        .header = slice_str(header),
	};
	bench.stopped = false;
	spool_tx_commit(tx, &commit);
	bench_turn(bench.loop, has_stopped, NULL);
	buf_done(&octets);
	spool_in_close(in);
}

static void copy_file(const char *from, const char *to)
{
	struct stat status;
	_cleanup_(closep) int in = open(from, O_RDONLY | O_CLOEXEC);
	_cleanup_(closep) int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	assert_bug(in >= 0 && out >= 0 && fstat(in, &status) == 0);
	while (sendfile(out, in, NULL, (size_t)status.st_size + 1) > 0)
		continue;
}

static void remove_segments(const char *folder)
{
	char path[SEGMENT_PATH];
	uint32_t *numbers;
	size_t count;

	if (segment_list(folder, &numbers, &count) < 0)
		return;
	for (size_t i = 0; i < count; i++)
		(void)unlink(segment_path(folder, numbers[i], path));
	free(numbers);
}

static void renew_spool(const char *name)
{
	char from[100], to[100], path[SEGMENT_PATH], copy[SEGMENT_PATH];
	uint32_t *numbers;
	size_t count;

	snprintf(to, sizeof(to), "%s/run/out", bench.folder);
	remove_segments(to);
	snprintf(to, sizeof(to), "%s/run/in", bench.folder);
	remove_segments(to);
	snprintf(from, sizeof(from), "%s/%s/in", bench.folder, name);
	assert_bug(segment_list(from, &numbers, &count) == 0);
	for (size_t i = 0; i < count; i++)
		copy_file(segment_path(from, numbers[i], path), segment_path(to, numbers[i], copy));
	free(numbers);
	snprintf(path, sizeof(path), "%s/lock", from);
	snprintf(copy, sizeof(copy), "%s/lock", to);
	(void)unlink(copy);
	copy_file(path, copy);
}

static void on_result(void *arg, struct stored_result result)
{
	bool *delivered = arg;

	*delivered |= result.outcome == OUTCOME_DELIVERED;
	assert_bug(result.recipient < RECIPIENTS);
	assert_bug(result.outcome == OUTCOME_DELIVERED || result.outcome == OUTCOME_FAILED);
	assert_bug(result.outcome != OUTCOME_FAILED || bench.may_fail);
}

static void note_delivered(uint64_t sum)
{
	for (unsigned i = 0; i < bench.delivered; i++) {
		if (bench.sums[i] == sum)
			return;
	}
	assert_bug(bench.delivered < ARRAY_LEN(bench.sums));
	bench.sums[bench.delivered++] = sum;
}

static void check_record(struct segment *segment, const struct record_header *record)
{
	struct stored_message message;
	struct message_id id;
	struct buf octets;
	bool delivered = false;

	buf_init(&octets, RECORD_ENVELOPE_MAX);
	assert_bug(segment_read_envelope(segment, record, &octets) == 0);
	if (record->type == RECORD_RESULT)
		assert_bug(results_unpack(buf_slice(&octets), &id, on_result, &delivered) > 0);
	if (record->type == RECORD_DSN) {
		assert_bug(bench.has_sender);
		assert_bug(stored_message_unpack(buf_slice(&octets), &message) == 0);
		assert_bug(results_unpack(message.settles, &id, on_result, &delivered) > 0);
		assert_bug(!delivered);
	}
	if (delivered)
		note_delivered(record->envelope_sum);
	buf_done(&octets);
}

static void check_results(void)
{
	char folder[100];
	uint32_t *numbers;
	size_t count;

	snprintf(folder, sizeof(folder), "%s/run/out", bench.folder);
	assert_bug(segment_list(folder, &numbers, &count) == 0);
	for (size_t i = 0; i < count; i++) {
		struct record_header record;
		struct segment segment;
		uint64_t offset = 0;
		if (segment_open(&file_system, folder, numbers[i], &segment) < 0)
			continue;
		while (segment_next(&segment, &offset, SEGMENT_NO_LIMIT, &record) == SEGMENT_RECORD)
			check_record(&segment, &record);
		segment_close(&segment);
	}
	free(numbers);
	assert_bug(bench.delivered <= bench.good_dots);
}

/* ---- one run ---- */

static void listen_here(struct addr *ret_addr)
{
	*ret_addr = (struct addr){
	        .u.in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)},
	        .len = sizeof(ret_addr->u.in),
	};
	bench.listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	assert_bug(bench.listener >= 0);
	assert_bug(bind(bench.listener, &ret_addr->u.sa, ret_addr->len) == 0);
	assert_bug(listen(bench.listener, 16) == 0);
	assert_bug(getsockname(bench.listener, &ret_addr->u.sa, &ret_addr->len) == 0);
	assert_bug(
	        watch_new(bench.loop, bench.listener, on_connection, NULL, &bench.listening) == 0);
	watch_set(bench.listening, WATCH_READ);
}

static const struct conf *load_conf(const struct addr *addr, const char *login)
{
	const struct conf *conf;
	struct buf text, errors;

	buf_init(&text, 4096);
	buf_init(&errors, CONF_ERRORS_MAX);
	assert_bug(buf_printf(&text,
	                   "hostname = \"h.example\"\n"
	                   "database = \"dbname=postern\"\n"
	                   "listener = { submission = { address = [\"127.0.0.1:5587\"] } }\n"
	                   "tls = { certificate = \"/c\"  key = \"/k\" }\n"
	                   "upstream = { isp = { hosts = [\"127.0.0.1:%u\"] tls = \"none\" "
	                   "connections = 1 %s } }\n"
	                   "retry = { first = \"1h\" }\n"
	                   "spool = \"%s/run\"\n"
	                   "route = \"isp\"\n",
	                   addr_port(addr), login, bench.folder) == 0);
	int r = conf_parse(buf_str(&text), "fuzz.conf", &errors, &conf);
	if (r < 0)
		fprintf(stderr, "%s", buf_str(&errors));
	assert_bug(r == 0);
	buf_done(&text);
	buf_done(&errors);
	return conf;
}

static void set_up(void)
{
	static const char *const folders[] = {"run", "run/in", "run/out"};
	char path[100];
	struct addr addr;

	if (bench.loop != NULL)
		return;
	log_init("fuzz", (enum log_level)(LOG_ALARM + 1));
	assert_bug(loop_new(&bench.loop) == 0);
	bench.folder = bench_folder();
	bench.peer.fd = -1;
	listen_here(&addr);
	bench.confs[0] = load_conf(&addr, "");
	bench.confs[1] = load_conf(&addr, "username = \"u\" password_file = \"/p\"");
	write_message("null", SLICE(""));
	write_message("sender", SLICE("a@x.example"));
	for (size_t i = 0; i < ARRAY_LEN(folders); i++) {
		snprintf(path, sizeof(path), "%s/%s", bench.folder, folders[i]);
		assert_bug(mkdir(path, 0700) == 0);
	}
}

static void start(uint8_t flags)
{
	const struct slice password = SLICE("secret");
	const struct relay_settings settings = {
	        .conf = bench.confs[(flags & LOGIN) != 0],
	        .main_loop = bench.loop,
	        .wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
	        .control_fd = -1,
	        .database_password = SLICE(""),
	        .passwords = &password,
	        .password_count = 1,
	};
	struct why why;

	bench.has_sender = (flags & SENDER) != 0;
	bench.good_dots = bench.delivered = 0;
	bench.refusing = bench.stopped = bench.may_fail = false;
	renew_spool(bench.has_sender ? "sender" : "null");
	assert_bug(relay_new(&settings, &bench.relay, &why) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct slice in = slice_of(data, size);

	bench_in_harness = true;
	set_up();
	start(fuzz_u8(&in));
	bench_turn(bench.loop, is_connected, NULL);
	bench_turn(bench.loop, is_quiet, NULL);
	for (unsigned i = 0; i < PIECES_MAX && in.len > 0 && bench.peer.fd >= 0; i++) {
		say(&bench.peer, slice_part(slice_until(&in, '\xff'), 0, PIECE_MAX));
		bench_turn(bench.loop, is_quiet, NULL);
	}
	bench.refusing = true;
	close_peer();
	bench_turn(bench.loop, is_quiet, NULL);
	relay_stop(bench.relay, on_stopped, NULL);
	bench_turn(bench.loop, has_stopped, NULL);
	relay_free(bench.relay);
	check_results();
	return 0;
}

/* SPDX-License-Identifier: ISC */
/*
 * A crowd of clients in one process, for tests: Python would need more processor than the gateway.
 *
 *     crowd KIND PORT COUNT SOURCES [RESPONSE]
 *
 * It connects COUNT times to 127.0.0.1:PORT, from SOURCES addresses all over 127/8 in turn, says
 * "ready", and holds the connections until its input ends; one that was closed is made anew. For
 * each line of input it says what it has met so far, and at the end once more. KIND is
 *
 *     idle     TLS, EHLO, AUTH PLAIN with that RESPONSE, then nothing: these are not made anew
 *     silent   nothing at all
 *     slow     an octet of a command every tenth of a second
 *     flood    commands as fast as they are taken, replies unread
 *     half     of TLS the first message, which makes the server work, no more; anew every second
 */
#include <errno.h>
#include <gnutls/gnutls.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define THREADS 4 /* that log in side by side */
#define TURN_MS 100

struct connection {
	int fd;     /* -1: none */
	bool spoke; /* of TLS the first message has left */
	bool heard; /* the server has said something */
	bool sent_away;
};

static const char *kind, *response;
static unsigned port, count, sources;
static struct connection *connections;
static atomic_uint next;

/*
 * What it has met: connections that are served now; and of all that were made, those on which the
 * server was heard, that it has ended, or that it has sent away unserved.
 */
static struct {
	atomic_uint here, made, heard, ended, sent_away;
} met;
static char hello[4096];
static size_t hello_len;

static void die(const char *what)
{
	perror(what);
	exit(EXIT_FAILURE);
}

static bool is_kind(const char *name)
{
	return strcmp(kind, name) == 0;
}

/* `flags` for socket(); it may still be on its way. */
static int make_connection(unsigned number, int flags)
{
	unsigned source = number % sources;
	const struct sockaddr_in from = {.sin_family = AF_INET,
	        .sin_addr.s_addr =
	                htonl(0x7f000001 + (16 + source % 200) * 65536 + source / 200 % 250 * 256)};
	const struct sockaddr_in to = {.sin_family = AF_INET,
	        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	        .sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

	if (fd < 0)
		die("socket");
	/* So that ports are not used up: the same one may go to another destination. */
	(void)setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
	if (bind(fd, (const struct sockaddr *)&from, sizeof(from)) < 0)
		die("bind");
	if (connect(fd, (const struct sockaddr *)&to, sizeof(to)) < 0 && errno != EINPROGRESS)
		die("connect");
	atomic_fetch_add(&met.made, 1);
	return fd;
}

/* ---- who logs in ---- */

/* Sends the line, if there is one, and waits for a reply with that code. */
static void ask(gnutls_session_t session, const char *line, const char *code)
{
	char text[4096];
	size_t len = 0;

	if (line != NULL && gnutls_record_send(session, line, strlen(line)) < 0)
		die("send");
	for (;;) {
		ssize_t got = gnutls_record_recv(session, text + len, sizeof(text) - 1 - len);
		if (got == GNUTLS_E_AGAIN || got == GNUTLS_E_INTERRUPTED)
			continue; /* a session ticket came */
		if (got <= 0 || len + (size_t)got == sizeof(text) - 1) {
			fprintf(stderr, "no %s came: %s\n", code,
			        got < 0 ? gnutls_strerror((int)got) : "closed");
			exit(EXIT_FAILURE);
		}
		len += (size_t)got;
		text[len] = '\0';
		if (text[len - 1] == '\n' && strstr(text, code) != NULL)
			return;
		if (text[len - 1] == '\n' && text[0] >= '4') {
			fprintf(stderr, "no %s came: %s", code, text);
			exit(EXIT_FAILURE);
		}
	}
}

static void *log_in(void *arg)
{
	gnutls_certificate_credentials_t credentials;
	char line[512];
	unsigned number;

	(void)arg;
	snprintf(line, sizeof(line), "AUTH PLAIN %s\r\n", response);
	gnutls_certificate_allocate_credentials(&credentials);
	while ((number = atomic_fetch_add(&next, 1)) < count) {
		gnutls_session_t session;
		int fd = make_connection(number, 0), r;
		gnutls_init(&session, GNUTLS_CLIENT);
		gnutls_set_default_priority(session);
		gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
		gnutls_transport_set_int(session, fd);
		while ((r = gnutls_handshake(session)) < 0 && gnutls_error_is_fatal(r) == 0)
			continue;
		if (r < 0) {
			fprintf(stderr, "handshake: %s\n", gnutls_strerror(r));
			exit(EXIT_FAILURE);
		}
		ask(session, NULL, "220 ");
		ask(session, "EHLO crowd.test\r\n", "250 ");
		ask(session, line, "235 ");
		/* The server does not notice: its session is as idle as any. */
		gnutls_deinit(session);
		connections[number].fd = fd;
	}
	gnutls_certificate_free_credentials(credentials);
	return NULL;
}

/* ---- junk ---- */

static ssize_t keep_hello(gnutls_transport_ptr_t arg, const void *data, size_t len)
{
	(void)arg;
	if (hello_len + len > sizeof(hello))
		die("hello");
	memcpy(hello + hello_len, data, len);
	hello_len += len;
	return (ssize_t)len;
}

static ssize_t no_answer(gnutls_transport_ptr_t arg, void *data, size_t len)
{
	(void)arg;
	(void)data;
	(void)len;
	errno = EAGAIN;
	return -1;
}

/* What a client says first. */
static void make_hello(void)
{
	gnutls_certificate_credentials_t credentials;
	gnutls_session_t session;

	gnutls_certificate_allocate_credentials(&credentials);
	gnutls_init(&session, GNUTLS_CLIENT | GNUTLS_NONBLOCK);
	gnutls_set_default_priority(session);
	gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
	gnutls_transport_set_push_function(session, keep_hello);
	gnutls_transport_set_pull_function(session, no_answer);
	(void)gnutls_handshake(session);
	gnutls_deinit(session);
	gnutls_certificate_free_credentials(credentials);
}

static bool is_closed(int fd)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLRDHUP};

	return poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

static void leave(struct connection *one)
{
	close(one->fd);
	*one = (struct connection){.fd = -1};
}

/* Takes notice of what the server has said or done. */
static void listen_to(struct connection *one)
{
	char text[4096] = "";
	/* A flooder leaves the replies where they are, until the end. */
	bool reads = !is_kind("flood") || is_closed(one->fd);
	ssize_t got = recv(one->fd, text, sizeof(text), MSG_DONTWAIT | (reads ? 0 : MSG_PEEK));

	if (got > 0) {
		if (!one->heard)
			atomic_fetch_add(&met.heard, 1);
		one->sent_away |= !one->heard && memcmp(text, "421", 3) == 0;
		one->heard = true;
		if (!is_kind("flood") || !reads)
			return;
	} else if (got < 0 && errno == EAGAIN) {
		return;
	}
	atomic_fetch_add(one->heard && !one->sent_away ? &met.ended : &met.sent_away, 1);
	leave(one);
}

static void speak(struct connection *one)
{
	static const char noops[] =
	        "NOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\n";

	if (is_kind("half") && !one->spoke)
		one->spoke = send(one->fd, hello, hello_len, MSG_DONTWAIT | MSG_NOSIGNAL) > 0;
	if (is_kind("slow"))
		(void)!send(one->fd, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
	for (unsigned i = 0; i < 50 && is_kind("flood"); i++) {
		if (send(one->fd, noops, sizeof(noops) - 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
			break;
	}
}

/* One turn of one connection: whether it is being served, and is not sent away. */
static bool act(unsigned number, unsigned turn)
{
	struct connection *one = &connections[number];

	if (one->fd >= 0)
		listen_to(one);
	if (one->fd >= 0 && is_kind("half") && turn % 10 == number % 10)
		leave(one);
	if (one->fd < 0)
		one->fd = make_connection(number, SOCK_NONBLOCK);
	speak(one);
	return is_kind("half") ? one->spoke : one->heard && !one->sent_away;
}

static void *make_junk(void *arg)
{
	(void)arg;
	for (unsigned turn = 0;; turn++) {
		unsigned here = 0;
		for (unsigned number = 0; number < count; number++)
			here += act(number, turn);
		atomic_store(&met.here, here);
		if (turn == 10) {
			puts("ready");
			fflush(stdout);
		}
		nanosleep(&(struct timespec){.tv_nsec = TURN_MS * 1000000L}, NULL);
	}
	return NULL;
}

/* Of the idle ones, what it has met is looked at now. */
static void tell(void)
{
	for (unsigned i = 0; i < count && is_kind("idle"); i++) {
		if (connections[i].fd >= 0 && is_closed(connections[i].fd)) {
			leave(&connections[i]);
			met.here--;
			met.ended++;
		}
	}
	printf("here=%u made=%u heard=%u ended=%u sent_away=%u\n", met.here, met.made, met.heard,
	        met.ended, met.sent_away);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS];
	struct rlimit files;

	if (argc < 5)
		return EXIT_FAILURE;
	kind = argv[1];
	port = (unsigned)strtoul(argv[2], NULL, 10);
	count = (unsigned)strtoul(argv[3], NULL, 10);
	sources = (unsigned)strtoul(argv[4], NULL, 10);
	response = argc > 5 ? argv[5] : "";
	connections = calloc(count + 1, sizeof(*connections));
	if (connections == NULL || sources == 0 || getrlimit(RLIMIT_NOFILE, &files) < 0)
		die("memory");
	for (unsigned i = 0; i < count; i++)
		connections[i].fd = -1;
	files.rlim_cur = files.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &files);
	make_hello();
	unsigned thread_count = is_kind("idle") ? THREADS : 1;
	for (unsigned i = 0; i < thread_count; i++)
		pthread_create(&threads[i], NULL, is_kind("idle") ? log_in : make_junk, NULL);
	if (is_kind("idle")) {
		for (unsigned i = 0; i < thread_count; i++)
			pthread_join(threads[i], NULL);
		met.here = met.heard = count;
		puts("ready");
		fflush(stdout);
	}
	for (char line; read(STDIN_FILENO, &line, 1) > 0;)
		tell();
	tell();
	_exit(EXIT_SUCCESS);
}

/* SPDX-License-Identifier: ISC */
/*
 * A whole client session of `submit`, with a spool and an `auth` that says yes to
 * everything; TLS is taken for granted. The input is what the client sends, in pieces that
 * end with 0xff: behind each it waits for all replies. A 0xfe at the very end: it goes
 * away without waiting. A piece of 0xfd: the disk begins to fail, or ends to. A first piece of
 * 0xfc: the address is in an account's network, and that is enough; of 0xfb: it is in none. There
 * TLS has asked for a certificate, which it got. A model of one page
 * says which replies each command may get: one, in order, and 250 to the final dot only for a
 * message that is in the spool. Once memory has failed (memory.c) only the latter must hold, and
 * that it refuses nothing for good which it takes otherwise. On the listener with networks lines
 * may end as they like.
 */
#include "gateway/submit/session.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gateway/spool/segment.h"
#include "tests/fuzz/bench.h"
#include "tests/fuzz/fuzz.h"

/* A piece and what was left of the one before fit the window: what is behind a command is known. */
#define PIECE_MAX      3900
#define PIECES_MAX     64
#define OUTPUT_MAX     (1U << 20)
#define ACCOUNT        42
#define MESSAGE_MAX    10240
#define COMMAND_MAX    4096
#define ERRORS_MAX     20
#define FRUITLESS_MAX  10000
#define LOGIN_FAILURES 5
#define SPOOL_ROUND    2000 /* messages, then a new spool */

/* A first piece that chooses the listener with networks, and the address. */
#define GRANTED         "\xfc"
#define NOBODYS         "\xfb"
#define GRANTED_ADDRESS "192.0.2.1"

const char *const fuzz_phrases[] = {
        "EHLO c.example\r\n\xff",
        "HELO c.example\r\n\xff",
        "STARTTLS\r\n\xff",
        "AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n\xff",
        "AUTH LOGIN\r\n\xff",
        "AUTH PLAIN\r\n\xff",
        "AGFsaWNlAHNlY3JldA==\r\n\xff",
        "*\r\n\xff",
        "MAIL FROM:<a@x.example>\r\n\xff",
        "MAIL FROM:<> SIZE=100 BODY=8BITMIME\r\n\xff",
        "MAIL FROM:<other@z.example>\r\n\xff",
        "RCPT TO:<b@y.example>\r\n\xff",
        "RCPT TO:<>\r\n\xff",
        "DATA\r\n\xff",
        "MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n\xff",
        "From: a@x.example\r\nSubject: x\r\n\r\nHello\r\n.\r\n\xff",
        "From: a@x.example\r\n\r\n..\r\nHello\r\n.\r\nNOOP\r\n\xff",
        "From: other@z.example\r\n\r\nHello\r\n.\r\n\xff",
        "RSET\r\n\xff",
        "NOOP\r\nNOOP\r\n\xff",
        "VRFY a\r\n\xff",
        "HELP\r\n\xff",
        "QUIT\r\n\xff",
        "\xfd\xff",
        "FOO bar\r\n\xff",
        "\xfc\xff",
        "\xfb\xff",
        "AUTH EXTERNAL =\r\n\xff",
        ("MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nBDAT 22 LAST\r\nFrom: "
         "a@x.example\r\n\r\nx\xff"),
        "BDAT 21\r\nFrom: a@x.example\r\n\r\n\xff",
        "BDAT 5\r\n\r\n.\r\n\xff",
        "BDAT 0 LAST\r\n\xff",
        "BDAT 6 LAST\nQUIT\r\n\xff",
        "BDAT 9000\r\n\xff",
        "FOO\r\nFOO\r\nFOO\r\nFOO\r\nFOO\r\nFOO\r\nFOO\r\n\xff",
        "AUTH EXTERNAL\r\n\xff",
};
const size_t fuzz_phrase_count = ARRAY_LEN(fuzz_phrases);

static struct {
	struct loop *loop;
	struct serving serving;
	int auth; /* our end of its link */
	struct watch *auth_watch;
	const char *folder;
	unsigned stored; /* messages in this spool, as seen there */
	struct segment segment;
	uint64_t offset;
	/* Set by the loop; while it is, the thread of the journal cannot sync. */
	_Atomic bool disk_fails;
} bench;

/* ---- TLS taken for granted: the linker puts these in front of gateway/net ---- */

bool __wrap_conn_is_secure(const struct conn *conn);
const char *__wrap_conn_tls_version(const struct conn *conn);
const char *__wrap_conn_tls_cipher(const struct conn *conn);
struct tls_server *__wrap_tls_server_ref(struct tls_server *server);
bool __wrap_conn_fingerprint(const struct conn *conn, char ret_text[TLS_FINGERPRINT]);

bool __wrap_conn_is_secure(const struct conn *conn)
{
	(void)conn;
	return true;
}

const char *__wrap_conn_tls_version(const struct conn *conn)
{
	(void)conn;
	return "TLS1.3";
}

const char *__wrap_conn_tls_cipher(const struct conn *conn)
{
	(void)conn;
	return "AES-256-GCM";
}

struct tls_server *__wrap_tls_server_ref(struct tls_server *server)
{
	return server;
}

bool __wrap_conn_fingerprint(const struct conn *conn, char ret_text[TLS_FINGERPRINT])
{
	(void)conn;
	memset(ret_text, 'a', TLS_FINGERPRINT - 1);
	ret_text[TLS_FINGERPRINT - 1] = '\0';
	return true;
}

/* ---- the world around the session ---- */

static void answer(const struct auth_message *question)
{
	static const struct slice senders[] = {{"@x.example", 10}, {"a+*@y.example", 13}};
	static const struct auth_account account = {
	        .id = ACCOUNT,
	        .login = {"alice", 5},
	        .route = {"", 0},
	        .recipients = 5,
	        .valid_until_ms = UINT64_MAX,
	        .senders = senders,
	        .sender_count = ARRAY_LEN(senders),
	};
	struct auth_message message = {.number = question->number, .charge = question->charge};
	struct buf out;

	if (question->type == AUTH_LOGIN_START || question->type == AUTH_LOGIN_STEP ||
	        question->type == AUTH_LOGIN_AGAIN)
		message.type = AUTH_DONE;
	else if (question->type == AUTH_LOGIN_NETWORK)
		message.type = slice_equal(question->client_address, SLICE(GRANTED_ADDRESS))
		                       ? AUTH_DONE
		                       : AUTH_REFUSED;
	else if (question->type == AUTH_ADMIT)
		message.type = AUTH_ADMITTED;
	else
		return;
	assert_bug(message.type != AUTH_ADMITTED || question->charge.account == ACCOUNT);
	message.charge.bytes_counted = true;
	buf_init(&out, PROTOCOL_DATAGRAM_MAX);
	assert_bug(protocol_encode(&message, &account, &out) == 0);
	assert_bug(protocol_send(bench.auth, buf_slice(&out)) == 0);
	buf_done(&out);
}

static void on_question(void *arg, unsigned events)
{
	static struct auth_account_room account;
	static char room[PROTOCOL_DATAGRAM_MAX];
	struct auth_message question;
	struct slice datagram;

	(void)arg;
	(void)events;
	bench_in_harness = true;
	while (protocol_receive(bench.auth, room, &datagram) == 1) {
		assert_bug(protocol_decode(datagram, &question, &account) == 0);
		answer(&question);
	}
	bench_in_harness = false;
}

static void on_session_ended(struct serving *serving)
{
	(void)serving;
}

static void on_changed(void *arg, uint64_t account, uint64_t era)
{
	(void)arg;
	sessions_account_changed(&bench.serving, account, era);
}

static void load_conf(void)
{
	static const char text[] = "hostname = \"h.example\"\n"
	                           "database = \"dbname=postern\"\n"
	                           "listener = { submission = { address = [\"127.0.0.1:5587\"] }\n"
	                           " relay = { address = [\"127.0.0.1:5025\"]\n"
	                           "  networks = true  client_certificates = true\n"
	                           "  bare_newline = \"normalize\" } }\n"
	                           "tls = { certificate = \"/c\"  key = \"/k\" }\n"
	                           "upstream = { isp = { hosts = [\"smtp.isp.example:587\"] } }\n"
	                           "submission = { message_size = \"10K\" }\n"
	                           "route = \"isp\"\n";
	struct buf errors;

	buf_init(&errors, CONF_ERRORS_MAX);
	int r = conf_parse(text, "fuzz.conf", &errors, &bench.serving.conf);
	if (r < 0)
		fprintf(stderr, "%s", buf_str(&errors));
	assert_bug(r == 0);
	buf_done(&errors);
}

/* The journal's thread; where its last batch stands. */
static off_t batch_offset;

static ssize_t note_batch(int fd, const struct iovec *parts, int count, off_t offset)
{
	batch_offset = offset;
	return file_system.pwritev(fd, parts, count, offset);
}

/* What could not be synced is lost, as after a power cut. */
static int sync_or_lose(int fd)
{
	if (!bench.disk_fails)
		return file_system.fdatasync(fd);
	assert_bug(ftruncate(fd, batch_offset) == 0);
	return -EIO;
}

static void open_spool(void)
{
	static struct file_ops ops;
	const struct spool_in_settings settings = {
	        .path = bench.folder, .ops = &ops, .wake_fd = -1};
	char folder[100];
	uint32_t *numbers;
	size_t count;
	struct why why;

	ops = file_system;
	ops.fdatasync = sync_or_lose;
	ops.pwritev = note_batch;
	bench.disk_fails = false;
	assert_bug(spool_in_open(&settings, &bench.serving.spool, &why) == 0);
	snprintf(folder, sizeof(folder), "%s/in", bench.folder);
	assert_bug(segment_list(folder, &numbers, &count) == 0 && count == 1);
	assert_bug(segment_open(&file_system, folder, numbers[0], &bench.segment) == 0);
	free(numbers);
	bench.offset = 0;
	bench.stored = 0;
}

static void close_spool(void)
{
	bench.disk_fails = false;
	segment_close(&bench.segment);
	spool_in_close(bench.serving.spool);
	bench_empty();
}

static void set_up(void)
{
	int pair[2];

	if (bench.loop != NULL)
		return;
	log_init("fuzz", (enum log_level)(LOG_ALARM + 1));
	assert_bug(loop_new(&bench.loop) == 0);
	bench.folder = bench_folder();
	load_conf();
	open_spool();
	assert_bug(slots_new(&bench.serving.slots) == 0);
	assert_bug(shares_new(&bench.serving.shares) == 0);
	bench.serving.loop = bench.loop;
	bench.serving.on_session_ended = on_session_ended;
	list_init(&bench.serving.sessions);
	list_init(&bench.serving.lingering);
	assert_bug(auth_link_new(bench.loop, on_changed, NULL, &bench.serving.auth) == 0);
	assert_bug(
	        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
	bench.auth = pair[0];
	assert_bug(watch_new(bench.loop, bench.auth, on_question, NULL, &bench.auth_watch) == 0);
	watch_set(bench.auth_watch, WATCH_READ);
	auth_link_connect(bench.serving.auth, pair[1]);
	(void)atexit(close_spool);
}

/* ---- the client ---- */

struct client {
	int fd;
	bool ended; /* the server has closed */
	struct buf output;
};

static struct session *the_session(void)
{
	return list_is_empty(&bench.serving.sessions)
	               ? NULL
	               : list_entry(bench.serving.sessions.next, struct session, link);
}

/* Nothing happens any more unless the client sends something. */
static bool is_waiting(void *arg)
{
	const struct client *client = arg;
	const struct session *session = the_session();

	if (client->ended)
		return session == NULL;
	if (bench_has_unread(client->fd))
		return false;
	if (session == NULL)
		return client->ended;
	/* The rest is for the next turn; when that is over, it is half a line. */
	if (session->turn_left == 0 && session_has_input(session) &&
	        loop_turn(bench.loop) <= session->turn + 1)
		return false;
	return ((S(START) | S(READY) | S(MAIL) | S(RCPT) | S(AUTH_MORE) | S(DATA) | S(CHUNK) |
	                S(BDAT) | S(DISCARD)) &
	               1U << session->state) != 0 &&
	       conn_unsent(session->conn) == 0;
}

static void on_output(void *arg, unsigned events)
{
	struct client *client = arg;
	char octets[4096];
	ssize_t got;

	(void)events;
	bench_in_harness = true;
	while ((got = recv(client->fd, octets, sizeof(octets), MSG_DONTWAIT)) > 0)
		assert_bug(buf_append(&client->output, octets, (size_t)got) == 0);
	if (got == 0 || (got < 0 && errno != EAGAIN))
		client->ended = true;
	bench_in_harness = false;
}

/* ---- the model ---- */

static bool codes_seen[600]; /* in the last run whose memory did not fail */

enum model_state { START, READY, MAIL, RCPT, RESPONSE, DATA, CHUNK, CHUNKS, GONE };

struct model {
	enum model_state state;
	bool logged_in;
	bool normalize;   /* lines may end with a bare LF */
	bool granted;     /* its address is in the account's network */
	struct buf text;  /* that was sent and is not accounted for: half a line, or a message */
	bool disk_failed; /* since this session began */
	struct slice behind;
	struct slice replies; /* that came and are not accounted for */
	struct {
		uint64_t size;
		bool last;
		unsigned refused;        /* the code, or 0: it belongs to the message */
		bool excused;            /* its refusal is no error */
		enum model_state behind; /* where a refusal leads */
	} chunk;
	struct buf chunks;  /* of the message so far */
	unsigned errors;    /* since the last message */
	unsigned fruitless; /* replies since the last that led on */
	bool excused;       /* what is behind a refusal */
	unsigned failures;  /* logins that came to nothing, on this connection */
	unsigned accepted;
	char ids[PIECES_MAX * 64][ID_TEXT + 1];
};

static bool is_not_possible_now(struct slice line)
{
	return slice_starts_with(line, SLICE("503 5.5.1 Not possible now"));
}

/* Addresses are no errors, nor is a login cancelled. */
static bool is_error(unsigned code, struct slice line)
{
	if (code == 501 || code == 503)
		return slice_starts_with(slice_part(line, 4, line.len), SLICE("5.5.")) &&
		       !is_not_possible_now(line);
	return code == 500 || code == 504 || code == 555;
}

static bool is_queued(struct slice line)
{
	return slice_starts_with(line, SLICE("250 2.0.0 queued as "));
}

/* How near to its end the session is. */
static void model_count(struct model *model, unsigned code, struct slice line)
{
	bool led_on = code == 235 || is_queued(line) ||
	              slice_starts_with(line, SLICE("250 2.1.5 ")) ||
	              slice_ends_with_nocase(line, SLICE(" octets received\r"));

	model->errors = is_queued(line) ? 0 : model->errors + is_error(code, line);
	model->fruitless = led_on ? 0 : model->fruitless + 1;
}

/* The code of the next reply, all of its lines; 0 when there is none. */
static unsigned next_reply(struct model *model, struct slice *ret_last)
{
	unsigned code = 0;
	struct slice line = {"", 0};

	while (model->replies.len > 0) {
		line = slice_until(&model->replies, '\n');
		assert_bug(line.len >= 4 && line.ptr[line.len - 1] == '\r');
		assert_bug(!fuzz_has_controls(slice_of(line.ptr, line.len - 1)));
		unsigned this_code = (unsigned)(line.ptr[0] - '0') * 100 +
		                     (unsigned)(line.ptr[1] - '0') * 10 +
		                     (unsigned)(line.ptr[2] - '0');
		assert_bug(this_code >= 200 && this_code <= 555);
		assert_bug(code == 0 || code == this_code);
		code = this_code;
		if (line.ptr[3] != '-')
			break;
	}
	codes_seen[code] |= !bench_memory_fails;
	if (code != 0)
		model_count(model, code, line);
	*ret_last = line;
	return code;
}

static bool is_one_of(unsigned code, const unsigned *codes)
{
	while (*codes != 0 && *codes != code)
		codes++;
	return *codes != 0;
}

#define CODES(...) ((const unsigned[]){__VA_ARGS__, 0})

/* The next reply, which must be one of these. */
static unsigned expect(struct model *model, const unsigned *codes)
{
	struct slice line;
	unsigned code = next_reply(model, &line);

	if (!is_one_of(code, codes))
		fprintf(stderr, "unexpected reply: %u\n", code);
	assert_bug(is_one_of(code, codes));
	return code;
}

static void expect_only(struct model *model, unsigned code)
{
	(void)expect(model, CODES(code));
}

static bool is_verb(struct slice verb, const char *text)
{
	return slice_equal_nocase(verb, slice_str(text));
}

/* A login that came to nothing by the client's own doing. */
static void model_failure(struct model *model)
{
	if (++model->failures < LOGIN_FAILURES)
		return;
	expect_only(model, 421);
	model->state = GONE;
}

static void model_auth(struct model *model)
{
	if (model->state != READY) {
		expect_only(model, 503);
		return;
	}
	switch (expect(model, CODES(235, 334, 501, 503, 504))) {
	case 235:
		assert_bug(!model->logged_in);
		model->logged_in = true;
		model->excused = false;
		break;
	case 334:
		assert_bug(!model->logged_in);
		model->state = RESPONSE;
		break;
	case 501:
		model_failure(model);
		break;
	case 503:
		assert_bug(model->logged_in);
		break;
	}
}

/* What to say to RCPT, DATA and BDAT where they do not belong: whether it is an error. */
static bool is_excused(const struct model *model)
{
	return model->excused || model->state == MAIL;
}

static void expect_out_of_order(struct model *model, bool excused)
{
	struct slice line;

	assert_bug(next_reply(model, &line) == 503);
	assert_bug(is_not_possible_now(line) == excused);
}

static void model_out_of_order(struct model *model)
{
	if (model->state == READY && !model->logged_in)
		expect_only(model, 530);
	else
		expect_out_of_order(model, is_excused(model));
}

static void model_mail(struct model *model)
{
	if (!model->logged_in) {
		expect_only(model, 530);
	} else if (model->state != READY) {
		expect_only(model, 503);
	} else {
		unsigned code = expect(model, CODES(250, 451, 452, 501, 550, 552, 553, 555));
		assert_bug(code != 451 || model->disk_failed);
		model->state = code == 250 ? MAIL : READY;
		model->excused = code != 250;
	}
}

static void model_rcpt(struct model *model)
{
	if (model->state == MAIL || model->state == RCPT) {
		if (expect(model, CODES(250, 452, 501, 553, 555)) == 250)
			model->state = RCPT;
	} else {
		model_out_of_order(model);
	}
}

static void model_data(struct model *model)
{
	if (model->state == RCPT) {
		if (expect(model, CODES(354, 501)) == 354)
			model->state = DATA;
	} else {
		model_out_of_order(model);
	}
}

/* The octets behind it are accounted for when they have come. */
static void model_bdat(struct model *model, struct slice args)
{
	struct slice size, rest = slice_trim(args);
	bool taken = model->state == RCPT || model->state == CHUNKS;

	size = slice_until(&rest, ' ');
	rest = slice_trim(rest);
	int r = size.len > 20 ? -EINVAL : slice_to_u64(size, &model->chunk.size);
	if (r == -EINVAL || (rest.len > 0 && !is_verb(rest, "LAST"))) {
		expect_only(model, 501);
		model->state = GONE;
		return;
	}
	model->chunk.last = rest.len > 0;
	model->chunk.refused = taken ? 0 : model->state == READY && !model->logged_in ? 530 : 503;
	model->chunk.excused = is_excused(model);
	model->chunk.behind = model->state == START ? START : READY;
	if (r == -ERANGE || model->chunk.size > 2 * MESSAGE_MAX + 1) {
		expect_only(model, taken ? 552 : model->chunk.refused);
		model->state = GONE;
		return;
	}
	if (model->state != CHUNKS)
		buf_clear(&model->chunks);
	model->state = CHUNK;
}

/* Those that may come at any time. */
static void model_simple(struct model *model, struct slice verb)
{
	bool open = model->state != START;

	if (is_verb(verb, "EHLO") || is_verb(verb, "HELO")) {
		if (expect(model, CODES(250, 501)) == 250) {
			model->state = READY;
			model->excused = false;
		}
	} else if (is_verb(verb, "RSET")) {
		if (expect(model, CODES(250, 501)) == 250) {
			model->state = open ? READY : START;
			model->excused = false;
		}
	} else if (is_verb(verb, "QUIT")) {
		if (expect(model, CODES(221, 501)) == 221)
			model->state = GONE;
	} else if (is_verb(verb, "NOOP")) {
		expect_only(model, 250);
	} else if (is_verb(verb, "HELP")) {
		expect_only(model, 214);
	} else if (is_verb(verb, "VRFY")) {
		expect_only(model, model->logged_in ? 252 : 530);
	} else if (is_verb(verb, "STARTTLS")) {
		(void)expect(model, CODES(501, 503)); /* TLS is on */
	} else {
		expect_only(model, 500);
	}
}

static bool is_http(struct slice verb)
{
	static const char *const verbs[] = {
	        "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE", "PATCH", "TRACE"};

	for (size_t i = 0; i < ARRAY_LEN(verbs); i++)
		if (slice_equal(verb, slice_str(verbs[i])))
			return true;
	return false;
}

/* Those whose reply must be awaited (RFC 2920 3.1): what is behind them ends the session. */
static bool ends_a_group(struct slice verb)
{
	static const char *const verbs[] = {"EHLO", "HELO", "STARTTLS", "AUTH", "DATA"};

	for (size_t i = 0; i < ARRAY_LEN(verbs); i++)
		if (is_verb(verb, verbs[i]))
			return true;
	return false;
}

static void model_command(struct model *model, struct slice line)
{
	struct slice verb = slice_until(&line, ' ');

	if (ends_a_group(verb) && model->behind.len > 0) {
		expect_only(model, 503);
		model->state = GONE;
	} else if (is_http(verb)) {
		expect_only(model, 500);
		model->state = GONE;
	} else if (is_verb(verb, "AUTH")) {
		model_auth(model);
	} else if (is_verb(verb, "MAIL")) {
		model_mail(model);
	} else if (is_verb(verb, "RCPT")) {
		model_rcpt(model);
	} else if (is_verb(verb, "DATA")) {
		model_data(model);
	} else if (is_verb(verb, "BDAT")) {
		model_bdat(model, line);
	} else {
		model_simple(model, verb);
	}
}

/* A response in a login: the client may not have said more before it knew. */
static void model_response(struct model *model)
{
	unsigned code = expect(model, CODES(235, 501, 503));

	assert_bug((code == 503) <= (model->behind.len > 0));
	assert_bug(code != 235 || model->behind.len == 0);
	model->state = code == 503 ? GONE : READY;
	model->logged_in = model->logged_in || code == 235;
	model->excused = model->excused && code != 235;
	if (code == 501)
		model_failure(model);
}

static bool is_bdat(struct slice line)
{
	return slice_starts_with_nocase(line, SLICE("BDAT")) &&
	       (line.len == 4 || line.ptr[4] == ' ' ||
	               fuzz_has_controls(slice_of(line.ptr + 4, 1)));
}

/* One that is not run; the chunk of a BDAT would be. */
static void model_refused_line(struct model *model, struct slice line)
{
	if (!is_bdat(line)) {
		expect_only(model, 500);
		return;
	}
	expect_only(model, 501);
	model->state = GONE;
}

static void model_line(struct model *model, struct slice line)
{
	bool response = model->state == RESPONSE;
	bool cr = line.len > 0 && line.ptr[line.len - 1] == '\r';
	struct slice text = slice_of(line.ptr, line.len - cr);
	size_t limit =
	        response || slice_starts_with_nocase(line, SLICE("AUTH ")) ? 12290 : COMMAND_MAX;

	if (response) {
		model_response(model);
	} else if (line.len >= limit || (!cr && !model->normalize) || fuzz_has_controls(text) ||
	           !slice_is_utf8(text)) {
		model_refused_line(model, line);
	} else {
		/* The first MAIL makes it somebody, whatever becomes of it. */
		model->logged_in |= model->granted && model->state == READY &&
		                    slice_starts_with_nocase(line, SLICE("MAIL "));
		model_command(model, text);
	}
}

/* Where the message ends in what was sent since 354, or 0. */
static size_t find_end(struct slice text)
{
	if (slice_starts_with(text, SLICE(".\r\n")))
		return 3;
	const char *end = text.len == 0 ? NULL : memmem(text.ptr, text.len, "\r\n.\r\n", 5);
	return end == NULL ? 0 : (size_t)(end - text.ptr) + 5;
}

/* It has not ended. When it is too big to be heard out, its reply says so. */
static void model_half(struct model *model, struct slice text)
{
	/* Its size counts neither all dots nor what the ends of lines were. */
	if (model->replies.len == 0) {
		assert_bug(text.len <= 4UL * MESSAGE_MAX);
		return;
	}
	assert_bug(text.len > MESSAGE_MAX);
	unsigned code = expect(model, CODES(451, 550, 552, 553, 554));
	assert_bug(code != 451 || model->disk_failed);
	model->state = GONE;
}

/* The id that a 250 to a final dot ends with. */
static void note_accepted(struct model *model, struct slice line)
{
	ptrdiff_t blank = slice_find_last(line, ' ');
	struct slice id = slice_part(line, (size_t)blank + 1, ID_TEXT);

	assert_bug(id.len == ID_TEXT && model->accepted < ARRAY_LEN(model->ids));
	memcpy(model->ids[model->accepted++], id.ptr, id.len);
}

static void model_message(struct model *model, struct slice message)
{
	struct slice line;
	unsigned code = next_reply(model, &line);

	assert_bug(is_one_of(code, CODES(250, 451, 452, 550, 552, 553, 554)));
	assert_bug(code != 451 || model->disk_failed);
	if ((!fuzz_lines_are_whole(message) && !model->normalize) || slice_find(message, '\0') >= 0)
		assert_bug(code == 550);
	if (code == 250) {
		note_accepted(model, line);
	}
	model->excused = code != 250;
	model->state = READY;
}

static void model_chunk(struct model *model, struct slice octets)
{
	if (model->chunk.refused != 0) {
		if (model->chunk.refused == 503)
			expect_out_of_order(model, model->chunk.excused);
		else
			expect_only(model, model->chunk.refused);
		model->excused |= model->chunk.refused != 503 || model->chunk.excused;
		model->state = model->chunk.behind;
		return;
	}
	assert_bug(buf_append_slice(&model->chunks, octets) == 0);
	/* The limit is for the text that is made of it. */
	if (buf_len(&model->chunks) > MESSAGE_MAX && !model->normalize) {
		unsigned code = expect(model, CODES(550, 552));
		assert_bug(code == 552 || octets.len <= MESSAGE_MAX);
		model->excused = true;
		model->state = READY;
	} else if (!model->chunk.last) {
		unsigned code = expect(model, CODES(250, 451, 550, 552, 553, 554));
		assert_bug(code != 451 || model->disk_failed);
		model->state = code == 250 ? CHUNKS : READY;
		model->excused = code != 250;
	} else {
		struct slice all = buf_slice(&model->chunks);
		if (!slice_ends_with_nocase(all, SLICE("\r\n")))
			assert_bug(buf_append(&model->chunks, "\r\n", 2) == 0);
		model_message(model, buf_slice(&model->chunks));
	}
}

/* When so much went wrong, or so little happened, it ends; not in a message. */
static void model_patience(struct model *model)
{
	if (model->state == GONE || model->state == DATA || model->state == CHUNK)
		return;
	if (model->errors <= ERRORS_MAX && model->fruitless <= FRUITLESS_MAX)
		return;
	expect_only(model, 421);
	model->state = GONE;
}

/*
 * Memory has failed: any reply may have come, and none; but what was accepted must be there. What
 * comes behind a command that failed for a time may be out of order then.
 */
static void take_any(struct model *model)
{
	static const unsigned out_of_order[] = {500, 503, 530, 0};
	struct slice line;

	while (model->replies.len > 0) {
		unsigned code = next_reply(model, &line);
		assert_bug(code < 500 || codes_seen[code] || is_one_of(code, out_of_order));
		if (is_queued(line))
			note_accepted(model, line);
	}
}

/* Accounts for what was sent so far and the replies to it. */
static void model_take(struct model *model)
{
	struct slice all = buf_slice(&model->text);

	if (bench_memory_failed) {
		take_any(model);
		return;
	}
	while (model->state != GONE) {
		size_t used;
		if (model->state == DATA) {
			used = find_end(all);
			if (used == 0) {
				model_half(model, all);
				break;
			}
			model_message(model, slice_of(all.ptr, used));
		} else if (model->state == CHUNK) {
			used = model->chunk.size;
			if (used > all.len)
				break;
			model_chunk(model, slice_of(all.ptr, used));
		} else {
			ptrdiff_t end = slice_find(all, '\n');
			/* A BDAT is too long before its end has come. */
			bool over = end < 0 && all.len >= COMMAND_MAX && is_bdat(all);
			if (end < 0 && !(over && model->state != RESPONSE))
				break;
			used = over ? all.len : (size_t)end + 1;
			model->behind = slice_part(all, used, all.len);
			model_line(model, over ? all : slice_of(all.ptr, (size_t)end));
		}
		model_patience(model);
		all = slice_part(all, used, all.len);
	}
	assert_bug(model->replies.len == 0);
	buf_consume(&model->text, buf_len(&model->text) - all.len);
}

/* ---- what reached the spool ---- */

static void check_record(const struct model *model, const struct record_header *record, unsigned i)
{
	struct stored_message message;
	struct buf envelope;
	char id[ID_TEXT + 1];

	assert_bug(record->type == RECORD_MESSAGE && i < model->accepted);
	buf_init(&envelope, RECORD_ENVELOPE_MAX);
	assert_bug(segment_read_envelope(&bench.segment, record, &envelope) == 0);
	assert_bug(stored_message_unpack(buf_slice(&envelope), &message) == 0);
	assert_bug(strcmp(id_format(&message.id, id), model->ids[i]) == 0);
	assert_bug(message.account == ACCOUNT && message.recipients > 0);
	buf_done(&envelope);
}

/* Those and only those, in their order; more may be there when the last replies were not read. */
static void check_segment(const struct model *model, bool abrupt)
{
	struct record_header record;
	unsigned found = 0;
	int r;

	assert_bug(segment_refresh(&bench.segment) == 0);
	while ((r = segment_next(&bench.segment, &bench.offset, SEGMENT_NO_LIMIT, &record)) !=
	        SEGMENT_END) {
		assert_bug(r == SEGMENT_RECORD);
		if (record.type == RECORD_PROBE)
			continue;
		if (!abrupt || found < model->accepted)
			check_record(model, &record, found);
		found++;
	}
	assert_bug(found >= model->accepted && (abrupt || found == model->accepted));
	bench.stored += found;
}

/* Whether a segment has a record of that message. */
static bool is_in_segment(struct segment *segment, const char *id)
{
	struct stored_message message;
	struct record_header record;
	struct buf envelope;
	char text[ID_TEXT + 1];
	uint64_t offset = 0;
	bool found = false;
	int r;

	buf_init(&envelope, RECORD_ENVELOPE_MAX);
	while (!found &&
	        (r = segment_next(segment, &offset, SEGMENT_NO_LIMIT, &record)) != SEGMENT_END) {
		assert_bug(r == SEGMENT_RECORD);
		if (record.type != RECORD_MESSAGE)
			continue;
		assert_bug(segment_read_envelope(segment, &record, &envelope) == 0);
		assert_bug(stored_message_unpack(buf_slice(&envelope), &message) == 0);
		found = strcmp(id_format(&message.id, text), id) == 0;
	}
	buf_done(&envelope);
	return found;
}

/*
 * With a disk that fails, records go to new segments, and some that were refused are there too;
 * without memory one may be there that nobody could be told of.
 */
static void check_all_segments(const struct model *model)
{
	char folder[100];
	uint32_t *numbers;
	size_t count;
	unsigned found = 0;

	snprintf(folder, sizeof(folder), "%s/in", bench.folder);
	assert_bug(segment_list(folder, &numbers, &count) == 0);
	for (size_t i = 0; i < count; i++) {
		struct segment segment;
		if (segment_open(&file_system, folder, numbers[i], &segment) < 0)
			continue;
		for (unsigned k = 0; k < model->accepted; k++)
			found += is_in_segment(&segment, model->ids[k]);
		segment_close(&segment);
	}
	free(numbers);
	assert_bug(found == model->accepted);
}

static void check_spool(const struct model *model, bool abrupt)
{
	if (!model->disk_failed && !bench_memory_failed) {
		check_segment(model, abrupt);
		return;
	}
	check_all_segments(model);
	close_spool();
	open_spool();
}

/* ---- one session ---- */

static bool send_piece(struct client *client, struct model *model, struct slice piece)
{
	assert_bug(buf_append_slice(&model->text, piece) == 0);
	return piece.len == 0 ||
	       send(client->fd, piece.ptr, piece.len, MSG_NOSIGNAL) == (ssize_t)piece.len;
}

static bool is_gone(void *arg)
{
	(void)arg;
	return the_session() == NULL;
}

static void hold_session(struct client *client, struct model *model, struct slice in, bool abrupt)
{
	bench_turn(bench.loop, is_waiting, client);
	model->replies = buf_slice(&client->output);
	if (!bench_memory_failed)
		expect_only(model, 220);
	for (unsigned i = 0; i < PIECES_MAX && in.len > 0 && !client->ended; i++) {
		struct slice piece = slice_until(&in, '\xff');
		if (slice_equal(piece, SLICE("\xfd"))) {
			bench.disk_fails = !bench.disk_fails;
			model->disk_failed = true;
			continue;
		}
		if (slice_equal(piece, SLICE(GRANTED)) || slice_equal(piece, SLICE(NOBODYS)))
			continue;
		buf_clear(&client->output);
		if (!send_piece(client, model, slice_part(piece, 0, PIECE_MAX)))
			break;
		if (abrupt && in.len == 0)
			break;
		bench_turn(bench.loop, is_waiting, client);
		model->replies = buf_slice(&client->output);
		model_take(model);
		assert_bug(bench_memory_failed || client->ended == (model->state == GONE));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct slot_limits limits = {.connections = 100, .connections_per_address = 100};
	struct addr peer = {.u.in.sin_family = AF_INET, .len = sizeof(peer.u.in)};
	static struct model model;
	struct slice in = slice_of(data, size);
	struct client client = {0};
	struct watch *watch;
	int pair[2];
	bool granted = slice_starts_with(in, SLICE(GRANTED "\xff"));
	bool networks = granted || slice_starts_with(in, SLICE(NOBODYS "\xff"));
	bool abrupt = size > 0 && data[size - 1] == 0xfe;

	bench_in_harness = true;
	if (!bench_memory_fails)
		memset(codes_seen, 0, sizeof(codes_seen));
	set_up();
	in.len -= abrupt;
	memset(&model, 0, sizeof(model));
	model.granted = granted;
	if (granted)
		assert_bug(inet_pton(AF_INET, GRANTED_ADDRESS, &peer.u.in.sin_addr) == 1);
	model.normalize = networks;
	buf_init(&model.text, OUTPUT_MAX);
	buf_init(&model.chunks, OUTPUT_MAX);
	buf_init(&client.output, OUTPUT_MAX);
	assert_bug(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
	client.fd = pair[0];
	assert_bug(watch_new(bench.loop, client.fd, on_output, &client, &watch) == 0);
	watch_set(watch, WATCH_READ);
	assert_bug(slots_take(bench.serving.slots, &limits, &peer) == SLOT_TAKEN);
	bench_in_harness = false;
	int r = session_new(&bench.serving, pair[1], &peer, networks);
	bench_in_harness = true;
	assert_bug(r == 0 || bench_memory_failed);
	if (r < 0)
		slots_give_back(bench.serving.slots, &peer, false);

	hold_session(&client, &model, in, abrupt);

	watch_free(watch);
	close(client.fd);
	bench_turn(bench.loop, is_gone, NULL);
	check_spool(&model, abrupt);
	buf_done(&model.text);
	buf_done(&model.chunks);
	buf_done(&client.output);
	if (bench.stored > SPOOL_ROUND) {
		close_spool();
		open_spool();
	}
	return 0;
}

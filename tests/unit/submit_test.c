/* SPDX-License-Identifier: ISC */
/* Parts of `submit` that can be tried without a network. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway/submit/pace.h"
#include "gateway/submit/session.h"
#include "gateway/submit/slots.h"
#include "tests/unit/test_clock.h"

#define ACCOUNT 7

/* What a login brings is old if the account has changed since then, whoever else has. */
static void a_login_is_judged_by_what_changed_since(void **state)
{
	static struct serving serving;
	const struct auth_account before = {.id = ACCOUNT, .era = 10};
	const struct auth_account after = {.id = ACCOUNT, .era = 12};

	(void)state;
	list_init(&serving.sessions);
	assert_int_equal(shares_new(&serving.shares), 0);
	assert_false(serving_login_is_stale(&serving, &before));
	sessions_account_changed(&serving, ACCOUNT, 10);
	sessions_account_changed(&serving, ACCOUNT + 1, 11);
	sessions_account_changed(&serving, 0, 11); /* nobody knows what */
	assert_false(serving_login_is_stale(&serving, &before));
	sessions_account_changed(&serving, ACCOUNT, 12);
	assert_true(serving_login_is_stale(&serving, &before));
	assert_false(serving_login_is_stale(&serving, &after));
	shares_free(serving.shares);
}

/* ---- the pace of a message ---- */

#define PATIENCE 180000UL

/* How long it takes until a client that sends so many octets at such an interval is let go. */
static uint64_t lasts_ms(uint64_t octets, uint64_t interval_ms, uint64_t give_up_ms)
{
	uint64_t now = 1000000;
	struct pace pace;

	pace_start(&pace, now, PATIENCE);
	uint64_t start = now;
	while (now - start < give_up_ms) {
		uint64_t left = pace_left_ms(&pace, now);
		assert_true(left <= PATIENCE);
		if (left <= interval_ms)
			return now + left - start;
		now += interval_ms;
		pace_add(&pace, octets, now, PATIENCE);
	}
	return UINT64_MAX;
}

static void who_dribbles_is_let_go(void **state)
{
	(void)state;
	assert_int_equal(lasts_ms(0, 1000, 10 * PATIENCE), PATIENCE);
	assert_in_range(lasts_ms(1, 1000, 10 * PATIENCE), PATIENCE, PATIENCE + 1000);
	assert_in_range(lasts_ms(1, 100000, 10 * PATIENCE), PATIENCE, PATIENCE + 1000);
	assert_in_range(lasts_ms(20, 1000, 10 * PATIENCE), PATIENCE, PATIENCE * 11 / 10);
}

static void a_slow_line_goes_on(void **state)
{
	(void)state;
	assert_int_equal(lasts_ms(500, 1000, 24UL * 3600 * 1000), UINT64_MAX);
	assert_int_equal(lasts_ms(PACE_LEAST, 1000, 24UL * 3600 * 1000), UINT64_MAX);
	/* A window at a time, with pauses nearly as long as may be. */
	assert_int_equal(lasts_ms(16384, PATIENCE / 3, 24UL * 3600 * 1000), UINT64_MAX);
	/* However much has come, silence ends it. */
	struct pace pace;
	pace_start(&pace, 0, PATIENCE);
	pace_add(&pace, 50UL << 20, 5000, PATIENCE);
	assert_int_equal(pace_left_ms(&pace, 5000), PATIENCE);
	assert_int_equal(pace_left_ms(&pace, 5000 + PATIENCE), 0);
}

static void a_pause_of_ours_is_not_the_clients(void **state)
{
	struct pace pace;

	(void)state;
	pace_start(&pace, 0, PATIENCE);
	pace_pause(&pace, 100000);
	assert_int_equal(pace_left_ms(&pace, 900000), PATIENCE - 100000);
	pace_pause(&pace, 900000); /* it is one pause */
	pace_resume(&pace, 1000000);
	assert_int_equal(pace_left_ms(&pace, 1000000), PATIENCE - 100000);
	pace_resume(&pace, 1010000);
	assert_int_equal(pace_left_ms(&pace, 1010000), PATIENCE - 110000);
}

/* ---- what one client may have of a turn ---- */

/* No TLS here: the only session is one in the clear. */
struct tls_server *__wrap_tls_server_ref(struct tls_server *server);

struct tls_server *__wrap_tls_server_ref(struct tls_server *server)
{
	return server;
}

static void on_session_ended(struct serving *serving)
{
	(void)serving;
}

static const struct conf *make_conf(void)
{
	static const char text[] =
	        "hostname = \"host.example\" spool = \"/tmp\" database = \"host=/tmp\""
	        " tls = { certificate = \"/c\" key = \"/k\" } listener = { submission = { address "
	        "= [\"127.0.0.1:5587\"] } }"
	        " upstream = { u = { hosts = [\"127.0.0.1:2525\"] tls = \"none\" } } route = \"u\"";
	const struct conf *conf = NULL;
	struct buf errors;

	buf_init(&errors, 4096);
	if (conf_parse(text, "test.conf", &errors, &conf) < 0)
		fail_msg("%s", buf_str(&errors));
	buf_done(&errors);
	return conf;
}

/* How many replies have come meanwhile. */
static unsigned replies(int fd)
{
	char text[65536];
	unsigned count = 0;

	for (ssize_t got; (got = recv(fd, text, sizeof(text), MSG_DONTWAIT)) > 0;)
		for (ssize_t i = 0; i < got; i++)
			count += text[i] == '\n';
	return count;
}

#define SAID_AT_ONCE 300

/*
 * A client says as many NOOP at once: how many of them are answered in one turn, at most, when its
 * account has so many connections (0: it has not logged in).
 */
static unsigned lines_of_a_turn(unsigned connections)
{
	const struct slot_limits limits = {.connections = 1, .connections_per_address = 1};
	struct serving serving = {.on_session_ended = on_session_ended};
	struct addr peer = {0};
	char said[6 * SAID_AT_ONCE];
	unsigned most = 0, all = 0;
	int fds[2];

	assert_int_equal(loop_new(&serving.loop), 0);
	assert_int_equal(slots_new(&serving.slots), 0);
	assert_int_equal(shares_new(&serving.shares), 0);
	assert_int_equal(slots_take(serving.slots, &limits, &peer), SLOT_TAKEN);
	serving.conf = make_conf();
	list_init(&serving.sessions);
	list_init(&serving.lingering);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	assert_int_equal(session_new(&serving, fds[0], &peer, 0), 0);
	struct session *session = list_entry(serving.sessions.next, struct session, link);
	if (connections > 0) {
		session->account = calloc(1, sizeof(*session->account));
		assert_non_null(session->account);
		session->account->facts.id = ACCOUNT;
		arena_init(&session->account->arena, 1024);
	}
	for (unsigned i = 0; i < connections; i++)
		assert_int_equal(shares_take_connection(serving.shares, ACCOUNT, 0), 0);
	while (replies(fds[1]) == 0) {
		loop_stop(serving.loop);
		loop_run(serving.loop);
	}
	for (unsigned i = 0; i < SAID_AT_ONCE; i++)
		memcpy(said + 6 * (size_t)i, "NOOP\r\n", 6);
	assert_int_equal(send(fds[1], said, sizeof(said), 0), sizeof(said));
	/* What it has said behind the last word is heard, too. */
	shutdown(fds[1], SHUT_WR);
	while (!list_is_empty(&serving.sessions)) {
		uint64_t turn = loop_turn(serving.loop);
		loop_stop(serving.loop);
		loop_run(serving.loop);
		unsigned turns = (unsigned)(loop_turn(serving.loop) - turn),
		         answered = replies(fds[1]);
		assert_int_equal(turns, 1);
		most = MAX_OF(most, answered);
		all += answered;
	}
	assert_int_equal(all, SAID_AT_ONCE);
	sessions_cut_off(&serving);
	loop_free(serving.loop);
	shares_free(serving.shares);
	slots_free(serving.slots);
	conf_unref(serving.conf);
	close(fds[1]);
	return most;
}

/* What is seen here is the end of one turn and the beginning of the next. */
static void each_has_its_share_of_a_turn(void **state)
{
	(void)state;
	assert_in_range(lines_of_a_turn(0), 8, 16);
	assert_in_range(lines_of_a_turn(1), 64, 128);
	/* The connections of one account share what 16 have. */
	assert_in_range(lines_of_a_turn(16), 64, 128);
	assert_in_range(lines_of_a_turn(32), 32, 64);
	assert_in_range(lines_of_a_turn(5000), 1, 2);
}

/* ---- who may connect ---- */

static struct addr address(const char *text)
{
	struct addr addr;

	assert_int_equal(addr_parse(slice_str(text), &addr), 0);
	return addr;
}

/* The n-th address of a crowd, each of a network of its own. */
static struct addr stranger(unsigned n)
{
	char text[40];

	snprintf(text, sizeof(text), "10.0.%u.%u:1", n / 256, n % 256);
	return address(text);
}

/* ---- questions to `auth` ---- */

static void on_changed(void *arg, uint64_t account, uint64_t era)
{
	(void)arg;
	(void)account;
	(void)era;
}

static void on_unavailable(
        void *arg, const struct auth_message *answer, const struct auth_account *account)
{
	unsigned *told = arg;

	(void)account;
	assert_int_equal(answer->type, AUTH_UNAVAILABLE);
	++*told;
}

/* How many ms a question waits until it is told that no answer comes; the clock goes by steps. */
static unsigned waits_for_nothing(struct loop *loop, struct auth_link *link, unsigned *told)
{
	const struct auth_message question = {.type = AUTH_LOGIN_NETWORK};
	unsigned before = *told, ms = 0;

	assert_non_null(auth_call_new(link, &question, on_unavailable, told));
	for (; *told == before; ms += 100) {
		test_clock_pass_ms(100);
		timer_run_due(loop);
	}
	return ms;
}

static void say(struct loop *loop, int fd, enum auth_type type)
{
	const struct auth_message message = {.type = type};
	struct buf datagram;

	buf_init(&datagram, PROTOCOL_DATAGRAM_MAX);
	assert_int_equal(protocol_encode(&message, NULL, &datagram), 0);
	assert_int_equal(protocol_send(fd, buf_slice(&datagram)), 0);
	buf_done(&datagram);
	loop_stop(loop);
	loop_run(loop);
}

static void who_asks_while_auth_hangs_is_told_soon(void **state)
{
	const struct auth_message question = {.type = AUTH_LOGIN_NETWORK};
	struct loop *loop;
	struct auth_link *link;
	unsigned told = 0;
	int fds[2];

	(void)state;
	assert_int_equal(loop_new(&loop), 0);
	assert_int_equal(auth_link_new(loop, on_changed, NULL, &link), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fds), 0);
	auth_link_connect(link, fds[0]);
	assert_in_range(waits_for_nothing(loop, link, &told), 10000, 20000);
	assert_in_range(waits_for_nothing(loop, link, &told), 1000, 2000);
	/* It is alive again. */
	say(loop, fds[1], AUTH_HELLO);
	assert_in_range(waits_for_nothing(loop, link, &told), 10000, 20000);
	assert_in_range(waits_for_nothing(loop, link, &told), 1000, 2000);
	/* It answers others in time: only this one is late. */
	say(loop, fds[1], AUTH_HELLO);
	assert_non_null(auth_call_new(link, &question, on_unavailable, &told));
	say(loop, fds[1], AUTH_CHANGED);
	test_clock_pass_ms(20000);
	timer_run_due(loop);
	assert_int_equal(told, 5);
	assert_in_range(waits_for_nothing(loop, link, &told), 10000, 20000);
	auth_link_free(link);
	loop_free(loop);
	close(fds[1]);
}

static bool memory_fails;

/* The linker puts it in front of calloc(). */
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size)
{
	return memory_fails ? NULL : __real_calloc(count, size);
}

static struct slots *make_slots(void)
{
	struct slots *slots;

	assert_int_equal(slots_new(&slots), 0);
	return slots;
}

static void an_address_has_its_share(void **state)
{
	const struct slot_limits limits = {.connections = 1000, .connections_per_address = 2};
	struct slots *slots = make_slots();
	struct addr a = address("192.0.2.1:1"), b = address("192.0.2.2:1");
	/* One customer has a /56: its addresses are one, those of the next are not. */
	struct addr v6[] = {address("[2001:db8::1]:1"), address("[2001:db8::ffff:2]:1"),
	        address("[2001:db8:0:ff::3]:1"), address("[2001:db8:0:100::1]:1")};

	(void)state;
	assert_int_equal(slots_take(slots, &limits, &a), SLOT_TAKEN);
	assert_int_equal(slots_take(slots, &limits, &a), SLOT_TAKEN);
	assert_int_equal(slots_take(slots, &limits, &a), SLOT_ADDRESS_FULL);
	assert_int_equal(slots_take(slots, &limits, &b), SLOT_TAKEN);
	slots_give_back(slots, &a, false);
	assert_int_equal(slots_take(slots, &limits, &a), SLOT_TAKEN);
	assert_int_equal(slots_take(slots, &limits, &v6[0]), SLOT_TAKEN);
	assert_int_equal(slots_take(slots, &limits, &v6[1]), SLOT_TAKEN);
	assert_int_equal(slots_take(slots, &limits, &v6[2]), SLOT_ADDRESS_FULL);
	assert_int_equal(slots_take(slots, &limits, &v6[3]), SLOT_TAKEN);
	/* Who has logged in before has no more than its share either. */
	slots_log_in(slots, &a);
	assert_int_equal(slots_take(slots, &limits, &a), SLOT_ADDRESS_FULL);
	slots_free(slots);
}

static void silent_strangers_take_half(void **state)
{
	const struct slot_limits limits = {.connections = 100, .connections_per_address = 100};
	struct slots *slots = make_slots();
	struct addr friend = address("192.0.2.1:1");

	(void)state;
	assert_int_equal(slots_take(slots, &limits, &friend), SLOT_TAKEN);
	assert_false(slots_remember(slots, &friend));
	slots_log_in(slots, &friend);
	assert_true(slots_remember(slots, &friend));
	for (unsigned i = 0; i < 50; i++) {
		struct addr peer = stranger(i);
		assert_int_equal(slots_take(slots, &limits, &peer), SLOT_TAKEN);
	}
	struct addr one_more = stranger(50), first = stranger(0);
	assert_int_equal(slots_take(slots, &limits, &one_more), SLOT_STRANGERS_FULL);
	for (unsigned i = 0; i < 49; i++) {
		assert_int_equal(slots_take(slots, &limits, &friend), SLOT_TAKEN);
		slots_log_in(slots, &friend);
	}
	assert_int_equal(slots_take(slots, &limits, &friend), SLOT_ALL_FULL);
	/* A stranger that logs in or goes makes room for the next. */
	slots_give_back(slots, &friend, true);
	slots_log_in(slots, &first);
	assert_int_equal(
	        slots_take(slots, &limits, &one_more), SLOT_STRANGERS_FULL); /* the reserve */
	for (unsigned i = 0; i < 49; i++)
		slots_give_back(slots, &friend, true);
	assert_int_equal(slots_take(slots, &limits, &one_more), SLOT_TAKEN);
	slots_free(slots);
}

/* Who was here before may wait for a login as long as it likes: that is none of their half. */
static void strangers_keep_their_half(void **state)
{
	const struct slot_limits limits = {.connections = 100, .connections_per_address = 100};
	struct slots *slots = make_slots();
	struct addr friend = address("192.0.2.1:1"), first = stranger(0), one_more = stranger(50);

	(void)state;
	/* Two that wait when the network begins to be remembered, and others afterwards. */
	assert_int_equal(slots_take(slots, &limits, &friend), SLOT_TAKEN);
	assert_int_equal(slots_take(slots, &limits, &friend), SLOT_TAKEN);
	slots_log_in(slots, &friend);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(slots_take(slots, &limits, &friend), SLOT_TAKEN);
	for (unsigned i = 0; i < 50; i++) {
		struct addr peer = stranger(i);
		assert_int_equal(slots_take(slots, &limits, &peer), SLOT_TAKEN);
	}
	assert_int_equal(slots_take(slots, &limits, &one_more), SLOT_STRANGERS_FULL);
	/* Those that go make no room for strangers but in the count of all. */
	for (unsigned i = 0; i < 21; i++)
		slots_give_back(slots, &friend, false);
	slots_give_back(slots, &friend, true);
	assert_int_equal(slots_take(slots, &limits, &one_more), SLOT_STRANGERS_FULL);
	slots_give_back(slots, &first, false);
	assert_int_equal(slots_take(slots, &limits, &one_more), SLOT_TAKEN);
	assert_int_equal(slots_take(slots, &limits, &first), SLOT_STRANGERS_FULL);
	slots_free(slots);
}

static void the_last_quarter_is_for_who_was_here(void **state)
{
	const struct slot_limits limits = {.connections = 100, .connections_per_address = 100};
	struct slots *slots = make_slots();
	struct addr friend = address("[2001:db8::1]:1"), new = address("[2001:db8:1::1]:1");
	struct addr neighbour = address("[2001:db8::2]:1");

	(void)state;
	for (unsigned i = 0; i < 75; i++) {
		assert_int_equal(slots_take(slots, &limits, &friend), SLOT_TAKEN);
		slots_log_in(slots, &friend);
	}
	assert_int_equal(slots_take(slots, &limits, &new), SLOT_STRANGERS_FULL);
	assert_int_equal(slots_take(slots, &limits, &neighbour), SLOT_TAKEN);
	slots_give_back(slots, &neighbour, false);
	/* Also when none of its connections is left. */
	for (unsigned i = 0; i < 75; i++)
		slots_give_back(slots, &friend, true);
	for (unsigned i = 0; i < 50; i++) {
		struct addr peer = stranger(i);
		assert_int_equal(slots_take(slots, &limits, &peer), SLOT_TAKEN);
	}
	assert_int_equal(slots_take(slots, &limits, &new), SLOT_STRANGERS_FULL);
	assert_int_equal(slots_take(slots, &limits, &friend), SLOT_TAKEN);
	slots_free(slots);
}

/* Who has logged in once and then only connects does not keep out who comes to log in. */
static void who_was_here_has_a_share_until_the_login(void **state)
{
	const struct slot_limits limits = {.connections = 100, .connections_per_address = 100};
	struct slots *slots = make_slots();

	(void)state;
	for (unsigned i = 0; i < 20; i++) {
		struct addr peer = stranger(i);
		assert_int_equal(slots_take(slots, &limits, &peer), SLOT_TAKEN);
		slots_log_in(slots, &peer);
		slots_give_back(slots, &peer, true);
	}
	struct addr silent = stranger(0);
	for (unsigned i = 0; i < 50; i++)
		assert_int_equal(slots_take(slots, &limits, &silent), SLOT_TAKEN);
	assert_int_equal(slots_take(slots, &limits, &silent), SLOT_STRANGERS_FULL);
	/* 100 / 32 of each of the others, although none logs in; and again behind each login. */
	for (unsigned i = 1; i < 9; i++) {
		struct addr peer = stranger(i);
		for (unsigned n = 0; n < 3; n++)
			assert_int_equal(slots_take(slots, &limits, &peer), SLOT_TAKEN);
		assert_int_equal(slots_take(slots, &limits, &peer), SLOT_STRANGERS_FULL);
	}
	struct addr customer = stranger(10);
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(slots_take(slots, &limits, &customer), SLOT_TAKEN);
		slots_log_in(slots, &customer);
	}
	slots_free(slots);
}

/* One account that has logged in from many networks gets the last quarter by logins only. */
static void many_that_were_here_leave_room_for_another(void **state)
{
	enum { NETWORKS = 40 };
	const struct slot_limits limits = {.connections = 400, .connections_per_address = 400};
	struct slots *slots = make_slots();
	struct addr customer = stranger(NETWORKS);
	unsigned taken = 0;

	(void)state;
	for (unsigned i = 0; i <= NETWORKS; i++) {
		struct addr peer = stranger(i);
		assert_int_equal(slots_take(slots, &limits, &peer), SLOT_TAKEN);
		slots_log_in(slots, &peer);
		slots_give_back(slots, &peer, true);
	}
	for (unsigned i = 0; i < NETWORKS; i++) {
		struct addr peer = stranger(i);
		while (slots_take(slots, &limits, &peer) == SLOT_TAKEN)
			taken++;
	}
	assert_in_range(taken, 300, 300 + NETWORKS);
	for (unsigned i = 0; i < 50; i++) {
		assert_int_equal(slots_take(slots, &limits, &customer), SLOT_TAKEN);
		slots_log_in(slots, &customer);
	}
	slots_free(slots);
}

static void one_network_does_not_take_all_that_strangers_have(void **state)
{
	const struct slot_limits limits = {.connections = 1000, .connections_per_address = 1000};
	struct slots *slots = make_slots();
	struct addr crowd = address("192.0.2.1:1"), other = address("192.0.2.2:1");
	unsigned taken = 0;

	(void)state;
	while (slots_take(slots, &limits, &crowd) == SLOT_TAKEN)
		taken++;
	assert_int_equal(taken, 250);
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(slots_take(slots, &limits, &other), SLOT_TAKEN);
	assert_int_equal(slots_take(slots, &limits, &other), SLOT_STRANGERS_FULL);
	slots_free(slots);
}

static void a_single_slot_is_given(void **state)
{
	const struct slot_limits limits = {.connections = 1, .connections_per_address = 1};
	struct slots *slots = make_slots();
	struct addr peer = stranger(1);

	(void)state;
	assert_int_equal(slots_take(slots, &limits, &peer), SLOT_TAKEN);
	slots_give_back(slots, &peer, false);
	assert_int_equal(slots_take(slots, &limits, &peer), SLOT_TAKEN);
	slots_free(slots);
}

static void only_so_many_networks_are_remembered(void **state)
{
	const struct slot_limits limits = {.connections = 2, .connections_per_address = 2};
	struct slots *slots = make_slots();
	struct addr first = stranger(0), second = stranger(1), busy = address("192.0.2.1:1");

	(void)state;
	for (unsigned i = 0; i <= 32768; i++) {
		struct addr peer = stranger(i);
		assert_int_equal(slots_take(slots, &limits, &peer), SLOT_TAKEN);
		slots_log_in(slots, &peer);
		slots_give_back(slots, &peer, true);
	}
	assert_int_equal(slots_take(slots, &limits, &busy), SLOT_TAKEN);
	assert_int_equal(slots_take(slots, &limits, &first), SLOT_STRANGERS_FULL);
	assert_int_equal(slots_take(slots, &limits, &second), SLOT_TAKEN);
	slots_free(slots);
}

/* Half of ten are taken by strangers; so it tells who is one. */
static void a_network_is_remembered_for_a_week(void **state)
{
	const struct slot_limits limits = {.connections = 10, .connections_per_address = 10};
	const int64_t week_ms = 7L * 24 * 3600 * 1000, minute_ms = 60000;
	struct slots *slots = make_slots();
	struct addr friend = address("192.0.2.1:1");

	(void)state;
	assert_int_equal(slots_take(slots, &limits, &friend), SLOT_TAKEN);
	slots_log_in(slots, &friend);
	for (unsigned i = 0; i < 5; i++) {
		struct addr peer = stranger(i);
		assert_int_equal(slots_take(slots, &limits, &peer), SLOT_TAKEN);
	}
	test_clock_pass_ms(week_ms - minute_ms);
	assert_int_equal(slots_take(slots, &limits, &friend), SLOT_TAKEN);
	test_clock_pass_ms(2 * minute_ms);
	assert_int_equal(slots_take(slots, &limits, &friend), SLOT_STRANGERS_FULL);
	/* The one of it that waits has become a stranger's: two must go before one can come. */
	slots_give_back(slots, &friend, true);
	struct addr first = stranger(0);
	slots_give_back(slots, &first, false);
	assert_int_equal(slots_take(slots, &limits, &first), SLOT_STRANGERS_FULL);
	slots_log_in(slots, &friend);
	/* A login begins the week anew. */
	test_clock_pass_ms(week_ms - minute_ms);
	assert_int_equal(slots_take(slots, &limits, &friend), SLOT_TAKEN);
	slots_log_in(slots, &friend);
	test_clock_pass_ms(2 * minute_ms);
	assert_int_equal(slots_take(slots, &limits, &friend), SLOT_TAKEN);
	slots_free(slots);
}

static void without_memory_nobody_new_is_taken(void **state)
{
	const struct slot_limits limits = {.connections = 10, .connections_per_address = 10};
	struct slots *slots = make_slots();
	struct addr known = stranger(0), unknown = stranger(1);

	(void)state;
	assert_int_equal(slots_take(slots, &limits, &known), SLOT_TAKEN);
	memory_fails = true;
	assert_int_equal(slots_take(slots, &limits, &unknown), SLOT_NO_MEMORY);
	assert_int_equal(slots_take(slots, &limits, &known), SLOT_TAKEN);
	memory_fails = false;
	assert_int_equal(slots_take(slots, &limits, &unknown), SLOT_TAKEN);
	slots_free(slots);
}

static void an_account_has_its_connections_and_no_more(void **state)
{
	struct shares *shares;

	(void)state;
	assert_int_equal(shares_new(&shares), 0);
	assert_int_equal(shares_connections(shares, ACCOUNT), 0);
	assert_int_equal(shares_take_connection(shares, ACCOUNT, 2), 0);
	assert_int_equal(shares_take_connection(shares, ACCOUNT, 2), 0);
	assert_int_equal(shares_take_connection(shares, ACCOUNT, 2), -EUSERS);
	/* Without a number of its own it has what all have. */
	shares_set_limits(shares, &(struct shares_limits){.connections = 3});
	assert_int_equal(shares_take_connection(shares, ACCOUNT, 0), 0);
	assert_int_equal(shares_take_connection(shares, ACCOUNT, 0), -EUSERS);
	assert_int_equal(shares_take_connection(shares, ACCOUNT + 1, 1), 0);
	for (unsigned i = 3; i > 0; i--) {
		assert_int_equal(shares_connections(shares, ACCOUNT), i);
		shares_give_connection_back(shares, ACCOUNT);
	}
	assert_int_equal(shares_connections(shares, ACCOUNT), 0);
	memory_fails = true;
	assert_int_equal(shares_take_connection(shares, ACCOUNT, 0), -ENOMEM);
	memory_fails = false;
	assert_int_equal(shares_take_connection(shares, ACCOUNT, 1), 0);
	shares_free(shares);
}

static enum holding_answer hold_memory(struct holding *holding, uint64_t octets)
{
	return holding_set(holding, (struct held){.memory = octets}, (struct disk_room){0});
}

static void an_account_has_its_share_of_memory(void **state)
{
	const struct shares_limits limits = {.connections = 1, .memory = 100};
	struct shares *shares;

	(void)state;
	assert_int_equal(shares_new(&shares), 0);
	shares_set_limits(shares, &limits);
	assert_int_equal(shares_take_connection(shares, ACCOUNT, 0), 0);
	assert_int_equal(shares_take_connection(shares, ACCOUNT + 1, 0), 0);
	struct holding *one = holding_new(shares, ACCOUNT), *two = holding_new(shares, ACCOUNT);
	struct holding *other = holding_new(shares, ACCOUNT + 1);
	assert_int_equal(hold_memory(one, 50), HOLDING_FINE);
	assert_int_equal(hold_memory(two, 50), HOLDING_FINE);
	assert_int_equal(hold_memory(two, 51), HOLDING_MEMORY_FULL);
	/* Others have their own, and what ends makes room again. */
	assert_int_equal(hold_memory(other, 51), HOLDING_FINE);
	assert_int_equal(hold_memory(one, 49), HOLDING_FINE);
	/* The log tells of each of them, once a minute. */
	for (uint64_t i = 0; i < 2; i++) {
		assert_true(shares_is_due(shares, ACCOUNT + i));
		assert_false(shares_is_due(shares, ACCOUNT + i));
	}
	/* What is still on its way to the disk counts, also for who comes again. */
	shares_give_connection_back(shares, ACCOUNT);
	assert_int_equal(shares_take_connection(shares, ACCOUNT, 0), 0);
	struct holding *again = holding_new(shares, ACCOUNT);
	assert_int_equal(hold_memory(again, 1), HOLDING_MEMORY_FULL);
	holding_free(one);
	assert_int_equal(hold_memory(again, 49), HOLDING_FINE);
	holding_free(two);
	holding_free(again);
	holding_free(other);
	shares_give_connection_back(shares, ACCOUNT);
	shares_give_connection_back(shares, ACCOUNT + 1);
	shares_free(shares);
}

/* As much as it leaves to others, or the least. */
static void an_account_has_its_share_of_the_disk(void **state)
{
	struct shares *shares;

	(void)state;
	assert_int_equal(shares_new(&shares), 0);
	assert_int_equal(shares_take_connection(shares, ACCOUNT, 0), 0);
	struct holding *one = holding_new(shares, ACCOUNT), *two = holding_new(shares, ACCOUNT);
	for (uint64_t each = 1; each <= 26; each++) {
		const struct held now = {.disk = each};
		struct disk_room disk = {.left = 100 - 2 * each};
		(void)!holding_set(one, now, disk);
		assert_int_equal(
		        holding_set(two, now, disk), each <= 25 ? HOLDING_FINE : HOLDING_DISK_FULL);
		disk.least = 52;
		assert_int_equal(holding_set(two, now, disk), HOLDING_FINE);
	}
	holding_free(one);
	holding_free(two);
	shares_free(shares);
}

#define UNTIMED                                                                                    \
	cmocka_unit_test(a_login_is_judged_by_what_changed_since),                                 \
	        cmocka_unit_test(who_dribbles_is_let_go), cmocka_unit_test(a_slow_line_goes_on),   \
	        cmocka_unit_test(a_pause_of_ours_is_not_the_clients),                              \
	        cmocka_unit_test(each_has_its_share_of_a_turn),                                    \
	        cmocka_unit_test(an_address_has_its_share),                                        \
	        cmocka_unit_test(silent_strangers_take_half),                                      \
	        cmocka_unit_test(strangers_keep_their_half),                                       \
	        cmocka_unit_test(the_last_quarter_is_for_who_was_here),                            \
	        cmocka_unit_test(who_was_here_has_a_share_until_the_login),                        \
	        cmocka_unit_test(many_that_were_here_leave_room_for_another),                      \
	        cmocka_unit_test(one_network_does_not_take_all_that_strangers_have),               \
	        cmocka_unit_test(a_single_slot_is_given),                                          \
	        cmocka_unit_test(without_memory_nobody_new_is_taken),                              \
	        cmocka_unit_test(only_so_many_networks_are_remembered),                            \
	        cmocka_unit_test(an_account_has_its_connections_and_no_more),                      \
	        cmocka_unit_test(an_account_has_its_share_of_memory),                              \
	        cmocka_unit_test(an_account_has_its_share_of_the_disk)

int main(void)
{
	const struct CMUnitTest untimed[] = {UNTIMED};
	const struct CMUnitTest all[] = {
	        UNTIMED,
	        cmocka_unit_test(who_asks_while_auth_hangs_is_told_soon),
	        cmocka_unit_test(a_network_is_remembered_for_a_week),
	};

	test_clock_open();
	/* The others need a clock that can be moved. */
	if (!POSTERN_TEST_HOOKS)
		return cmocka_run_group_tests(untimed, NULL, NULL);
	return cmocka_run_group_tests(all, NULL, NULL);
}

/* SPDX-License-Identifier: ISC */
/* What wrong passwords cost who sends them. */
#include "tests/unit/unit.h"

#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "auth/penalty.h"
#include "auth/queue.h"
#include "auth/slow_turns.h"
#include "gateway/base/clock.h"
#include "tests/unit/test_clock.h"

#define FREE_OF_LOGIN   5 /* failures that cost nothing */
#define FREE_OF_NETWORK 50

static int make(void **state)
{
	struct penalty *penalty;

	int r = penalty_new(&penalty);
	*state = penalty;
	return r;
}

static int unmake(void **state)
{
	penalty_free(*state);
	return 0;
}

/* How long an attempt would have to wait. */
static uint64_t wait_of(struct penalty *penalty, const char *login, const char *address)
{
	struct penalty_ticket ticket;

	uint64_t wait = penalty_enter(penalty, slice_str(login), slice_str(address), &ticket);
	(void)penalty_leave(penalty, &ticket, PENALTY_UNTRIED);
	return wait;
}

/* One that comes to that at once. The news of it. */
static unsigned attempt(struct penalty *penalty, const char *login, const char *address,
        enum penalty_outcome outcome)
{
	struct penalty_ticket ticket;

	assert_int_equal(penalty_enter(penalty, slice_str(login), slice_str(address), &ticket), 0);
	return penalty_leave(penalty, &ticket, outcome);
}

static void fail_freely(struct penalty *penalty, const char *login, const char *address)
{
	for (unsigned i = 0; i < FREE_OF_LOGIN; i++)
		assert_int_equal(attempt(penalty, login, address, PENALTY_WRONG),
		        i == FREE_OF_LOGIN - 1 ? PENALTY_LOGIN_SLOWED : PENALTY_NO_NEWS);
}

#define assert_about(value, wanted) assert_in_range((value), (wanted)-60, (wanted))

static void the_wait_doubles_and_is_bounded(void **state)
{
	static const uint64_t waits[] = {
	        1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000, 60000};

	fail_freely(*state, "a", "192.0.2.1");
	for (size_t i = 0; i < ARRAY_LEN(waits); i++) {
		assert_about(wait_of(*state, "a", "192.0.2.1"), waits[i]);
		test_clock_pass_ms((int64_t)waits[i]);
		/* Told once. */
		assert_int_equal(attempt(*state, "a", "192.0.2.1", PENALTY_WRONG), PENALTY_NO_NEWS);
	}
	/* Neither the owner elsewhere nor anybody else there waits. */
	assert_int_equal(wait_of(*state, "a", "192.0.2.2"), 0);
	assert_int_equal(wait_of(*state, "a", "2001:db8::1"), 0);
	assert_int_equal(wait_of(*state, "b", "192.0.2.1"), 0);
}

static void failures_are_forgotten(void **state)
{
	fail_freely(*state, "a", "192.0.2.1");
	assert_about(wait_of(*state, "a", "192.0.2.1"), 1000);
	test_clock_pass_ms(5L * 60 * 1000);
	/* One is, and one more may come at once; then it is told anew. */
	assert_int_equal(attempt(*state, "a", "192.0.2.1", PENALTY_WRONG), PENALTY_LOGIN_SLOWED);
	assert_about(wait_of(*state, "a", "192.0.2.1"), 1000);
	test_clock_pass_ms(26L * 60 * 1000);
	fail_freely(*state, "a", "192.0.2.1");
}

static void a_right_password_clears_the_login_not_the_network(void **state)
{
	char login[16];

	fail_freely(*state, "a", "192.0.2.1");
	test_clock_pass_ms(1000);
	assert_int_equal(attempt(*state, "a", "192.0.2.1", PENALTY_RIGHT), PENALTY_NO_NEWS);
	fail_freely(*state, "a", "192.0.2.1");
	penalty_right(*state, SLICE("a"), SLICE("192.0.2.1")); /* from memory */
	assert_int_equal(wait_of(*state, "a", "192.0.2.1"), 0);
	/* Made-up names, and between them an account of his own. */
	for (unsigned i = 2 * FREE_OF_LOGIN; i < FREE_OF_NETWORK; i++) {
		snprintf(login, sizeof(login), "made-up-%u", i);
		assert_int_equal(attempt(*state, login, "192.0.2.1", PENALTY_WRONG),
		        i == FREE_OF_NETWORK - 1 ? PENALTY_NETWORK_SLOWED : PENALTY_NO_NEWS);
		assert_int_equal(attempt(*state, "his", "192.0.2.1", PENALTY_RIGHT), 0);
	}
	assert_about(wait_of(*state, "new", "192.0.2.1"), 1000);
	assert_int_equal(attempt(*state, "his", "192.0.2.1", PENALTY_RIGHT), 0);
	assert_about(wait_of(*state, "new", "192.0.2.1"), 1000);
	/* Who has logged in from there does not wait for others, but for himself. */
	assert_int_equal(wait_of(*state, "a", "192.0.2.1"), 0);
	assert_int_equal(wait_of(*state, "new", "192.0.2.2"), 0);
	fail_freely(*state, "a", "192.0.2.1");
	assert_in_range(wait_of(*state, "a", "192.0.2.1"), 1, 1000);
}

/* A device with an old password tries all day: neighbours notice nothing. */
static void one_wrong_device_does_not_shut_its_network_out(void **state)
{
	unsigned tried = 0;

	for (unsigned second = 0; second < 24U * 3600; second += 20) {
		struct penalty_ticket ticket;
		if (penalty_enter(*state, SLICE("device"), SLICE("192.0.2.1"), &ticket) == 0) {
			(void)penalty_leave(*state, &ticket, PENALTY_WRONG);
			tried++;
		}
		assert_int_equal(wait_of(*state, "neighbour", "192.0.2.1"), 0);
		test_clock_pass_ms(20000);
	}
	assert_in_range(tried, 24 * 50, 24 * 75);
}

static void many_at_once_are_no_way_around(void **state)
{
	struct penalty_ticket tickets[200] = {0};
	unsigned begun = 0;
	char login[16];

	for (unsigned i = 0; i < 20; i++)
		begun += penalty_enter(*state, SLICE("a"), SLICE("192.0.2.1"), &tickets[i]) == 0;
	/* The free ones, and one whose turn it is. */
	assert_int_equal(begun, FREE_OF_LOGIN + 1);
	/* While one runs it is asked again soon: it may turn out right. */
	assert_in_range(wait_of(*state, "a", "192.0.2.1"), 1, 100);
	for (unsigned i = 0; i < 20; i++)
		(void)penalty_leave(*state, &tickets[i], PENALTY_WRONG);
	assert_about(wait_of(*state, "a", "192.0.2.1"), 2000);
	/* Right ones at once are not slowed when they have ended. */
	for (unsigned i = 0; i < 20; i++) {
		if (penalty_enter(*state, SLICE("b"), SLICE("192.0.2.1"), &tickets[i]) == 0)
			(void)penalty_leave(*state, &tickets[i], PENALTY_RIGHT);
	}
	assert_int_equal(wait_of(*state, "b", "192.0.2.1"), 0);
	begun = 0;
	for (unsigned i = 0; i < ARRAY_LEN(tickets); i++) {
		snprintf(login, sizeof(login), "x%u", i);
		begun += penalty_enter(*state, slice_str(login), SLICE("192.0.2.9"), &tickets[i]) ==
		         0;
	}
	assert_int_equal(begun, FREE_OF_NETWORK + 1);
	/* What tells nothing is given back. */
	for (unsigned i = 0; i < ARRAY_LEN(tickets); i++)
		(void)penalty_leave(*state, &tickets[i], PENALTY_UNTRIED);
	assert_int_equal(wait_of(*state, "y", "192.0.2.9"), 0);
}

static void a_network_is_what_one_customer_has(void **state)
{
	fail_freely(*state, "a", "2001:db8:0:100::1");
	assert_int_not_equal(wait_of(*state, "a", "2001:db8:0:1ff:ffff::2"), 0);
	assert_int_equal(wait_of(*state, "a", "2001:db8:0:200::1"), 0);
	/* What is no address is one, too. */
	fail_freely(*state, "a", "");
	assert_int_not_equal(wait_of(*state, "a", "nonsense"), 0);
}

/* Ten times as many made-up logins from as many networks as there is room for. */
static void a_flood_does_not_push_out_who_has_failed_more(void **state)
{
	char login[24], address[24];

	for (unsigned i = 0; i < 500; i++) {
		snprintf(login, sizeof(login), "guessed-%u", i);
		snprintf(address, sizeof(address), "198.51.100.%u", i % 250);
		fail_freely(*state, login, address);
	}
	for (unsigned i = 0; i < 650000; i++) {
		snprintf(login, sizeof(login), "made-up-%u", i);
		snprintf(address, sizeof(address), "10.%u.%u.%u", i >> 16, i >> 8 & 255, i & 255);
		(void)attempt(*state, login, address, PENALTY_WRONG);
	}
	test_clock_pass_ms(1000);
	for (unsigned i = 0; i < 500; i++) {
		snprintf(login, sizeof(login), "guessed-%u", i);
		snprintf(address, sizeof(address), "198.51.100.%u", i % 250);
		/* What has been waited for meanwhile counts, so one more is told by its wait. */
		(void)attempt(*state, login, address, PENALTY_WRONG);
		assert_about(wait_of(*state, login, address), 2000);
	}
}

/* A queue, and the link from which the same request comes again and again. */
struct asked_queue {
	struct queue *queue;
	struct link *link;
	struct buf request;
	int other_end;
};

#define NUMBER 7 /* of the request */

static void open_queue(struct asked_queue *asked, enum auth_type type)
{
	const struct auth_message message = {.type = type, .number = NUMBER};
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
	assert_int_equal(link_new(fds[0], &asked->link), 0);
	asked->other_end = fds[1];
	assert_int_equal(queue_new(1, &asked->queue), 0);
	buf_init(&asked->request, PROTOCOL_DATAGRAM_MAX);
	assert_int_equal(protocol_encode(&message, NULL, &asked->request), 0);
	assert_int_equal(queue_put_due(asked->queue), UINT64_MAX);
}

static void put(const struct asked_queue *asked)
{
	const struct standing first = {0};

	assert_int_equal(
	        queue_put(asked->queue, asked->link, buf_slice(&asked->request), &first), 0);
}

static struct request *take(const struct asked_queue *asked)
{
	struct request *batch[LIMITS_BATCH_MAX];

	assert_int_equal(queue_take(asked->queue, LANE_OF_ANYTHING, batch), 1);
	return batch[0];
}

static void close_queue(struct asked_queue *asked)
{
	queue_free(asked->queue);
	assert_int_equal(asked->link->queued, 0);
	buf_done(&asked->request);
	link_unref(asked->link);
	close(asked->other_end);
}

/* A request that waits for its turn holds no lane, and nothing of its link's room. */
static void a_delayed_request_comes_again(void **state)
{
	struct asked_queue asked;

	(void)state;
	open_queue(&asked, AUTH_LOGIN_STEP);
	for (unsigned i = 0; i < 2; i++) {
		put(&asked);
		struct request *request = take(&asked);
		assert_int_equal(request->since_ms, 0);
		queue_delay(asked.queue, request, 5000);
		assert_int_equal(queue_delayed(asked.queue), 1);
		assert_int_equal(asked.link->queued, 0);
		assert_in_range(
		        queue_put_due(asked.queue), clock_mono_ms() + 4000, clock_mono_ms() + 5000);
		if (i == 0) {
			/* Its client has gone. */
			queue_cancel(asked.queue, asked.link, NUMBER - 1);
			assert_int_equal(queue_delayed(asked.queue), 1);
			queue_cancel(asked.queue, asked.link, NUMBER);
		} else {
			test_clock_pass_ms(5000);
			assert_int_equal(queue_put_due(asked.queue), UINT64_MAX);
			assert_int_equal(asked.link->queued, 1);
			request = take(&asked);
			assert_int_not_equal(request->since_ms, 0);
			queue_delay(asked.queue, request, 5000); /* dropped with the queue */
		}
		assert_int_equal(queue_delayed(asked.queue), i);
	}
	close_queue(&asked);
}

/* A client goes while a lane has its step, or before one has: neither comes again. */
static void a_cancelled_request_does_not_come_again(void **state)
{
	struct asked_queue asked;

	(void)state;
	open_queue(&asked, AUTH_LOGIN_START);
	put(&asked);
	struct request *request = take(&asked);
	queue_cancel(asked.queue, asked.link, NUMBER + 1);
	assert_false(queue_is_cancelled(asked.queue, request));
	queue_cancel(asked.queue, asked.link, NUMBER);
	assert_true(queue_is_cancelled(asked.queue, request));
	queue_delay(asked.queue, request, 0);
	assert_int_equal(queue_delayed(asked.queue), 0);
	assert_int_equal(asked.link->queued, 0);
	assert_int_equal(queue_put_due(asked.queue), UINT64_MAX);
	/* One that no lane has taken yet. */
	put(&asked);
	queue_cancel(asked.queue, asked.link, NUMBER);
	assert_int_equal(asked.link->queued, 0);
	/* One that a lane ends with: nothing is left of it. */
	put(&asked);
	request_free(take(&asked));
	queue_cancel(asked.queue, asked.link, NUMBER);
	assert_int_equal(asked.link->queued, 0);
	close_queue(&asked);
}

/* A try that others' slow hashes kept from being one: it shuts no owner out. */
static void a_busy_try_counts_for_its_network_only(void **state)
{
	for (unsigned i = FREE_OF_LOGIN; i < FREE_OF_NETWORK - 1; i++)
		assert_int_equal(attempt(*state, "a", "192.0.2.1", PENALTY_BUSY), PENALTY_NO_NEWS);
	/* The login has all that is free. */
	for (unsigned i = 0; i < FREE_OF_LOGIN - 1; i++)
		assert_int_equal(attempt(*state, "a", "192.0.2.1", PENALTY_WRONG), PENALTY_NO_NEWS);
	assert_int_equal(wait_of(*state, "b", "192.0.2.1"), 0);
	assert_int_equal(attempt(*state, "a", "192.0.2.1", PENALTY_BUSY), PENALTY_NO_NEWS);
	assert_int_equal(attempt(*state, "a", "192.0.2.1", PENALTY_BUSY), PENALTY_NETWORK_SLOWED);
	assert_int_not_equal(wait_of(*state, "b", "192.0.2.1"), 0);
}

static void who_is_known_in_a_network_is_so_for_a_day(void **state)
{
	const int64_t day_ms = 24L * 3600 * 1000;
	char login[16];

	assert_int_equal(attempt(*state, "known", "192.0.2.1", PENALTY_RIGHT), 0);
	test_clock_pass_ms(day_ms - 5000);
	for (unsigned i = 0; i < FREE_OF_NETWORK; i++) {
		snprintf(login, sizeof(login), "made-up-%u", i);
		(void)attempt(*state, login, "192.0.2.1", PENALTY_WRONG);
	}
	assert_int_not_equal(wait_of(*state, "other", "192.0.2.1"), 0);
	assert_int_equal(wait_of(*state, "known", "192.0.2.1"), 0);
	test_clock_pass_ms(5000);
	(void)attempt(*state, "made-up", "192.0.2.1", PENALTY_WRONG);
	assert_int_not_equal(wait_of(*state, "known", "192.0.2.1"), 0);
}

/* What decides who waits for a lane behind whom. */
static void a_look_tells_how_an_attempt_would_stand(void **state)
{
	struct slice login = SLICE("a"), here = SLICE("192.0.2.1"), there = SLICE("192.0.2.2");
	struct penalty_ticket running, look = penalty_look(*state, login, here);

	assert_true(look.takes_turn && !look.open);
	assert_int_equal(look.failures, 0);
	/* One that has failed and one that runs, of the login and of the network. */
	(void)attempt(*state, "a", "192.0.2.1", PENALTY_WRONG);
	assert_int_equal(penalty_enter(*state, SLICE("b"), here, &running), 0);
	assert_int_equal(penalty_look(*state, login, here).failures, 3);
	assert_int_equal(penalty_look(*state, SLICE("b"), here).failures, 3);
	assert_int_equal(penalty_look(*state, SLICE("c"), here).failures, 2);
	assert_int_equal(penalty_look(*state, login, there).failures, 0);
	/* Who has logged in from there is known there, and nowhere else. */
	assert_int_equal(penalty_leave(*state, &running, PENALTY_RIGHT), PENALTY_NO_NEWS);
	look = penalty_look(*state, SLICE("b"), here);
	assert_false(look.takes_turn);
	assert_int_equal(look.failures, 0);
	assert_true(penalty_look(*state, SLICE("b"), there).takes_turn);
	test_clock_pass_ms(15000);
	assert_int_equal(penalty_look(*state, SLICE("c"), here).failures, 0);
}

/* ---- turns at slow hashes ---- */

static struct penalty_ticket slow_guesser(unsigned network, unsigned login, unsigned failures)
{
	return (struct penalty_ticket){
	        .login = {.tag = (uint64_t)network << 32 | login << 1 | 1},
	        .network = {.tag = (uint64_t)network << 1 | 1},
	        .failures = failures,
	        .open = true,
	};
}

static bool takes(struct slow_turns *turns, struct penalty_ticket who)
{
	return slow_turns_look(turns, &who) == 0 && slow_turns_take(turns, &who) == 0;
}

static struct slow_turns *busy_turns(void)
{
	struct slow_turns *turns;

	assert_int_equal(slow_turns_new(&turns), 0);
	for (unsigned i = 0; i < SLOW_TURNS_MAX; i++)
		assert_true(takes(turns, slow_guesser(1000000 + i, 0, 0)));
	return turns;
}

/* However many guess, at whatever logins: the owner, who has not failed, is the next. */
static void an_owner_goes_before_who_has_failed(void **state)
{
	struct slow_turns *turns = busy_turns();
	struct penalty_ticket owner = slow_guesser(1, 1, 0);

	(void)state;
	/* More than there are places: they do not keep him from having one. */
	for (unsigned i = 10; i < 3000; i++)
		assert_false(takes(turns, slow_guesser(i, i % 4, 1)));
	assert_false(takes(turns, owner));
	slow_turns_end(turns);
	assert_false(takes(turns, slow_guesser(10, 10 % 4, 1)));
	assert_true(takes(turns, owner));
	/* Then the oldest of the others. */
	slow_turns_end(turns);
	assert_false(takes(turns, slow_guesser(11, 11 % 4, 1)));
	assert_true(takes(turns, slow_guesser(10, 10 % 4, 1)));
	slow_turns_free(turns);
}

/* Many logins of one network are behind one of another. */
static void networks_take_turns(void **state)
{
	struct slow_turns *turns = busy_turns();

	(void)state;
	for (unsigned i = 0; i < 20; i++)
		assert_false(takes(turns, slow_guesser(10, i, 0)));
	assert_false(takes(turns, slow_guesser(11, 0, 0)));
	slow_turns_end(turns);
	assert_true(takes(turns, slow_guesser(10, 0, 0)));
	slow_turns_end(turns);
	assert_false(takes(turns, slow_guesser(10, 1, 0)));
	assert_true(takes(turns, slow_guesser(11, 0, 0)));
	/* Who has had his turn is behind who still waits, and holds nobody up. */
	slow_turns_end(turns);
	assert_true(takes(turns, slow_guesser(10, 1, 0)));
	slow_turns_free(turns);
}

static void who_has_gone_holds_up_nobody(void **state)
{
	struct slow_turns *turns = busy_turns();

	(void)state;
	assert_false(takes(turns, slow_guesser(10, 0, 0)));
	assert_false(takes(turns, slow_guesser(11, 0, 0)));
	slow_turns_end(turns);
	assert_false(takes(turns, slow_guesser(11, 0, 0)));
	test_clock_pass_ms(300);
	assert_true(takes(turns, slow_guesser(11, 0, 0)));
	/* But if he comes back he has kept his place. */
	assert_false(takes(turns, slow_guesser(12, 0, 0)));
	assert_false(takes(turns, slow_guesser(10, 0, 0)));
	slow_turns_end(turns);
	assert_false(takes(turns, slow_guesser(12, 0, 0)));
	assert_true(takes(turns, slow_guesser(10, 0, 0)));
	slow_turns_free(turns);
}

/* Neither the others of a network nor he himself: a place is kept for a minute. */
static void places_of_long_ago_count_no_more(void **state)
{
	struct slow_turns *turns = busy_turns();

	(void)state;
	for (unsigned i = 0; i < 20; i++)
		assert_false(takes(turns, slow_guesser(10, i, 0)));
	test_clock_pass_ms(60000);
	assert_false(takes(turns, slow_guesser(11, 0, 0)));
	assert_false(takes(turns, slow_guesser(12, 0, 5)));
	/* One of the crowd is new, one is a newcomer; both are behind who asked before them. */
	assert_false(takes(turns, slow_guesser(10, 0, 0)));
	assert_false(takes(turns, slow_guesser(10, 20, 0)));
	slow_turns_end(turns);
	assert_false(takes(turns, slow_guesser(10, 0, 0)));
	assert_true(takes(turns, slow_guesser(11, 0, 0)));
	slow_turns_end(turns);
	assert_true(takes(turns, slow_guesser(10, 0, 0)));
	slow_turns_end(turns);
	assert_false(takes(turns, slow_guesser(12, 0, 5)));
	assert_true(takes(turns, slow_guesser(10, 20, 0)));
	slow_turns_free(turns);
}

/* The same from many threads; what the thread sanitizer looks at. */
static void *guess(void *arg)
{
	struct penalty_ticket ticket;
	char login[16];

	for (unsigned i = 0; i < 2000; i++) {
		snprintf(login, sizeof(login), "%u", i % 100);
		if (penalty_enter(arg, slice_str(login), SLICE("192.0.2.1"), &ticket) == 0)
			(void)penalty_leave(arg, &ticket, (enum penalty_outcome)(i % 3));
		penalty_right(arg, slice_str(login), SLICE("192.0.2.1"));
	}
	return NULL;
}

static void threads_share_it(void **state)
{
	pthread_t threads[4];

	for (unsigned i = 0; i < ARRAY_LEN(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, guess, *state), 0);
	for (unsigned i = 0; i < ARRAY_LEN(threads); i++)
		pthread_join(threads[i], NULL);
}

#define penalty_test(fn) cmocka_unit_test_setup_teardown(fn, make, unmake)

#define UNTIMED                                                                                    \
	penalty_test(many_at_once_are_no_way_around),                                              \
	        penalty_test(a_network_is_what_one_customer_has), penalty_test(threads_share_it),  \
	        cmocka_unit_test(a_cancelled_request_does_not_come_again),                         \
	        cmocka_unit_test(networks_take_turns)

int main(void)
{
	const struct CMUnitTest untimed[] = {UNTIMED};
	const struct CMUnitTest all[] = {
	        UNTIMED,
	        penalty_test(the_wait_doubles_and_is_bounded),
	        penalty_test(failures_are_forgotten),
	        penalty_test(a_right_password_clears_the_login_not_the_network),
	        penalty_test(one_wrong_device_does_not_shut_its_network_out),
	        penalty_test(a_flood_does_not_push_out_who_has_failed_more),
	        cmocka_unit_test(a_delayed_request_comes_again),
	        penalty_test(a_busy_try_counts_for_its_network_only),
	        penalty_test(who_is_known_in_a_network_is_so_for_a_day),
	        penalty_test(a_look_tells_how_an_attempt_would_stand),
	        cmocka_unit_test(an_owner_goes_before_who_has_failed),
	        cmocka_unit_test(who_has_gone_holds_up_nobody),
	        cmocka_unit_test(places_of_long_ago_count_no_more),
	};

	test_clock_open();
	/* The others need a clock that can be moved. */
	if (!POSTERN_TEST_HOOKS)
		return cmocka_run_group_tests(untimed, NULL, NULL);
	return cmocka_run_group_tests(all, NULL, NULL);
}

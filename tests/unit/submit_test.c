/* SPDX-License-Identifier: ISC */
/* Parts of `submit` that can be tried without a network. */
#include "tests/unit/unit.h"

#include "gateway/submit/session.h"

#define ACCOUNT 7

static bool has_login(struct serving *serving, uint64_t account)
{
	(void)serving;
	(void)account;
	return false;
}

/* What a login brings is old if the account has changed since it began, whoever else has. */
static void a_login_is_judged_by_what_changed_since_it_began(void **state)
{
	static struct serving serving = {.has_login = has_login};
	struct session session = {.serving = &serving};

	(void)state;
	list_init(&serving.sessions);
	/* Around the end of what is kept, too. */
	for (unsigned begun = 0; begun < 2 * CHANGES_KEPT + 10; begun += 509) {
		while (serving.changes < begun)
			sessions_account_changed(&serving, ACCOUNT);
		session.changes_before = serving.changes;
		assert_false(session_login_is_stale(&session, ACCOUNT));
		for (unsigned i = 0; i < 3; i++)
			sessions_account_changed(&serving, ACCOUNT + 1 + i);
		sessions_account_changed(&serving, 0); /* nobody knows what */
		assert_false(session_login_is_stale(&session, ACCOUNT));
		assert_true(session_login_is_stale(&session, ACCOUNT + 2));
		sessions_account_changed(&serving, ACCOUNT);
		assert_true(session_login_is_stale(&session, ACCOUNT));
	}
}

static void more_changes_than_are_kept_may_be_any(void **state)
{
	static struct serving serving = {.has_login = has_login};
	struct session session = {.serving = &serving};

	(void)state;
	list_init(&serving.sessions);
	for (unsigned i = 0; i < CHANGES_KEPT; i++)
		sessions_account_changed(&serving, ACCOUNT + 1);
	assert_false(session_login_is_stale(&session, ACCOUNT));
	sessions_account_changed(&serving, ACCOUNT + 1);
	assert_true(session_login_is_stale(&session, ACCOUNT));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(a_login_is_judged_by_what_changed_since_it_began),
	        cmocka_unit_test(more_changes_than_are_kept_may_be_any),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

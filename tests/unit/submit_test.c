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

/* What a login brings is old if the account has changed since then, whoever else has. */
static void a_login_is_judged_by_what_changed_since(void **state)
{
	static struct serving serving = {.has_login = has_login};
	const struct auth_account before = {.id = ACCOUNT, .era = 10};
	const struct auth_account after = {.id = ACCOUNT, .era = 12};

	(void)state;
	list_init(&serving.sessions);
	assert_false(serving_login_is_stale(&serving, &before));
	sessions_account_changed(&serving, ACCOUNT, 10);
	sessions_account_changed(&serving, ACCOUNT + 1, 11);
	sessions_account_changed(&serving, 0, 11); /* nobody knows what */
	assert_false(serving_login_is_stale(&serving, &before));
	sessions_account_changed(&serving, ACCOUNT, 12);
	assert_true(serving_login_is_stale(&serving, &before));
	assert_false(serving_login_is_stale(&serving, &after));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(a_login_is_judged_by_what_changed_since),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

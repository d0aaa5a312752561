/* SPDX-License-Identifier: ISC */
/* What clients may say to log in. */
#include "tests/unit/unit.h"

#include <errno.h>

#include "auth/response.h"

static void plain_has_three_parts(void **state)
{
	static const struct {
		struct slice message;
		bool good;
	} cases[] = {
	        {SLICE("\0a\0b"), true},
	        {SLICE("a\0a\0b"), true},
	        {SLICE("\0a b\0 \1\xff"), true}, /* no such account, any password */
	        {SLICE("\0gr\xc3\xbcn@x\0b"), true},
	        {SLICE(""), false},
	        {SLICE("a"), false},
	        {SLICE("a\0b"), false},
	        {SLICE("\0\0b"), false},
	        {SLICE("\0a\0"), false},
	        {SLICE("\0a\0b\0"), false},
	        {SLICE("\0a\0b\0c"), false},
	        {SLICE("\0\0a\0b"), false},
	        {SLICE("\0a\n\0b"), false},
	        {SLICE("\0a\x7f\0b"), false},
	        {SLICE("\0a\xff\0b"), false},
	        {SLICE("\0a\xc0\xaf\0b"), false},
	        {SLICE("\0a\xed\xa0\x80\0b"), false},
	        {SLICE("b\n\0a\0b"), false},
	        {SLICE("b\xff\0a\0b"), false},
	};
	struct slice authzid, login, password;
	char message[2 + LOGIN_MAX + 1 + 1025];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++)
		assert_int_equal(
		        response_split_plain(cases[i].message, &authzid, &login, &password),
		        cases[i].good ? 0 : -EBADMSG);
	assert_int_equal(response_split_plain(SLICE("z\0u\0p"), &authzid, &login, &password), 0);
	assert_slice_equal(authzid, "z");
	assert_slice_equal(login, "u");
	assert_slice_equal(password, "p");
	/* The longest of each, and one octet more. */
	memset(message, 'x', sizeof(message));
	message[0] = message[1 + LOGIN_MAX] = '\0';
	struct slice longest = slice_of(message, 2 + LOGIN_MAX + 1024);
	assert_int_equal(response_split_plain(longest, &authzid, &login, &password), 0);
	longest.len++;
	assert_int_equal(response_split_plain(longest, &authzid, &login, &password), -EBADMSG);
	message[1 + LOGIN_MAX] = 'x';
	message[2 + LOGIN_MAX] = '\0';
	longest.len = 2 + LOGIN_MAX + 5;
	assert_int_equal(response_split_plain(longest, &authzid, &login, &password), -EBADMSG);
}

static void scram_begins_strictly(void **state)
{
	static const struct {
		struct slice message;
		const char *login; /* NULL: malformed */
	} cases[] = {
	        {SLICE("n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL"), "user"},
	        {SLICE("y,,n=user,r=x"), "user"},
	        {SLICE("n,a=user,n=user,r=x"), "user"},
	        {SLICE("n,,n=a=2Cb=3Dc,r=x"), "a,b=c"},
	        {SLICE("n,,n=user,r=x,t=more,u=and more"), "user"},
	        {SLICE("p=tls-exporter,,n=user,r=x"), NULL}, /* for -PLUS */
	        {SLICE("n,,m=must,n=user,r=x"), NULL},       /* must be understood */
	        {SLICE("x,,n=user,r=x"), NULL},
	        {SLICE("n,n=user,r=x"), NULL},
	        {SLICE("n,b=user,n=user,r=x"), NULL},
	        {SLICE("n,a=,n=user,r=x"), NULL},
	        {SLICE("n,,n=,r=x"), NULL},
	        {SLICE("n,,n=user"), NULL},
	        {SLICE("n,,n=user,r="), NULL},
	        {SLICE("n,,n=user,r=x y"), NULL},
	        {SLICE("n,,n=user,r=x\x80"), NULL},
	        {SLICE("n,,n=user,r=x,"), NULL},
	        {SLICE("n,,n=user,r=x,t"), NULL},
	        {SLICE("n,,n=user,r=x,,t=y"), NULL},
	        {SLICE("n,,n=user,r=x,1=y"), NULL},
	        {SLICE("n,,r=x,n=user"), NULL},
	        {SLICE("n,,n=us=er,r=x"), NULL},
	        {SLICE("n,,n=user=2,r=x"), NULL},
	        {SLICE("n,,n=user=2c,r=x"), NULL},
	        {SLICE("n,,n=us\0er,r=x"), NULL},
	        {SLICE("n,,n=user\n,r=x"), NULL},
	        {SLICE("n,,n=user\xff,r=x"), NULL},
	        {SLICE("n,,"), NULL}, /* where the library reads an octet too far */
	        {SLICE("n,"), NULL},
	        {SLICE("n"), NULL},
	        {SLICE("n,a="), NULL},
	        {SLICE("n,a=x"), NULL},
	        {SLICE("n,a=x,"), NULL},
	        {SLICE(""), NULL},
	};
	char login[LOGIN_MAX + 1], message[2049];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		int r = response_read_scram_first(cases[i].message, login);
		assert_int_equal(r, cases[i].login != NULL ? 0 : -EBADMSG);
		if (r == 0)
			assert_string_equal(login, cases[i].login);
	}
	memset(message, 'x', sizeof(message));
	memcpy(message, "n,,n=u,r=", 9);
	assert_int_equal(response_read_scram_first(slice_of(message, 2048), login), 0);
	assert_int_equal(response_read_scram_first(slice_of(message, 2049), login), -EBADMSG);
	memset(message, 'x', sizeof(message));
	memcpy(message, "n,,n=", 5);
	memcpy(message + 5 + LOGIN_MAX, ",r=x", 4);
	assert_int_equal(response_read_scram_first(slice_of(message, 5 + LOGIN_MAX + 4), login), 0);
	memcpy(message + 5 + LOGIN_MAX, "x,r=x", 5);
	assert_int_equal(
	        response_read_scram_first(slice_of(message, 5 + LOGIN_MAX + 5), login), -EBADMSG);
}

#define PROOF "p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

static void scram_ends_strictly(void **state)
{
	static const char *const good[] = {
	        "c=biws,r=x," PROOF, "c=biws,r=x,t=more," PROOF, "c=eSws,r=x," PROOF};
	static const char *const bad[] = {"", "c=biws", "c=biws,r=x", "c=biws,r=x,p=AAAA",
	        "c=biws,r=x,p=", "c=biws,r=," PROOF, "c=,r=x," PROOF, "c=biw,r=x," PROOF,
	        "c=bi s,r=x," PROOF, "r=x," PROOF, "c=biws," PROOF, "c=biws,r=x," PROOF ",t=x",
	        "c=biws,r=x," PROOF ",", "c=biws,r=x,t," PROOF,
	        "c=biws,r=x,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB="};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++)
		assert_true(response_is_scram_final(slice_str(good[i])));
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_false(response_is_scram_final(slice_str(bad[i])));
}

static void a_reader_tells_what_is_a_guess(void **state)
{
	struct response_reader reader;

	(void)state;
	assert_int_equal(response_reader_init(&reader, SLICE("CRAM-MD5")), -EBADMSG);
	assert_int_equal(response_reader_init(&reader, SLICE("")), -EBADMSG);
	assert_int_equal(response_reader_init(&reader, SLICE("plain")), 0);
	assert_false(response_read(&reader, SLICE("\0A")));
	assert_false(reader.guesses);
	assert_true(response_read(&reader, SLICE("z\0A\0b")));
	assert_true(reader.guesses && !reader.is_nobody);
	assert_string_equal(reader.login, "a");
	assert_slice_equal(reader.authzid, "z");
	assert_slice_equal(reader.password, "b");
	/* Of a response that is none nothing is left but the name. */
	assert_false(response_read(&reader, SLICE("x")));
	assert_true(!reader.guesses && reader.password.len == 0 && reader.authzid.len == 0);
	assert_true(response_read(&reader, SLICE("\0A b\0c")));
	assert_true(reader.guesses && reader.is_nobody);
	assert_string_equal(reader.login, "A b");
}

static void login_guesses_with_its_second_response(void **state)
{
	struct response_reader reader;

	(void)state;
	assert_int_equal(response_reader_init(&reader, SLICE("LOGIN")), 0);
	assert_true(response_read(&reader, SLICE("A")));
	assert_true(!reader.guesses && reader.password.len == 0);
	/* It may come again, after it was made to wait. */
	for (unsigned i = 0; i < 2; i++) {
		assert_true(response_read(&reader, SLICE("b")));
		assert_true(reader.guesses);
		assert_slice_equal(reader.password, "b");
		assert_string_equal(reader.login, "a");
	}
	assert_false(response_read(&reader, SLICE("")));
	assert_true(!reader.guesses && reader.password.len == 0);
	assert_int_equal(response_reader_init(&reader, SLICE("LOGIN")), 0);
	assert_false(response_read(&reader, SLICE("\xff")));
	assert_string_equal(reader.login, "");
}

static void scram_guesses_with_its_first_response(void **state)
{
	struct response_reader reader;

	(void)state;
	assert_int_equal(response_reader_init(&reader, SLICE("SCRAM-SHA-256")), 0);
	assert_true(response_read(&reader, SLICE("n,,n=A=2C,r=x")));
	assert_true(reader.guesses && !reader.is_nobody && reader.password.len == 0);
	assert_string_equal(reader.login, "a,");
	assert_true(response_read(&reader, SLICE("c=biws,r=x," PROOF)));
	assert_false(reader.guesses);
	assert_true(response_read(&reader, SLICE("")));
	assert_false(response_read(&reader, SLICE("more")));
	assert_int_equal(response_reader_init(&reader, SLICE("SCRAM-SHA-256")), 0);
	assert_false(response_read(&reader, SLICE("c=biws,r=x," PROOF)));
	assert_false(reader.guesses);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(plain_has_three_parts),
	        cmocka_unit_test(scram_begins_strictly),
	        cmocka_unit_test(scram_ends_strictly),
	        cmocka_unit_test(a_reader_tells_what_is_a_guess),
	        cmocka_unit_test(login_guesses_with_its_second_response),
	        cmocka_unit_test(scram_guesses_with_its_first_response),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

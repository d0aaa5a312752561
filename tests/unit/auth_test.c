/* SPDX-License-Identifier: ISC */
/* What `auth` remembers, what waits for its lanes, and what travels to `submit`. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "auth/credential.h"
#include "auth/foreign_hash.h"
#include "auth/login.h"
#include "auth/password.h"
#include "auth/queue.h"
#include "auth/verifier.h"
#include "gateway/base/clock.h"
#include "gateway/base/random.h"
#include "tests/unit/test_clock.h"

#define REMEMBERED_MAX 100000

static struct identity *make_identity(uint64_t account)
{
	struct identity *identity = calloc(1, sizeof(*identity));

	assert_non_null(identity);
	atomic_init(&identity->refs, 1);
	identity->known = true;
	identity->account.id = account;
	identity->valid_until_ms = UINT64_MAX;
	return identity;
}

/* What a password is. */
static const struct credential scram = {.kind = CREDENTIAL_SCRAM};

static bool knows(struct identity_store *store, const char *password)
{
	const struct credential *credential;
	uint64_t era;
	struct identity *identity =
	        identity_recall(store, SLICE("a"), slice_str(password), &credential, &era);

	identity_unref(identity);
	return identity != NULL;
}

static void a_notice_forgets(void **state)
{
	struct identity_store *store;
	struct identity *first = make_identity(1), *second = make_identity(2);
	uint64_t era, later;

	(void)state;
	assert_int_equal(identity_store_new(&store), 0);
	first->era = second->era = identity_forget(store, 3);
	identity_remember(store, SLICE("a"), SLICE("one"), first, &scram);
	identity_remember(store, SLICE("a"), SLICE("two"), second, &scram);
	assert_true(knows(store, "one") && knows(store, "two") && !knows(store, "three"));
	assert_true(identity_is_current(store, first, &era));
	identity_forget(store, 1);
	assert_true(!knows(store, "one") && knows(store, "two"));
	/* Looked up before the notice: too old to be remembered. */
	assert_false(identity_is_current(store, first, &later));
	assert_true(identity_is_current(store, second, &later) && later > era);
	identity_remember(store, SLICE("a"), SLICE("one"), first, &scram);
	assert_false(knows(store, "one"));
	identity_forget(store, 0);
	assert_false(knows(store, "two"));
	assert_false(identity_is_current(store, second, &later));
	identity_unref(first);
	identity_unref(second);
	identity_store_free(store);
}

static void what_is_over_makes_room(void **state)
{
	struct identity_store *store;
	struct identity *identity = make_identity(1);
	char password[24];

	(void)state;
	assert_int_equal(identity_store_new(&store), 0);
	for (unsigned i = 0; i < REMEMBERED_MAX; i++) {
		snprintf(password, sizeof(password), "%u", i);
		identity_remember(store, SLICE("a"), slice_str(password), identity, &scram);
	}
	assert_true(knows(store, "0") && knows(store, "99999"));
	identity_remember(store, SLICE("a"), SLICE("new"), identity, &scram);
	assert_false(knows(store, "new"));
	if (POSTERN_TEST_HOOKS) {
		test_clock_pass_ms(11L * 60 * 1000);
		identity_remember(store, SLICE("a"), SLICE("new"), identity, &scram);
		assert_true(knows(store, "new") && !knows(store, "0"));
	}
	identity_unref(identity);
	identity_store_free(store);
}

/* However its owner types it, it takes one place. */
static void an_app_password_is_remembered_once(void **state)
{
	static const char token[] = "abcdefghijkmnpqrstuvwxyz2345",
	                  other[] = "zbcdefghijkmnpqrstuvwxyz2345";
	const struct credential app = {.kind = CREDENTIAL_TOKEN};
	struct identity *identity = make_identity(1);
	struct identity_store *store;
	char typed[2 * sizeof(token)];

	(void)state;
	assert_int_equal(identity_store_new(&store), 0);
	for (unsigned way = 0; way < REMEMBERED_MAX; way++) {
		size_t len = 0;
		for (unsigned i = 0; token[i] != '\0'; i++) {
			typed[len++] = token[i];
			if ((way >> i & 1) != 0)
				typed[len++] = '-';
		}
		identity_remember(store, SLICE("a"), slice_of(typed, len), identity, &app);
	}
	assert_true(knows(store, token) && knows(store, "ABCD EFGH ijkm npqr stuv wxyz 2345"));
	assert_false(knows(store, "abcd-efgh-ijkm-npqr-stuv-wxyz-2346"));
	identity_remember(store, SLICE("a"), SLICE("new"), identity, &scram);
	assert_true(knows(store, "new"));
	/* A password that looks like one is nothing but itself. */
	identity_remember(store, SLICE("a"), slice_str(other), identity, &scram);
	assert_true(knows(store, other) && !knows(store, "Zbcd-efgh-ijkm-npqr-stuv-wxyz-2345"));
	identity_unref(identity);
	identity_store_free(store);
}

/* The example of RFC 7677, with its keys as a verifier. */
static void a_verifier_fits_its_password(void **state)
{
	struct verifier verifier;

	(void)state;
	assert_int_equal(
	        verifier_parse(SLICE("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcP"
	                             "nkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2Kc"
	                             "eYqR/+LhKVMdV6YZIAz1Y="),
	                &verifier),
	        0);
	assert_true(verifier_check(&verifier, SLICE("pencil")));
	assert_false(verifier_check(&verifier, SLICE("pencils")));
	assert_int_equal(
	        verifier_parse(SLICE("SCRAM-SHA-256$4096:W22$WG5d:wfPL"), &verifier), -EBADMSG);
}

static void a_verifier_is_made_for_its_password(void **state)
{
	struct verifier verifier;
	struct buf text, other;

	(void)state;
	buf_init(&text, 1024);
	buf_init(&other, 1024);
	assert_int_equal(verifier_make(SLICE("pencil"), 4096, &text), 0);
	assert_int_equal(verifier_make(SLICE("pencil"), 4096, &other), 0);
	assert_false(slice_equal(buf_slice(&text), buf_slice(&other))); /* another salt */
	assert_int_equal(verifier_parse(buf_slice(&text), &verifier), 0);
	assert_int_equal(verifier.iterations, 4096);
	assert_true(verifier_check(&verifier, SLICE("pencil")));
	assert_false(verifier_check(&verifier, SLICE("Pencil")));
	buf_done(&text);
	buf_done(&other);
}

/* The vectors of the specifications (SHA-crypt, bcrypt), of libxcrypt, of Python's hashlib. */
static void hashes_of_other_systems_fit_their_passwords(void **state)
{
	static const struct {
		const char *password, *hash;
	} cases[] = {
	        {"Hello world!", "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjn"
	                         "QJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"},
	        {"pencil", "$6$rounds=1000$saltsalt$bbY.T.ZpN43KapLdmlSbP6MmxBlkMSbhrh.Y1rmY0fYaRO/"
	                   "t.4sKqUiU.Z8byKf8Oa1yagMn/0fncuHSYrb9h."},
	        {"Hello world!", "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"},
	        {"U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"},
	        {"pencil", "$2b$04$CCCCCCCCCCCCCCCCCCCCC.mft0ehc6/OeTDQZ/doQPnEoMj3rALOe"},
	        {"pencil", "$2y$04$CCCCCCCCCCCCCCCCCCCCC.mft0ehc6/OeTDQZ/doQPnEoMj3rALOe"},
	        {"pencil", "$y$j75$K.4ivliiUear/FeAzrvzg/"
	                   "$7ZxgEzw8koMZMZg4TfnY9YhSVorRnbvwMGkayEhQA20"},
	        {"pencil", "{SSHA}znB7cxY8SSlEfly9Wp//b2skGPFzYWx0LVNTSEE="},
	        {"pencil", "{SSHA256}w4HajRfCchvpGHmmXK0nYOHmF/Op0rNgrpAqhNcO+J5zYWx0LVNTSEEyNTY="},
	        {"pencil",
	                "{SSHA512}VHwtzVJ7hoETvCOgmIhsxLk6TywBorzZJzuVvLkZDczkL6eiOipZ1Bwnu8UnzEtN"
	                "g7HyBop9jF9QXgrvRpFB93NhbHQtU1NIQTUxMg=="},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct slice hash = slice_str(cases[i].hash);
		struct slice password = slice_str(cases[i].password);
		assert_true(foreign_hash_fits(hash, password));
		assert_false(foreign_hash_fits(hash, SLICE("another")));
		assert_false(foreign_hash_fits(hash, SLICE("")));
		/* Cut, it fits nothing, least of all its password. */
		for (size_t len = 0; len < hash.len; len++)
			assert_false(foreign_hash_fits(slice_of(hash.ptr, len), password));
	}
}

/* Each of these would hold a core for minutes, or take a gigabyte. */
static void a_hash_that_costs_too_much_is_not_tried(void **state)
{
	static const char *const hashes[] = {
	        ("$6$rounds=999999999$saltsalt$bbY.T.ZpN43KapLdmlSbP6MmxBlkMSbhrh.Y1rmY0fYaRO/"
	         "t.4sKqUiU.Z8byKf8Oa1yagMn/0fncuHSYrb9h."),
	        "$5$rounds=99999999$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5",
	        "$2b$13$CCCCCCCCCCCCCCCCCCCCC.mft0ehc6/OeTDQZ/doQPnEoMj3rALOe",
	        "$2b$31$CCCCCCCCCCCCCCCCCCCCC.mft0ehc6/OeTDQZ/doQPnEoMj3rALOe",
	        "$y$jFT$K.4ivliiUear/FeAzrvzg/$7ZxgEzw8koMZMZg4TfnY9YhSVorRnbvwMGkayEhQA20",
	};
	uint64_t began = clock_mono_ms();

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(hashes); i++)
		assert_false(foreign_hash_fits(slice_str(hashes[i]), SLICE("pencil")));
	assert_in_range(clock_mono_ms() - began, 0, 900);
	/* Kinds that are not taken at all. */
	assert_false(foreign_hash_fits(SLICE("$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/"), SLICE("x")));
	assert_false(foreign_hash_fits(SLICE("{PLAIN}x"), SLICE("x")));
	assert_false(foreign_hash_fits(SLICE("x"), SLICE("x")));
	assert_false(foreign_hash_fits(SLICE("*"), SLICE("x")));
}

/* What other systems write where nobody chooses is taken, and what is slow of it is known. */
static void slow_hashes_are_known(void **state)
{
	static const char *const slow[] = {"$6$rounds=100000$s$h", "$5$rounds=10001$s$h",
	        "$2b$12$s", "$2y$07$s", "$y$j9T$s$h", "$y$jBT$s$h"};
	static const char *const fast[] = {"$6$s$h", "$5$rounds=10000$s$h", "$2b$06$s",
	        "$y$j7T$s$h", "{SSHA512}AA", "$6$rounds=656000$s$h", "$2b$13$s", "$y$jCT$s$h", "x",
	        ""};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(slow); i++)
		assert_true(foreign_hash_is_slow(slice_str(slow[i])));
	for (size_t i = 0; i < ARRAY_LEN(fast); i++)
		assert_false(foreign_hash_is_slow(slice_str(fast[i])));
}

static void an_app_password_may_be_typed_in_many_ways(void **state)
{
	const struct credential credential = {
	        .kind = CREDENTIAL_TOKEN,
	        .verifier =
	                SLICE("5210ff25558a400d07878e332b5482e558f5f8e5ad6072afa8486cfbae24554a"),
	};
	static const char *const right[] = {
	        "abcd-efgh-ijkm-npqr-stuv-wxyz-2345",
	        "abcdefghijkmnpqrstuvwxyz2345",
	        "ABCD EFGH ijkm npqr stuv wxyz 2345 ",
	};
	static const char *const wrong[] = {
	        "",
	        "abcd-efgh-ijkm-npqr-stuv-wxyz-2346",
	        "abcd-efgh-ijkm-npqr-stuv-wxyz-234",
	        "abcd-efgh-ijkm-npqr-stuv-wxyz-2345-2",
	        "abcd_efgh_ijkm_npqr_stuv_wxyz_2345",
	        "5210ff25558a400d07878e332b5482e558f5f8e5ad6072afa8486cfbae24554a",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(right); i++)
		assert_true(credential_token_fits(&credential, slice_str(right[i])));
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		assert_false(credential_token_fits(&credential, slice_str(wrong[i])));
}

static const char *from(const char *networks, const char *address)
{
	const struct credential credential = {.networks = slice_str(networks)};

	return credential_objection(&credential, SLICE("PLAIN"), slice_str(address));
}

static void a_credential_keeps_to_its_networks_and_mechanisms(void **state)
{
	struct credential credential = {.mechanisms = SLICE("LOGIN PLAIN")};

	(void)state;
	assert_null(credential_objection(&credential, SLICE("plain"), SLICE("192.0.2.1")));
	assert_string_equal(
	        credential_objection(&credential, SLICE("SCRAM-SHA-256"), SLICE("192.0.2.1")),
	        "mechanism_not_allowed");
	assert_non_null(credential_objection(&credential, SLICE("PLAI"), SLICE("192.0.2.1")));

	assert_null(from("", "anything"));
	assert_null(from("192.0.2.0/24", "192.0.2.255"));
	assert_null(from("10.0.0.0/8 192.0.2.0/25", "192.0.2.127"));
	assert_null(from("192.0.2.1/32", "192.0.2.1"));
	assert_null(from("0.0.0.0/0", "255.255.255.255"));
	assert_null(from("2001:db8:8000::/33", "2001:db8:ffff::1"));
	assert_null(from("::/0", "2001:db8::1"));
	assert_null(from("2001:db8::1/128", "2001:db8::1"));
	static const char *const outside[][2] = {
	        {"192.0.2.0/24", "192.0.3.0"},
	        {"192.0.2.0/25", "192.0.2.128"},
	        {"192.0.2.1/32", "192.0.2.0"},
	        {"2001:db8:8000::/33", "2001:db8:7fff::1"},
	        {"::/0", "192.0.2.1"},
	        {"0.0.0.0/0", "2001:db8::1"},
	        {"0.0.0.0/0", ""},
	        {"192.0.2.0/33", "192.0.2.0"},
	        {"192.0.2.0/", "192.0.2.0"},
	        {"192.0.2.0", "192.0.2.0"},
	        {" ", "192.0.2.0"},
	};
	for (size_t i = 0; i < ARRAY_LEN(outside); i++)
		assert_string_equal(from(outside[i][0], outside[i][1]), "network_not_allowed");
}

static void a_password_is_the_same_however_it_is_written(void **state)
{
	static const struct {
		const char *typed, *prepared;
	} cases[] = {
	        {"secret", "secret"},
	        {"gr\xc3\xbcn", "gr\xc3\xbcn"},
	        {"gru\xcc\x88n", "gr\xc3\xbcn"}, /* decomposed, as some keyboards do */
	        {"a\xc2\xa0"
	         "b",
	                "a b"}, /* a blank that does not break */
	        {"a\xc2\xad"
	         "b",
	                "ab"},                            /* a soft hyphen */
	        {"\xef\xac\x81\xef\xbc\xa1", "fiA"},      /* a ligature, a wide letter */
	        {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"}, /* younger than SASLprep */
	        {"x\xd7\x90", "x\xd7\x90"},               /* two directions */
	        /* Forbidden, so that nothing is changed: controls, and what is no text. */
	        {"a\tb", "a\tb"},
	        {"u\xcc\x88\x01", "u\xcc\x88\x01"},
	        {"u\xcc\x88\xff", "u\xcc\x88\xff"},
	};
	char room[PASSWORD_MAX * 4], much[PASSWORD_MAX];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++)
		assert_slice_equal(
		        password_prepare(slice_str(cases[i].typed), room), cases[i].prepared);
	/* One character of three octets becomes eighteen; what has no room stays. */
	for (size_t i = 0; i < sizeof(much); i++)
		much[i] = "\xef\xb7\xba"[i % 3];
	struct slice typed = slice_of(much, sizeof(much) / 3 * 3);
	assert_true(slice_equal(password_prepare(typed, room), typed));
}

/* 100,000 of them are remembered, and each session has an account. */
static void an_identity_is_small(void **state)
{
	(void)state;
	assert_in_range(sizeof(struct identity), 0, 1024);
	assert_in_range(sizeof(struct auth_account), 0, 128);
}

static void an_account_travels_whole(void **state)
{
	struct slice senders[PROTOCOL_SENDERS_MAX];
	struct auth_account account = {
	        .id = 7,
	        .login = SLICE("a"),
	        .senders = senders,
	        .add_sender = true,
	        .counts_new_recipients = true,
	        .era = 99,
	        .valid_until_ms = 98,
	        .credential = 97,
	};
	const struct auth_message done = {.type = AUTH_DONE, .number = 3};
	struct auth_account_room room;
	struct auth_message message;
	struct buf datagram;

	(void)state;
	buf_init(&datagram, PROTOCOL_DATAGRAM_MAX);
	for (; account.sender_count < PROTOCOL_SENDERS_MAX; account.sender_count++)
		senders[account.sender_count] = SLICE("@example.org");
	assert_int_equal(protocol_encode(&done, &account, &datagram), 0);
	assert_int_equal(protocol_decode(buf_slice(&datagram), &message, &room), 0);
	assert_int_equal(message.number, 3);
	assert_int_equal(room.account.sender_count, PROTOCOL_SENDERS_MAX);
	assert_slice_equal(room.account.senders[PROTOCOL_SENDERS_MAX - 1], "@example.org");
	assert_true(room.account.add_sender);
	assert_true(room.account.counts_new_recipients);
	assert_int_equal(room.account.era, 99);
	assert_int_equal(room.account.valid_until_ms, 98);
	assert_int_equal(room.account.credential, 97);
	/* Cut anywhere it is nothing. */
	for (size_t len = 0; len < buf_len(&datagram); len++)
		assert_int_equal(
		        protocol_decode(slice_of(buf_slice(&datagram).ptr, len), &message, &room),
		        -EBADMSG);
	buf_done(&datagram);
}

/* Encodes, and decodes it again; every datagram that is cut is nothing. */
static struct auth_message travel(const struct auth_message *message, struct buf *datagram)
{
	static const struct auth_account nobody;
	static struct auth_account_room room;
	struct auth_message arrived, unused;

	assert_int_equal(protocol_encode(message, &nobody, datagram), 0);
	for (size_t len = 0; len < buf_len(datagram); len++)
		assert_int_equal(
		        protocol_decode(slice_of(buf_slice(datagram).ptr, len), &unused, &room),
		        -EBADMSG);
	assert_int_equal(protocol_decode(buf_slice(datagram), &arrived, &room), 0);
	assert_int_equal(arrived.type, message->type);
	return arrived;
}

static void what_proves_who_it_is_travels(void **state)
{
	const struct auth_message network = {
	        .type = AUTH_LOGIN_NETWORK,
	        .client_address = SLICE("2001:db8::1"),
	        .session = SLICE("0123abcd"),
	};
	const struct auth_message certificate = {
	        .type = AUTH_LOGIN_START,
	        .mechanism = SLICE("EXTERNAL"),
	        .client_address = SLICE("192.0.2.1"),
	        .session = SLICE("0123abcd"),
	        .has_initial = true,
	        .data = SLICE("alice"),
	        .fingerprint = SLICE("00ff"),
	};
	const struct auth_message blocked = {.type = AUTH_BLOCKED, .reason = SLICE("ticket 7")};
	struct auth_message arrived;
	struct buf datagram;

	(void)state;
	buf_init(&datagram, PROTOCOL_DATAGRAM_MAX);
	arrived = travel(&network, &datagram);
	assert_slice_equal(arrived.client_address, "2001:db8::1");
	assert_slice_equal(arrived.session, "0123abcd");
	arrived = travel(&certificate, &datagram);
	assert_slice_equal(arrived.data, "alice");
	assert_slice_equal(arrived.fingerprint, "00ff");
	arrived = travel(&blocked, &datagram);
	assert_slice_equal(arrived.reason, "ticket 7");
	buf_done(&datagram);
}

/* A session of a credential that is tied to a sender gets that one, and none that is lost. */
static void a_credential_brings_its_sender(void **state)
{
	struct identity *identity = make_identity(7);
	struct credential credential = {.id = 1};
	struct auth_account account;

	(void)state;
	identity->account.senders = &(struct slice){"@example.org", 12};
	identity->account.sender_count = 1;
	identity_account(identity, &credential, 5, &account);
	assert_int_equal(account.sender_count, 1);
	assert_slice_equal(account.senders[0], "@example.org");
	credential.sender = SLICE("info@example.org");
	identity_account(identity, &credential, 5, &account);
	assert_int_equal(account.sender_count, 1);
	assert_slice_equal(account.senders[0], "info@example.org");
	credential.may_not_send = true;
	identity_account(identity, &credential, 5, &account);
	assert_int_equal(account.sender_count, 0);
	identity_unref(identity);
}

/* As many hashes as the protocol names fit into a datagram, whole. */
static void an_admission_brings_its_recipients(void **state)
{
	static char hashes[PROTOCOL_HASHES_MAX * PROTOCOL_HASH_SIZE + 4];
	struct auth_message admit = {
	        .type = AUTH_ADMIT,
	        .charge = {.account = 7, .recipients = PROTOCOL_HASHES_MAX},
	        .recipients = slice_of(hashes, sizeof(hashes) - 4),
	};
	struct auth_account_room room;
	struct auth_message message;
	struct buf datagram;

	(void)state;
	random_bytes(hashes, sizeof(hashes));
	buf_init(&datagram, PROTOCOL_DATAGRAM_MAX);
	assert_int_equal(protocol_encode(&admit, NULL, &datagram), 0);
	assert_int_equal(protocol_decode(buf_slice(&datagram), &message, &room), 0);
	assert_int_equal(message.charge.recipients, PROTOCOL_HASHES_MAX);
	assert_true(slice_equal(message.recipients, admit.recipients));
	admit.recipients.len += 4;
	assert_int_equal(protocol_encode(&admit, NULL, &datagram), 0);
	assert_int_equal(protocol_decode(buf_slice(&datagram), &message, &room), -EBADMSG);
	buf_done(&datagram);
}

static void put_standing(struct queue *queue, struct link *link, enum auth_type type,
        uint32_t number, struct standing standing)
{
	const struct auth_message message = {.type = type, .number = number};
	struct buf datagram;

	buf_init(&datagram, PROTOCOL_DATAGRAM_MAX);
	assert_int_equal(protocol_encode(&message, NULL, &datagram), 0);
	assert_int_equal(queue_put(queue, link, buf_slice(&datagram), &standing), 0);
	buf_done(&datagram);
}

static void put(struct queue *queue, struct link *link, enum auth_type type, uint32_t number)
{
	put_standing(queue, link, type, number, (struct standing){0});
}

/* A password from that network, which has failed so often. */
static void guess(struct queue *queue, struct link *link, uint32_t number, uint64_t network,
        unsigned failures)
{
	put_standing(queue, link, AUTH_LOGIN_START, number,
	        (struct standing){STANDING_PASSWORD, network, failures});
}

/* What that lane gets are requests of these numbers. */
static void expect(struct queue *queue, enum lane_kind kind, const char *numbers)
{
	struct request *batch[LIMITS_BATCH_MAX];
	unsigned count = queue_take(queue, kind, batch);

	assert_int_equal(count, strlen(numbers));
	for (unsigned i = 0; i < count; i++) {
		assert_int_equal(batch[i]->message.number, numbers[i] - '0');
		request_free(batch[i]);
	}
}

static struct link *new_link(int *ret_other)
{
	struct link *link;
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
	assert_int_equal(link_new(fds[0], &link), 0);
	*ret_other = fds[1];
	return link;
}

static void charges_go_before_logins(void **state)
{
	struct queue *queue;
	int other;
	struct link *link = new_link(&other);

	(void)state;
	assert_int_equal(queue_new(1, &queue), 0);
	assert_int_equal(queue_join(queue), LANE_OF_ANYTHING);
	put(queue, link, AUTH_LOGIN_STEP, 1);
	put(queue, link, AUTH_ADMIT, 2);
	put(queue, link, AUTH_SETTLE, 3);
	put(queue, link, AUTH_ADMIT, 4);
	expect(queue, LANE_OF_ANYTHING, "24");
	expect(queue, LANE_OF_ANYTHING, "3");
	expect(queue, LANE_OF_ANYTHING, "1");
	put(queue, link, AUTH_ADMIT, 5); /* gets no answer */
	queue_end(queue);
	expect(queue, LANE_OF_ANYTHING, "");
	queue_free(queue);
	assert_int_equal(link->queued, 0);
	link_unref(link);
	close(other);
}

static void one_lane_charges_until_it_is_stuck(void **state)
{
	struct queue *queue;
	int other;
	struct link *link = new_link(&other);

	(void)state;
	assert_int_equal(queue_new(2, &queue), 0);
	assert_int_equal(queue_join(queue), LANE_OF_CHARGES);
	assert_int_equal(queue_join(queue), LANE_OF_ANYTHING);
	put(queue, link, AUTH_ADMIT, 1);
	put(queue, link, AUTH_LOGIN_STEP, 2);
	expect(queue, LANE_OF_ANYTHING, "2");
	expect(queue, LANE_OF_CHARGES, "1");
	/* It asks the database now, and does not come back. */
	put(queue, link, AUTH_ADMIT, 3);
	put(queue, link, AUTH_LOGIN_STEP, 4);
	put(queue, link, AUTH_ADMIT, 5);
	expect(queue, LANE_OF_ANYTHING, "4");
	expect(queue, LANE_OF_ANYTHING, "35");
	queue_end(queue);
	queue_free(queue);
	link_unref(link);
	close(other);
}

static void networks_take_turns_and_who_is_known_waits_for_none(void **state)
{
	struct queue *queue;
	int other;
	struct link *link = new_link(&other);

	(void)state;
	assert_int_equal(queue_new(1, &queue), 0);
	guess(queue, link, 6, 10, 2);
	guess(queue, link, 3, 11, 0);
	guess(queue, link, 5, 11, 0); /* its second */
	guess(queue, link, 4, 12, 0);
	guess(queue, link, 7, 11, 0);
	guess(queue, link, 9, 13, 1000);
	guess(queue, link, 8, 14, 3);
	put_standing(
	        queue, link, AUTH_LOGIN_NETWORK, 2, (struct standing){STANDING_LOOK_UP, 15, 0});
	put(queue, link, AUTH_LOGIN_AGAIN, 1);
	for (const char *numbers = "123456789"; *numbers != '\0'; numbers++)
		expect(queue, LANE_OF_ANYTHING, (char[]){*numbers, '\0'});
	/* Who has had his turns is as any other. */
	guess(queue, link, 1, 11, 0);
	guess(queue, link, 2, 12, 0);
	guess(queue, link, 3, 11, 0);
	/* One that is taken out before its turn counts no more. */
	queue_cancel(queue, link, 1);
	guess(queue, link, 4, 11, 0);
	expect(queue, LANE_OF_ANYTHING, "2");
	expect(queue, LANE_OF_ANYTHING, "3");
	expect(queue, LANE_OF_ANYTHING, "4");
	guess(queue, link, 5, 11, 0); /* gets no answer */
	queue_end(queue);
	queue_free(queue);
	assert_int_equal(link->queued, 0);
	link_unref(link);
	close(other);
}

/* However many come behind him, from wherever they do. */
static void nobody_waits_for_who_comes_later_from_his_network(void **state)
{
	struct queue *queue;
	int other;
	struct link *link = new_link(&other);

	(void)state;
	assert_int_equal(queue_new(1, &queue), 0);
	for (uint32_t i = 0; i < 300; i++)
		guess(queue, link, i, 10, 0);
	for (uint32_t i = 0; i < 600; i++) {
		struct request *batch[LIMITS_BATCH_MAX];
		assert_int_equal(queue_take(queue, LANE_OF_ANYTHING, batch), 1);
		assert_int_equal(batch[0]->message.number, i);
		request_free(batch[0]);
		/* Fewer wait than when those were put in. */
		if (i % 2 == 0)
			guess(queue, link, 300 + i / 2, 10, 0);
	}
	/* One who has failed stands back alone: not who comes behind him. */
	guess(queue, link, 1, 11, 3);
	guess(queue, link, 2, 11, 0);
	expect(queue, LANE_OF_ANYTHING, "2");
	expect(queue, LANE_OF_ANYTHING, "1");
	queue_end(queue);
	queue_free(queue);
	link_unref(link);
	close(other);
}

/* Its place is by what is known when it is put back. */
static void a_delayed_guess_stands_behind_who_has_not_failed(void **state)
{
	struct request *batch[LIMITS_BATCH_MAX];
	struct queue *queue;
	int other;
	struct link *link = new_link(&other);

	(void)state;
	assert_int_equal(queue_new(1, &queue), 0);
	guess(queue, link, 1, 10, 0);
	assert_int_equal(queue_take(queue, LANE_OF_ANYTHING, batch), 1);
	batch[0]->standing.failures = 1;
	queue_delay(queue, batch[0], 0);
	assert_int_equal(queue_put_due(queue), UINT64_MAX);
	guess(queue, link, 2, 11, 0);
	expect(queue, LANE_OF_ANYTHING, "2");
	expect(queue, LANE_OF_ANYTHING, "1");
	queue_end(queue);
	queue_free(queue);
	link_unref(link);
	close(other);
}

/* Where guesses fill the queue who has not failed still has room, and more has who goes first. */
static void a_link_has_so_many_requests(void **state)
{
	struct queue *queue;
	int other;
	struct link *link = new_link(&other), *second;
	const struct standing again = {STANDING_PASSWORD, 10, 1};
	const struct standing password = {STANDING_PASSWORD, 10, 0}, first = {0};

	(void)state;
	assert_int_equal(queue_new(1, &queue), 0);
	for (unsigned i = 0; i < QUEUE_MAX / 2; i++)
		guess(queue, link, i, 10, 1);
	assert_int_equal(queue_put(queue, link, SLICE(""), &again), -ENOBUFS);
	for (unsigned i = 0; i < QUEUE_MAX / 2; i++)
		guess(queue, link, i, 10, 0);
	assert_int_equal(queue_put(queue, link, SLICE(""), &password), -ENOBUFS);
	for (unsigned i = 0; i < QUEUE_MAX; i++)
		put(queue, link, AUTH_ADMIT, i);
	assert_int_equal(queue_put(queue, link, SLICE(""), &first), -ENOBUFS);
	assert_int_equal(link_new(dup(other), &second), 0);
	guess(queue, second, 1, 10, 0);
	queue_end(queue);
	queue_free(queue);
	link_unref(link);
	link_unref(second);
	close(other);
}

/* The type of the answer that has come. */
static enum auth_type hear(int fd)
{
	struct auth_account_room unused;
	struct auth_message answer;
	char room[PROTOCOL_DATAGRAM_MAX];
	struct slice datagram;

	assert_int_equal(protocol_receive(fd, room, &datagram), 1);
	assert_int_equal(protocol_decode(datagram, &answer, &unused), 0);
	return answer.type;
}

/* Clients that begin logins and go before `auth` has answered must not keep others out. */
static void the_oldest_login_makes_room(void **state)
{
	struct auth_message message = {
	        .type = AUTH_LOGIN_START, .mechanism = SLICE("LOGIN"), .data = SLICE("")};
	struct logins_settings settings = {.outage = &(struct outage){0}, .waiting_max = 3};
	const struct turn turn = {.may_wait = true};
	struct logins *logins;
	struct why why;
	int other;
	struct link *link = new_link(&other);

	(void)state;
	assert_int_equal(identity_store_new(&settings.store), 0);
	assert_int_equal(sasl_start("h.example", settings.store, &settings.sasl, &why), 0);
	assert_int_equal(penalty_new(&settings.penalty), 0);
	assert_int_equal(logins_new(&settings, &logins), 0);
	for (message.number = 1; message.number <= 5; message.number++) {
		assert_int_equal(logins_start(logins, link, &message, &turn), 0);
		assert_int_equal(hear(other), AUTH_MORE);
	}
	message.type = AUTH_LOGIN_STEP;
	message.data = SLICE("alice");
	for (message.number = 1; message.number <= 5; message.number++) {
		assert_int_equal(logins_step(logins, link, &message, &turn), 0);
		assert_int_equal(hear(other), message.number <= 2 ? AUTH_UNAVAILABLE : AUTH_MORE);
	}
	logins_cancel(logins, link, 3);
	message = (struct auth_message){.number = 3, .data = SLICE("x")};
	assert_int_equal(logins_step(logins, link, &message, &turn), 0);
	assert_int_equal(hear(other), AUTH_UNAVAILABLE);
	logins_free(logins);
	sasl_stop(settings.sasl);
	identity_store_free(settings.store);
	penalty_free(settings.penalty);
	link_unref(link);
	close(other);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(a_notice_forgets),
	        cmocka_unit_test(what_is_over_makes_room),
	        cmocka_unit_test(an_app_password_is_remembered_once),
	        cmocka_unit_test(a_verifier_fits_its_password),
	        cmocka_unit_test(a_verifier_is_made_for_its_password),
	        cmocka_unit_test(hashes_of_other_systems_fit_their_passwords),
	        cmocka_unit_test(a_hash_that_costs_too_much_is_not_tried),
	        cmocka_unit_test(slow_hashes_are_known),
	        cmocka_unit_test(an_app_password_may_be_typed_in_many_ways),
	        cmocka_unit_test(a_credential_keeps_to_its_networks_and_mechanisms),
	        cmocka_unit_test(a_password_is_the_same_however_it_is_written),
	        cmocka_unit_test(an_identity_is_small),
	        cmocka_unit_test(an_account_travels_whole),
	        cmocka_unit_test(a_credential_brings_its_sender),
	        cmocka_unit_test(what_proves_who_it_is_travels),
	        cmocka_unit_test(an_admission_brings_its_recipients),
	        cmocka_unit_test(charges_go_before_logins),
	        cmocka_unit_test(one_lane_charges_until_it_is_stuck),
	        cmocka_unit_test(networks_take_turns_and_who_is_known_waits_for_none),
	        cmocka_unit_test(nobody_waits_for_who_comes_later_from_his_network),
	        cmocka_unit_test(a_delayed_guess_stands_behind_who_has_not_failed),
	        cmocka_unit_test(a_link_has_so_many_requests),
	        cmocka_unit_test(the_oldest_login_makes_room),
	};

	test_clock_open();
	return cmocka_run_group_tests(tests, NULL, NULL);
}

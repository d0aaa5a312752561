/* SPDX-License-Identifier: ISC */
/*
 * Conversations over libsasl2; see sasl.h.
 *
 * The look-up happens inside the library's callbacks, on the lane's thread: SCRAM
 * asks our auxprop plug-in for the verifier, PLAIN and LOGIN call check_password().
 * Both find the conversation through a callback id of our own. The library loses
 * the reason of a failure on its way up, so the conversation keeps it.
 */
#include "auth/sasl.h"

#include <errno.h>
#include <pthread.h>
#include <sasl/sasl.h>
#include <sasl/saslplug.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "auth/foreign_hash.h"
#include "auth/password.h"
#include "auth/verifier.h"
#include "gateway/base/addr.h"

/* Our own callback id, in the range that the library leaves to applications. */
#define CB_CONVERSATION 0x504f53

/* Every mechanism has a name in the list that binds no channel: sasl_listmech() of 2.1.28
 * writes behind its buffer when all of them do. */
#define MECHANISMS "SCRAM-SHA-256 PLAIN LOGIN"

#define CHALLENGE_MAX 8192
#define EXTERNAL_SSF  256 /* we are under TLS always; 1 would still hide PLAIN */

struct sasl {
	struct identity_store *store;
	char hostname[256];
	sem_t hashing; /* one PBKDF2, or what costs no more, for each core at a time */
	pthread_mutex_t slow_hashing; /* hashes that cost far more: one at a time */
};

struct conversation {
	struct sasl *sasl;
	sasl_conn_t *conn;
	sasl_callback_t callbacks[8];
	const char *mechanism;
	char client_address[ADDR_TEXT];
	struct db *db; /* of the lane that runs the step */
	struct identity *identity;
	char login[LOGIN_MAX + 1];
	bool away; /* the database */
	const struct credential
	        *credential; /* that was right, and may be used so; of the identity */
	enum upgrade upgrade;
	uint64_t era;   /* until when the identity is right */
	struct why why; /* away */
	const char *reason;
};

/* Fetches who it is, once a conversation. SASL_OK, SASL_UNAVAIL, SASL_NOMEM. */
static int look_up(struct conversation *conversation, struct slice login)
{
	if (conversation->away)
		return SASL_UNAVAIL;
	if (conversation->identity != NULL)
		return slice_equal(login, slice_str(conversation->login)) ? SASL_OK : SASL_BADAUTH;
	if (response_normal_login(login, conversation->login) < 0) {
		conversation->reason = "malformed_login";
		return SASL_BADAUTH;
	}
	int r = identity_fetch(conversation->sasl->store, conversation->db,
	        slice_str(conversation->login), &conversation->identity, &conversation->why);
	if (r < 0) {
		conversation->away = true;
		conversation->reason = "database_away";
		return SASL_UNAVAIL;
	}
	return SASL_OK;
}

static const char *objection(
        const struct conversation *conversation, const struct credential *credential)
{
	return credential_objection(credential, slice_str(conversation->mechanism),
	        slice_str(conversation->client_address));
}

static bool verifier_fits(struct slice text, struct slice password)
{
	struct verifier verifier;

	return verifier_parse(text, &verifier) == 0 && verifier_check(&verifier, password);
}

/* A password as it was typed, and as SCRAM means it. */
struct attempt {
	struct slice typed, prepared;
};

static bool slow_hash_fits(
        struct sasl *sasl, const struct credential *credential, const struct attempt *attempt)
{
	pthread_mutex_lock(&sasl->slow_hashing);
	bool fits = foreign_hash_fits(credential->verifier, attempt->typed);
	pthread_mutex_unlock(&sasl->slow_hashing);
	return fits;
}

static bool is_slow(const struct credential *credential)
{
	return credential->kind == CREDENTIAL_CRYPT && foreign_hash_is_slow(credential->verifier);
}

static bool credential_fits(struct conversation *conversation, const struct credential *credential,
        const struct attempt *attempt)
{
	bool fits = false;

	if (credential->kind == CREDENTIAL_UNKNOWN)
		return false;
	if (credential->kind == CREDENTIAL_TOKEN)
		return credential_token_fits(credential, attempt->typed);
	if (is_slow(credential))
		return slow_hash_fits(conversation->sasl, credential, attempt);
	while (sem_wait(&conversation->sasl->hashing) < 0)
		continue;
	if (credential->kind == CREDENTIAL_SCRAM)
		fits = verifier_fits(credential->verifier, attempt->prepared);
	else if (credential->kind == CREDENTIAL_CRYPT)
		fits = foreign_hash_fits(credential->verifier, attempt->typed);
	sem_post(&conversation->sasl->hashing);
	return fits;
}

/* The work for somebody who has no verifier, so that he cannot be told from who has one. */
static void pretend(struct conversation *conversation, const struct attempt *attempt)
{
	while (sem_wait(&conversation->sasl->hashing) < 0)
		continue;
	(void)verifier_fits(conversation->identity->fake, attempt->prepared);
	sem_post(&conversation->sasl->hashing);
}

/*
 * Finds what the password is and may be used, else keeps the reason. App passwords come first and
 * cost nothing; a wrong password costs all there is, and one PBKDF2 at least.
 */
static void find_credential(struct conversation *conversation, const struct attempt *attempt)
{
	const struct identity *identity = conversation->identity;

	conversation->reason = identity->known ? "bad_password" : "unknown_user";
	for (size_t i = 0; i < identity->credential_count; i++) {
		const struct credential *credential = &identity->credentials[i];
		if (!credential_fits(conversation, credential, attempt))
			continue;
		const char *why_not = objection(conversation, credential);
		if (why_not == NULL) {
			conversation->credential = credential;
			return;
		}
		conversation->reason = why_not;
	}
	if (identity->fake.len > 0)
		pretend(conversation, attempt);
}

/*
 * The password is there now: the next login need not be one that shows it. What fits the hash and
 * may be another password stays what it is.
 */
static void upgrade(struct conversation *conversation, const struct attempt *attempt)
{
	const struct credential *credential = conversation->credential;

	if (credential->kind != CREDENTIAL_CRYPT ||
	        !foreign_hash_is_whole(credential->verifier, attempt->typed))
		return;
	int r = identity_upgrade(
	        conversation->sasl->store, conversation->db, credential, attempt->prepared);
	conversation->upgrade = r == 0 ? UPGRADE_DONE : UPGRADE_FAILED;
}

/* SASL_CB_SERVER_USERDB_CHECKPASS: PLAIN and LOGIN. */
static int check_password(sasl_conn_t *conn, void *context, const char *user, const char *password,
        unsigned password_len, struct propctx *props)
{
	struct conversation *conversation = context;
	char room[PASSWORD_MAX * 4];

	(void)conn;
	(void)props;
	int r = look_up(conversation, slice_str(user));
	if (r != SASL_OK)
		return r;
	struct slice typed = slice_of(password, password_len);
	const struct attempt attempt = {typed, password_prepare(typed, room)};
	find_credential(conversation, &attempt);
	/* Of a suspended account nothing is remembered: it may come back at any moment. */
	if (conversation->credential != NULL && !conversation->identity->suspended) {
		identity_remember(conversation->sasl->store, slice_str(conversation->login), typed,
		        conversation->identity, conversation->credential);
		upgrade(conversation, &attempt);
	}
	if (attempt.prepared.ptr == room)
		explicit_bzero(room, sizeof(room));
	return conversation->credential != NULL ? SASL_OK : SASL_BADAUTH;
}

/* SASL_CB_CANON_USER: our own rule, before the library's (which strips blanks). */
static int canon_user(sasl_conn_t *conn, void *context, const char *in, unsigned in_len,
        unsigned flags, const char *realm, char *out, unsigned out_max, unsigned *out_len)
{
	char login[LOGIN_MAX + 1];

	(void)conn;
	(void)context;
	(void)flags;
	(void)realm;
	if (response_normal_login(slice_of(in, in_len), login) < 0 || in_len >= out_max)
		return SASL_BADAUTH;
	memcpy(out, login, in_len + 1);
	*out_len = in_len;
	return SASL_OK;
}

/* SASL_CB_PROXY_POLICY: nobody logs in for another. */
static int proxy_policy(sasl_conn_t *conn, void *context, const char *requested,
        unsigned requested_len, const char *auth, unsigned auth_len, const char *realm,
        unsigned realm_len, struct propctx *props)
{
	struct conversation *conversation = context;

	(void)conn;
	(void)realm;
	(void)realm_len;
	(void)props;
	if (slice_equal(slice_of(requested, requested_len), slice_of(auth, auth_len)))
		return SASL_OK;
	conversation->reason = "authzid";
	return SASL_BADAUTH;
}

/* Finds nothing but the conversation: the value of CB_CONVERSATION. */
static int find_conversation(void)
{
	return SASL_OK;
}

/*
 * The verifier that a proof must fit. SCRAM knows one password: the first that may be used so, the
 * main one where it may; where none may, the first, and the end tells why it is refused.
 */
static struct slice scram_verifier(struct conversation *conversation)
{
	const struct identity *identity = conversation->identity;
	const struct credential *first = NULL;

	for (size_t i = 0; i < identity->credential_count; i++) {
		const struct credential *credential = &identity->credentials[i];
		if (credential->kind != CREDENTIAL_SCRAM)
			continue;
		bool may_be_used = objection(conversation, credential) == NULL;
		if (first == NULL || may_be_used)
			first = credential;
		if (may_be_used)
			break;
	}
	conversation->credential = first;
	return first != NULL ? first->verifier : identity->fake;
}

/* The auxprop plug-in: SCRAM asks for authPassword. */
static int auxprop_lookup(void *glob_context, sasl_server_params_t *sparams, unsigned flags,
        const char *user, unsigned user_len)
{
	sasl_callback_ft proc;
	void *context = NULL;
	bool wanted = false;

	(void)glob_context;
	/* The second call of every login, about the authorization id: nothing to say. */
	if ((flags & SASL_AUXPROP_AUTHZID) != 0)
		return SASL_OK;
	const struct propval *props = sparams->utils->prop_get(sparams->propctx);
	for (; props != NULL && props->name != NULL; props++)
		wanted |= strcmp(props->name, "*authPassword") == 0;
	/* PLAIN and LOGIN ask for nothing here. */
	if (!wanted)
		return SASL_OK;
	if (sparams->utils->getcallback(sparams->utils->conn, CB_CONVERSATION, &proc, &context) !=
	                SASL_OK ||
	        context == NULL)
		return SASL_FAIL;

	struct conversation *conversation = context;
	int r = look_up(conversation, slice_of(user, user_len));
	if (r != SASL_OK)
		return r;
	struct slice verifier = scram_verifier(conversation);
	return sparams->utils->prop_set(
	        sparams->propctx, "*authPassword", verifier.ptr, (int)verifier.len);
}

static sasl_auxprop_plug_t auxprop_plugin = {
        .auxprop_lookup = auxprop_lookup,
        .name = (char *)(uintptr_t) "postern",
};

static int auxprop_init(const sasl_utils_t *utils, int max_version, int *out_version,
        sasl_auxprop_plug_t **plug, const char *plug_name)
{
	(void)utils;
	(void)plug_name;
	if (max_version < SASL_AUXPROP_PLUG_VERSION)
		return SASL_BADVERS;
	*out_version = SASL_AUXPROP_PLUG_VERSION;
	*plug = &auxprop_plugin;
	return SASL_OK;
}

static int get_option(
        void *context, const char *plugin, const char *option, const char **result, unsigned *len)
{
	static const char *const options[][2] = {
	        {"mech_list", MECHANISMS},
	        {"auxprop_plugin", "postern"},
	        /* Any other value makes failures of PLAIN noisy; we never supply userPassword. */
	        {"pwcheck_method", "auxprop"},
	        {"log_level", "0"},
	};

	(void)context;
	(void)plugin;
	for (size_t i = 0; i < ARRAY_LEN(options); i++) {
		if (strcmp(option, options[i][0]) == 0) {
			*result = options[i][1];
			if (len != NULL)
				*len = (unsigned)strlen(options[i][1]);
			return SASL_OK;
		}
	}
	return SASL_FAIL;
}

static int no_conf_path(void *context, char **path)
{
	static char nowhere[] = "/nonexistent";

	(void)context;
	*path = nowhere;
	return SASL_OK;
}

static int no_log(void *context, int level, const char *message)
{
	(void)context;
	(void)level;
	(void)message;
	return SASL_OK;
}

/* Which modules may be loaded: an allow-list in code. Configuration files: none. */
static int verify_file(void *context, const char *file, sasl_verify_type_t type)
{
	static const char *const allowed[] = {"libscram.so", "libplain.so", "liblogin.so"};

	(void)context;
	for (size_t i = 0; type == SASL_VRFY_PLUGIN && i < ARRAY_LEN(allowed); i++) {
		if (strstr(file, allowed[i]) != NULL)
			return SASL_OK;
	}
	return SASL_CONTINUE;
}

/* The library's type of callbacks says nothing of their arguments. */
#define CALLBACK(fn) ((sasl_callback_ft)(void (*)(void))(fn))

static void *mutex_new(void)
{
	pthread_mutex_t *mutex = malloc(sizeof(pthread_mutex_t));

	if (mutex != NULL)
		pthread_mutex_init(mutex, NULL);
	return mutex;
}

static int mutex_lock(void *mutex)
{
	return pthread_mutex_lock(mutex) == 0 ? SASL_OK : SASL_FAIL;
}

static int mutex_unlock(void *mutex)
{
	return pthread_mutex_unlock(mutex) == 0 ? SASL_OK : SASL_FAIL;
}

static void mutex_free(void *mutex)
{
	pthread_mutex_destroy(mutex);
	free(mutex);
}

int sasl_start(
        const char *hostname, struct identity_store *store, struct sasl **ret_sasl, struct why *why)
{
	static const sasl_callback_t callbacks[] = {
	        {SASL_CB_GETOPT, CALLBACK(get_option), NULL},
	        {SASL_CB_LOG, CALLBACK(no_log), NULL},
	        {SASL_CB_GETCONFPATH, CALLBACK(no_conf_path), NULL},
	        {SASL_CB_VERIFYFILE, CALLBACK(verify_file), NULL},
	        {SASL_CB_LIST_END, NULL, NULL},
	};
	struct sasl *sasl = calloc(1, sizeof(*sasl));
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	if (sasl == NULL)
		return why_errno(why, ENOMEM, "Cyrus SASL");
	sasl->store = store;
	strncpy(sasl->hostname, hostname, sizeof(sasl->hostname) - 1);
	sem_init(&sasl->hashing, 0, cores > 0 ? (unsigned)cores : 1);
	pthread_mutex_init(&sasl->slow_hashing, NULL);
	sasl_set_mutex(mutex_new, mutex_lock, mutex_unlock, mutex_free);
	int r = sasl_server_init(callbacks, "postern");
	if (r == SASL_OK)
		r = sasl_auxprop_add_plugin("postern", auxprop_init);
	if (r != SASL_OK) {
		why_set(why, "Cyrus SASL: %s", sasl_errstring(r, NULL, NULL));
		free(sasl);
		return -EINVAL;
	}
	*ret_sasl = sasl;
	return 0;
}

void sasl_stop(struct sasl *sasl)
{
	if (sasl == NULL)
		return;
	sasl_server_done();
	sem_destroy(&sasl->hashing);
	pthread_mutex_destroy(&sasl->slow_hashing);
	free(sasl);
}

int conversation_new(struct sasl *sasl, enum response_mechanism mechanism,
        struct slice client_address, struct conversation **ret_conversation)
{
	const sasl_security_properties_t security = {
	        .security_flags = SASL_SEC_NOPLAINTEXT | SASL_SEC_NOANONYMOUS};
	const sasl_ssf_t ssf = EXTERNAL_SSF;

	assert_bug(client_address.len < ADDR_TEXT);
	struct conversation *conversation = calloc(1, sizeof(*conversation));
	if (conversation == NULL)
		return -ENOMEM;
	conversation->sasl = sasl;
	conversation->reason = "refused";
	conversation->mechanism = response_mechanism_name(mechanism);
	if (client_address.len > 0)
		memcpy(conversation->client_address, client_address.ptr, client_address.len);
	const sasl_callback_t callbacks[] = {
	        {SASL_CB_SERVER_USERDB_CHECKPASS, CALLBACK(check_password), conversation},
	        {SASL_CB_CANON_USER, CALLBACK(canon_user), conversation},
	        {SASL_CB_PROXY_POLICY, CALLBACK(proxy_policy), conversation},
	        {CB_CONVERSATION, CALLBACK(find_conversation), conversation},
	        {SASL_CB_LIST_END, NULL, NULL},
	};
	memcpy(conversation->callbacks, callbacks, sizeof(callbacks));
	if (sasl_server_new("smtp", sasl->hostname, NULL, NULL, NULL, conversation->callbacks, 0,
	            &conversation->conn) != SASL_OK ||
	        sasl_setprop(conversation->conn, SASL_SEC_PROPS, &security) != SASL_OK ||
	        sasl_setprop(conversation->conn, SASL_SSF_EXTERNAL, &ssf) != SASL_OK) {
		conversation_free(conversation);
		return -ENOMEM;
	}
	*ret_conversation = conversation;
	return 0;
}

void conversation_free(struct conversation *conversation)
{
	if (conversation == NULL)
		return;
	if (conversation->conn != NULL)
		sasl_dispose(&conversation->conn);
	identity_unref(conversation->identity);
	free(conversation);
}

/* The name that the library has settled on must be the one that was looked up. */
static bool name_agrees(struct conversation *conversation)
{
	const void *name = NULL;

	return sasl_getprop(conversation->conn, SASL_USERNAME, &name) == SASL_OK && name != NULL &&
	       strcmp(name, conversation->login) == 0;
}

static enum sasl_verdict accept_login(struct conversation *conversation)
{
	const struct identity *identity = conversation->identity;

	if (identity == NULL || !identity->known || !name_agrees(conversation) ||
	        conversation->credential == NULL)
		return SASL_VERDICT_REFUSED;
	int r = identity_confirm(conversation->sasl->store, conversation->db,
	        slice_str(conversation->login), &conversation->identity, &conversation->credential,
	        &conversation->era, &conversation->why);
	conversation->away = r < 0 && r != -ESTALE;
	if (r < 0)
		return SASL_VERDICT_UNAVAILABLE;
	/* It may have been tied to something meanwhile. */
	const char *why_not = objection(conversation, conversation->credential);
	if (why_not != NULL) {
		conversation->reason = why_not;
		return SASL_VERDICT_REFUSED;
	}
	if (conversation->identity->suspended) {
		conversation->reason = "suspended";
		return SASL_VERDICT_SUSPENDED;
	}
	return SASL_VERDICT_DONE;
}

/*
 * SCRAM tells a client with "v=" that its proof was right. Where the password may not be used so,
 * that is for the log and not for the client.
 */
static bool proof_is_for_nothing(struct conversation *conversation, const char *out, unsigned len)
{
	if (conversation->credential == NULL || !slice_starts_with(slice_of(out, len), SLICE("v=")))
		return false;
	const char *why_not = objection(conversation, conversation->credential);
	if (why_not != NULL)
		conversation->reason = why_not;
	return why_not != NULL;
}

static const char *refused_proof(const struct conversation *conversation)
{
	if (!conversation->identity->known)
		return "unknown_user";
	/* An imported hash, or app passwords only. */
	return conversation->credential == NULL ? "no_scram_verifier" : "bad_password";
}

static enum sasl_verdict judge(struct conversation *conversation, int code, const char *out,
        unsigned out_len, struct buf *ret_challenge)
{
	if (conversation->away)
		return SASL_VERDICT_UNAVAILABLE;
	switch (code) {
	case SASL_OK:
		return accept_login(conversation);
	case SASL_CONTINUE:
		if (proof_is_for_nothing(conversation, out, out_len))
			return SASL_VERDICT_REFUSED;
		return out_len <= CHALLENGE_MAX && buf_append(ret_challenge, out, out_len) == 0
		               ? SASL_VERDICT_MORE
		               : SASL_VERDICT_UNAVAILABLE;
	case SASL_UNAVAIL:
	case SASL_TRYAGAIN:
		return SASL_VERDICT_UNAVAILABLE;
	case SASL_BADPROT:
		conversation->reason = "malformed";
		return SASL_VERDICT_MALFORMED;
	default:
		if (conversation->identity != NULL && strcmp(conversation->reason, "refused") == 0)
			conversation->reason = refused_proof(conversation);
		return SASL_VERDICT_REFUSED;
	}
}

bool conversation_is_slow(
        struct conversation *conversation, struct db *db, const struct response_reader *reader)
{
	bool slow = false;

	conversation->db = db;
	if (look_up(conversation, slice_str(reader->login)) != SASL_OK)
		return false;
	const struct identity *identity = conversation->identity;
	for (size_t i = 0; i < identity->credential_count; i++) {
		const struct credential *credential = &identity->credentials[i];
		/* An app password, which comes first, needs no turn. */
		if (credential->kind == CREDENTIAL_TOKEN &&
		        credential_token_fits(credential, reader->password) &&
		        objection(conversation, credential) == NULL)
			return false;
		slow |= is_slow(credential);
	}
	return slow;
}

enum sasl_verdict conversation_start(struct conversation *conversation, struct db *db,
        bool has_initial, struct slice initial, struct buf *ret_challenge)
{
	const char *out = NULL;
	unsigned out_len = 0;

	conversation->db = db;
	int code = sasl_server_start(conversation->conn, conversation->mechanism,
	        has_initial ? initial.ptr : NULL, (unsigned)initial.len, &out, &out_len);
	return judge(conversation, code, out, out_len, ret_challenge);
}

enum sasl_verdict conversation_step(struct conversation *conversation, struct db *db,
        struct slice response, struct buf *ret_challenge)
{
	const char *out = NULL;
	unsigned out_len = 0;

	conversation->db = db;
	int code = sasl_server_step(
	        conversation->conn, response.ptr, (unsigned)response.len, &out, &out_len);
	return judge(conversation, code, out, out_len, ret_challenge);
}

struct identity *conversation_identity(const struct conversation *conversation)
{
	return conversation->identity;
}

struct slice conversation_suspension(const struct conversation *conversation)
{
	return conversation->identity->suspended_reason;
}

uint64_t conversation_era(const struct conversation *conversation)
{
	return conversation->era;
}

const struct credential *conversation_credential(const struct conversation *conversation)
{
	return conversation->credential;
}

enum upgrade conversation_upgrade(const struct conversation *conversation)
{
	return conversation->upgrade;
}

const char *conversation_reason(const struct conversation *conversation)
{
	return conversation->reason;
}

const struct why *conversation_away(const struct conversation *conversation)
{
	return conversation->away ? &conversation->why : NULL;
}

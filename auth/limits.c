/* SPDX-License-Identifier: ISC */
/* Charging the rate limits; see limits.h. */
#include "auth/limits.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "gateway/base/log.h"
#include "gateway/base/pack.h"

#define HASHES_MAX (16U << 20) /* 64 times 8,000 of up to 21 octets */

/* Of each admission "{hash,hash}" in its array, or NULL; NULL for all of them when none has any. */
static int write_hashes(const struct admission *admissions, unsigned count, struct buf *text)
{
	bool any = false;
	int r = 0;

	for (unsigned i = 0; i < count && r == 0; i++) {
		struct unpack hashes = unpack_start(admissions[i].recipients);
		const char *before = "\"{";
		r = buf_printf(text, i == 0 ? "{" : ",");
		if (r == 0 && hashes.left.len == 0)
			r = buf_printf(text, "NULL");
		while (r == 0 && hashes.left.len > 0) {
			r = buf_printf(text, "%s%" PRId64, before, (int64_t)unpack_u64(&hashes));
			before = ",";
			if (r == 0 && hashes.left.len == 0)
				r = buf_printf(text, "}\"");
			any = true;
		}
	}
	if (r == 0)
		r = buf_printf(text, "}");
	if (!any)
		buf_clear(text);
	return r;
}

static bool all_there(const char *const params[], size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (params[i] == NULL)
			return false;
	}
	return true;
}

static struct slice keep(char room[32], struct slice text)
{
	size_t len = MIN_OF(text.len, (size_t)31);

	memcpy(room, text.ptr, len);
	return slice_of(room, len);
}

static void log_warning(const PGresult *result, int row)
{
	LOG(NULL, EV_LIMIT_WARNING,
	        "account=%s limit=\"%.*s/%.*s\" used=%" PRId64 " amount=%" PRId64,
	        LOG_VALUE(db_text(result, row, 10)), SLICE_ARGS(db_text(result, row, 3)),
	        SLICE_ARGS(db_text(result, row, 4)), db_int(result, row, 5),
	        db_int(result, row, 6));
}

static void read_answer(struct admission *admission, const PGresult *result, int row)
{
	struct slice verdict = db_text(result, row, 1);
	struct auth_message *answer = &admission->answer;

	if (slice_equal(verdict, SLICE("ok"))) {
		answer->type = AUTH_ADMITTED;
		answer->charge = admission->charge;
		answer->charge.charged_at = db_int(result, row, 2);
		answer->charge.bytes_counted = slice_equal(db_text(result, row, 8), SLICE("t"));
		answer->charge.new_recipients = (uint32_t)db_int(result, row, 9);
		return;
	}
	if (slice_equal(verdict, SLICE("warning"))) {
		log_warning(result, row);
		return;
	}
	bool never = slice_equal(verdict, SLICE("never"));
	if (!never && !slice_equal(verdict, SLICE("limit"))) {
		answer->type = AUTH_BLOCKED;
		return;
	}
	answer->type = AUTH_LIMITED;
	answer->limited = (struct auth_limited){
	        .never = never,
	        .measure = keep(admission->measure, db_text(result, row, 3)),
	        .per = keep(admission->per, db_text(result, row, 4)),
	        .used = db_int(result, row, 5),
	        .amount = db_int(result, row, 6),
	        .next_s = db_int(result, row, 7),
	};
}

static int admit(struct db *db, struct admission *admissions, unsigned count, struct why *why)
{
	struct db_numbers arrays[4];
	struct buf hashes;
	PGresult *result;

	for (size_t i = 0; i < ARRAY_LEN(arrays); i++)
		db_numbers_init(&arrays[i], count);
	for (unsigned i = 0; i < count; i++) {
		admissions[i].answer = (struct auth_message){.type = AUTH_UNAVAILABLE};
		db_numbers_add(&arrays[0], admissions[i].charge.account);
		db_numbers_add(&arrays[1], admissions[i].charge.messages);
		db_numbers_add(&arrays[2], admissions[i].charge.recipients);
		db_numbers_add(&arrays[3], admissions[i].charge.bytes);
	}
	buf_init(&hashes, HASHES_MAX);
	int r = write_hashes(admissions, count, &hashes);
	const char *const params[] = {db_numbers_text(&arrays[0]), db_numbers_text(&arrays[1]),
	        db_numbers_text(&arrays[2]), db_numbers_text(&arrays[3]),
	        buf_len(&hashes) > 0 ? buf_str(&hashes) : NULL};
	if (r == 0 && !all_there(params, ARRAY_LEN(arrays)))
		r = -ENOMEM;
	if (r == 0)
		r = db_exec_often(db,
		        "select ord, verdict, charged_at, measure, per_text, used, amount,"
		        " extract(epoch from next_at)::bigint, bytes_counted, new_recipients, login"
		        " from postern.admit($1, $2, $3, $4, $5)",
		        ARRAY_LEN(params), params, &result, why);
	for (int row = 0; r == 0 && row < PQntuples(result); row++) {
		int64_t ord = db_int(result, row, 0);
		if (ord >= 1 && ord <= count)
			read_answer(&admissions[ord - 1], result, row);
	}
	if (r == 0)
		PQclear(result);
	for (size_t i = 0; i < ARRAY_LEN(arrays); i++)
		db_numbers_done(&arrays[i]);
	buf_done(&hashes);
	return r;
}

int limits_admit(struct db *db, struct admission *admissions, unsigned count, struct why *why)
{
	int r = admit(db, admissions, count, why);
	uint64_t held = 0;

	/* Somebody holds the row of one account: the others alone, and that one once. */
	if (r != -EPROTO || count == 1)
		return r;
	for (unsigned i = 0; i < count && (r == 0 || r == -EPROTO); i++) {
		if (admissions[i].charge.account == held)
			continue;
		r = admit(db, &admissions[i], 1, why);
		if (r == -EPROTO)
			held = admissions[i].charge.account;
	}
	return r;
}

void limits_settle(struct db *db, const struct auth_charge *charges, unsigned count)
{
	struct db_numbers arrays[6];
	PGresult *result;

	for (size_t i = 0; i < ARRAY_LEN(arrays); i++)
		db_numbers_init(&arrays[i], count);
	for (unsigned i = 0; i < count; i++) {
		db_numbers_add(&arrays[0], charges[i].account);
		db_numbers_add(&arrays[1], (uint64_t)charges[i].charged_at);
		db_numbers_add(&arrays[2], charges[i].messages);
		db_numbers_add(&arrays[3], charges[i].recipients);
		db_numbers_add(&arrays[4], charges[i].bytes);
		db_numbers_add(&arrays[5], charges[i].new_recipients);
	}
	const char *const params[] = {db_numbers_text(&arrays[0]), db_numbers_text(&arrays[1]),
	        db_numbers_text(&arrays[2]), db_numbers_text(&arrays[3]),
	        db_numbers_text(&arrays[4]), db_numbers_text(&arrays[5])};
	if (db_exec_often(db, "select postern.settle($1, $2, $3, $4, $5, $6)", ARRAY_LEN(params),
	            params, &result, NULL) == 0)
		PQclear(result);
	for (size_t i = 0; i < ARRAY_LEN(arrays); i++)
		db_numbers_done(&arrays[i]);
}

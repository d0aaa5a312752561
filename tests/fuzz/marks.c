/* SPDX-License-Identifier: ISC */
/* What stands in the records of the spool: results, deferrals, messages. */
#include "gateway/spool/format.h"
#include "tests/fuzz/fuzz.h"

#define RESULTS_KEPT 4096

struct results {
	struct stored_result results[RESULTS_KEPT];
	uint32_t count;
};

static void on_result(void *arg, struct stored_result result)
{
	struct results *results = arg;

	if (results->count < RESULTS_KEPT)
		results->results[results->count] = result;
	results->count++;
}

static void check_results(struct slice octets, struct buf *out)
{
	static struct results results;
	struct message_id id;
	struct pack pack = pack_start(out);

	results.count = 0;
	int r = results_unpack(octets, &id, on_result, &results);
	assert_bug(r < 0 ? results.count == 0 : results.count == (uint32_t)r);
	if (r < 0 || results.count > RESULTS_KEPT)
		return;
	results_pack(id, results.results, results.count, &pack);
	assert_bug(pack.error == 0 && slice_equal(buf_slice(out), octets));
}

static void check_deferral(struct slice octets, struct buf *out)
{
	struct stored_deferral deferral;
	struct pack pack = pack_start(out);

	if (deferral_unpack(octets, &deferral) < 0)
		return;
	deferral_pack(&deferral, &pack);
	assert_bug(pack.error == 0 && slice_equal(buf_slice(out), octets));
}

static void check_message(struct slice octets, struct buf *out)
{
	struct stored_message message, again;
	struct pack pack = pack_start(out);

	if (stored_message_unpack(octets, &message) < 0)
		return;
	assert_bug(fuzz_is_inside(message.envelope, octets) &&
	           fuzz_is_inside(message.header, octets) &&
	           fuzz_is_inside(message.settles, octets));
	assert_bug(message.recipients > 0 && message.recipients <= RESULTS_MAX);
	stored_message_pack(&message, &pack);
	assert_bug(pack.error == 0 && buf_len(out) == octets.len);
	assert_bug(stored_message_unpack(buf_slice(out), &again) == 0);
	assert_bug(slice_equal(again.header, message.header) &&
	           slice_equal(again.envelope, message.envelope));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const checks[])(struct slice octets, struct buf * out) = {
	        check_results, check_deferral, check_message};
	struct buf out;

	buf_init(&out, 4U << 20);
	for (size_t i = 0; i < ARRAY_LEN(checks); i++) {
		buf_clear(&out);
		checks[i](slice_of(data, size), &out);
	}
	buf_done(&out);
	return 0;
}

/* SPDX-License-Identifier: ISC */
/* The toolbox: text, memory, numbers, dates, addresses, records, the log. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "gateway/base/addr.h"
#include "gateway/base/arena.h"
#include "gateway/base/buf.h"
#include "gateway/base/clock.h"
#include "gateway/base/encode.h"
#include "gateway/base/heap.h"
#include "gateway/base/id.h"
#include "gateway/base/log.h"
#include "gateway/base/map.h"
#include "gateway/base/pack.h"
#include "gateway/base/recent.h"

static void slices_fold_ascii_only(void **state)
{
	(void)state;
	assert_true(slice_equal_nocase(SLICE("Mail From"), SLICE("mAIL fROM")));
	assert_false(slice_equal_nocase(SLICE("\xc3\x84"), SLICE("\xc3\xa4")));
	assert_true(slice_ends_with_nocase(SLICE("a@B.Example"), SLICE("b.example")));
	assert_false(slice_starts_with(SLICE("ab"), SLICE("abc")));
}

static void numbers_are_digits_within_range(void **state)
{
	static const struct {
		const char *text;
		int result;
		uint64_t value;
	} cases[] = {
	        {"0", 0, 0},
	        {"18446744073709551615", 0, UINT64_MAX},
	        {"18446744073709551616", -ERANGE, 0},
	        {"-1", -EINVAL, 0},
	        {"+1", -EINVAL, 0},
	        {"1 ", -EINVAL, 0},
	        {"", -EINVAL, 0},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		uint64_t value = 0;
		assert_int_equal(slice_to_u64(slice_str(cases[i].text), &value), cases[i].result);
		if (cases[i].result == 0)
			assert_true(value == cases[i].value);
	}
}

static void utf8_is_strict(void **state)
{
	(void)state;
	assert_true(slice_is_utf8(SLICE("Gr\xc3\xbc\xc3\x9f"
	                                "e \xf0\x9f\x93\xac")));
	assert_false(slice_is_utf8(SLICE("\xc0\x80")));         /* overlong */
	assert_false(slice_is_utf8(SLICE("\xed\xa0\x80")));     /* surrogate */
	assert_false(slice_is_utf8(SLICE("\xf4\x90\x80\x80"))); /* above U+10FFFF */
	assert_false(slice_is_utf8(SLICE("\xe2\x82")));         /* cut */
}

static void buffers_stay_within_their_maximum(void **state)
{
	struct buf buf;

	(void)state;
	buf_init(&buf, 8);
	assert_int_equal(buf_append_str(&buf, "abcdef"), 0);
	assert_int_equal(buf_append_str(&buf, "ghi"), -ENOBUFS);
	assert_slice_equal(buf_slice(&buf), "abcdef");
	buf_consume(&buf, 4);
	assert_int_equal(buf_append_str(&buf, "ghijkl"), 0);
	assert_slice_equal(buf_slice(&buf), "efghijkl");
	assert_true(buf.cap <= buf.max + 1); /* a zero may stand behind the content */
	assert_int_equal(buf_printf(&buf, "%d", 1), -ENOBUFS);
	buf_done(&buf);
}

static void arenas_are_bounded(void **state)
{
	struct arena arena;

	(void)state;
	arena_init(&arena, 10000);
	assert_non_null(arena_alloc(&arena, 5000));
	assert_null(arena_alloc(&arena, 6000));
	arena_reset(&arena);
	assert_non_null(arena_alloc(&arena, 6000));
	arena_reset(&arena);
}

static void base64_is_strict(void **state)
{
	static const char *const malformed[] = {
	        "A", "AA", "AAA", "AA=A", "AB==", "AAB=", "A A=", "AA==="};
	struct buf out;

	(void)state;
	buf_init(&out, 100);
	assert_int_equal(base64_encode(slice_of("\0\xff\x10", 3), &out), 0);
	assert_slice_equal(buf_slice(&out), "AP8Q");
	buf_clear(&out);
	assert_int_equal(base64_decode(SLICE("AGFsaWNl"), &out), 0);
	assert_int_equal(buf_len(&out), 6);
	buf_clear(&out);
	for (size_t i = 0; i < ARRAY_LEN(malformed); i++)
		assert_int_equal(base64_decode(slice_str(malformed[i]), &out), -EBADMSG);
	assert_int_equal(buf_len(&out), 0);
	buf_done(&out);
}

static void addresses_read_back(void **state)
{
	static const char *const good[] = {"192.0.2.1:587", "[::]:25", "[2001:db8::1]:65535"};
	static const char *const bad[] = {"", ":25", "192.0.2.1", "192.0.2.1:", "192.0.2.1:0",
	        "192.0.2.1:65536", "192.0.2.1:+1", "192.0.2.256:25", "::1:25", "[::1]", "[::1]25",
	        "[]:25", "[192.0.2.1]:25", "host.example:25",
	        "[2001:db8:2001:db8:2001:db8:2001:db8:2001:db8:2001:db8]:25"};
	struct addr addr, other;
	char text[ADDR_TEXT];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(addr_parse(slice_str(good[i]), &addr), 0);
		assert_string_equal(addr_format(&addr, text), good[i]);
		assert_int_equal(addr_from_sockaddr(&addr.u.sa, addr.len, &other), 0);
		assert_true(addr_same_ip(&addr, &other));
		assert_int_equal(
		        addr_from_sockaddr(&addr.u.sa, addr.len - 1, &other), -EAFNOSUPPORT);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		if (addr_parse(slice_str(bad[i]), &addr) != -EINVAL)
			fail_msg("%s", bad[i]);
}

static void networks_hold_addresses(void **state)
{
	static const struct {
		const char *net, *inside, *outside;
	} good[] = {
	        {"192.0.2.0/24", "192.0.2.255:1", "192.0.3.0:1"},
	        {"192.0.2.8/29", "192.0.2.15:1", "192.0.2.16:1"},
	        {"192.0.2.1", "192.0.2.1:1", "192.0.2.0:1"},
	        {"192.0.2.1/32", "192.0.2.1:1", "192.0.2.0:1"},
	        {"0.0.0.0/0", "192.0.2.1:1", "[2001:db8::1]:1"},
	        {"2001:db8::/32", "[2001:db8:ffff::1]:1", "[2001:db9::1]:1"},
	        {"2001:db8::/33", "[2001:db8:7fff::1]:1", "[2001:db8:8000::1]:1"},
	        {"::1", "[::1]:1", "[::2]:1"},
	        {"::/0", "[2001:db8::1]:1", "0.0.0.0:1"},
	};
	static const char *const bad[] = {"", "/", "192.0.2.1/24", "192.0.2.0/33", "192.0.2.0/",
	        "192.0.2.0/-1", "192.0.2.0/24/24", "192.0.2/24", "2001:db8::1/64", "::/129", "all",
	        "[::1]/128", "192.0.2.0 /24"};
	struct addr_net net;
	struct addr addr;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(addr_net_parse(slice_str(good[i].net), &net), 0);
		assert_int_equal(addr_parse(slice_str(good[i].inside), &addr), 0);
		assert_true(addr_net_holds(&net, &addr));
		assert_int_equal(addr_parse(slice_str(good[i].outside), &addr), 0);
		assert_false(addr_net_holds(&net, &addr));
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_int_equal(addr_net_parse(slice_str(bad[i]), &net), -EINVAL);
	assert_int_equal(addr_net_parse(SLICE("192.0.2.0\0/24"), &net), -EINVAL);
	assert_int_equal(addr_parse(SLICE("192.0.2.1\0x:25"), &addr), -EINVAL);
}

static void dates_follow_no_locale(void **state)
{
	char text[CLOCK_TEXT_SIZE];

	(void)state;
	/* RFC 5322 3.3, RFC 3339 */
	assert_string_equal(clock_rfc5322(0, text), "Thu, 1 Jan 1970 00:00:00 +0000");
	assert_string_equal(clock_rfc5322(1709210096, text), "Thu, 29 Feb 2024 12:34:56 +0000");
	assert_string_equal(clock_iso(1709210096, text), "2024-02-29T12:34:56Z");
	assert_true(strlen(clock_rfc5322(INT64_MAX, text)) < CLOCK_TEXT_SIZE);
}

/* A file that gives less than it has, and one that gives too much. */
static void files_fill_buffers_to_their_maximum(void **state)
{
	struct buf buf;
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(write(fds[1], "12345678", 8), 8);
	close(fds[1]);
	buf_init(&buf, 8);
	assert_int_equal(buf_read_fd(&buf, fds[0]), 0);
	assert_slice_equal(buf_slice(&buf), "12345678");
	buf_done(&buf);
	close(fds[0]);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(write(fds[1], "123456789", 9), 9);
	close(fds[1]);
	assert_int_equal(buf_read_fd(&buf, fds[0]), -ENOBUFS);
	buf_done(&buf);
	close(fds[0]);
}

static void ids_read_back(void **state)
{
	struct message_id id = id_new(), back;
	char text[ID_TEXT + 1];

	(void)state;
	assert_int_equal(id_parse(slice_str(id_format(&id, text)), &back), 0);
	assert_memory_equal(&id, &back, sizeof(id));
	assert_int_equal(id_parse(SLICE("0000000000000000"), &back), -EINVAL);
	assert_int_equal(id_parse(SLICE("aaaa"), &back), -EINVAL);
}

static void maps_find_what_was_put(void **state)
{
	static char keys[1000][8];
	struct map map;

	(void)state;
	map_init(&map);
	for (unsigned i = 0; i < 1000; i++) {
		snprintf(keys[i], sizeof(keys[i]), "%u", i);
		assert_int_equal(map_put(&map, slice_str(keys[i]), keys[i]), 0);
	}
	for (unsigned i = 0; i < 1000; i += 2)
		assert_ptr_equal(map_remove(&map, slice_str(keys[i])), keys[i]);
	for (unsigned i = 0; i < 1000; i++)
		assert_ptr_equal(map_get(&map, slice_str(keys[i])), i % 2 == 0 ? NULL : keys[i]);
	assert_int_equal(map.count, 500);
	map_done(&map);
}

#define NODES 500

static struct heap_node nodes[NODES];
static bool inside[NODES];

/* No key is smaller than its parent's, and all but the first are somebody's child. */
static void assert_is_heap(const struct heap *heap)
{
	unsigned count = 0, children = 0;

	for (unsigned i = 0; i < NODES; i++) {
		const struct heap_node *before = &nodes[i];
		if (!inside[i])
			continue;
		for (const struct heap_node *at = nodes[i].child; at != NULL; at = at->next) {
			assert_ptr_equal(at->before, before);
			assert_true(at->key >= nodes[i].key);
			children++;
			before = at;
		}
		count++;
	}
	assert_int_equal(children + (heap->first != NULL), count);
}

static void heaps_have_the_smallest_first(void **state)
{
	struct heap heap = {0};
	unsigned seed = 1, count = 0;
	uint64_t last = 0;

	(void)state;
	for (unsigned i = 0; i < 20 * NODES; i++) {
		unsigned which = (unsigned)rand_r(&seed) % NODES;
		if (inside[which])
			heap_remove(&heap, &nodes[which]);
		else
			heap_add(&heap, &nodes[which], (uint64_t)(rand_r(&seed) % 50));
		count += inside[which] ? -1U : 1;
		inside[which] = !inside[which];
		if (i % 100 == 0)
			assert_is_heap(&heap);
	}
	assert_true(count > 0);
	for (; heap.first != NULL; count--) {
		assert_true(heap.first->key >= last);
		last = heap.first->key;
		heap_remove(&heap, heap.first);
	}
	assert_int_equal(count, 0);
}

static void records_keep_their_first_error(void **state)
{
	struct buf out;

	(void)state;
	buf_init(&out, 100);
	struct pack pack = pack_start(&out);
	pack_u32(&pack, 7);
	pack_bytes(&pack, SLICE("hello"));
	assert_int_equal(pack.error, 0);
	struct unpack unpack = unpack_start(buf_slice(&out));
	assert_int_equal(unpack_u32(&unpack), 7);
	assert_slice_equal(unpack_bytes(&unpack, 5), "hello");
	assert_int_equal(unpack_end(&unpack), 0);
	unpack = unpack_start(buf_slice(&out));
	(void)unpack_u32(&unpack);
	assert_int_equal(unpack_bytes(&unpack, 4).len, 0); /* longer than allowed */
	assert_int_equal(unpack_u8(&unpack), 0);
	assert_int_equal(unpack_end(&unpack), -EBADMSG);
	buf_done(&out);
}

/* Standard error becomes a pipe that nobody reads, until it is read to its end. */
static void a_log_that_nobody_reads_stops_nobody(void **state)
{
	enum { LINES = 2000, OCTETS = 1 << 20 };
	static char octets[OCTETS];
	int ends[2], before = dup(STDERR_FILENO);
	uint64_t began = clock_mono_ms();
	size_t used = 0;
	ssize_t n;

	(void)state;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_true(dup2(ends[1], STDERR_FILENO) >= 0);
	log_open();
	for (unsigned i = 0; i < LINES; i++)
		LOG(NULL, EV_READY, "number=%u and more so that the pipe is full soon", i);
	assert_int_equal(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
	while ((n = read(ends[0], octets + used, OCTETS - 1 - used)) > 0)
		used += (size_t)n;
	LOG(NULL, EV_READY, "number=%u", LINES);
	n = read(ends[0], octets + used, OCTETS - 1 - used);
	assert_true(dup2(before, STDERR_FILENO) >= 0);
	close(before);
	close(ends[0]);
	close(ends[1]);
	assert_true(n > 0);
	used += (size_t)n;
	octets[used] = '\0';
	assert_true(clock_mono_ms() - began < 5000);

	unsigned lines = 0;
	for (const char *at = octets; (at = strchr(at, '\n')) != NULL; at++)
		lines++;
	const char *lost = strstr(octets, "event=log.lost");
	assert_non_null(lost);
	assert_non_null(strstr(octets, "number=2000"));
	/* Each is there, or counted. */
	assert_int_equal(lines - 2 + strtoul(strstr(lost, "lines=") + 6, NULL, 10), LINES);
}

int __real_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms);

static uint64_t polled_ms; /* so long poll() has taken */

/* The linker puts it in front. */
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
	uint64_t began = clock_mono_ms();
	int r = __real_poll(fds, count, timeout_ms);

	polled_ms += clock_mono_ms() - began;
	return r;
}

/* He reads a page when some lines were lost: they do not wait for each page. */
static void a_slow_reader_of_the_log_slows_nobody(void **state)
{
	enum { PAGES = 60, LINES = 500 };
	int ends[2], before = dup(STDERR_FILENO);
	uint64_t began = clock_mono_ms();
	char octets[4096];

	(void)state;
	polled_ms = 0;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_true(dup2(ends[1], STDERR_FILENO) >= 0);
	log_open();
	for (unsigned i = 1; i <= PAGES * LINES; i++) {
		LOG(NULL, EV_READY, "number=%u", i);
		if (i % LINES == 0)
			(void)!read(ends[0], octets, sizeof(octets));
	}
	assert_true(dup2(before, STDERR_FILENO) >= 0);
	close(before);
	close(ends[0]);
	close(ends[1]);
	/* A tenth of the time; as much again for a machine on which a wait takes longer than it
	 * should. Nearly all of it would be a tenth of a second for each page. */
	assert_true(polled_ms <= 200 + (clock_mono_ms() - began) / 5);
}

static void log_values_cannot_forge_lines(void **state)
{
	(void)state;
	const char *shown = LOG_VALUE(SLICE("a\r\nevent=login.accepted \"\x1b[0m\xff"));
	assert_null(strpbrk(shown, "\r\n\x1b\xff"));
	assert_true(shown[0] == '"');
	assert_string_equal(LOG_VALUE(SLICE("\xc2\x9bK \xe2\x80\xae\xc3\xa4")),
	        "\"\\xc2\\x9bK \\xe2\\x80\\xae\xc3\xa4\"");
	assert_string_equal(LOG_VALUE(SLICE("\xd8\x9c\xef\xbb\xbf\xef\xbf\xb9\xef\xbf\xbd")),
	        "\"\\xd8\\x9c\\xef\\xbb\\xbf\\xef\\xbf\\xb9\xef\xbf\xbd\"");
	assert_string_equal(LOG_VALUE(SLICE("\xe2\x80\x99 \xe2\x80\xa6")),
	        "\"\xe2\x80\x99 \xe2\x80\xa6\""); /* an apostrophe, an ellipsis */
	assert_string_equal(LOG_VALUE(SLICE("plain@example.org")), "plain@example.org");
}

static void what_was_noted_lately_is_known(void **state)
{
	static struct recent recent;

	(void)state;
	assert_false(recent_since(&recent, 7, 0));
	recent_note(&recent, 7, 1);
	recent_note(&recent, 8, 2);
	recent_note(&recent, 9, 2);
	assert_true(recent_since(&recent, 7, 0) && !recent_since(&recent, 7, 1));
	assert_true(recent_since(&recent, 8, 1) && !recent_since(&recent, 8, 2));
	for (uint64_t mark = 3; mark < 3 + RECENT_KEPT; mark++)
		recent_note(&recent, 10, mark);
	/* All that is kept is newer: it may have been. */
	assert_true(recent_since(&recent, 7, 2));
	assert_false(recent_since(&recent, 7, 3));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(slices_fold_ascii_only),
	        cmocka_unit_test(numbers_are_digits_within_range),
	        cmocka_unit_test(utf8_is_strict),
	        cmocka_unit_test(buffers_stay_within_their_maximum),
	        cmocka_unit_test(arenas_are_bounded),
	        cmocka_unit_test(base64_is_strict),
	        cmocka_unit_test(addresses_read_back),
	        cmocka_unit_test(networks_hold_addresses),
	        cmocka_unit_test(dates_follow_no_locale),
	        cmocka_unit_test(files_fill_buffers_to_their_maximum),
	        cmocka_unit_test(ids_read_back),
	        cmocka_unit_test(maps_find_what_was_put),
	        cmocka_unit_test(heaps_have_the_smallest_first),
	        cmocka_unit_test(records_keep_their_first_error),
	        cmocka_unit_test(log_values_cannot_forge_lines),
	        cmocka_unit_test(a_log_that_nobody_reads_stops_nobody),
	        cmocka_unit_test(a_slow_reader_of_the_log_slows_nobody),
	        cmocka_unit_test(what_was_noted_lately_is_known),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

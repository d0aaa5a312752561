/* SPDX-License-Identifier: ISC */
/* See story.h. */
#include "tests/crash/story.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "gateway/base/clock.h"

#define DEADLINE_MS     30000
#define SHIFT_AFTER_MS  10 /* without progress somebody waits for a timer */
#define IN_SEGMENT      4096
#define OUT_SEGMENT     700
#define PATTERN         400000
#define ENTRIES_AT_ONCE 64

enum fate { DELIVER, PART, BOUNCE, MIXED, DELAY, KEEP, ABORT };

static const struct plan {
	size_t body_len;
	enum fate fate;
	uint32_t recipients;
} plans[] = {
        {100, DELIVER, 2},
        {300, PART, 3},
        {50, BOUNCE, 2},
        {270000, DELIVER, 2},
        {20000, MIXED, 3},
        {0, DELAY, 2},
        {900, DELIVER, 1},
        {263000, BOUNCE, 2},
        {1500, DELIVER, 2},
        {2600, PART, 2},
        {400, KEEP, 1},
        {700, MIXED, 3},
        {300000, PART, 2},
        {100, DELIVER, 3},
        {290000, ABORT, 1},
        {120, DELIVER, 2},
        {265000, DELIVER, 1},
};
#define NUMBER_AFTER 90 /* given after a recovery */

static char pattern[PATTERN];
static struct message_id notices[NUMBERS_MAX];
static _Atomic int64_t *shift;

static const struct plan *plan_of(uint32_t number)
{
	static const struct plan other = {200, DELIVER, 2};

	return number < ARRAY_LEN(plans) ? &plans[number] : &other;
}

static uint32_t recipients_of(uint32_t number)
{
	return number < NUMBER_BOUNCE ? plan_of(number)->recipients : 1;
}

static uint64_t all_of(uint32_t number)
{
	return (1ULL << recipients_of(number)) - 1;
}

static struct slice body_of(uint32_t number)
{
	size_t len = number < NUMBER_BOUNCE ? plan_of(number)->body_len : 60;

	return slice_of(pattern + 13UL * number, len);
}

static struct message_id id_of(uint32_t number)
{
	return number < NUMBER_BOUNCE ? (struct message_id){.bytes = {(uint8_t)number, 0xcc, 1}}
	                              : notices[number];
}

int number_of_id(const struct message_id *id)
{
	for (uint32_t number = 0; number < NUMBERS_MAX; number++) {
		struct message_id other = id_of(number);
		if (memcmp(other.bytes, id->bytes, ID_SIZE) == 0)
			return (int)number;
	}
	return -1;
}

static uint64_t real_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* A clock that can be moved, so that no second's pause takes one. */
static void make_clock(const char *root)
{
	char path[DISK_NAME + 16];

	snprintf(path, sizeof(path), "%s/clock", root);
	_cleanup_(closep) int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_bug(fd >= 0 && ftruncate(fd, sizeof(*shift)) == 0);
	void *mapped = mmap(NULL, sizeof(*shift), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_bug(mapped != MAP_FAILED && setenv("POSTERN_TEST_CLOCK", path, 1) == 0);
	shift = mapped;
	clock_init();
}

void bench_init(struct bench *bench, const char *root)
{
	*bench = (struct bench){0};
	snprintf(bench->root, sizeof(bench->root), "%s", root);
	if (shift == NULL) {
		make_clock(root);
		for (size_t i = 0; i < PATTERN; i++)
			pattern[i] = (char)('a' + (i / 7 + i * i / 1000) % 26);
	}
	int r = loop_new(&bench->loop);
	if (r == 0)
		r = jobs_new(1, 100, &bench->jobs);
	assert_bug(r == 0);
}

void bench_done(struct bench *bench)
{
	jobs_free(bench->jobs);
	loop_free(bench->loop);
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *ftw)
{
	(void)status;
	(void)type;
	(void)ftw;
	return remove(path);
}

void bench_remove(const char *root)
{
	(void)nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void note(struct bench *bench, enum disk_kind kind, uint32_t number, uint64_t recipients)
{
	struct fact *fact = &bench->facts[number];

	fact->given |= kind == NOTE_GIVEN;
	fact->acked |= kind == NOTE_ACKED;
	if (kind == NOTE_ASKED)
		fact->asked |= recipients;
	else
		fact->held |= recipients;
	if (bench->disk != NULL)
		disk_note(bench->disk, kind, number, recipients);
}

__attribute__((format(printf, 2, 3))) static void problem(
        struct bench *bench, const char *format, ...)
{
	va_list args;

	if (bench->problem[0] != '\0')
		return;
	va_start(args, format);
	vsnprintf(bench->problem, sizeof(bench->problem), format, args);
	va_end(args);
}

/* ---- waiting ---- */

static bool all_found(struct bench *bench)
{
	for (uint32_t number = 0; bench->wait_for_all && number < NUMBERS_MAX; number++) {
		const struct fact *fact = &bench->facts[number];
		struct message_id id = id_of(number);
		if (fact->acked && fact->asked != all_of(number) &&
		        spool_out_find(bench->out, &id) == NULL)
			return false;
	}
	return true;
}

static void look(struct post *post)
{
	struct bench *bench = container_of(post, struct bench, look);
	uint64_t now = real_ms();

	if (bench->giving == 0 && bench->marking == 0 &&
	        (bench->out == NULL || (!spool_out_is_busy(bench->out) && all_found(bench)))) {
		loop_stop(bench->loop);
		return;
	}
	if (now - bench->began_ms > DEADLINE_MS) {
		problem(bench, "hangs: %u messages, %u marks outstanding", bench->giving,
		        bench->marking);
		loop_stop(bench->loop);
		return;
	}
	if (now - bench->shifted_ms > SHIFT_AFTER_MS) {
		bench->shifted_ms = now;
		*shift += 300000;
		if (bench->out != NULL && !all_found(bench))
			spool_out_follow(bench->out);
	}
	sched_yield();
	loop_post(bench->loop, &bench->look);
}

/* Turns the loop until nothing is outstanding. */
static void settle_down(struct bench *bench)
{
	if (bench->problem[0] != '\0')
		return;
	bench->began_ms = bench->shifted_ms = real_ms();
	bench->look.run = look;
	if (bench->out != NULL && bench->wait_for_all)
		spool_out_follow(bench->out);
	loop_post(bench->loop, &bench->look);
	loop_run(bench->loop);
}

/* ---- both sides ---- */

static void on_entry(void *arg, struct spool_entry *entry)
{
	struct bench *bench = arg;

	if (number_of_id(&entry->id) != (int)entry->account)
		problem(bench, "a message that nobody gave: account %u", (unsigned)entry->account);
}

static void on_alarm(void *arg, const char *text)
{
	struct bench *bench = arg;

	if (strstr(text, "damaged") != NULL)
		problem(bench, "taken for damage: %s", text);
}

static void on_recovered(void *arg)
{
	(void)arg;
}

/* Where calls may fail, the next try is without a fault. */
static void open_in(struct bench *bench)
{
	const struct spool_in_settings settings = {
	        .path = bench->root,
	        .ops = bench->ops,
	        .segment_size = IN_SEGMENT,
	        .wake_fd = -1,
	};
	struct why why = {0};

	int r = spool_in_open(&settings, &bench->in, &why);
	for (int i = 0; r < 0 && bench->forgiving && i < 4; i++)
		r = spool_in_open(&settings, &bench->in, &why);
	if (r < 0)
		problem(bench, "in/ does not open: %s", why.text);
}

static void open_out(struct bench *bench)
{
	static const struct spool_out_events events = {on_entry, on_alarm, on_recovered};
	const struct spool_out_settings settings = {
	        .path = bench->root,
	        .ops = bench->ops,
	        .loop = bench->loop,
	        .jobs = bench->jobs,
	        .segment_size = OUT_SEGMENT,
	        .events = &events,
	        .arg = bench,
	};
	struct why why = {0};

	int r = spool_out_open(&settings, &bench->out, &why);
	for (int i = 0; r < 0 && bench->forgiving && i < 4; i++)
		r = spool_out_open(&settings, &bench->out, &why);
	if (r < 0)
		problem(bench, "out/ does not open: %s", why.text);
}

static void close_in(struct bench *bench)
{
	if (bench->in != NULL)
		spool_in_close(bench->in);
	bench->in = NULL;
}

static void close_out(struct bench *bench)
{
	if (bench->out != NULL)
		spool_out_close(bench->out);
	bench->out = NULL;
}

/* ---- giving ---- */

struct callback {
	struct bench *bench;
	uint32_t number, notice; /* 0: none */
	uint64_t recipients;
};

static void on_ready(void *arg)
{
	struct callback *callback = arg;

	loop_stop(callback->bench->loop);
}

static void on_done(void *arg, int result)
{
	struct callback *callback = arg;
	struct bench *bench = callback->bench;

	bench->giving--;
	bench->result[callback->number] = result;
	if (result == 0)
		note(bench, NOTE_ACKED, callback->number, 0);
	else if (!bench->forgiving)
		problem(bench, "message %u is refused: %d", callback->number, result);
	free(callback);
}

static void give(struct bench *bench, uint32_t number)
{
	static const struct spool_tx_events events = {.on_ready = on_ready, .on_done = on_done};
	struct callback *callback = calloc(1, sizeof(*callback));
	struct slice body = body_of(number);
	struct spool_tx *tx;
	char envelope[32];

	if (bench->problem[0] != '\0' || bench->in == NULL) {
		free(callback);
		return;
	}
	assert_bug(callback != NULL);
	*callback = (struct callback){.bench = bench, .number = number};
	int r = spool_tx_new(
	        bench->in, bench->loop, id_of(number), body.len, &events, callback, NULL, &tx);
	assert_bug(r == 0);
	for (size_t at = 0; at < body.len; at += 20000) {
		if (spool_tx_write(tx, slice_part(body, at, 20000)) == SPOOL_WAIT)
			loop_run(bench->loop); /* until on_ready */
	}
	if (plan_of(number)->fate == ABORT) {
		spool_tx_abort(tx);
		free(callback);
		return;
	}
	snprintf(envelope, sizeof(envelope), "envelope %u", number);
	const struct spool_commit commit = {
	        .account = number,
	        .accepted_us = clock_wall_us(),
	        .recipients = recipients_of(number),
	        .envelope = slice_str(envelope),
	        .header = SLICE("Subject: x\r\n\r\n"),
	};
	note(bench, NOTE_GIVEN, number, 0);
	bench->giving++;
	spool_tx_commit(tx, &commit);
}

/* ---- fates ---- */

static void on_marked(void *arg, int result)
{
	struct callback *callback = arg;
	struct bench *bench = callback->bench;

	bench->marking--;
	if (result == 0) {
		note(bench, callback->notice != 0 ? NOTE_SYNCED : NOTE_REPORTED, callback->number,
		        callback->recipients);
		if (callback->notice != 0)
			note(bench, NOTE_ACKED, callback->notice, 0);
	} else if (!bench->forgiving) {
		problem(bench, "a mark of message %u fails: %d", callback->number, result);
	}
	free(callback);
}

static struct callback *ask(struct bench *bench, uint32_t number, uint64_t recipients)
{
	struct callback *callback = calloc(1, sizeof(*callback));

	assert_bug(callback != NULL);
	*callback = (struct callback){.bench = bench, .number = number, .recipients = recipients};
	note(bench, NOTE_ASKED, number, recipients);
	bench->marking++;
	return callback;
}

/* Those of `wanted` that are not settled yet: their number and bits. */
static uint32_t pick(const struct spool_entry *entry, uint64_t wanted, enum stored_outcome outcome,
        struct stored_result results[64], uint64_t *ret_recipients)
{
	uint32_t count = 0;

	*ret_recipients = 0;
	for (uint32_t i = 0; i < entry->recipients; i++) {
		if ((wanted >> i & 1) == 0 || spool_entry_is_settled(entry, i))
			continue;
		results[count++] = (struct stored_result){i, outcome};
		*ret_recipients |= 1ULL << i;
	}
	return count;
}

/* Each recipient with a mark of its own. */
static void deliver(struct bench *bench, struct spool_entry *entry, uint64_t wanted)
{
	struct stored_result results[64];
	uint64_t recipients;
	uint32_t number = (uint32_t)entry->account;

	uint32_t count = pick(entry, wanted, OUTCOME_DELIVERED, results, &recipients);
	for (uint32_t i = 0; i < count; i++) {
		struct callback *callback = ask(bench, number, 1ULL << results[i].recipient);
		int r = spool_settle(bench->out, entry, &results[i], 1, on_marked, callback);
		assert_bug(r == 0);
	}
}

static void bounce(struct bench *bench, struct spool_entry *entry, uint64_t wanted, uint32_t notice)
{
	struct stored_result results[64];
	uint64_t recipients;
	uint32_t number = (uint32_t)entry->account;
	uint32_t count = pick(entry, wanted, OUTCOME_FAILED, results, &recipients);
	const struct spool_dsn dsn = {
	        .account = notice,
	        .accepted_us = clock_wall_us(),
	        .envelope = SLICE("bounce"),
	        .header = SLICE("Subject: sorry\r\n\r\n"),
	        .body = body_of(notice),
	};

	if (count == 0 && wanted != 0)
		return;
	notices[notice] = spool_bounce_id(entry, results, count);
	note(bench, NOTE_GIVEN, notice, 0);
	struct callback *callback = ask(bench, number, recipients);
	callback->notice = notice;
	int r = spool_bounce(bench->out, entry, results, count, &dsn, on_marked, callback);
	assert_bug(r == 0);
}

static void defer(struct bench *bench, struct spool_entry *entry)
{
	entry->attempt++;
	spool_defer(bench->out, entry);
}

/* What its fate is, the same whenever it is asked; `late`: in a later round. */
static void handle(struct bench *bench, struct spool_entry *entry, bool late)
{
	uint32_t number = (uint32_t)entry->account;

	if (number >= NUMBER_BOUNCE) {
		if (late)
			deliver(bench, entry, 1);
		return;
	}
	switch (plan_of(number)->fate) {
	case DELIVER:
		deliver(bench, entry, all_of(number));
		break;
	case PART:
		defer(bench, entry);
		deliver(bench, entry, late ? all_of(number) : 1);
		break;
	case BOUNCE:
		bounce(bench, entry, all_of(number), NUMBER_BOUNCE + number);
		break;
	case MIXED:
		/* Those that fail together fail in one record, also after a restart. */
		if (!spool_entry_is_settled(entry, 1))
			bounce(bench, entry, 6, NUMBER_BOUNCE + number);
		deliver(bench, entry, 1);
		break;
	case DELAY:
		defer(bench, entry);
		if (!entry->delay_told)
			bounce(bench, entry, 0, NUMBER_DELAY + number);
		else if (late)
			deliver(bench, entry, all_of(number));
		break;
	case KEEP:
	case ABORT:
		defer(bench, entry);
		break;
	}
}

static void handle_all(struct bench *bench, bool late)
{
	struct spool_entry *entries[ENTRIES_AT_ONCE], *entry;
	size_t count = 0, position = 0;

	settle_down(bench);
	if (bench->problem[0] != '\0')
		return;
	while ((entry = spool_out_next(bench->out, &position)) != NULL && count < ENTRIES_AT_ONCE)
		entries[count++] = entry;
	for (size_t i = 0; i < count; i++)
		handle(bench, entries[i], late);
	settle_down(bench);
}

/* ---- the story ---- */

static void give_some(struct bench *bench, uint32_t first, uint32_t last)
{
	for (uint32_t number = first; number <= last; number++)
		give(bench, number);
	settle_down(bench);
}

static void restart_out(struct bench *bench)
{
	close_out(bench);
	open_out(bench);
}

/* An empty spare is one that no disk ever needs, and spares the log a megabyte of zeros. */
static void make_empty_spare(const struct file_ops *ops, const char *root)
{
	char path[DISK_NAME + 16];

	snprintf(path, sizeof(path), "%s/out/spare", root);
	_cleanup_(closep) int fd = ops->open(path, O_WRONLY | O_CREAT, 0600);
	assert_bug(fd >= 0);
}

static void begin(struct bench *bench, struct disk *disk)
{
	bench->ops = &disk_ops;
	bench->disk = disk;
	bench->problem[0] = '\0';
	bench->wait_for_all = true;
}

static void finish(struct bench *bench)
{
	close_out(bench);
	close_in(bench);
	disk_stop(bench->disk);
	bench->disk = NULL;
}

void story_run(struct bench *bench, struct disk *disk, struct disk_fault fault, bool full)
{
	memset(bench->facts, 0, sizeof(bench->facts));
	disk_start(disk, bench->root);
	begin(bench, disk);
	if (!full)
		make_empty_spare(&disk_ops, bench->root);
	bench->forgiving = fault.nth != 0 || full;
	disk->calls = 0;
	disk->fault = fault;
	open_in(bench);
	open_out(bench);
	give_some(bench, 0, 2);
	give_some(bench, 3, 4);
	handle_all(bench, false);
	disk->full = full;
	give(bench, 14); /* and takes it back */
	give_some(bench, 5, 7);
	handle_all(bench, false);
	disk->full = false;
	restart_out(bench);
	handle_all(bench, true);
	close_in(bench);
	open_in(bench);
	give_some(bench, 8, 9);
	give_some(bench, 10, 11);
	handle_all(bench, true);
	restart_out(bench);
	handle_all(bench, true);
	give_some(bench, 12, 13);
	handle_all(bench, false);
	give_some(bench, 15, 16);
	handle_all(bench, false);
	/* Whatever failed, it goes on. */
	disk->fault = (struct disk_fault){0};
	bench->forgiving = false;
	give_some(bench, NUMBER_AFTER, NUMBER_AFTER);
	handle_all(bench, true);
	finish(bench);
}

void story_go_on(struct bench *bench, struct disk *disk)
{
	const struct cut kill = {.kind = CUT_KILL, .count = disk->count};

	begin(bench, disk);
	disk_facts(disk, &kill, bench->facts);
	bench->forgiving = false;
	bench->wait_for_all = false;
	open_out(bench);
	open_in(bench);
	if (bench->problem[0] == '\0')
		spool_out_follow(bench->out);
	handle_all(bench, true);
	give_some(bench, NUMBER_AFTER + 1, NUMBER_AFTER + 2);
	bench->wait_for_all = true;
	handle_all(bench, true);
	restart_out(bench);
	handle_all(bench, true);
	finish(bench);
}

/* ---- what must hold ---- */

static void check_body(struct bench *bench, struct spool_message *message, uint32_t number)
{
	struct slice body = body_of(number);
	static char room[65536];
	uint64_t at = 0;
	ssize_t got;

	if (message->body_fd < 0) {
		if (!slice_equal(buf_slice(&message->body), body))
			problem(bench, "message %u has another body", number);
		return;
	}
	while ((got = spool_message_read(message, room, sizeof(room))) > 0) {
		if (at + (uint64_t)got > body.len || memcmp(room, body.ptr + at, (size_t)got) != 0)
			problem(bench, "message %u has another body", number);
		at += (uint64_t)got;
	}
	if (got < 0 || at != body.len)
		problem(bench, "message %u has half a body: %d", number, (int)got);
}

static void check_entry(
        struct bench *bench, const struct fact facts[NUMBERS_MAX], const struct spool_entry *entry)
{
	uint32_t number = (uint32_t)entry->account;
	struct spool_message message;

	if (number_of_id(&entry->id) != (int)number || !facts[number].given ||
	        entry->recipients != recipients_of(number)) {
		problem(bench, "message %u was never given", number);
		return;
	}
	for (uint32_t i = 0; i < entry->recipients; i++) {
		bool settled = spool_entry_is_settled(entry, i);
		if (settled && (facts[number].asked >> i & 1) == 0)
			problem(bench, "recipient %u of message %u was never settled", i, number);
		if (!settled && (facts[number].held >> i & 1) != 0)
			problem(bench, "recipient %u of message %u is offered again", i, number);
	}
	if (facts[number].held == all_of(number))
		problem(bench, "message %u is offered again", number);
	int r = spool_message_load(bench->out, entry, &message);
	if (r < 0) {
		problem(bench, "message %u does not load: %d", number, r);
		return;
	}
	check_body(bench, &message, number);
	spool_message_done(&message);
}

/* A bounce is there exactly when the recipients that it settles count as settled. */
static void check_notice(struct bench *bench, const struct fact facts[NUMBERS_MAX], uint32_t number,
        uint32_t notice, uint64_t recipients)
{
	struct message_id id = id_of(number), notice_id = id_of(notice);
	const struct spool_entry *about = spool_out_find(bench->out, &id);
	bool found = spool_out_find(bench->out, &notice_id) != NULL, settled = true;

	if (!facts[notice].given)
		return;
	for (uint32_t i = 0; about != NULL && i < about->recipients; i++)
		settled &= (recipients >> i & 1) == 0 || spool_entry_is_settled(about, i);
	if (about != NULL && recipients == 0)
		settled = about->delay_told;
	if (about == NULL && recipients == 0)
		return;
	if (found && !settled)
		problem(bench, "notice %u is there, and message %u is not settled", notice, number);
	if (settled && !found && facts[notice].asked == 0)
		problem(bench, "message %u is settled, and notice %u is not there", number, notice);
}

static void check_all(struct bench *bench, const struct fact facts[NUMBERS_MAX])
{
	const struct spool_entry *entry;
	size_t position = 0;

	while ((entry = spool_out_next(bench->out, &position)) != NULL)
		check_entry(bench, facts, entry);
	for (uint32_t number = 0; number < NUMBERS_MAX; number++) {
		struct message_id id = id_of(number);
		if (facts[number].acked && facts[number].asked != all_of(number) &&
		        spool_out_find(bench->out, &id) == NULL)
			problem(bench, "message %u is lost", number);
	}
	for (uint32_t number = 0; number < ARRAY_LEN(plans); number++) {
		enum fate fate = plans[number].fate;
		if (fate == BOUNCE || fate == MIXED)
			check_notice(bench, facts, number, NUMBER_BOUNCE + number,
			        fate == MIXED ? 6 : all_of(number));
		if (fate == DELAY)
			check_notice(bench, facts, number, NUMBER_DELAY + number, 0);
	}
}

void story_check(struct bench *bench, const struct fact facts[NUMBERS_MAX], bool and_use)
{
	char path[DISK_NAME + 16];

	bench->ops = &file_system;
	bench->disk = NULL;
	bench->problem[0] = '\0';
	bench->forgiving = bench->wait_for_all = false;
	snprintf(path, sizeof(path), "%s/out/spare", bench->root);
	if (access(path, F_OK) < 0 && !and_use)
		make_empty_spare(&file_system, bench->root);
	open_in(bench);
	open_out(bench);
	if (bench->problem[0] == '\0') {
		spool_out_follow(bench->out);
		settle_down(bench);
		check_all(bench, facts);
	}
	if (bench->problem[0] == '\0' && and_use) {
		memcpy(bench->facts, facts, sizeof(bench->facts));
		give(bench, NUMBER_AFTER + 5);
		settle_down(bench);
		bench->wait_for_all = true;
		settle_down(bench);
	}
	close_out(bench);
	close_in(bench);
}

/* SPDX-License-Identifier: ISC */
/*
 * The writing side of out/: replay at the start, marks and bounces.
 *
 * A mark is appended at once and told back when it is written; one that could not
 * be written is tried again every second until it is, because the message that it
 * settles must not be sent again. All on the loop's thread; only the replay blocks.
 */
#include "gateway/spool/out.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define SEGMENT_SIZE  (64U << 20)
#define RETRY_MARK_MS 1000
#define PATHS_MAX     (1U << 20)

/* A mark on its way; with a bounce, the bounce's record. */
struct spool_mark {
	struct list link; /* in `retrying` */
	struct spool_out *out;
	struct spool_entry *entry; /* that it is about */
	struct journal_entry record;
	struct buf envelope, body;
	struct post post;
	spool_marked_fn on_marked;
	void *arg;
	int result;
};

/* ---- replay ---- */

struct replaying {
	struct early_marks *marks;
	int error;
};

static void replay_result(void *arg, struct stored_result result)
{
	struct replaying *replaying = arg;

	if (result.recipient >= RESULTS_MAX)
		return;
	int r = settled_set(&replaying->marks->settled, result.recipient);
	if (r < 0)
		replaying->error = r;
}

/* Of a result, or of a bounce: one that settles nobody is a notice of delay. */
static int replay_results(struct spool_out *out, struct slice octets)
{
	struct unpack unpack = unpack_start(octets);
	struct message_id id;

	unpack_raw(&unpack, id.bytes, ID_SIZE);
	if (unpack.error != 0)
		return -EBADMSG;
	struct replaying replaying = {.marks = index_early_marks(&out->index, &id)};
	if (replaying.marks == NULL)
		return -ENOMEM;
	int r = results_unpack(octets, &id, replay_result, &replaying);
	if (r == 0)
		replaying.marks->delay_told = true;
	return r < 0 ? r : replaying.error;
}

static int replay_deferral(struct spool_out *out, struct slice octets)
{
	struct stored_deferral deferral;

	int r = deferral_unpack(octets, &deferral);
	if (r < 0)
		return r;
	struct early_marks *marks = index_early_marks(&out->index, &deferral.id);
	if (marks == NULL)
		return -ENOMEM;
	marks->has_deferral = true;
	marks->deferral = deferral;
	return 0;
}

static int replay_bounce(struct spool_out *out, const struct record_header *record,
        struct slice octets, uint32_t segment)
{
	struct stored_message message;
	struct spool_entry *entry;

	int r = stored_message_unpack(octets, &message);
	if (r == 0)
		r = replay_results(out, message.settles);
	if (r == 0)
		r = entry_from_record(out, record, octets, segment, true, &entry);
	if (r == 0)
		list_append(&out->ready, &entry->link);
	return r;
}

static int replay_record(
        struct spool_out *out, struct segment *segment, const struct record_header *record)
{
	struct buf *room = &out->follow.room;

	int r = segment_read_envelope(segment, record, room);
	if (r < 0)
		return r;
	switch (record->type) {
	case RECORD_RESULT:
		return replay_results(out, buf_slice(room));
	case RECORD_DEFERRAL:
		return replay_deferral(out, buf_slice(room));
	case RECORD_DSN:
		return replay_bounce(out, record, buf_slice(room), segment->header.number);
	case RECORD_PROBE:
	case RECORD_MESSAGE:
		break;
	}
	return 0;
}

static void tell_damage(struct spool_out *out, struct segment *segment, uint64_t from, uint64_t to)
{
	char text[SEGMENT_PATH + 128];

	segment_quarantine(segment, out->out_folder, "out", from, to);
	snprintf(text, sizeof(text),
	        "%" PRIu64 " damaged octets at %" PRIu64 " in out/%08u.seg; a copy is in %s",
	        to - from, from, segment->header.number, out->out_folder);
	out->settings.events->on_alarm(out->settings.arg, text);
}

/* Reads a segment of out/ up to its end. */
static int replay_segment(
        struct spool_out *out, struct segment *segment, uint64_t end, bool *ret_has_marks)
{
	struct record_header record;
	uint64_t offset = 0, before;
	int r;

	for (;;) {
		before = MAX_OF(offset, (uint64_t)SEGMENT_HEADER_SIZE);
		r = segment_next(segment, &offset, end, &record);
		if (r == SEGMENT_END || r < 0)
			return r < 0 ? r : 0;
		if (r == SEGMENT_RECORD) {
			*ret_has_marks |= record.type != RECORD_PROBE;
			r = replay_record(out, segment, &record);
		} else {
			r = -EBADMSG;
		}
		if (r == -EBADMSG)
			tell_damage(out, segment, before, offset);
		else if (r < 0)
			return r;
	}
}

/* Those that are in no index yet. */
static void free_entries(struct list *entries)
{
	struct list *link;

	while ((link = list_pop(entries)) != NULL)
		entry_free(list_entry(link, struct spool_entry, link));
}

/* Bounces that were read, through the index: some are settled already. */
static int index_bounces(struct spool_out *out)
{
	struct list all;
	struct list *link;

	list_init(&all);
	while ((link = list_pop(&out->ready)) != NULL)
		list_append(&all, link);
	while ((link = list_pop(&all)) != NULL) {
		int r = index_add(&out->index, list_entry(link, struct spool_entry, link));
		if (r < 0) {
			list_append(&all, link);
			free_entries(&all);
			return r;
		}
		if (r == INDEX_LIVES)
			list_append(&out->ready, link);
	}
	return 0;
}

static void discard(struct spool_out *out, uint32_t number)
{
	char text[SEGMENT_PATH + 64];

	if (segment_discard(out->settings.ops, out->out_folder, number) != 1)
		return;
	snprintf(text, sizeof(text),
	        "out/%08u.seg is damaged; it is %s/damaged-%08u.seg now: mail may go out twice",
	        number, out->out_folder, number);
	out->settings.events->on_alarm(out->settings.arg, text);
}

/*
 * Replays one segment and notes what it may be needed for. `newest_in`: what its
 * marks are about is not known, at worst the newest segment of in/.
 */
static int replay_one(struct spool_out *out, uint32_t number, uint32_t newest_in,
        struct journal_settings *journal)
{
	struct segment segment;
	bool has_marks = false;
	uint64_t end, committed;

	int r = segment_open(out->settings.ops, out->out_folder, number, &segment);
	if (r == -EBADMSG) {
		discard(out, number);
		return 0;
	}
	if (r < 0)
		return r;
	r = segment_find_end(&segment, &end, &committed);
	/*
	 * Marks that a killed process left to the kernel count, so they must not get lost later.
	 * They may stand before the newest segment: it repeats them, but had perhaps just begun.
	 */
	if (r == 0)
		r = segment_make_sure(out->settings.ops, out->out_folder, number, committed, end);
	if (r == 0)
		r = replay_segment(out, &segment, end, &has_marks);
	segment_close(&segment);
	if (r != 0)
		return r;
	journal->previous = number;
	journal->previous_end = end;
	struct segment_use *use = index_segment(&out->index, true, number);
	if (use == NULL)
		return -ENOMEM;
	use->has_marks = has_marks;
	use->newest_mark = newest_in;
	return 0;
}

static int replay(struct spool_out *out, struct journal_settings *journal)
{
	_cleanup_(freep) uint32_t *numbers = NULL, *in_numbers = NULL;
	size_t count, in_count = 0;

	int r = segment_list(out->out_folder, &numbers, &count);
	if (r == 0)
		r = segment_list(out->in_folder, &in_numbers, &in_count);
	if (r == -ENOENT) { /* `submit` has not made its folder yet */
		in_count = 0;
		r = 0;
	}
	uint32_t newest_in = in_count > 0 ? in_numbers[in_count - 1] : 0;
	for (size_t i = 0; r == 0 && i < count; i++) {
		journal->highest = numbers[i];
		r = replay_one(out, numbers[i], newest_in, journal);
	}
	if (r == 0)
		return index_bounces(out);
	free_entries(&out->ready);
	return r;
}

/* ---- opening and closing ---- */

static void retry_marks(void *arg);

static int open_all(struct spool_out *out, struct why *why)
{
	struct journal_settings journal = {
	        .folder = out->out_folder,
	        .ops = out->settings.ops,
	        .segment_size =
	                out->settings.segment_size != 0 ? out->settings.segment_size : SEGMENT_SIZE,
	        .mode = 0600,
	        .spare = true,
	        .wake_fd = -1,
	};
	bool fresh;

	if (mkdir(out->out_folder, 0700) < 0 && errno != EEXIST)
		return why_errno(why, errno, "cannot make %s", out->out_folder);
	int r = watermark_lock(out->out_folder, &out->lock, &fresh, why);
	if (r < 0)
		return r;
	r = replay(out, &journal);
	if (r < 0)
		return why_errno(why, r, "cannot read %s", out->out_folder);
	return journal_open(&journal, &out->journal, why);
}

int spool_out_open(
        const struct spool_out_settings *settings, struct spool_out **ret_out, struct why *why)
{
	struct spool_out *out = calloc(1, sizeof(*out));

	if (out == NULL)
		return why_errno(why, ENOMEM, "out/");
	out->settings = *settings;
	snprintf(out->in_folder, sizeof(out->in_folder), "%s/in", settings->path);
	snprintf(out->out_folder, sizeof(out->out_folder), "%s/out", settings->path);
	index_init(&out->index);
	list_init(&out->ready);
	list_init(&out->retrying);
	timer_init(&out->retry, settings->loop, retry_marks, out);
	buf_init(&out->cleanup.waiting, PATHS_MAX);
	buf_init(&out->cleanup.paths, PATHS_MAX);
	buf_init(&out->cleanup.emptying, PATHS_MAX);
	follow_init(out);
	int r = open_all(out, why);
	if (r < 0) {
		spool_out_close(out);
		return r;
	}
	*ret_out = out;
	return 0;
}

void spool_out_close(struct spool_out *out)
{
	if (out == NULL)
		return;
	timer_stop(&out->retry);
	journal_close(out->journal);
	watermark_close(&out->lock);
	follow_done(out);
	index_done(&out->index);
	buf_done(&out->cleanup.waiting);
	buf_done(&out->cleanup.paths);
	buf_done(&out->cleanup.emptying);
	free(out);
}

struct spool_entry *spool_out_find(struct spool_out *out, const struct message_id *id)
{
	return map_get(&out->index.entries, slice_of(id->bytes, ID_SIZE));
}

struct spool_entry *spool_out_next(struct spool_out *out, size_t *position)
{
	return map_next(&out->index.entries, position);
}

size_t spool_out_count(const struct spool_out *out)
{
	return out->index.entries.count;
}

bool spool_out_is_busy(const struct spool_out *out)
{
	return out->marks_outstanding > 0 || out->follow.running || out->cleanup.running;
}

/* ---- marks ---- */

void spool_mark_free(struct spool_mark *mark)
{
	if (mark == NULL)
		return;
	buf_done(&mark->envelope);
	buf_done(&mark->body);
	free(mark);
}

/* One that was appended: nothing waits for it any more. */
static void mark_done(struct spool_mark *mark)
{
	mark->out->marks_outstanding--;
	spool_mark_free(mark);
}

/* The last mark of a settled message is written: nothing in memory needs it any more. */
static void forget_if_settled(struct spool_out *out, struct spool_entry *entry)
{
	char path[SEGMENT_PATH];

	if (entry->unsettled > 0 || entry->marks_pending > 0)
		return;
	if (entry->body_in_file) {
		entry_body_path(out, entry, path);
		cleanup_add_path(out, path);
	}
	index_forget(&out->index, entry);
	cleanup_consider(out);
}

/* A bounce's record is safe: it is a message of its own now. */
static void adopt_bounce(struct spool_mark *mark)
{
	struct spool_out *out = mark->out;
	struct record_header record = {.type = RECORD_DSN, .offset = mark->record.offset};
	struct spool_entry *entry;

	int r = entry_from_record(
	        out, &record, buf_slice(&mark->envelope), mark->record.segment, true, &entry);
	if (r == 0 && (r = index_add(&out->index, entry)) < 0)
		entry_free(entry);
	if (r == INDEX_LIVES)
		out->settings.events->on_entry(out->settings.arg, entry);
	if (r >= 0)
		return;
	/* Without memory it waits for the next start; its segment stays until then. */
	struct segment_use *use = index_segment(&out->index, true, mark->record.segment);
	if (use != NULL)
		use->live++;
	out->settings.events->on_alarm(
	        out->settings.arg, "out of memory: a bounce waits for the next start");
}

/* What its segment is needed for from now on. Without memory it is not known, and stays. */
static void note_mark(struct spool_out *out, const struct spool_mark *mark)
{
	struct segment_use *use = index_segment(&out->index, true, mark->record.segment);

	if (use == NULL)
		return;
	use->has_marks = true;
	if (!mark->entry->in_out)
		use->newest_mark = MAX_OF(use->newest_mark, mark->entry->segment);
}

/* Tells when marks begin to fail, and when they are written again. */
static void note_state(struct spool_out *out, int result)
{
	char text[120];

	if (result < 0 && !out->failing) {
		out->failing = true;
		snprintf(text, sizeof(text), "results cannot be recorded, delivery waits: %s",
		        strerrordesc_np(-result));
		out->settings.events->on_alarm(out->settings.arg, text);
	} else if (result == 0 && out->failing && list_is_empty(&out->retrying)) {
		out->failing = false;
		out->settings.events->on_recovered(out->settings.arg);
	}
}

bool spool_out_is_failing(const struct spool_out *out)
{
	return out->failing;
}

static void mark_written(struct post *post)
{
	struct spool_mark *mark = container_of(post, struct spool_mark, post);
	struct spool_out *out = mark->out;
	spool_marked_fn on_marked = mark->on_marked;

	/* One that failed may stand there all the same, and be found at the next start. */
	if (mark->record.segment != 0)
		note_mark(out, mark);
	if (mark->result == 0 && mark->record.type == RECORD_DSN)
		adopt_bounce(mark);
	/* A deferral that is lost costs one early attempt, and is not tried again. */
	bool again = mark->result < 0 && mark->record.type != RECORD_DEFERRAL;
	if (again || mark->result == 0)
		note_state(out, mark->result);
	mark->on_marked = NULL;
	if (on_marked != NULL)
		on_marked(mark->arg, mark->result);
	if (again) {
		list_append(&out->retrying, &mark->link);
		if (!timer_is_running(&out->retry))
			timer_start(&out->retry, RETRY_MARK_MS);
		return;
	}
	struct spool_entry *entry = mark->entry;
	entry->marks_pending--;
	mark_done(mark);
	forget_if_settled(out, entry);
}

/* On the journal's writer thread. */
static void on_recorded(struct journal_entry *record, int result)
{
	struct spool_mark *mark = container_of(record, struct spool_mark, record);

	mark->result = result;
	mark->post.run = mark_written;
	loop_post(mark->out->settings.loop, &mark->post);
}

static void retry_marks(void *arg)
{
	struct spool_out *out = arg;
	struct list *link;

	while ((link = list_pop(&out->retrying)) != NULL)
		journal_append(out->journal, &list_entry(link, struct spool_mark, link)->record);
}

void spool_out_give_up(struct spool_out *out)
{
	struct list *link;

	timer_stop(&out->retry);
	if (!list_is_empty(&out->retrying))
		out->settings.events->on_alarm(
		        out->settings.arg, "results were not recorded: their mail goes out again");
	while ((link = list_pop(&out->retrying)) != NULL)
		mark_done(list_entry(link, struct spool_mark, link));
}

static int mark_new(struct spool_out *out, struct spool_entry *entry, enum record_type type,
        struct spool_mark **ret_mark)
{
	struct spool_mark *mark = calloc(1, sizeof(*mark));

	if (mark == NULL)
		return -ENOMEM;
	mark->out = out;
	mark->entry = entry;
	mark->record.type = type;
	mark->record.done = on_recorded;
	buf_init(&mark->envelope, RECORD_ENVELOPE_MAX);
	buf_init(&mark->body, RECORD_BODY_MAX);
	*ret_mark = mark;
	return 0;
}

static void mark_append(struct spool_mark *mark, enum journal_level level)
{
	mark->record.level = level;
	mark->record.envelope = buf_slice(&mark->envelope);
	mark->record.body = buf_slice(&mark->body);
	mark->entry->marks_pending++;
	mark->out->marks_outstanding++;
	journal_append(mark->out->journal, &mark->record);
}

static void settle_one(void *arg, struct stored_result result)
{
	struct spool_entry *entry = arg;

	assert_bug(result.recipient < entry->recipients);
	int r = settled_set(&entry->settled, result.recipient);
	assert_bug(r >= 0); /* there is room: see mark_results() */
	entry->unsettled -= (uint32_t)r;
}

/* Settles in memory what the packed results say, so that nothing chooses these recipients again. */
static void settle_entry(struct spool_entry *entry, struct slice results)
{
	struct message_id id;

	assert_bug(results_unpack(results, &id, settle_one, entry) >= 0);
}

/* Packs results, and makes sure that settling them can lack no memory. */
static int mark_results(struct spool_entry *entry, const struct stored_result *results,
        uint32_t count, struct buf *octets)
{
	struct pack pack = pack_start(octets);

	results_pack(entry->id, results, count, &pack);
	return pack.error != 0 ? pack.error : settled_reserve(&entry->settled, entry->recipients);
}

int spool_mark_new(struct spool_out *out, struct spool_entry *entry,
        const struct stored_result *results, uint32_t count, struct spool_mark **ret_mark)
{
	struct spool_mark *mark;

	int r = mark_new(out, entry, RECORD_RESULT, &mark);
	if (r < 0)
		return r;
	r = mark_results(entry, results, count, &mark->envelope);
	if (r < 0)
		spool_mark_free(mark);
	else
		*ret_mark = mark;
	return r;
}

void spool_mark_write(struct spool_mark *mark, spool_marked_fn on_marked, void *arg)
{
	settle_entry(mark->entry, buf_slice(&mark->envelope));
	mark->on_marked = on_marked;
	mark->arg = arg;
	mark_append(mark, JOURNAL_WRITTEN);
}

int spool_settle(struct spool_out *out, struct spool_entry *entry,
        const struct stored_result *results, uint32_t count, spool_marked_fn on_marked, void *arg)
{
	struct spool_mark *mark;

	int r = spool_mark_new(out, entry, results, count, &mark);
	if (r == 0)
		spool_mark_write(mark, on_marked, arg);
	return r;
}

void spool_defer(struct spool_out *out, struct spool_entry *entry)
{
	const struct stored_deferral deferral = {
	        .id = entry->id,
	        .attempt = entry->attempt,
	        .next_us = entry->next_us,
	        .age_ms = entry->age_ms,
	};
	struct spool_mark *mark;

	/* Losing it costs one early attempt after a restart. */
	if (mark_new(out, entry, RECORD_DEFERRAL, &mark) < 0)
		return;
	struct pack pack = pack_start(&mark->envelope);
	deferral_pack(&deferral, &pack);
	if (pack.error < 0)
		spool_mark_free(mark);
	else
		mark_append(mark, JOURNAL_WRITTEN);
}

/* The id of a bounce follows from what it is about, so that writing it twice is writing it once. */
struct message_id spool_bounce_id(
        const struct spool_entry *entry, const struct stored_result *results, uint32_t count)
{
	struct {
		uint8_t id[ID_SIZE];
		char kind[2];
		uint32_t lowest;
	} about = {.kind = "f", .lowest = UINT32_MAX};
	struct message_id id;

	memcpy(about.id, entry->id.bytes, ID_SIZE);
	if (count == 0)
		about.kind[0] = 'd';
	for (uint32_t i = 0; i < count; i++)
		about.lowest = MIN_OF(about.lowest, results[i].recipient);
	XXH128_hash_t hash = XXH3_128bits(&about, sizeof(about));
	memcpy(id.bytes, &hash.low64, 8);
	memcpy(id.bytes + 8, &hash.high64, 2);
	return id;
}

/* `settles`: the packed results. */
static int pack_bounce(struct spool_mark *mark, const struct stored_result *results, uint32_t count,
        const struct spool_dsn *dsn, struct slice settles)
{
	const struct stored_message message = {
	        .id = spool_bounce_id(mark->entry, results, count),
	        .account = dsn->account,
	        .accepted_us = dsn->accepted_us,
	        .recipients = 1,
	        .body_size = dsn->body.len,
	        .settles = settles,
	        .envelope = dsn->envelope,
	        .header = dsn->header,
	};
	struct pack pack = pack_start(&mark->envelope);
	stored_message_pack(&message, &pack);
	return pack.error != 0 ? pack.error : buf_append_slice(&mark->body, dsn->body);
}

int spool_bounce(struct spool_out *out, struct spool_entry *entry,
        const struct stored_result *results, uint32_t count, const struct spool_dsn *dsn,
        spool_marked_fn on_marked, void *arg)
{
	struct spool_mark *mark;
	struct buf settles;

	int r = mark_new(out, entry, RECORD_DSN, &mark);
	if (r < 0)
		return r;
	buf_init(&settles, RECORD_ENVELOPE_MAX);
	r = mark_results(entry, results, count, &settles);
	if (r == 0)
		r = pack_bounce(mark, results, count, dsn, buf_slice(&settles));
	if (r == 0) {
		settle_entry(entry, buf_slice(&settles));
		entry->delay_told |= count == 0;
		mark->on_marked = on_marked;
		mark->arg = arg;
		mark_append(mark, JOURNAL_SYNCED);
	} else {
		spool_mark_free(mark);
	}
	buf_done(&settles);
	return r;
}

/* SPDX-License-Identifier: ISC */
/*
 * Following in/: a job reads the records that have been committed since the last
 * time, up to the watermark, and the loop takes the entries over.
 *
 * How far a segment counts: a later segment's header names its committed end; the
 * one that is written now ends at the watermark, once this boot's id stands there;
 * an old one that nobody names (its successor's header was torn) ends where its
 * records do.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gateway/spool/out.h"

#define FOUND_MAX       4096 /* of one job; then the loop gets them */
#define RETRY_FOLLOW_MS 1000

/* A segment that was gone through. */
struct passed {
	uint32_t number, previous;
};

struct range {
	uint64_t limit;
	bool sealed; /* nothing more will come into it */
};

static struct spool_out *out_of(struct follow *follow)
{
	return container_of(follow, struct spool_out, follow);
}

/* Keeps a copy of octets that do not check, and has it told. */
static void quarantine(struct follow *follow, uint64_t from, uint64_t to)
{
	struct spool_out *out = out_of(follow);

	segment_quarantine(&follow->segment, out->out_folder, "in", from, to);
	(void)!buf_printf(&follow->alarms,
	        "%" PRIu64 " damaged octets at %" PRIu64 " in in/%08u.seg; a copy is in %s\n",
	        to - from, from, follow->number, out->out_folder);
}

/* The next segment above `number` whose header checks: 1, 0 when there is none, -errno. */
static int next_segment(struct follow *follow, uint32_t number, struct segment *ret_segment)
{
	struct spool_out *out = out_of(follow);
	_cleanup_(freep) uint32_t *numbers = NULL;
	size_t count;

	int r = segment_list(out->in_folder, &numbers, &count);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	for (size_t i = 0; i < count; i++) {
		if (numbers[i] <= number)
			continue;
		r = segment_open(out->settings.ops, out->in_folder, numbers[i], ret_segment);
		if (r == 0)
			return 1;
		if (r != -EBADMSG && r != -ENOENT)
			return r;
	}
	return 0;
}

/* The run of `submit`, as soon as its watermark is of this boot; 0: not yet. 0 or -errno. */
static int find_run(struct follow *follow, uint32_t *ret_run)
{
	int r = 0;

	if (follow->watermark.file == NULL)
		r = watermark_open(out_of(follow)->in_folder, &follow->watermark);
	if (r < 0 && r != -ENOENT)
		return r;
	if (r == 0 && !follow->this_boot)
		follow->this_boot = watermark_is_of_this_boot(&follow->watermark);
	*ret_run = follow->this_boot ? watermark_run(&follow->watermark) : 0;
	return 0;
}

/* How far the open segment may be read now. */
static int find_range(struct follow *follow, struct range *ret_range)
{
	uint32_t run, written = 0;
	uint64_t committed = 0;
	struct segment later;

	int r = find_run(follow, &run);
	if (r < 0)
		return r;
	if (run != 0)
		watermark_read(&follow->watermark, &written, &committed);
	if (written != 0 && written <= follow->number) {
		/* Behind the watermark's segment nothing counts yet. */
		*ret_range = (struct range){.limit = written == follow->number ? committed : 0};
		return 0;
	}

	r = next_segment(follow, follow->number, &later);
	if (r < 0)
		return r;
	if (r == 0) {
		*ret_range = written > follow->number
		                     ? (struct range){.limit = SEGMENT_NO_LIMIT, .sealed = true}
		                     : (struct range){.limit = 0};
		return 0;
	}
	*ret_range = (struct range){.limit = SEGMENT_NO_LIMIT, .sealed = true};
	if (later.header.previous == follow->number)
		ret_range->limit = later.header.previous_end;
	segment_close(&later);
	return 0;
}

/*
 * Takes one record: 1 if it became an entry, 0 if there is nothing in it, -errno when
 * it cannot be taken now. Only what does not check is passed over.
 */
static int take_record(struct follow *follow, const struct record_header *record)
{
	struct spool_entry *entry;

	if (record->type != RECORD_MESSAGE)
		return 0;
	int r = segment_read_envelope(&follow->segment, record, &follow->room);
	if (r == 0)
		r = entry_from_record(out_of(follow), record, buf_slice(&follow->room),
		        follow->number, false, &entry);
	if (r == -EBADMSG) {
		quarantine(follow, record->offset, record->offset + record_size(record));
		return 0;
	}
	if (r != 0)
		return r;
	list_append(&follow->found, &entry->link);
	return 1;
}

/* Reads the open segment as far as it goes. 1: more is there, 0: done for now, -errno. */
static int read_segment(struct follow *follow, struct range range, unsigned *found)
{
	struct record_header record;
	uint64_t before;
	int r;

	r = segment_refresh(&follow->segment);
	if (r < 0)
		return r;
	while (*found < FOUND_MAX) {
		before = follow->offset;
		r = segment_next(&follow->segment, &follow->offset, range.limit, &record);
		if (r < 0)
			return r;
		if (r == SEGMENT_END)
			return 0;
		if (r == SEGMENT_DAMAGED) {
			quarantine(follow, before, follow->offset);
			continue;
		}
		r = take_record(follow, &record);
		if (r < 0) {
			follow->offset = before;
			return r;
		}
		*found += (unsigned)r;
	}
	return 1;
}

/* Opens the next segment to read: 1, 0 when there is none yet, -errno. */
static int go_on(struct follow *follow)
{
	struct segment next;

	int r = next_segment(follow, follow->number, &next);
	if (r <= 0)
		return r;
	if (follow->number != 0) {
		const struct passed passed = {follow->number, follow->segment.header.previous};
		r = buf_append(&follow->passed, &passed, sizeof(passed));
		if (r < 0) {
			segment_close(&next);
			return r;
		}
		segment_close(&follow->segment);
	}
	follow->segment = next;
	follow->number = next.header.number;
	follow->offset = 0;
	if (next.header_damaged)
		(void)!buf_printf(
		        &follow->alarms, "the header of in/%08u.seg is damaged\n", follow->number);
	return 1;
}

static int follow_on(struct follow *follow)
{
	struct range range = {.sealed = true};
	unsigned found = 0;
	int r = 0;

	if (follow->number == 0)
		r = go_on(follow);
	while (follow->number != 0 && range.sealed) {
		r = find_range(follow, &range);
		if (r == 0)
			r = read_segment(follow, range, &found);
		if (r != 0 || !range.sealed)
			break;
		r = go_on(follow);
		if (r <= 0)
			break;
	}
	follow->at_end |= r == 0 && follow->number != 0 && !range.sealed && follow->this_boot;
	return r;
}

/* A body file "<run>-<id>.body": its run and the id of its message. */
static bool parse_body_name(struct slice name, uint32_t *ret_run, struct message_id *ret_id)
{
	uint64_t run;

	if (name.len != 8 + 1 + ID_TEXT + 5 || !slice_ends_with_nocase(name, SLICE(".body")) ||
	        slice_to_u64(slice_of(name.ptr, 8), &run) < 0 ||
	        id_parse(slice_part(name, 9, ID_TEXT), ret_id) < 0)
		return false;
	*ret_run = (uint32_t)run;
	return true;
}

/*
 * Names of the body files of runs before `run`. All records of those runs have been
 * read: a file that none of them names is left over.
 */
static void list_bodies(struct follow *follow, uint32_t run)
{
	struct dirent *entry;
	struct message_id id;
	uint32_t of_run;
	DIR *dir = opendir(out_of(follow)->in_folder);

	if (dir == NULL)
		return;
	follow->bodies_run = run;
	while ((entry = readdir(dir)) != NULL) {
		struct slice name = slice_str(entry->d_name);
		if (parse_body_name(name, &of_run, &id) && of_run < run)
			(void)!buf_printf(&follow->bodies, "%s\n", entry->d_name);
	}
	closedir(dir);
}

static void run_follow(struct job *job)
{
	struct follow *follow = container_of(job, struct follow, job);
	uint32_t run = 0;

	follow->at_end = false;
	/* Before reading: what older runs have written is all below the watermark by now. */
	follow->result = find_run(follow, &run);
	if (follow->result == 0)
		follow->result = follow_on(follow);
	if (follow->at_end && run != follow->bodies_run)
		list_bodies(follow, run);
}

static void remove_left_over_bodies(struct spool_out *out)
{
	struct slice names = buf_slice(&out->follow.bodies);
	char path[SEGMENT_PATH];
	struct message_id id;
	uint32_t run;

	while (names.len > 0) {
		struct slice name = slice_until(&names, '\n');
		if (!parse_body_name(name, &run, &id) || spool_out_find(out, &id) != NULL)
			continue;
		snprintf(path, sizeof(path), "%s/%.*s", out->in_folder, SLICE_ARGS(name));
		cleanup_add_path(out, path);
	}
	buf_done(&out->follow.bodies);
}

static void tell_alarms(struct spool_out *out)
{
	struct slice lines = buf_slice(&out->follow.alarms);
	char text[512];

	while (lines.len > 0) {
		struct slice line = slice_until(&lines, '\n');
		snprintf(text, sizeof(text), "%.*s", SLICE_ARGS(line));
		out->settings.events->on_alarm(out->settings.arg, text);
	}
	buf_clear(&out->follow.alarms);
}

/* Puts what the job has found into the index. 0, or -ENOMEM: the rest waits in `found`. */
static int take_over(struct spool_out *out)
{
	struct follow *follow = &out->follow;
	struct slice all_passed = buf_slice(&follow->passed);
	char body[SEGMENT_PATH] = "";
	struct passed passed;
	struct list *link;

	while ((link = list_pop(&follow->found)) != NULL) {
		struct spool_entry *entry = list_entry(link, struct spool_entry, link);
		if (entry->body_in_file)
			entry_body_path(out, entry, body);
		bool has_file = entry->body_in_file;
		int r = index_add(&out->index, entry);
		if (r < 0) {
			list_prepend(&follow->found, link);
			return r;
		}
		if (r == INDEX_LIVES)
			out->settings.events->on_entry(out->settings.arg, entry);
		else if (r == INDEX_SETTLED && has_file)
			cleanup_add_path(out, body); /* settled before this start */
	}
	/* Also a segment without a message must be known, to be removed. */
	for (size_t i = 0; i < all_passed.len; i += sizeof(passed)) {
		memcpy(&passed, all_passed.ptr + i, sizeof(passed));
		struct segment_use *use = index_segment(&out->index, false, passed.number);
		if (use == NULL)
			return -ENOMEM;
		use->previous = passed.previous;
	}
	buf_clear(&follow->passed);
	follow->taken_to = follow->number;
	return 0;
}

static void follow_finished(struct job *job)
{
	struct follow *follow = container_of(job, struct follow, job);
	struct spool_out *out = out_of(follow);
	int r = follow->result;

	follow->running = false;
	if (r < 0)
		(void)!buf_printf(&follow->alarms, "in/ cannot be read: %s\n", strerrordesc_np(-r));
	if (take_over(out) < 0)
		r = -ENOMEM;
	if (r >= 0) {
		follow->caught_up |= follow->at_end;
		remove_left_over_bodies(out);
		cleanup_consider(out);
	}
	tell_alarms(out);
	if (r < 0)
		timer_start(&follow->retry, RETRY_FOLLOW_MS);
	else if (r == 1 || follow->again)
		spool_out_follow(out);
}

void spool_out_follow(struct spool_out *out)
{
	struct follow *follow = &out->follow;
	struct list *link;

	while ((link = list_pop(&out->ready)) != NULL)
		out->settings.events->on_entry(
		        out->settings.arg, list_entry(link, struct spool_entry, link));
	follow->again = follow->running;
	if (follow->running)
		return;
	timer_stop(&follow->retry);
	follow->job = (struct job){
	        .loop = out->settings.loop, .run = run_follow, .done = follow_finished};
	follow->running = jobs_submit(out->settings.jobs, &follow->job) == 0;
	if (!follow->running)
		timer_start(&follow->retry, RETRY_FOLLOW_MS);
}

static void follow_again(void *arg)
{
	spool_out_follow(arg);
}

void follow_init(struct spool_out *out)
{
	struct follow *follow = &out->follow;

	list_init(&follow->found);
	timer_init(&follow->retry, out->settings.loop, follow_again, out);
	follow->segment.fd = -1;
	buf_init(&follow->passed, 16U << 20);
	buf_init(&follow->alarms, FOLLOW_ALARMS_MAX);
	buf_init(&follow->bodies, 16U << 20);
	buf_init(&follow->room, RECORD_ENVELOPE_MAX);
}

void follow_done(struct spool_out *out)
{
	struct follow *follow = &out->follow;
	struct list *link;

	timer_stop(&follow->retry);
	while ((link = list_pop(&follow->found)) != NULL)
		entry_free(list_entry(link, struct spool_entry, link));
	segment_close(&follow->segment);
	watermark_close(&follow->watermark);
	buf_done(&follow->passed);
	buf_done(&follow->alarms);
	buf_done(&follow->bodies);
	buf_done(&follow->room);
}

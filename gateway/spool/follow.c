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

#define FOUND_MAX 4096 /* of one job; then the loop gets them */

struct range {
	uint64_t limit;
	bool sealed; /* nothing more will come into it */
};

static struct spool_out *out_of(struct follow *follow)
{
	return container_of(follow, struct spool_out, follow);
}

/* Copies octets that do not check into out/, for an operator to look at. */
static void quarantine(struct follow *follow, uint64_t from, uint64_t to)
{
	struct spool_out *out = out_of(follow);
	char path[SEGMENT_PATH], window[16384];

	snprintf(path, sizeof(path), "%s/damaged-%08u-%" PRIu64, out->out_folder, follow->number,
	        from);
	_cleanup_(closep) int fd =
	        out->settings.ops->open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	for (uint64_t at = from; fd >= 0 && at < to;) {
		ssize_t got = out->settings.ops->pread(follow->segment.fd, window,
		        MIN_OF((uint64_t)sizeof(window), to - at), (off_t)at);
		if (got <= 0 || write(fd, window, (size_t)got) != got)
			break;
		at += (uint64_t)got;
	}
	(void)!buf_printf(&follow->alarms,
	        "%" PRIu64 " damaged octets at %" PRIu64 " in in/%08u.seg; a copy is in %s\n",
	        to - from, from, follow->number, path);
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

/* How far the open segment may be read now. */
static int find_range(struct follow *follow, struct range *ret_range)
{
	uint32_t written = 0;
	uint64_t committed = 0;
	struct segment later;

	if (follow->watermark.file == NULL)
		(void)!watermark_open(out_of(follow)->in_folder, &follow->watermark);
	if (follow->watermark.file != NULL && !follow->this_boot)
		follow->this_boot = watermark_is_of_this_boot(&follow->watermark);
	if (follow->this_boot)
		watermark_read(&follow->watermark, &written, &committed);
	if (written == follow->number) {
		*ret_range = (struct range){.limit = committed};
		return 0;
	}

	int r = next_segment(follow, follow->number, &later);
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
	/* The successor was begun, but this boot's watermark is still here: read again later. */
	if (follow->this_boot && written < follow->number && written != 0)
		ret_range->limit = MIN_OF(ret_range->limit, (uint64_t)SEGMENT_HEADER_SIZE);
	segment_close(&later);
	return 0;
}

/* Takes one record: 1 if it became an entry. */
static int take_record(struct follow *follow, const struct record_header *record)
{
	int r;

	if (record->type != RECORD_MESSAGE)
		return 0;
	r = segment_read_envelope(&follow->segment, record, &follow->room);
	struct spool_entry *entry =
	        r == 0 ? entry_from_record(record, buf_slice(&follow->room), follow->number, false)
	               : NULL;
	if (entry == NULL) {
		quarantine(follow, record->offset, record->offset + record_size(record));
		return 0;
	}
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
		if (r == SEGMENT_DAMAGED)
			quarantine(follow, before, follow->offset);
		else
			*found += (unsigned)take_record(follow, &record);
	}
	return 1;
}

static int follow_on(struct follow *follow)
{
	struct segment next;
	struct range range;
	unsigned found = 0;
	int r;

	for (;;) {
		if (follow->number == 0) {
			r = next_segment(follow, 0, &next);
			if (r <= 0)
				return r;
			follow->segment = next;
			follow->number = next.header.number;
			follow->offset = 0;
		}
		r = find_range(follow, &range);
		if (r == 0)
			r = read_segment(follow, range, &found);
		if (r != 0)
			return r;
		if (!range.sealed)
			break;
		r = next_segment(follow, follow->number, &next);
		if (r <= 0)
			return r;
		segment_close(&follow->segment);
		follow->segment = next;
		follow->number = next.header.number;
		follow->offset = 0;
	}
	follow->caught_up = follow->this_boot;
	return 0;
}

/* Names of the body files, once: those that no record names are left-overs. */
static void list_bodies(struct follow *follow)
{
	struct dirent *entry;
	DIR *dir = opendir(out_of(follow)->in_folder);

	follow->bodies_listed = true;
	if (dir == NULL)
		return;
	while ((entry = readdir(dir)) != NULL) {
		if (slice_ends_with_nocase(slice_str(entry->d_name), SLICE(".body")))
			(void)!buf_printf(&follow->bodies, "%s\n", entry->d_name);
	}
	closedir(dir);
}

static void run_follow(struct job *job)
{
	struct follow *follow = container_of(job, struct follow, job);
	int r = follow_on(follow);

	if (r == 1)
		follow->again = true;
	else if (r < 0)
		(void)!buf_printf(&follow->alarms, "in/ cannot be read: %s\n", strerrordesc_np(-r));
	if (follow->caught_up && !follow->bodies_listed)
		list_bodies(follow);
}

/* A body file "<run>-<id>.body" of an older run whose record does not exist. */
static bool is_left_over(struct spool_out *out, struct slice name)
{
	struct message_id id;
	uint64_t run;

	if (name.len != 8 + 1 + ID_TEXT + 5 || slice_to_u64(slice_of(name.ptr, 8), &run) < 0 ||
	        id_parse(slice_part(name, 9, ID_TEXT), &id) < 0)
		return false;
	return run < watermark_run(&out->follow.watermark) && spool_out_find(out, &id) == NULL;
}

static void remove_left_over_bodies(struct spool_out *out)
{
	struct slice names = buf_slice(&out->follow.bodies);
	char path[SEGMENT_PATH];

	while (names.len > 0) {
		struct slice name = slice_until(&names, '\n');
		if (!is_left_over(out, name))
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

static void follow_finished(struct job *job)
{
	struct follow *follow = container_of(job, struct follow, job);
	struct spool_out *out = out_of(follow);
	struct list *link;

	follow->running = false;
	tell_alarms(out);
	while ((link = list_pop(&follow->found)) != NULL) {
		struct spool_entry *entry = list_entry(link, struct spool_entry, link);
		if (index_add(&out->index, entry) == 1)
			out->settings.events->on_entry(out->settings.arg, entry);
	}
	if (follow->number != 0)
		(void)!index_segment(&out->index, false, follow->number);
	if (follow->caught_up && follow->bodies_listed)
		remove_left_over_bodies(out);
	cleanup_consider(out);
	if (follow->again)
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
	follow->job = (struct job){
	        .loop = out->settings.loop, .run = run_follow, .done = follow_finished};
	follow->running = jobs_submit(out->settings.jobs, &follow->job) == 0;
}

void follow_init(struct spool_out *out)
{
	list_init(&out->follow.found);
	out->follow.segment.fd = -1;
	buf_init(&out->follow.alarms, FOLLOW_ALARMS_MAX);
	buf_init(&out->follow.bodies, 16U << 20);
	buf_init(&out->follow.room, RECORD_ENVELOPE_MAX);
}

void follow_done(struct spool_out *out)
{
	struct list *link;

	while ((link = list_pop(&out->follow.found)) != NULL)
		entry_free(list_entry(link, struct spool_entry, link));
	segment_close(&out->follow.segment);
	watermark_close(&out->follow.watermark);
	buf_done(&out->follow.alarms);
	buf_done(&out->follow.bodies);
	buf_done(&out->follow.room);
}

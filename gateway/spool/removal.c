/* SPDX-License-Identifier: ISC */
/*
 * Removal of what nothing needs any more: bodies of settled messages, segments without
 * a live one, marks about messages that are gone.
 *
 * A probe is synced behind all marks that say so; when it is told of, so is every mark
 * before it. Then a worker unlinks and syncs the folders. The loop's thread.
 */
#include <errno.h>
#include <string.h>

#include "gateway/spool/out.h"

void cleanup_add_path(struct spool_out *out, const char *path)
{
	/* What does not fit is found left over when `submit` has a new run. */
	(void)!buf_append(&out->cleanup.waiting, path, strlen(path) + 1);
}

/*
 * Whether its header is all that tells where the segment before it ends: what stands
 * behind that end was never acknowledged, and must not come to life. An emptied one
 * has nothing behind its end.
 */
static bool needs_header(struct spool_out *out, const struct segment_use *use)
{
	if (use->in_out || use->previous == 0)
		return false;
	const struct segment_use *before = index_find_segment(&out->index, false, use->previous);
	return before != NULL && !before->emptied;
}

/* `below`: the first segment of out/ in which there may be marks that nobody was told of. */
static bool may_go(struct spool_out *out, const struct segment_use *use, uint32_t below)
{
	if (use->live > 0 || use->going != SEGMENT_STAYS)
		return false;
	if (!use->in_out)
		return use->number < out->follow.taken_to &&
		       !(use->emptied && needs_header(out, use));
	if (use->number >= below)
		return false;
	/*
	 * A mark is needed as long as the record that it is about: oldest first covers
	 * bounces, and what is known of in/ covers the rest.
	 */
	return !use->has_marks ||
	       (use->number == index_oldest(&out->index, true) && out->follow.caught_up &&
	               index_oldest(&out->index, false) > use->newest_mark);
}

/* What is gone already is gone: the last try did not come to its end. */
static int for_each_path(struct spool_out *out, const struct buf *paths,
        int (*work)(const struct file_ops *ops, const char *path))
{
	struct slice left = buf_slice(paths);
	int r = 0;

	while (r == 0 && left.len > 0) {
		struct slice path = slice_until(&left, '\0');
		r = work(out->settings.ops, path.ptr);
		if (r == -ENOENT)
			r = 0;
	}
	return r;
}

static int unlink_path(const struct file_ops *ops, const char *path)
{
	return ops->unlink(path);
}

static int keep_header(const struct file_ops *ops, const char *path)
{
	return ops->shorten(path, SEGMENT_HEADER_SIZE);
}

static void run_cleanup(struct job *job)
{
	struct cleanup *cleanup = container_of(job, struct cleanup, job);
	struct spool_out *out = container_of(cleanup, struct spool_out, cleanup);

	cleanup->emptied = for_each_path(out, &cleanup->emptying, keep_header);
	cleanup->result = for_each_path(out, &cleanup->paths, unlink_path);
	if (cleanup->result == 0)
		cleanup->result = out->settings.ops->sync_folder(out->in_folder);
	if (cleanup->result == 0)
		cleanup->result = out->settings.ops->sync_folder(out->out_folder);
}

/* Forgets the segments that are gone; those that are not stay, and so do marks about them. */
static void cleanup_end(struct spool_out *out)
{
	struct cleanup *cleanup = &out->cleanup;

	for (size_t i = out->index.segment_count; i > 0; i--) {
		struct segment_use *use = &out->index.segments[i - 1];
		bool gone = use->going == SEGMENT_GOES && cleanup->result == 0;
		use->emptied |= use->going == SEGMENT_IS_EMPTIED && cleanup->emptied == 0;
		use->going = SEGMENT_STAYS;
		if (gone)
			index_drop_segment(&out->index, use->in_out, use->number);
	}
	/* Next time: what is gone by then does no harm. */
	if (cleanup->result < 0)
		(void)!buf_append_slice(&cleanup->waiting, buf_slice(&cleanup->paths));
	buf_done(&cleanup->paths);
	buf_done(&cleanup->emptying);
	cleanup->running = false;
}

static void cleanup_finished(struct job *job)
{
	struct cleanup *cleanup = container_of(job, struct cleanup, job);
	struct spool_out *out = container_of(cleanup, struct spool_out, cleanup);

	cleanup_end(out);
	if (cleanup->result == 0 && cleanup->emptied == 0)
		cleanup_consider(out);
}

/* Adds the segments that nothing needs any more. */
static void choose_segments(struct spool_out *out)
{
	struct cleanup *cleanup = &out->cleanup;
	char path[SEGMENT_PATH];

	for (size_t i = 0; i < out->index.segment_count; i++) {
		struct segment_use *use = &out->index.segments[i];
		if (!may_go(out, use, cleanup->sync.segment))
			continue;
		segment_path(use->in_out ? out->out_folder : out->in_folder, use->number, path);
		bool empty = needs_header(out, use);
		if (buf_append(empty ? &cleanup->emptying : &cleanup->waiting, path,
		            strlen(path) + 1) == 0)
			use->going = empty ? SEGMENT_IS_EMPTIED : SEGMENT_GOES;
	}
}

/*
 * All marks that the loop has been told of by now are on the disk: what they settle
 * may go.
 */
static void cleanup_synced(struct post *post)
{
	struct cleanup *cleanup = container_of(post, struct cleanup, synced);
	struct spool_out *out = container_of(cleanup, struct spool_out, cleanup);

	if (cleanup->result == 0)
		choose_segments(out);
	struct buf paths = cleanup->waiting;
	cleanup->waiting = cleanup->paths;
	cleanup->paths = paths;
	cleanup->job = (struct job){
	        .loop = out->settings.loop, .run = run_cleanup, .done = cleanup_finished};
	bool work = buf_len(&paths) + buf_len(&cleanup->emptying) > 0;
	if (cleanup->result == 0 && work) {
		int r = jobs_submit(out->settings.jobs, &cleanup->job);
		if (r == 0)
			return; /* `result` is the job's now */
		cleanup->result = cleanup->emptied = r;
	}
	cleanup_end(out); /* whatever happens next will consider it again */
}

static void on_cleanup_synced(struct journal_entry *entry, int result)
{
	struct cleanup *cleanup = container_of(entry, struct cleanup, sync);

	cleanup->result = cleanup->emptied = result;
	cleanup->synced.run = cleanup_synced;
	loop_post(
	        container_of(cleanup, struct spool_out, cleanup)->settings.loop, &cleanup->synced);
}

void cleanup_consider(struct spool_out *out)
{
	struct cleanup *cleanup = &out->cleanup;
	bool due = buf_len(&cleanup->waiting) > 0;

	if (cleanup->running)
		return;
	for (size_t i = 0; i < out->index.segment_count && !due; i++)
		due = may_go(out, &out->index.segments[i], journal_segment(out->journal));
	if (!due)
		return;
	cleanup->running = true;
	cleanup->sync = (struct journal_entry){
	        .type = RECORD_PROBE, .level = JOURNAL_SYNCED, .done = on_cleanup_synced};
	journal_append(out->journal, &cleanup->sync);
}

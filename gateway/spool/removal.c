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

/* `below`: the first segment of out/ in which there may be marks that nobody was told of. */
static bool may_go(const struct spool_out *out, const struct segment_use *use, uint32_t below)
{
	if (use->live > 0 || use->going)
		return false;
	if (!use->in_out)
		return use->number < out->follow.taken_to;
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
static int remove_path(struct spool_out *out, const char *path)
{
	int r = out->settings.ops->unlink(path);

	return r == -ENOENT ? 0 : r;
}

static void run_cleanup(struct job *job)
{
	struct cleanup *cleanup = container_of(job, struct cleanup, job);
	struct spool_out *out = container_of(cleanup, struct spool_out, cleanup);
	struct slice paths = buf_slice(&cleanup->paths);

	while (cleanup->result == 0 && paths.len > 0) {
		struct slice path = slice_until(&paths, '\0');
		cleanup->result = remove_path(out, path.ptr);
	}
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
		if (use->going && cleanup->result == 0)
			index_drop_segment(&out->index, use->in_out, use->number);
		else
			use->going = false;
	}
	/* Next time: what is gone by then does no harm. */
	if (cleanup->result < 0)
		(void)!buf_append_slice(&cleanup->waiting, buf_slice(&cleanup->paths));
	buf_done(&cleanup->paths);
	cleanup->running = false;
}

static void cleanup_finished(struct job *job)
{
	struct cleanup *cleanup = container_of(job, struct cleanup, job);
	struct spool_out *out = container_of(cleanup, struct spool_out, cleanup);

	cleanup_end(out);
	if (cleanup->result == 0)
		cleanup_consider(out);
}

/* Adds the segments that nothing needs any more. */
static void choose_segments(struct spool_out *out)
{
	char path[SEGMENT_PATH];

	for (size_t i = 0; i < out->index.segment_count; i++) {
		struct segment_use *use = &out->index.segments[i];
		if (!may_go(out, use, out->cleanup.sync.segment))
			continue;
		use->going = true;
		cleanup_add_path(out, segment_path(use->in_out ? out->out_folder : out->in_folder,
		                              use->number, path));
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
	if (cleanup->result == 0 && buf_len(&paths) > 0) {
		int r = jobs_submit(out->settings.jobs, &cleanup->job);
		if (r == 0)
			return; /* `result` is the job's now */
		cleanup->result = r;
	}
	cleanup_end(out); /* whatever happens next will consider it again */
}

static void on_cleanup_synced(struct journal_entry *entry, int result)
{
	struct cleanup *cleanup = container_of(entry, struct cleanup, sync);

	cleanup->result = result;
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

/* SPDX-License-Identifier: ISC */
/* Reading one message for delivery. Blocking: workers only. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "gateway/spool/out.h"

int entry_from_record(const struct spool_out *out, const struct record_header *record,
        struct slice envelope, uint32_t segment, bool in_out, struct spool_entry **ret_entry)
{
	struct stored_message message;

	int r = stored_message_unpack(envelope, &message);
	if (r < 0)
		return r;
	struct spool_entry *entry = calloc(1, sizeof(*entry) + out->settings.user_size);
	if (entry == NULL)
		return -ENOMEM;
	*entry = (struct spool_entry){
	        .id = message.id,
	        .account = message.account,
	        .accepted_us = message.accepted_us,
	        .recipients = message.recipients,
	        .unsettled = message.recipients,
	        .segment = segment,
	        .offset = record->offset,
	        .file_run = message.file_run,
	        .in_out = in_out,
	        .body_in_file = message.body_in_file,
	        .is_dsn = record->type == RECORD_DSN,
	        .is_delay = record->type == RECORD_DSN && results_are_none(message.settles),
	};
	*ret_entry = entry;
	return 0;
}

void entry_body_path(
        const struct spool_out *out, const struct spool_entry *entry, char path[SEGMENT_PATH])
{
	char id[ID_TEXT + 1];

	snprintf(path, SEGMENT_PATH, "%s/%08u-%s.body", out->in_folder, entry->file_run,
	        id_format(&entry->id, id));
}

static int load_record(
        struct segment *segment, const struct spool_entry *entry, struct spool_message *message)
{
	uint8_t octets[RECORD_HEADER_SIZE];
	struct record_header record;

	int r = file_read_exactly(
	        segment->ops, segment->fd, octets, sizeof(octets), (off_t)entry->offset);
	if (r == 0)
		r = record_header_decode(octets, segment->header.nonce, entry->offset, &record);
	if (r == 0)
		r = segment_read_envelope(segment, &record, &message->record);
	if (r == 0)
		r = stored_message_unpack(buf_slice(&message->record), &message->stored);
	if (r == 0 && !message->stored.body_in_file)
		r = segment_read_body(segment, &record, &message->body);
	return r == -ENODATA ? -EBADMSG : r;
}

static int open_body(
        struct spool_out *out, const struct spool_entry *entry, struct spool_message *message)
{
	char path[SEGMENT_PATH];

	entry_body_path(out, entry, path);
	message->body_fd = out->settings.ops->open(path, O_RDONLY, 0);
	if (message->body_fd < 0)
		return message->body_fd == -ENOENT ? -EBADMSG : message->body_fd;
	XXH3_state_t *sum = XXH3_createState();
	if (sum == NULL)
		return -ENOMEM;
	XXH3_64bits_reset(sum);
	message->body_sum = sum;
	return 0;
}

int spool_message_load(
        struct spool_out *out, const struct spool_entry *entry, struct spool_message *ret_message)
{
	const char *folder = entry->in_out ? out->out_folder : out->in_folder;
	struct spool_message message = {.body_fd = -1};
	struct segment segment;

	buf_init(&message.record, RECORD_ENVELOPE_MAX);
	buf_init(&message.body, RECORD_BODY_MAX);
	int r = segment_open(out->settings.ops, folder, entry->segment, &segment);
	if (r < 0)
		return r;
	r = load_record(&segment, entry, &message);
	segment_close(&segment);
	if (r == 0 && message.stored.body_in_file)
		r = open_body(out, entry, &message);
	if (r < 0) {
		spool_message_done(&message);
		return r;
	}
	*ret_message = message;
	return 0;
}

void spool_message_done(struct spool_message *message)
{
	buf_done(&message->record);
	buf_done(&message->body);
	if (message->body_fd >= 0)
		close(message->body_fd);
	message->body_fd = -1;
	XXH3_freeState(message->body_sum);
	message->body_sum = NULL;
}

ssize_t spool_message_read(struct spool_message *message, void *room, size_t len)
{
	uint64_t left = message->stored.body_size - message->body_read;
	ssize_t got;

	len = MIN_OF((uint64_t)len, left);
	if (len > 0) {
		do
			got = read(message->body_fd, room, len);
		while (got < 0 && errno == EINTR);
		if (got < 0)
			return -errno;
		if (got == 0)
			return -EBADMSG;
		XXH3_64bits_update(message->body_sum, room, (size_t)got);
		message->body_read += (uint64_t)got;
		return got;
	}
	return XXH3_64bits_digest(message->body_sum) == message->stored.file_sum ? 0 : -EBADMSG;
}

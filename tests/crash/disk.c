/* SPDX-License-Identifier: ISC */
/* The recording table of file operations; see disk.h. */
#include "tests/crash/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gateway/base/slice.h"
#include "gateway/spool/format.h"

static struct disk *current;

static void read_lock(uint8_t ret_octets[LOCK_OCTETS])
{
	char path[DISK_NAME + 16];

	memset(ret_octets, 0, LOCK_OCTETS);
	snprintf(path, sizeof(path), "%s/in/lock", current->root);
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && pread(fd, ret_octets, LOCK_OCTETS, 0) < LOCK_OCTETS)
		memset(ret_octets, 0, LOCK_OCTETS);
}

static struct disk_entry *add(struct disk *disk, enum disk_kind kind)
{
	if (disk->count == disk->cap) {
		disk->cap = disk->cap == 0 ? 256 : disk->cap * 2;
		disk->entries = realloc(disk->entries, disk->cap * sizeof(*disk->entries));
		assert_bug(disk->entries != NULL);
	}
	struct disk_entry *entry = &disk->entries[disk->count++];
	*entry = (struct disk_entry){.kind = kind, .stands_from = DISK_NEVER};
	return entry;
}

static bool is_in_folder(const struct disk_entry *entry, const char *folder)
{
	size_t len = strlen(folder);

	return strncmp(entry->name, folder, len) == 0 && entry->name[len] == '/' &&
	       (entry->kind == DISK_CREATE || entry->kind == DISK_RENAME ||
	               entry->kind == DISK_UNLINK);
}

/* What the sync, which is the last entry, does to those before it. */
static void apply_sync(struct disk *disk)
{
	const struct disk_entry *sync = &disk->entries[disk->count - 1];

	for (unsigned i = 0; i + 1 < disk->count; i++) {
		struct disk_entry *entry = &disk->entries[i];
		bool written = sync->kind == DISK_SYNC && entry->kind == DISK_WRITE &&
		               entry->inode == sync->inode;
		bool named = sync->kind == DISK_SYNC_FOLDER && is_in_folder(entry, sync->name);
		if (entry->stands_from != DISK_NEVER || entry->doomed || (!written && !named))
			continue;
		if (!sync->failed)
			entry->stands_from = disk->count;
		else if (written)
			entry->doomed = true;
	}
}

/* ---- marks in what is written ---- */

static void hold(void *arg, struct stored_result result)
{
	*(uint64_t *)arg |= 1ULL << result.recipient;
}

/* The nonce of a segment, from what was written at its beginning last. */
static bool find_nonce(const struct disk *disk, uint32_t inode, uint64_t *ret_nonce)
{
	struct segment_header header;

	for (unsigned i = disk->count; i > 0; i--) {
		const struct disk_entry *entry = &disk->entries[i - 1];
		if (entry->kind != DISK_WRITE || entry->inode != inode || entry->offset != 0 ||
		        entry->data == NULL || entry->len < SEGMENT_HEADER_SIZE ||
		        segment_header_decode(entry->data, &header) < 0)
			continue;
		*ret_nonce = header.nonce;
		return true;
	}
	return false;
}

static void find_marks(const struct disk *disk, struct disk_entry *write)
{
	struct record_header record;
	struct message_id id;
	uint64_t nonce;

	if (write->data == NULL || write->offset == 0 || !find_nonce(disk, write->inode, &nonce))
		return;
	for (uint64_t at = 0; at + RECORD_HEADER_SIZE <= write->len; at += record_size(&record)) {
		const uint8_t *octets = write->data + at;
		if (record_header_decode(octets, nonce, write->offset + at, &record) < 0 ||
		        at + record_size(&record) > write->len)
			return;
		struct disk_held held = {0};
		struct slice envelope = slice_of(octets + RECORD_HEADER_SIZE, record.envelope_len);
		if (record.type != RECORD_RESULT ||
		        format_checksum(envelope) != record.envelope_sum ||
		        results_unpack(envelope, &id, hold, &held.recipients) < 0)
			continue;
		int number = number_of_id(&id);
		assert_bug(number >= 0 && write->held_count < DISK_HELD);
		held.number = (uint32_t)number;
		write->held[write->held_count++] = held;
	}
}

/* ---- the table ---- */

static void set_name(char name[DISK_NAME], const char *path)
{
	size_t root = strlen(current->root) + 1;

	assert_bug(strlen(path) > root && strlen(path + root) < DISK_NAME);
	snprintf(name, DISK_NAME, "%s", path + root);
}

static struct disk_name *find(struct disk *disk, const char *name)
{
	for (unsigned i = 0; i < DISK_NAMES; i++) {
		if (strcmp(disk->names[i].name, name) == 0)
			return &disk->names[i];
	}
	return NULL;
}

static void bind_name(struct disk *disk, const char *name, uint32_t inode)
{
	struct disk_name *place = find(disk, name);

	if (place == NULL)
		place = find(disk, "");
	assert_bug(place != NULL);
	snprintf(place->name, DISK_NAME, "%s", name);
	place->inode = inode;
}

/* Whether a call can fail like that: only a write is short, only what takes room finds none. */
static bool can_fail(const struct disk_fault *fault, const char *call)
{
	bool writes = strcmp(call, "pwritev") == 0 || strcmp(call, "fdatasync") == 0 ||
	              strcmp(call, "sync_folder") == 0;

	if (fault->error == 0)
		return strcmp(call, "pwritev") == 0;
	if (fault->error == -ENOSPC)
		return writes || strcmp(call, "open") == 0 || strcmp(call, "rename") == 0;
	return writes || fault->times <= 1;
}

/* Begins a call: whether it fails, and how. The lock is held. */
static bool fails(const char *call, int *ret_error)
{
	struct disk *disk = current;
	struct disk_fault *fault = &disk->fault;

	disk->calls++;
	if (disk->fault_call == NULL) {
		if (fault->nth == 0 || disk->calls < fault->nth || !can_fail(fault, call))
			return false;
		disk->failed_at = disk->calls;
		disk->failed_entry = disk->count;
		disk->fault_call = call;
	} else if (fault->times <= 1 || strcmp(call, disk->fault_call) != 0) {
		return false;
	} else {
		fault->times--;
	}
	*ret_error = fault->error;
	return true;
}

#define BEGIN(call)                                                                                \
	uint8_t lock_before[LOCK_OCTETS];                                                          \
	int error = 0;                                                                             \
	pthread_mutex_lock(&current->lock);                                                        \
	read_lock(lock_before);                                                                    \
	bool failed = fails(call, &error)

/* Ends a call, with what it has changed. */
static void end(struct disk_entry *entry, const uint8_t lock_before[LOCK_OCTETS], bool failed)
{
	if (entry != NULL) {
		entry->failed = failed;
		memcpy(entry->lock_before, lock_before, LOCK_OCTETS);
		read_lock(entry->lock_after);
		if (entry->kind == DISK_SYNC || entry->kind == DISK_SYNC_FOLDER)
			apply_sync(current);
	}
	pthread_mutex_unlock(&current->lock);
}

static int disk_open(const char *path, int flags, mode_t mode)
{
	struct disk_entry *entry = NULL;
	char name[DISK_NAME];

	BEGIN("open");
	set_name(name, path);
	struct disk_name *place = find(current, name);
	if (!failed && current->full && (flags & O_CREAT) != 0) {
		failed = true;
		error = -ENOSPC;
	}
	int fd = failed ? error : file_system.open(path, flags, mode);
	if (fd >= 0) {
		assert_bug(fd < DISK_FDS);
		if ((flags & O_CREAT) != 0 && (place == NULL || (flags & O_TRUNC) != 0)) {
			entry = add(current, DISK_CREATE);
			entry->inode = current->inodes++;
			assert_bug(current->inodes < DISK_INODES);
			memcpy(entry->name, name, DISK_NAME);
			bind_name(current, name, entry->inode);
			place = find(current, name);
		}
		current->inode_of[fd] = place != NULL ? place->inode + 1 : 0;
	}
	end(entry, lock_before, false);
	return fd;
}

static ssize_t disk_pread(int fd, void *room, size_t len, off_t offset)
{
	BEGIN("pread");
	ssize_t got = failed ? error : file_system.pread(fd, room, len, offset);
	end(NULL, lock_before, false);
	return got;
}

static bool all_zeros(const uint8_t *octets, size_t len)
{
	return len == 0 || (octets[0] == 0 && memcmp(octets, octets + 1, len - 1) == 0);
}

static ssize_t disk_pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
	size_t len = 0, at = 0;
	struct stat status;

	for (int i = 0; i < count; i++)
		len += parts[i].iov_len;
	uint8_t *data = malloc(len + 1);
	assert_bug(data != NULL);
	for (int i = 0; i < count; at += parts[i++].iov_len)
		memcpy(data + at, parts[i].iov_base, parts[i].iov_len);

	BEGIN("pwritev");
	if (current->full && fstat(fd, &status) == 0 && offset + (off_t)len > status.st_size) {
		/* What fits into blocks that are there is written. */
		failed = true;
		error = status.st_size > offset ? 0 : -ENOSPC;
	}
	if (failed && error == 0)
		len /= 2;
	const struct iovec part = {data, len};
	ssize_t wrote = failed && error != 0 ? error : file_system.pwritev(fd, &part, 1, offset);
	struct disk_entry *entry = NULL;
	if (wrote > 0 && current->inode_of[fd] != 0) {
		entry = add(current, DISK_WRITE);
		entry->inode = current->inode_of[fd] - 1;
		entry->offset = (uint64_t)offset;
		entry->len = (uint64_t)wrote;
		entry->data = all_zeros(data, len) ? NULL : TAKE(data);
		find_marks(current, entry);
	}
	end(entry, lock_before, false);
	free(data);
	return wrote;
}

static int disk_fdatasync(int fd)
{
	BEGIN("fdatasync");
	int r = failed ? error : file_system.fdatasync(fd);
	struct disk_entry *entry = NULL;
	if (current->inode_of[fd] != 0) {
		entry = add(current, DISK_SYNC);
		entry->inode = current->inode_of[fd] - 1;
	}
	end(entry, lock_before, failed);
	return r;
}

static int disk_sync_folder(const char *path)
{
	BEGIN("sync_folder");
	int r = failed ? error : file_system.sync_folder(path);
	struct disk_entry *entry = add(current, DISK_SYNC_FOLDER);
	set_name(entry->name, path);
	end(entry, lock_before, failed);
	return r;
}

static int disk_rename(const char *from, const char *to)
{
	struct disk_entry *entry = NULL;

	BEGIN("rename");
	int r = failed ? error : file_system.rename(from, to);
	if (r == 0) {
		entry = add(current, DISK_RENAME);
		set_name(entry->name, from);
		set_name(entry->to, to);
		struct disk_name *place = find(current, entry->name);
		assert_bug(place != NULL);
		entry->inode = place->inode;
		place->name[0] = '\0';
		bind_name(current, entry->to, entry->inode);
	}
	end(entry, lock_before, false);
	return r;
}

static int disk_unlink(const char *path)
{
	struct disk_entry *entry = NULL;

	BEGIN("unlink");
	int r = failed ? error : file_system.unlink(path);
	if (r == 0) {
		entry = add(current, DISK_UNLINK);
		set_name(entry->name, path);
		struct disk_name *place = find(current, entry->name);
		if (place != NULL)
			place->name[0] = '\0';
	}
	end(entry, lock_before, false);
	return r;
}

static int disk_shorten(const char *path, off_t len)
{
	struct disk_entry *entry = NULL;
	char name[DISK_NAME];

	BEGIN("shorten");
	set_name(name, path);
	int r = failed ? error : file_system.shorten(path, len);
	struct disk_name *place = find(current, name);
	if (r == 0 && place != NULL) {
		entry = add(current, DISK_SHORTEN);
		memcpy(entry->name, name, DISK_NAME);
		entry->inode = place->inode;
		entry->offset = (uint64_t)len;
		entry->stands_from = current->count;
	}
	end(entry, lock_before, false);
	return r;
}

static int disk_space(const char *path, uint64_t *ret_free)
{
	BEGIN("space");
	int r = failed ? error : file_system.space(path, ret_free);
	if (r == 0 && current->full)
		*ret_free = 0;
	end(NULL, lock_before, false);
	return r;
}

const struct file_ops disk_ops = {
        .open = disk_open,
        .pread = disk_pread,
        .pwritev = disk_pwritev,
        .fdatasync = disk_fdatasync,
        .sync_folder = disk_sync_folder,
        .rename = disk_rename,
        .unlink = disk_unlink,
        .shorten = disk_shorten,
        .space = disk_space,
};

void disk_start(struct disk *disk, const char *root)
{
	*disk = (struct disk){0};
	snprintf(disk->root, sizeof(disk->root), "%s", root);
	pthread_mutex_init(&disk->lock, NULL);
	current = disk;
	disk_clear(root);
}

void disk_stop(struct disk *disk)
{
	assert_bug(current == disk);
	current = NULL;
}

void disk_done(struct disk *disk)
{
	for (unsigned i = 0; i < disk->count; i++)
		free(disk->entries[i].data);
	free(disk->entries);
	pthread_mutex_destroy(&disk->lock);
}

void disk_note(struct disk *disk, enum disk_kind kind, uint32_t number, uint64_t recipients)
{
	pthread_mutex_lock(&disk->lock);
	struct disk_entry *entry = add(disk, kind);
	entry->number = number;
	entry->recipients = recipients;
	read_lock(entry->lock_before);
	memcpy(entry->lock_after, entry->lock_before, LOCK_OCTETS);
	pthread_mutex_unlock(&disk->lock);
}

void disk_go_on(struct disk *disk, const struct disk *before, unsigned count, const char *root)
{
	const struct cut cut = {.kind = CUT_KILL, .count = count, .lock = LOCK_AS_IT_WAS};

	disk_start(disk, root);
	disk_make(before, &cut, root);
	for (unsigned i = 0; i < count; i++) {
		const struct disk_entry *old = &before->entries[i];
		struct disk_entry *entry = add(disk, old->kind);
		*entry = *old;
		entry->stands_from = DISK_NEVER;
		entry->doomed = false;
		if (old->data != NULL) {
			entry->data = malloc(old->len);
			assert_bug(entry->data != NULL);
			memcpy(entry->data, old->data, old->len);
		}
		struct disk_name *place = find(disk, old->name);
		if ((old->kind == DISK_UNLINK || old->kind == DISK_RENAME) && place != NULL)
			place->name[0] = '\0';
		if (old->kind == DISK_CREATE || old->kind == DISK_RENAME)
			bind_name(disk, old->kind == DISK_RENAME ? old->to : old->name, old->inode);
		if (old->kind == DISK_SYNC || old->kind == DISK_SYNC_FOLDER)
			apply_sync(disk);
	}
	disk->inodes = before->inodes;
}

/* SPDX-License-Identifier: ISC */
/*
 * Folders as a crash may have left them.
 *
 * After a kill everything stands that the kernel was given. After a power cut
 * everything stands that was synced before; of the rest anything may, in these
 * bounds: an operation on a name needs the earlier ones on that name; a write may
 * be missing blocks of 512 or 4096 octets; the size of a file may lag behind its
 * octets, or be ahead of them with zeros. A sync that failed promises nothing, and
 * no later one of that file makes good what it failed for (fsyncgate).
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gateway/base/buf.h"
#include "gateway/base/slice.h"
#include "tests/crash/disk.h"

#define CONTENT_MAX (4U << 20)

uint64_t disk_random(uint64_t *seed)
{
	uint64_t x = *seed += 0x9e3779b97f4a7c15ULL;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

struct image {
	const struct disk *disk;
	const struct cut *cut;
	const char *root;
	uint64_t seed;
	struct disk_name names[DISK_NAMES];
	size_t name_count;
	char blocked[DISK_NAMES][DISK_NAME];
	size_t blocked_count;
};

/* Whether it was on stable storage when the crash came. */
static bool stands(const struct cut *cut, const struct disk_entry *entry)
{
	return entry->stands_from <= cut->count;
}

static uint64_t below(struct image *image, uint64_t bound)
{
	return disk_random(&image->seed) % bound;
}

static bool is_blocked(const struct image *image, const char *name)
{
	for (size_t i = 0; i < image->blocked_count; i++) {
		if (strcmp(image->blocked[i], name) == 0)
			return true;
	}
	return false;
}

static void block(struct image *image, const char *name)
{
	assert_bug(image->blocked_count < DISK_NAMES);
	snprintf(image->blocked[image->blocked_count++], DISK_NAME, "%s", name);
}

static void take_name(struct image *image, const char *name)
{
	for (size_t i = 0; i < image->name_count; i++) {
		if (strcmp(image->names[i].name, name) == 0)
			image->names[i--] = image->names[--image->name_count];
	}
}

static void put_name(struct image *image, const char *name, uint32_t inode)
{
	take_name(image, name);
	assert_bug(image->name_count < DISK_NAMES);
	struct disk_name *place = &image->names[image->name_count++];
	snprintf(place->name, DISK_NAME, "%s", name);
	place->inode = inode;
}

static void make_names(struct image *image)
{
	const struct cut *cut = image->cut;
	uint64_t prefix = below(image, cut->count + 1);

	for (unsigned i = 0; i < cut->count; i++) {
		const struct disk_entry *entry = &image->disk->entries[i];
		bool renamed = entry->kind == DISK_RENAME;
		if (entry->kind != DISK_CREATE && entry->kind != DISK_UNLINK && !renamed)
			continue;
		bool done = stands(image->cut, entry) || cut->kind == CUT_KILL ||
		            cut->names == PART_ALL || (cut->names == PART_PREFIX && i < prefix) ||
		            (cut->names == PART_SOME && below(image, 2) == 0);
		if (!done || is_blocked(image, entry->name) ||
		        (renamed && is_blocked(image, entry->to))) {
			block(image, entry->name);
			if (renamed)
				block(image, entry->to);
			continue;
		}
		if (entry->kind != DISK_CREATE)
			take_name(image, entry->name);
		if (entry->kind != DISK_UNLINK)
			put_name(image, renamed ? entry->to : entry->name, entry->inode);
	}
}

/* Copies a write, or of its blocks those that the seed wants. */
static void apply_write(
        struct image *image, const struct disk_entry *write, uint8_t *content, bool whole)
{
	uint64_t size = below(image, 2) == 0 ? 512 : 4096;

	if (whole) {
		memcpy(content + write->offset, write->data, write->len);
		return;
	}
	for (uint64_t at = write->offset, next; at < write->offset + write->len; at = next) {
		next = MIN_OF((at / size + 1) * size, write->offset + write->len);
		if (below(image, 2) == 0)
			memcpy(content + at, write->data + (at - write->offset), next - at);
	}
}

/* Whether an unsynced write is done: 1 whole, 0 in part, -1 not. */
static int part_of(struct image *image, unsigned index, uint64_t prefix)
{
	const struct cut *cut = image->cut;

	if (stands(cut, &image->disk->entries[index]) || cut->octets == PART_ALL)
		return 1;
	if (cut->kind == CUT_KILL)
		return index + 1 < cut->count || cut->octets == PART_ALL ? 1 : 0;
	if (cut->octets == PART_NONE)
		return -1;
	if (cut->octets == PART_PREFIX)
		return index < prefix ? 1 : index == prefix ? 0 : -1;
	return (int)below(image, 3) - 1;
}

/* The size of a file of which `synced` octets stand, `done` were written, `all` were wanted. */
static uint64_t choose_size(struct image *image, uint64_t synced, uint64_t done, uint64_t all)
{
	if (image->cut->kind == CUT_KILL || image->cut->octets == PART_ALL)
		return all;
	if (image->cut->octets == PART_NONE)
		return synced;
	switch (below(image, 4)) {
	case 0:
		return all;
	case 1:
		return synced + below(image, all - synced + 1);
	case 2:
		return MIN_OF(all, MAX_OF(synced, below(image, all + 1) / 512 * 512));
	default:
		return MAX_OF(synced, done);
	}
}

/* Octets of a file; nothing in it but zeros: *ret_content is NULL. Returns its size. */
static uint64_t make_content(struct image *image, uint32_t inode, uint8_t **ret_content)
{
	uint64_t synced = 0, done = 0, all = 0, room = 0;
	uint64_t prefix = below(image, image->cut->count + 1);
	uint8_t *content = NULL;

	for (unsigned i = 0; i < image->cut->count; i++) {
		const struct disk_entry *entry = &image->disk->entries[i];
		if (entry->kind == DISK_WRITE && entry->inode == inode)
			room = MAX_OF(room, entry->offset + entry->len);
	}
	assert_bug(room <= CONTENT_MAX);
	for (unsigned i = 0; i < image->cut->count; i++) {
		const struct disk_entry *entry = &image->disk->entries[i];
		if (entry->kind == DISK_SHORTEN && entry->inode == inode) {
			synced = MIN_OF(synced, entry->offset);
			done = MIN_OF(done, entry->offset);
			all = MIN_OF(all, entry->offset);
			if (content != NULL)
				memset(content + all, 0, room - all);
		}
		if (entry->kind != DISK_WRITE || entry->inode != inode)
			continue;
		all = MAX_OF(all, entry->offset + entry->len);
		int part = part_of(image, i, prefix);
		if (stands(image->cut, entry))
			synced = MAX_OF(synced, entry->offset + entry->len);
		if (part >= 0)
			done = MAX_OF(done, entry->offset + entry->len);
		if (part < 0 || (entry->data == NULL && content == NULL))
			continue;
		if (content == NULL)
			content = calloc(1, room);
		assert_bug(content != NULL);
		if (entry->data != NULL)
			apply_write(image, entry, content, part == 1);
	}
	*ret_content = content;
	return choose_size(image, synced, done, all);
}

static void make_file(struct image *image, const struct disk_name *name)
{
	_cleanup_(freep) uint8_t *content = NULL;
	char path[2 * DISK_NAME + 2];

	uint64_t size = make_content(image, name->inode, &content);
	snprintf(path, sizeof(path), "%s/%s", image->root, name->name);
	_cleanup_(closep) int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	assert_bug(fd >= 0);
	if (content != NULL)
		assert_bug(write(fd, content, size) == (ssize_t)size);
	else
		assert_bug(ftruncate(fd, (off_t)size) == 0);
}

static void make_lock(struct image *image)
{
	const struct cut *cut = image->cut;
	uint8_t octets[LOCK_OCTETS] = {0};
	char path[DISK_NAME + 16];

	if (cut->lock == LOCK_GONE || cut->count == 0)
		return;
	/* A kill may come at once after the call, or just before the next; pages reach a disk when
	 * they like. */
	uint64_t index = cut->kind == CUT_KILL ? cut->count - 1 : below(image, cut->count);
	memcpy(octets, image->disk->entries[index].lock_after, LOCK_OCTETS);
	if (cut->kind == CUT_KILL && cut->count < image->disk->count && below(image, 2) == 0)
		memcpy(octets, image->disk->entries[cut->count].lock_before, LOCK_OCTETS);
	if (cut->lock == LOCK_OF_ANOTHER_BOOT)
		memcpy(octets, "another", 7);
	snprintf(path, sizeof(path), "%s/in/lock", image->root);
	_cleanup_(closep) int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_bug(fd >= 0 && write(fd, octets, LOCK_OCTETS) == LOCK_OCTETS);
}

void disk_make(const struct disk *disk, const struct cut *cut, const char *root)
{
	struct image *image = calloc(1, sizeof(*image));

	assert_bug(image != NULL && cut->count <= disk->count);
	*image = (struct image){.disk = disk, .cut = cut, .root = root, .seed = cut->seed};
	disk_clear(root);
	make_names(image);
	for (size_t i = 0; i < image->name_count; i++)
		make_file(image, &image->names[i]);
	make_lock(image);
	free(image);
}

void disk_clear(const char *root)
{
	static const char *const folders[] = {"in", "out"};
	char path[DISK_NAME + 300];
	struct dirent *entry;

	for (size_t i = 0; i < ARRAY_LEN(folders); i++) {
		snprintf(path, sizeof(path), "%s/%s", root, folders[i]);
		(void)mkdir(path, 0700);
		DIR *dir = opendir(path);
		assert_bug(dir != NULL);
		while ((entry = readdir(dir)) != NULL) {
			snprintf(path, sizeof(path), "%s/%s/%s", root, folders[i], entry->d_name);
			if (entry->d_name[0] != '.')
				(void)unlink(path);
		}
		closedir(dir);
	}
}

/* ---- what must hold ---- */

void disk_facts(const struct disk *disk, const struct cut *cut, struct fact facts[NUMBERS_MAX])
{
	memset(facts, 0, NUMBERS_MAX * sizeof(*facts));
	for (unsigned i = 0; i < cut->count; i++) {
		const struct disk_entry *entry = &disk->entries[i];
		struct fact *fact = &facts[entry->number];
		for (unsigned j = 0; j < entry->held_count && stands(cut, entry); j++)
			facts[entry->held[j].number].held |= entry->held[j].recipients;
		fact->given |= entry->kind == NOTE_GIVEN;
		fact->acked |= entry->kind == NOTE_ACKED;
		if (entry->kind == NOTE_ASKED)
			fact->asked |= entry->recipients;
		if (entry->kind == NOTE_SYNCED ||
		        (entry->kind == NOTE_REPORTED && cut->kind == CUT_KILL))
			fact->held |= entry->recipients;
	}
}

unsigned disk_watermark_ahead(const struct disk *disk)
{
	uint64_t synced[DISK_INODES] = {0}, position;
	unsigned found = 0;

	for (unsigned i = 0; i < disk->count && found == 0; i++) {
		const struct disk_entry *entry = &disk->entries[i];
		char name[DISK_NAME];
		memcpy(&position, entry->lock_before + LOCK_OCTETS - 8, 8);
		snprintf(name, sizeof(name), "in/%08u.seg", (unsigned)(position >> 32));
		for (unsigned j = i; j > 0; j--) {
			const struct disk_entry *create = &disk->entries[j - 1];
			if (create->kind != DISK_CREATE || strcmp(create->name, name) != 0)
				continue;
			if ((position & UINT32_MAX) > synced[create->inode])
				found = i + 1;
			break;
		}
		for (unsigned j = i; j > 0 && entry->kind == DISK_SYNC && !entry->failed; j--) {
			const struct disk_entry *write = &disk->entries[j - 1];
			if (write->kind == DISK_WRITE && write->inode == entry->inode)
				synced[entry->inode] =
				        MAX_OF(synced[entry->inode], write->offset + write->len);
		}
	}
	return found;
}

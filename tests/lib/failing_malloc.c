/* SPDX-License-Identifier: ISC */
/*
 * Loaded in front of the C library of a whole gateway (LD_PRELOAD): one allocation of one process
 * fails, the one that a test has chosen in a file that all of them map. Only what the program
 * itself asks for counts, not what its libraries do. tests/lib/failing_malloc.py is the other side.
 */
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

struct choice {
	_Atomic uint64_t pid, asked, failing; /* of that process: allocations so far, which fails */
};

static struct choice *choice;
static uintptr_t text_start, text_end; /* of the program */

void *__libc_malloc(size_t len);
void *__libc_calloc(size_t count, size_t len);
void *__libc_realloc(void *old, size_t len);

static void find_text(void)
{
	const ElfW(Phdr) *headers = (const void *)getauxval(AT_PHDR);
	size_t count = getauxval(AT_PHNUM);
	uintptr_t base = 0;

	for (size_t i = 0; i < count; i++) {
		if (headers[i].p_type == PT_PHDR)
			base = (uintptr_t)headers - headers[i].p_vaddr;
	}
	for (size_t i = 0; i < count; i++) {
		if (headers[i].p_type != PT_LOAD || (headers[i].p_flags & PF_X) == 0)
			continue;
		text_start = base + headers[i].p_vaddr;
		text_end = text_start + headers[i].p_memsz;
	}
}

__attribute__((constructor)) static void map_choice(void)
{
	const char *path = getenv("POSTERN_FAILING_MALLOC");
	int fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
	void *mapped =
	        fd < 0 ? MAP_FAILED
	               : mmap(NULL, sizeof(*choice), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (fd >= 0)
		close(fd);
	find_text();
	if (mapped != MAP_FAILED)
		choice = mapped;
}

static bool fails(const void *caller)
{
	uintptr_t place = (uintptr_t)caller;

	if (choice == NULL || place < text_start || place >= text_end ||
	        choice->pid != (uint64_t)getpid())
		return false;
	return atomic_fetch_add(&choice->asked, 1) + 1 == choice->failing;
}

/* Their parameters have glibc's reserved names there.
   NOLINTBEGIN(readability-inconsistent-declaration-parameter-name) */
void *malloc(size_t len)
{
	return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(len);
}

void *calloc(size_t count, size_t len)
{
	return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, len);
}

void *realloc(void *old, size_t len)
{
	return fails(__builtin_return_address(0)) ? NULL : __libc_realloc(old, len);
}

char *strdup(const char *text)
{
	size_t len = strlen(text) + 1;
	char *copy = fails(__builtin_return_address(0)) ? NULL : __libc_malloc(len);

	return copy == NULL ? NULL : memcpy(copy, text, len);
}
/* NOLINTEND(readability-inconsistent-declaration-parameter-name) */

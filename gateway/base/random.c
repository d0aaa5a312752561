/* SPDX-License-Identifier: ISC */
/* Random numbers from getrandom(2); see random.h. */
#include "gateway/base/random.h"

#include <errno.h>
#include <sys/random.h>

#include "gateway/base/compiler.h"

void random_bytes(void *memory, size_t len)
{
	char *at = memory;

	while (len > 0) {
		ssize_t got = getrandom(at, len, 0);
		if (got < 0 && errno == EINTR)
			continue;
		assert_bug(got > 0);
		at += got;
		len -= (size_t)got;
	}
}

uint64_t random_below(uint64_t bound)
{
	uint64_t value;

	assert_bug(bound > 0);
	random_bytes(&value, sizeof(value));
	return value % bound;
}

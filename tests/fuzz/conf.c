/* SPDX-License-Identifier: ISC */
/* Configuration files: each is refused with a reason, or can be written out and read again. */
#include "gateway/conf/conf.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

/* libconfig 1.5 forgets the string that it was reading when the syntax is wrong. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
	return "leak:libconfig";
}

static void check_errors(const struct buf *errors)
{
	struct slice text = buf_slice(errors);

	assert_bug(text.len > 0 && text.len <= CONF_ERRORS_MAX);
	assert_bug(text.ptr[text.len - 1] == '\n');
}

static void check_again(const struct conf *conf)
{
	const struct conf *again;
	struct buf text, text_again, errors;
	struct why why;

	buf_init(&text, 1U << 20);
	buf_init(&text_again, 1U << 20);
	buf_init(&errors, CONF_ERRORS_MAX);
	assert_bug(conf_format(conf, &text) == 0);
	const char *written = buf_str(&text);
	assert_bug(written != NULL);
	assert_bug(conf_parse(written, "again.conf", &errors, &again) == 0);
	assert_bug(conf_format(again, &text_again) == 0);
	assert_bug(slice_equal(buf_slice(&text), buf_slice(&text_again)));
	assert_bug(conf_check_reload(conf, again, &why) == 0);
	conf_unref(again);
	buf_done(&text);
	buf_done(&text_again);
	buf_done(&errors);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct conf *conf;
	struct buf errors;
	char path[64];

	/* It would read other files of this machine. */
	if (size > 0 && memmem(data, size, "@include", 8) != NULL)
		return 0;
	int fd = memfd_create("postern.conf", MFD_CLOEXEC);
	assert_bug(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	buf_init(&errors, CONF_ERRORS_MAX);
	int r = conf_load(path, &errors, &conf);
	if (r < 0)
		check_errors(&errors);
	else
		check_again(conf);
	if (r == 0)
		conf_unref(conf);
	buf_done(&errors);
	close(fd);
	return 0;
}

/* SPDX-License-Identifier: ISC */
/* Reading secret files; see secrets_file.h. */
#include "gateway/daemon/secrets_file.h"

#include <errno.h>
#include <fcntl.h>

#include "gateway/base/pack.h"

#define FILE_MAX (256U << 10)

static int read_file(const char *path, struct buf *text, struct why *why)
{
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return why_errno(why, errno, "cannot read %s", path);
	int r = buf_read_fd(text, fd);
	return r < 0 ? why_errno(why, r, "cannot read %s", path) : 0;
}

enum part { WHOLE_FILE, FIRST_LINE };

/* Packs so much of a file; "" for no file. */
static int pack_file(const char *path, enum part part, struct pack *pack, struct why *why)
{
	struct buf text;
	int r = 0;

	buf_init(&text, FILE_MAX);
	if (*path != '\0')
		r = read_file(path, &text, why);
	if (r == 0) {
		struct slice content = buf_slice(&text);
		if (part == FIRST_LINE) {
			content = slice_until(&content, '\n');
			if (slice_ends_with_nocase(content, SLICE("\r")))
				content.len--;
		}
		pack_bytes(pack, content);
		if (pack->error < 0)
			r = why_errno(why, pack->error, "the secrets with %s", path);
	}
	buf_wipe(&text);
	return r;
}

int secrets_pack(const struct conf *conf, enum child_kind kind, struct buf *out, struct why *why)
{
	struct pack pack = pack_start(out);
	int r = 0;

	switch (kind) {
	case CHILD_SUBMIT:
		r = pack_file(conf->tls.certificate, WHOLE_FILE, &pack, why);
		if (r == 0)
			r = pack_file(conf->tls.key, WHOLE_FILE, &pack, why);
		break;
	case CHILD_AUTH:
		r = pack_file(conf->database_auth_password_file, FIRST_LINE, &pack, why);
		break;
	case CHILD_RELAY:
		r = pack_file(conf->database_relay_password_file, FIRST_LINE, &pack, why);
		for (size_t i = 0; r == 0 && i < conf->upstream_count; i++)
			r = pack_file(conf->upstreams[i].password_file, FIRST_LINE, &pack, why);
		break;
	case CHILD_COUNT:
		break;
	}
	return r;
}

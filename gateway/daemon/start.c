/* SPDX-License-Identifier: ISC */
/* Packing and unpacking what a child starts with; see start.h. */
#include "gateway/daemon/start.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "gateway/base/pack.h"

#define CONF_TEXT_MAX  (4U << 20)
#define SECRET_MAX     (256U << 10)
#define FIXED_FD_COUNT 2 /* configuration, secrets */

void secrets_init(struct secrets *secrets)
{
	secrets->count = 0;
	buf_init(&secrets->room, START_SECRETS_SIZE);
}

void secrets_done(struct secrets *secrets)
{
	buf_wipe(&secrets->room);
	secrets->count = 0;
}

struct slice secrets_get(const struct secrets *secrets, size_t index)
{
	return index < secrets->count ? secrets->items[index] : SLICE("");
}

static int add_fd(int fds[LINK_FDS_MAX], size_t *count, int fd)
{
	if (*count == LINK_FDS_MAX)
		return -E2BIG;
	fds[(*count)++] = fd;
	return 0;
}

/* Board, wake and the two lists, in the order in which start_take() reads them. */
static int add_start_fds(const struct start *start, int fds[LINK_FDS_MAX], size_t *count)
{
	int r = add_fd(fds, count, start->board);

	if (r == 0 && start->wake >= 0)
		r = add_fd(fds, count, start->wake);
	for (size_t i = 0; r == 0 && i < start->own_count; i++)
		r = add_fd(fds, count, start->own[i]);
	for (size_t i = 0; r == 0 && i < start->sibling_count; i++)
		r = add_fd(fds, count, start->siblings[i]);
	return r;
}

static int send_with_files(int link, enum link_type type, const struct start *start,
        struct slice conf_text, struct slice packed_secrets)
{
	_cleanup_(closep) int conf_file = link_memory_file("configuration", conf_text);
	_cleanup_(closep) int secret_file = link_memory_file("secrets", packed_secrets);
	int fds[LINK_FDS_MAX] = {conf_file, secret_file};
	size_t count = FIXED_FD_COUNT;
	struct buf body;

	if (conf_file < 0 || secret_file < 0)
		return conf_file < 0 ? conf_file : secret_file;
	buf_init(&body, 64);
	struct pack pack = pack_start(&body);
	pack_u8(&pack, start->wake >= 0);
	pack_u16(&pack, (uint16_t)start->own_count);
	pack_u16(&pack, (uint16_t)start->sibling_count);
	int r = pack.error;
	if (r == 0 && type == LINK_START)
		r = add_start_fds(start, fds, &count);
	if (r == 0)
		r = link_send(link, type, buf_slice(&body), fds, count);
	buf_done(&body);
	return r;
}

int start_send(
        int link, enum link_type type, const struct start *start, struct slice packed_secrets)
{
	struct buf text;

	buf_init(&text, CONF_TEXT_MAX);
	int r = conf_format(start->conf, &text);
	if (r == 0)
		r = send_with_files(link, type, start, buf_slice(&text), packed_secrets);
	buf_done(&text);
	return r;
}

static int take_conf(int fd, const struct conf **ret_conf, struct why *why)
{
	struct buf text, errors;

	buf_init(&text, CONF_TEXT_MAX);
	buf_init(&errors, CONF_ERRORS_MAX);
	int r = buf_read_fd(&text, fd);
	const char *terminated = r == 0 ? buf_str(&text) : NULL;
	if (terminated != NULL)
		r = conf_parse(terminated, "configuration", &errors, ret_conf);
	else if (r == 0)
		r = -ENOMEM;
	if (r < 0)
		why_set(why, "the configuration did not arrive whole: %.*s",
		        SLICE_ARGS(buf_slice(&errors)));
	buf_done(&text);
	buf_done(&errors);
	return r;
}

static int take_secrets(int fd, struct secrets *secrets, struct why *why)
{
	int r = buf_read_fd(&secrets->room, fd);
	struct unpack unpack = unpack_start(buf_slice(&secrets->room));

	while (r == 0 && unpack.error == 0 && unpack.left.len > 0 &&
	        secrets->count < START_SECRETS_MAX)
		secrets->items[secrets->count++] = unpack_bytes(&unpack, SECRET_MAX);
	if (r == 0)
		r = unpack_end(&unpack);
	return r < 0 ? why_errno(why, r, "the secrets did not arrive whole") : 0;
}

/* The next descriptor of the message, which no longer owns it; -1 when there is none. */
static int take_fd(struct link_message *message, size_t *at)
{
	if (*at >= message->fd_count)
		return -1;
	int fd = message->fds[*at];
	message->fds[(*at)++] = -1;
	return fd;
}

static int take_fds(struct link_message *message, struct start *start, struct why *why)
{
	struct unpack unpack = unpack_start(message->body);
	size_t at = FIXED_FD_COUNT;

	bool has_wake = unpack_u8(&unpack) != 0;
	size_t own = unpack_u16(&unpack), siblings = unpack_u16(&unpack);
	if (unpack_end(&unpack) < 0 ||
	        message->fd_count != FIXED_FD_COUNT + 1 + has_wake + own + siblings) {
		why_set(why, "the start message is malformed");
		return -EBADMSG;
	}
	start->board = take_fd(message, &at);
	if (has_wake)
		start->wake = take_fd(message, &at);
	while (start->own_count < own)
		start->own[start->own_count++] = take_fd(message, &at);
	while (start->sibling_count < siblings)
		start->siblings[start->sibling_count++] = take_fd(message, &at);
	return 0;
}

int start_take(struct link_message *message, struct start *ret_start, struct why *why)
{
	*ret_start = (struct start){.board = -1, .wake = -1};
	secrets_init(&ret_start->secrets);
	if (message->fd_count < FIXED_FD_COUNT) {
		link_close_fds(message);
		why_set(why, "the start message has no configuration");
		return -EBADMSG;
	}
	int r = take_conf(message->fds[0], &ret_start->conf, why);
	if (r == 0)
		r = take_secrets(message->fds[1], &ret_start->secrets, why);
	if (r == 0 && message->type == LINK_START)
		r = take_fds(message, ret_start, why);
	link_close_fds(message);
	return r;
}

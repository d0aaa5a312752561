/* SPDX-License-Identifier: ISC */
/* Datagrams with descriptors between supervisor and child; see link.h. */
#include "gateway/daemon/link.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define BODY_MAX 4096

union control {
	struct cmsghdr header; /* for its alignment */
	char room[CMSG_SPACE(LINK_FDS_MAX * sizeof(int))];
};

int link_pair(int ret_fds[2])
{
	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ret_fds) < 0 ? -errno : 0;
}

int link_send(int link, enum link_type type, struct slice body, const int *fds, size_t fd_count)
{
	union control control = {0};
	char type_octet = (char)type;
	struct iovec parts[2] = {
	        {&type_octet, 1},
	        {(void *)(uintptr_t)body.ptr, body.len},
	};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	assert_bug(fd_count <= LINK_FDS_MAX && body.len < BODY_MAX);
	if (fd_count > 0) {
		message.msg_control = control.room;
		message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		struct cmsghdr *header = &control.header;
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(header), fds, fd_count * sizeof(int));
	}
	while (sendmsg(link, &message, MSG_NOSIGNAL) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

static void take_fds(struct msghdr *message, struct link_message *taken)
{
	for (struct cmsghdr *h = CMSG_FIRSTHDR(message); h != NULL; h = CMSG_NXTHDR(message, h)) {
		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		assert_bug(taken->fd_count + count <= LINK_FDS_MAX);
		memcpy(taken->fds + taken->fd_count, CMSG_DATA(h), count * sizeof(int));
		taken->fd_count += count;
	}
}

int link_receive(int link, struct buf *room, struct link_message *ret_message)
{
	union control control;
	char *data;
	ssize_t got;

	buf_clear(room);
	int r = buf_reserve(room, BODY_MAX, &data);
	if (r < 0)
		return r;
	struct iovec part = {data, BODY_MAX};
	struct msghdr message = {
	        .msg_iov = &part,
	        .msg_iovlen = 1,
	        .msg_control = control.room,
	        .msg_controllen = sizeof(control.room),
	};
	do
		got = recvmsg(link, &message, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got <= 0)
		return got < 0 ? -errno : 0;

	struct link_message taken = {
	        .type = (enum link_type)data[0],
	        .body = slice_of(data + 1, (size_t)got - 1),
	};
	take_fds(&message, &taken);
	if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
		link_close_fds(&taken);
		return -EMSGSIZE;
	}
	buf_added(room, (size_t)got);
	*ret_message = taken;
	return 1;
}

void link_close_fds(struct link_message *message)
{
	for (size_t i = 0; i < message->fd_count; i++) {
		if (message->fds[i] >= 0)
			close(message->fds[i]);
	}
	message->fd_count = 0;
}

int link_memory_file(const char *name, struct slice content)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -errno;
	for (size_t done = 0; done < content.len;) {
		ssize_t wrote = write(fd, content.ptr + done, content.len - done);
		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote < 0)
			goto failed;
		done += (size_t)wrote;
	}
	if (fcntl(fd, F_ADD_SEALS, seals) < 0 || lseek(fd, 0, SEEK_SET) < 0)
		goto failed;
	return fd;
failed:;
	int error = errno;
	close(fd);
	return -error;
}

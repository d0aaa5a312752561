/* SPDX-License-Identifier: ISC */
/*
 * The supervisor; see supervisor.h. Signals come through a signalfd, children are
 * heard on their links, and one poll() waits for all of it.
 */
#include "gateway/daemon/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gateway/base/clock.h"
#include "gateway/base/log.h"
#include "gateway/daemon/child.h"
#include "gateway/daemon/files_check.h"
#include "gateway/daemon/listen.h"
#include "gateway/daemon/secrets_file.h"

#define REST_FIRST_MS 100
#define REST_MAX_MS   10000
#define SETTLED_MS    60000 /* a child that lived so long starts its rests anew */
#define STOP_MS       12000 /* then what still runs is killed */

struct child {
	enum child_kind kind;
	pid_t pid; /* 0: not running */
	int link;  /* -1: none */
	bool ready;
	uint64_t started_ms, rest_ms, start_at_ms;
	uid_t uid;
	gid_t gid;
	const char *user;
};

struct supervisor {
	const char *conf_path;
	const struct conf *conf;
	char exe[64];
	bool separate_users;
	int lock, signals, board, wake, control;
	int listeners[LISTEN_MAX];
	size_t listener_count;
	unsigned loops;
	struct child children[CHILD_COUNT];
	bool stopping, announced, failed;
	uint64_t kill_at_ms;
};

static int tell_errors(const struct buf *errors)
{
	struct slice lines = buf_slice(errors);

	while (lines.len > 0)
		LOG(NULL, EV_CONF_ERROR, "text=%s", LOG_VALUE(slice_until(&lines, '\n')));
	return -EINVAL;
}

static int load_conf(const char *path, const struct conf **ret_conf)
{
	struct buf errors;

	buf_init(&errors, CONF_ERRORS_MAX);
	int r = conf_load(path, &errors, ret_conf);
	if (r < 0)
		tell_errors(&errors);
	buf_done(&errors);
	return r;
}

/* ---- folders and users ---- */

/* Only one supervisor has this folder; the file tells which. */
static int lock_runtime(struct supervisor *supervisor, struct why *why)
{
	char path[4200], text[32] = "";

	snprintf(path, sizeof(path), "%s/lock", supervisor->conf->runtime);
	if (mkdir(supervisor->conf->runtime, 0755) < 0 && errno != EEXIST)
		return why_errno(why, errno, "cannot make %s", supervisor->conf->runtime);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0)
		return why_errno(why, errno, "cannot open %s", path);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		ssize_t got = pread(fd, text, sizeof(text) - 1, 0);
		text[got > 0 ? got : 0] = '\0';
		close(fd);
		why_set(why, "another posternd runs here (pid %.20s)", text);
		return -EBUSY;
	}
	snprintf(text, sizeof(text), "%d", getpid());
	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, strlen(text), 0) < 0) {
		close(fd);
		return why_errno(why, errno, "cannot write %s", path);
	}
	supervisor->lock = fd;
	return 0;
}

static int find_users(struct supervisor *supervisor, struct why *why)
{
	static const char *const users[CHILD_COUNT] = {
	        "postern_submit", "postern_auth", "postern_relay"};

	supervisor->separate_users = geteuid() == 0;
	for (unsigned i = 0; i < CHILD_COUNT; i++) {
		struct child *child = &supervisor->children[i];
		child->user = users[i];
		if (!supervisor->separate_users)
			continue;
		/* NOLINTNEXTLINE(concurrency-mt-unsafe): one thread */
		const struct passwd *user = getpwnam(users[i]);
		if (user == NULL) {
			why_set(why, "there is no user %s; run scripts/users", users[i]);
			return -ENOENT;
		}
		child->uid = user->pw_uid;
		child->gid = user->pw_gid;
	}
	if (!supervisor->separate_users)
		LOG(NULL, EV_ISOLATION_REDUCED, "uid=%u", (unsigned)geteuid());
	return 0;
}

static int make_folder(const char *path, mode_t mode, struct why *why)
{
	return mkdir(path, mode) < 0 && errno != EEXIST
	               ? why_errno(why, errno, "cannot make %s", path)
	               : 0;
}

/* The spool's folders, each with the owner that alone writes there. */
static int make_spool(const struct supervisor *supervisor, struct why *why)
{
	const struct child *submit = &supervisor->children[CHILD_SUBMIT];
	const struct child *relay = &supervisor->children[CHILD_RELAY];
	char in[4200], out[4200];

	snprintf(in, sizeof(in), "%s/in", supervisor->conf->spool);
	snprintf(out, sizeof(out), "%s/out", supervisor->conf->spool);
	int r = make_folder(supervisor->conf->spool, 0755, why);
	if (r == 0)
		r = make_folder(in, 0770, why);
	if (r == 0)
		r = make_folder(out, 0700, why);
	if (r < 0 || !supervisor->separate_users)
		return r;
	/* Files in in/ belong to the group of `relay`, which reads and unlinks there. */
	if (chown(in, submit->uid, relay->gid) < 0 || chmod(in, 02770) < 0)
		return why_errno(why, errno, "cannot set the owner of %s", in);
	if (chown(out, relay->uid, relay->gid) < 0 || chmod(out, 0700) < 0)
		return why_errno(why, errno, "cannot set the owner of %s", out);
	return 0;
}

static int make_runtime(struct supervisor *supervisor, struct why *why)
{
	char path[4200];
	/* NOLINTNEXTLINE(concurrency-mt-unsafe): one thread */
	const struct group *group = supervisor->separate_users ? getgrnam("postern") : NULL;

	snprintf(path, sizeof(path), "%s/control", supervisor->conf->runtime);
	supervisor->control = listen_control(path, why);
	if (supervisor->control < 0)
		return supervisor->control;
	if (group != NULL && chown(path, 0, group->gr_gid) < 0)
		return why_errno(why, errno, "cannot set the group of %s", path);
	snprintf(path, sizeof(path), "%s/board", supervisor->conf->runtime);
	supervisor->board = board_create(path, why);
	if (supervisor->board < 0)
		return supervisor->board;
	if (group != NULL && fchown(supervisor->board, 0, group->gr_gid) < 0)
		return why_errno(why, errno, "cannot set the group of %s", path);
	supervisor->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return supervisor->wake < 0 ? why_errno(why, errno, "eventfd") : 0;
}

/* ---- children ---- */

static void drop_privileges(const struct child *child)
{
	if (setgroups(0, NULL) < 0 || initgroups(child->user, child->gid) < 0 ||
	        setresgid(child->gid, child->gid, child->gid) < 0 ||
	        setresuid(child->uid, child->uid, child->uid) < 0)
		_exit(EXIT_FAILURE);
}

/* In the forked child: becomes the process. Only async-signal-safe calls matter here. */
noreturn_ static void become(
        const struct supervisor *supervisor, const struct child *child, int link)
{
	char name[32];
	char *const argv[] = {name, NULL};
	sigset_t none;

	snprintf(name, sizeof(name), "posternd: %s", child_name(child->kind));
	sigemptyset(&none);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
	/* The number that the child expects, without close-on-exec. */
	if (link == LINK_FD)
		fcntl(link, F_SETFD, 0);
	else if (dup2(link, LINK_FD) < 0)
		_exit(EXIT_FAILURE);
	if (supervisor->separate_users)
		drop_privileges(child);
	execv(supervisor->exe, argv);
	_exit(EXIT_FAILURE);
}

static int start_packed(const struct supervisor *supervisor, struct child *child,
        enum link_type type, const struct start *start, struct why *why)
{
	struct buf secrets;

	buf_init(&secrets, START_SECRETS_SIZE);
	int r = secrets_pack(supervisor->conf, child->kind, &secrets, why);
	if (r == 0) {
		r = start_send(child->link, type, start, buf_slice(&secrets));
		if (r < 0)
			why_errno(why, r, "cannot talk to %s", child_name(child->kind));
	}
	buf_wipe(&secrets);
	return r;
}

static int send_start(struct supervisor *supervisor, struct child *child, const int *siblings,
        size_t sibling_count, struct why *why)
{
	struct start start = {.conf = supervisor->conf, .board = supervisor->board, .wake = -1};

	if (child->kind == CHILD_SUBMIT) {
		start.own_count = supervisor->listener_count;
		memcpy(start.own, supervisor->listeners, start.own_count * sizeof(int));
	} else if (child->kind == CHILD_RELAY) {
		start.own[start.own_count++] = supervisor->control;
	}
	if (child->kind != CHILD_AUTH)
		start.wake = supervisor->wake;
	memcpy(start.siblings, siblings, sibling_count * sizeof(int));
	start.sibling_count = sibling_count;
	return start_packed(supervisor, child, LINK_START, &start, why);
}

static int spawn(struct supervisor *supervisor, struct child *child, struct why *why)
{
	int ends[2];

	int r = link_pair(ends);
	if (r < 0)
		return why_errno(why, r, "socketpair");
	pid_t pid = fork();
	if (pid == 0)
		become(supervisor, child, ends[1]);
	close(ends[1]);
	if (pid < 0) {
		close(ends[0]);
		return why_errno(why, errno, "fork");
	}
	child->pid = pid;
	child->link = ends[0];
	child->ready = false;
	child->started_ms = clock_mono_ms();
	counter_add(CT_CHILD_STARTS, 1);
	LOG(NULL, EV_CHILD_STARTED, "child=%s pid=%d", child_name(child->kind), (int)pid);
	return 0;
}

/* Fresh pairs between `submit` and `auth`: one end each, for every loop. */
static int make_pairs(const struct supervisor *supervisor, int ret_mine[CONF_LOOPS_MAX],
        int ret_theirs[CONF_LOOPS_MAX])
{
	for (unsigned i = 0; i < supervisor->loops; i++) {
		int pair[2];
		int r = link_pair(pair);
		if (r < 0) {
			while (i-- > 0) {
				close(ret_mine[i]);
				close(ret_theirs[i]);
			}
			return r;
		}
		ret_mine[i] = pair[0];
		ret_theirs[i] = pair[1];
	}
	return 0;
}

static struct child *sibling_of(struct supervisor *supervisor, const struct child *child)
{
	switch (child->kind) {
	case CHILD_SUBMIT:
		return &supervisor->children[CHILD_AUTH];
	case CHILD_AUTH:
		return &supervisor->children[CHILD_SUBMIT];
	default:
		return NULL;
	}
}

static int start_child(struct supervisor *supervisor, struct child *child, struct why *why)
{
	struct child *sibling = sibling_of(supervisor, child);
	int mine[CONF_LOOPS_MAX], theirs[CONF_LOOPS_MAX];
	unsigned pairs = sibling != NULL ? supervisor->loops : 0;

	int r = spawn(supervisor, child, why);
	if (r < 0)
		return r;
	if (pairs > 0 && (r = make_pairs(supervisor, mine, theirs)) < 0)
		return why_errno(why, r, "socketpair");
	r = send_start(supervisor, child, mine, pairs, why);
	/* One that is not running yet gets its ends with its own start. */
	if (r == 0 && sibling != NULL && sibling->link >= 0)
		(void)!link_send(sibling->link, LINK_SIBLINGS, SLICE(""), theirs, pairs);
	for (unsigned i = 0; i < pairs; i++) {
		close(mine[i]);
		close(theirs[i]);
	}
	return r;
}

static void start_due_children(struct supervisor *supervisor)
{
	struct why why;

	for (unsigned i = 0; i < CHILD_COUNT && !supervisor->stopping; i++) {
		struct child *child = &supervisor->children[i];
		if (child->pid != 0 || clock_mono_ms() < child->start_at_ms)
			continue;
		if (start_child(supervisor, child, &why) < 0) {
			LOG(NULL, EV_FATAL, "child=%s reason=%s", child_name(child->kind),
			        LOG_VALUE(slice_str(why.text)));
			child->start_at_ms = clock_mono_ms() + REST_MAX_MS;
			/* A half-started child goes at the end of its link. */
			if (child->link >= 0)
				close(child->link);
			child->link = -1;
		}
	}
}

static void tell_to_stop(const struct child *child)
{
	if (child->link >= 0)
		(void)!link_send(child->link, LINK_STOP, SLICE(""), NULL, 0);
}

static void begin_stop(struct supervisor *supervisor)
{
	if (supervisor->stopping)
		return;
	LOG(NULL, EV_STOP, "");
	supervisor->stopping = true;
	supervisor->kill_at_ms = clock_mono_ms() + STOP_MS;
	/* `auth` goes last: messages that are finishing still ask it. */
	tell_to_stop(&supervisor->children[CHILD_SUBMIT]);
	tell_to_stop(&supervisor->children[CHILD_RELAY]);
	if (supervisor->children[CHILD_SUBMIT].pid == 0)
		tell_to_stop(&supervisor->children[CHILD_AUTH]);
}

static void child_ended(struct supervisor *supervisor, struct child *child, int status)
{
	uint64_t now = clock_mono_ms();
	bool was_ready = child->ready;

	child->pid = 0;
	child->ready = false;
	if (child->link >= 0)
		close(child->link);
	child->link = -1;
	if (supervisor->stopping) {
		if (child->kind == CHILD_SUBMIT)
			tell_to_stop(&supervisor->children[CHILD_AUTH]);
		return;
	}
	LOG(NULL, EV_CHILD_DIED, "child=%s %s=%d", child_name(child->kind),
	        WIFSIGNALED(status) ? "signal" : "status",
	        WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	/* Before everything has run once, a child that gives up means a bad start. */
	if (!was_ready && !supervisor->announced && WIFEXITED(status)) {
		supervisor->failed = true;
		begin_stop(supervisor);
		return;
	}
	if (now - child->started_ms > SETTLED_MS)
		child->rest_ms = 0;
	child->start_at_ms = now + child->rest_ms;
	child->rest_ms = child->rest_ms == 0 ? REST_FIRST_MS
	                                     : MIN_OF(child->rest_ms * 2, (uint64_t)REST_MAX_MS);
}

static void reap(struct supervisor *supervisor)
{
	pid_t pid;
	int status;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (unsigned i = 0; i < CHILD_COUNT; i++) {
			if (supervisor->children[i].pid == pid)
				child_ended(supervisor, &supervisor->children[i], status);
		}
	}
}

/* ---- reload ---- */

static void reload(struct supervisor *supervisor)
{
	const struct conf *fresh, *old = supervisor->conf;
	struct why why;

	if (load_conf(supervisor->conf_path, &fresh) < 0) {
		LOG(NULL, EV_RELOAD_FAILED, "reason=\"errors in the file\"");
		return;
	}
	/*
	 * Nothing is sent before all of it is known to be good. (A child that is started later
	 * would have another spool, or listeners without sockets.)
	 */
	if (conf_check_reload(old, fresh, &why) < 0 || files_check(fresh, &why) < 0) {
		LOG(NULL, EV_RELOAD_FAILED, "reason=%s", LOG_VALUE(slice_str(why.text)));
		conf_unref(fresh);
		return;
	}
	struct start start = {.conf = fresh, .board = -1, .wake = -1};
	supervisor->conf = fresh;
	conf_unref(old);
	for (unsigned i = 0; i < CHILD_COUNT; i++) {
		struct child *child = &supervisor->children[i];
		/* One that cannot be told is about to end, and gets it when it is started again. */
		if (child->link >= 0 &&
		        start_packed(supervisor, child, LINK_RELOAD, &start, &why) < 0)
			LOG(NULL, EV_RELOAD_FAILED, "child=%s reason=%s", child_name(child->kind),
			        LOG_VALUE(slice_str(why.text)));
	}
}

/* ---- the loop ---- */

static void announce(struct supervisor *supervisor)
{
	for (unsigned i = 0; i < CHILD_COUNT; i++) {
		if (!supervisor->children[i].ready)
			return;
	}
	if (!supervisor->announced)
		LOG(NULL, EV_READY, "");
	supervisor->announced = true;
}

static void hear_child(struct supervisor *supervisor, struct child *child)
{
	struct link_message message;
	struct buf room;

	buf_init(&room, 8192);
	int r = link_receive(child->link, &room, &message);
	if (r <= 0) {
		/* Its end is told by waitpid(). */
		close(child->link);
		child->link = -1;
	} else if (message.type == LINK_READY) {
		child->ready = true;
		announce(supervisor);
	} else if (message.type == LINK_RELOADED) {
		if (message.body.len == 0)
			LOG(NULL, EV_RELOADED, "child=%s", child_name(child->kind));
		else
			LOG(NULL, EV_RELOAD_FAILED, "child=%s reason=%s", child_name(child->kind),
			        LOG_VALUE(message.body));
	}
	if (r > 0)
		link_close_fds(&message);
	buf_done(&room);
}

static void hear_signals(struct supervisor *supervisor)
{
	struct signalfd_siginfo info;

	while (read(supervisor->signals, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGCHLD)
			reap(supervisor);
		else if (info.ssi_signo == SIGHUP)
			reload(supervisor);
		else
			begin_stop(supervisor);
	}
}

/* Until something is due: a child's start, or the end of patience. */
static int wait_ms(const struct supervisor *supervisor)
{
	uint64_t now = clock_mono_ms(), due = UINT64_MAX;

	if (supervisor->stopping)
		due = supervisor->kill_at_ms;
	for (unsigned i = 0; !supervisor->stopping && i < CHILD_COUNT; i++) {
		if (supervisor->children[i].pid == 0)
			due = MIN_OF(due, supervisor->children[i].start_at_ms);
	}
	if (due == UINT64_MAX)
		return -1;
	return due > now ? (int)(due - now) : 0;
}

static bool any_child(const struct supervisor *supervisor)
{
	for (unsigned i = 0; i < CHILD_COUNT; i++) {
		if (supervisor->children[i].pid != 0)
			return true;
	}
	return false;
}

static void kill_the_rest(struct supervisor *supervisor)
{
	for (unsigned i = 0; i < CHILD_COUNT; i++) {
		if (supervisor->children[i].pid != 0)
			kill(supervisor->children[i].pid, SIGKILL);
	}
	supervisor->kill_at_ms = clock_mono_ms() + STOP_MS;
}

static void serve(struct supervisor *supervisor)
{
	struct pollfd fds[CHILD_COUNT + 1];

	while (!supervisor->stopping || any_child(supervisor)) {
		start_due_children(supervisor);
		fds[0] = (struct pollfd){.fd = supervisor->signals, .events = POLLIN};
		for (unsigned i = 0; i < CHILD_COUNT; i++)
			fds[i + 1] = (struct pollfd){
			        .fd = supervisor->children[i].link, .events = POLLIN};
		if (poll(fds, CHILD_COUNT + 1, wait_ms(supervisor)) < 0 && errno != EINTR)
			break;
		for (unsigned i = 0; i < CHILD_COUNT; i++) {
			struct child *child = &supervisor->children[i];
			if (fds[i + 1].revents != 0 && child->link >= 0 &&
			        child->link == fds[i + 1].fd)
				hear_child(supervisor, child);
		}
		hear_signals(supervisor);
		if (supervisor->stopping && clock_mono_ms() >= supervisor->kill_at_ms)
			kill_the_rest(supervisor);
	}
}

/* ---- start ---- */

static int open_signals(struct supervisor *supervisor, struct why *why)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	sigdelset(&set, SIGPIPE);
	supervisor->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	return supervisor->signals < 0 ? why_errno(why, errno, "signalfd") : 0;
}

static void raise_limits(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &files);
	}
}

static int prepare(struct supervisor *supervisor, struct why *why)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned loops = (unsigned)supervisor->conf->submission.threads;

	supervisor->loops = loops != 0 ? loops : cores > 0 ? (unsigned)cores : 1;
	supervisor->loops = MIN_OF(supervisor->loops, (unsigned)CONF_LOOPS_MAX);
	/* Opened before /proc/self could mean anything else. */
	_cleanup_(closep) int opened = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	/* Not where a child's link goes: it is needed after that is in place. */
	int exe = opened < 0 ? -1 : fcntl(opened, F_DUPFD_CLOEXEC, LINK_FD + 1);
	if (exe < 0)
		return why_errno(why, errno, "cannot open /proc/self/exe");
	snprintf(supervisor->exe, sizeof(supervisor->exe), "/proc/self/fd/%d", exe);
	raise_limits();
	int r = lock_runtime(supervisor, why);
	if (r == 0)
		r = find_users(supervisor, why);
	if (r == 0)
		r = make_spool(supervisor, why);
	if (r == 0)
		r = open_signals(supervisor, why);
	if (r == 0)
		r = listen_all(
		        supervisor->conf, supervisor->listeners, &supervisor->listener_count, why);
	return r == 0 ? make_runtime(supervisor, why) : r;
}

int supervisor_main(const char *conf_path)
{
	struct supervisor supervisor = {.conf_path = conf_path};
	struct why why;

	log_open();
	log_init("posternd", LOG_INFO);
	clock_init();
	/* Whatever the caller has: a stricter one would shut `relay` out of in/. */
	umask(022);
	for (unsigned i = 0; i < CHILD_COUNT; i++)
		supervisor.children[i] = (struct child){.kind = (enum child_kind)i, .link = -1};
	if (load_conf(conf_path, &supervisor.conf) < 0)
		return EXIT_FAILURE;
	if (prepare(&supervisor, &why) < 0) {
		LOG(NULL, EV_FATAL, "reason=%s", LOG_VALUE(slice_str(why.text)));
		conf_unref(supervisor.conf);
		return EXIT_FAILURE;
	}
	LOG(NULL, EV_START, "version=%s pid=%d listeners=%zu loops=%u", POSTERN_VERSION,
	        (int)getpid(), supervisor.listener_count, supervisor.loops);
	serve(&supervisor);
	LOG(NULL, EV_STOPPED, "");
	conf_unref(supervisor.conf);
	return supervisor.failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

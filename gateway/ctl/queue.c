/* SPDX-License-Identifier: ISC */
/* postern queue: asks `relay` over its control socket. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "gateway/ctl/ctl.h"

#define WAIT_S 30

/* Connects, with deadlines; the descriptor or -errno. */
static int reach(const char *runtime)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	const struct timeval wait = {.tv_sec = WAIT_S};

	int len = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/control", runtime);
	if (len < 0 || (size_t)len >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) < 0 ||
	        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait)) < 0 ||
	        connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		int r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

/* "key=value key="a value"": one line as a JSON object. */
static void print_line_as_json(char *line)
{
	char value[2048];
	bool first = true;

	putchar('{');
	while (*line != '\0') {
		char *key = line, *equals = strchr(line, '=');
		size_t len = 0;
		if (equals == NULL)
			break;
		*equals = '\0';
		line = equals + 1;
		bool quoted = *line == '"';
		line += quoted;
		while (*line != '\0' && *line != (quoted ? '"' : ' ')) {
			if (quoted && *line == '\\' && line[1] != '\0')
				line++;
			if (len + 1 < sizeof(value))
				value[len++] = *line;
			line++;
		}
		value[len] = '\0';
		line += *line != '\0';
		while (*line == ' ')
			line++;
		printf("%s\"%s\":", first ? "" : ",", key);
		ctl_print_json(value);
		first = false;
	}
	puts("}");
}

/* Prints the answer; its first line says whether there is one. */
static int print_answer(struct ctl *ctl, FILE *answer)
{
	char line[8192];

	if (fgets(line, sizeof(line), answer) == NULL) {
		fputs("postern: relay gave no answer\n", stderr);
		return CTL_REFUSED;
	}
	line[strcspn(line, "\n")] = '\0';
	if (strcmp(line, "ok") != 0) {
		fprintf(stderr, "postern: %s\n", strncmp(line, "error ", 6) == 0 ? line + 6 : line);
		return CTL_REFUSED;
	}
	while (fgets(line, sizeof(line), answer) != NULL) {
		if (ctl->json) {
			line[strcspn(line, "\n")] = '\0';
			print_line_as_json(line);
		} else if (strncmp(line, "count=", 6) == 0) {
			fputs(line + 6, stdout);
		} else {
			fputs(line, stdout);
		}
	}
	if (ferror(answer)) {
		fputs("postern: the answer broke off\n", stderr);
		return CTL_REFUSED;
	}
	return CTL_DONE;
}

static int ask(struct ctl *ctl, const char *verb, const char *argument)
{
	char request[200];

	int fd = reach(ctl->conf->runtime);
	if (fd < 0) {
		fprintf(stderr, "postern: cannot reach posternd in %s: %s\n", ctl->conf->runtime,
		        strerrordesc_np(-fd));
		return CTL_REFUSED;
	}
	int len = snprintf(request, sizeof(request), "%s %s\n", verb, argument);
	if (len < 0 || (size_t)len >= sizeof(request) ||
	        send(fd, request, (size_t)len, MSG_NOSIGNAL) != len) {
		fputs("postern: relay takes no request\n", stderr);
		close(fd);
		return CTL_REFUSED;
	}
	FILE *answer = fdopen(fd, "r");
	if (answer == NULL) {
		close(fd);
		return CTL_REFUSED;
	}
	int status = print_answer(ctl, answer);
	fclose(answer);
	return status;
}

int ctl_queue(struct ctl *ctl, int argc, char **argv)
{
	if (strcmp(argv[0], "list") == 0 && argc == 1)
		return ask(ctl, "list", "");
	if (strcmp(argv[0], "list") == 0 && argc == 2 && strcmp(argv[1], "--count") == 0)
		return ask(ctl, "count", "");
	if (argc == 2 && (strcmp(argv[0], "show") == 0 || strcmp(argv[0], "delete") == 0 ||
	                         strcmp(argv[0], "retry") == 0))
		return ask(ctl, argv[0], argv[1]);
	return ctl_usage("queue");
}

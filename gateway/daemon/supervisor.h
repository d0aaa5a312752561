/* SPDX-License-Identifier: ISC */
/*
 * The supervisor: reads the configuration and the secrets, binds the sockets, keeps
 * the three processes running. One thread, blocking calls, no byte from the network.
 */
#pragma once

/* Runs until SIGTERM or SIGINT; returns the exit status. SIGHUP reloads. */
int supervisor_main(const char *conf_path);

/* SPDX-License-Identifier: ISC */
/*
 * Worker threads for what must not run on a loop: disk, signatures, SASL.
 * A job is embedded in what it is about, runs once on some worker, then is done
 * back on its loop.
 */
#pragma once

#include <stddef.h>

#include "gateway/base/compiler.h"
#include "gateway/net/loop.h"

struct job {
	struct post post; /* private */
	struct loop *loop;
	void (*run)(struct job *job);  /* on a worker; owner of the object while it runs */
	void (*done)(struct job *job); /* on the loop */
};

struct jobs;

/* `threads` workers, at most `queue_max` jobs waiting. */
int jobs_new(unsigned threads, size_t queue_max, struct jobs **ret_jobs) must_check;

/* Any thread. 0, or -EAGAIN when the queue is full (nothing happens then). */
int jobs_submit(struct jobs *jobs, struct job *job) must_check;

/* Runs what is queued, joins the workers. `done` calls may still be posted to the loops. */
void jobs_free(struct jobs *jobs);

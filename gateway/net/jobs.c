/* SPDX-License-Identifier: ISC */
/* Worker threads; see jobs.h. */
#include "gateway/net/jobs.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

struct jobs {
	pthread_mutex_t lock; /* of all that follows */
	pthread_cond_t wakeup;
	struct post *first, **last;
	size_t queued, queue_max;
	bool ending;
	unsigned thread_count;
	pthread_t threads[];
};

static void on_done(struct post *post)
{
	struct job *job = container_of(post, struct job, post);

	job->done(job);
}

static struct job *next_job(struct jobs *jobs)
{
	struct post *post;

	pthread_mutex_lock(&jobs->lock);
	while (jobs->first == NULL && !jobs->ending)
		pthread_cond_wait(&jobs->wakeup, &jobs->lock);
	post = jobs->first;
	if (post != NULL) {
		jobs->first = post->next;
		if (jobs->first == NULL)
			jobs->last = &jobs->first;
		jobs->queued--;
	}
	pthread_mutex_unlock(&jobs->lock);
	return post != NULL ? container_of(post, struct job, post) : NULL;
}

static void *worker(void *arg)
{
	struct jobs *jobs = arg;
	struct job *job;

	while ((job = next_job(jobs)) != NULL) {
		job->run(job);
		job->post.run = on_done;
		loop_post(job->loop, &job->post);
	}
	return NULL;
}

int jobs_new(unsigned threads, size_t queue_max, struct jobs **ret_jobs)
{
	struct jobs *jobs = calloc(1, sizeof(*jobs) + threads * sizeof(pthread_t));

	if (jobs == NULL)
		return -ENOMEM;
	pthread_mutex_init(&jobs->lock, NULL);
	pthread_cond_init(&jobs->wakeup, NULL);
	jobs->last = &jobs->first;
	jobs->queue_max = queue_max;
	while (jobs->thread_count < threads) {
		int r = pthread_create(&jobs->threads[jobs->thread_count], NULL, worker, jobs);
		if (r != 0) {
			jobs_free(jobs);
			return -r;
		}
		jobs->thread_count++;
	}
	*ret_jobs = jobs;
	return 0;
}

int jobs_submit(struct jobs *jobs, struct job *job)
{
	pthread_mutex_lock(&jobs->lock);
	bool full = jobs->queued >= jobs->queue_max || jobs->ending;
	if (!full) {
		job->post.next = NULL;
		*jobs->last = &job->post;
		jobs->last = &job->post.next;
		jobs->queued++;
		pthread_cond_signal(&jobs->wakeup);
	}
	pthread_mutex_unlock(&jobs->lock);
	return full ? -EAGAIN : 0;
}

void jobs_free(struct jobs *jobs)
{
	if (jobs == NULL)
		return;
	pthread_mutex_lock(&jobs->lock);
	jobs->ending = true;
	pthread_cond_broadcast(&jobs->wakeup);
	pthread_mutex_unlock(&jobs->lock);
	for (unsigned i = 0; i < jobs->thread_count; i++)
		pthread_join(jobs->threads[i], NULL);
	pthread_cond_destroy(&jobs->wakeup);
	pthread_mutex_destroy(&jobs->lock);
	free(jobs);
}

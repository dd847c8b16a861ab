// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * Sends records into the ring of a running Tracer: source MAP_ID...
 *
 * The ids are those of all maps of the Tracer's process. Each line of standard input is an order,
 * "WAIT_US; SENDER; SENDER...": after that time all these senders start, each in a thread of its own.
 * Once all are done, one line of JSON answers it: when the last record was submitted (ns, wall
 * clock), and the Tracer's counters at that time. A sender is
 * "CPU COUNT SIZE PACE_US AFTER HOLD DELAY_US":
 *
 *   CPU       where it runs
 *   COUNT     how many records it sends
 *   SIZE      enum size in source.bpf.c; they take 224 bytes of the ring, large ones 12,000
 *   PACE_US   from one record to the next; 0: as fast as it can
 *   AFTER     it starts when the senders have made this many reservations
 *   HOLD      between reservation and submission: waits for this many records to be submitted,
 *   DELAY_US  then for this long
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "bootstrap.h"
#include "source.skel.h"

enum { MAX_SENDERS = 4 };

struct sender {
	unsigned int cpu, count, size, pace_us, after, hold, delay_us;
	pthread_t thread;
};

static struct source_bpf *skeleton;
static pthread_barrier_t pinned;

static void fail(const char *what, int err)
{
	fprintf(stderr, "source: %s: %s\n", what, strerror(err < 0 ? -err : err));
	exit(1);
}

static long long now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void sleep_until(long long ns)
{
	const struct timespec t = {ns / 1000000000, ns % 1000000000};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

/* ---- Sending ---- */

static void run_on(unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity", errno);
}

static void *send_all(void *arg)
{
	struct sender *s = arg;
	/* struct order of source.bpf.c */
	__u64 order[5] = {0, s->cpu, s->size, s->hold, s->delay_us * 1000ULL};
	LIBBPF_OPTS(bpf_test_run_opts, run, .ctx_in = order, .ctx_size_in = sizeof(order));
	int program = bpf_program__fd(skeleton->progs.send_record), err;
	long long begin;

	/* All threads must be on their CPUs before one keeps its CPU busy. */
	run_on(s->cpu);
	pthread_barrier_wait(&pinned);
	prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
	while (__atomic_load_n(&skeleton->data_source->reserved, __ATOMIC_ACQUIRE) < s->after)
		sched_yield();
	begin = now_ns(CLOCK_MONOTONIC);
	for (unsigned int i = 0; i < s->count; i++) {
		if (s->pace_us)
			sleep_until(begin + i * s->pace_us * 1000LL);
		order[0] = i + 1;
		err = bpf_prog_test_run_opts(program, &run);
		if (err)
			fail("cannot run the program", err);
	}
	return NULL;
}

static int parse(char *line, unsigned int *wait_us, struct sender *senders)
{
	char *part, *rest;
	int n = 0;

	part = strtok_r(line, ";", &rest);
	if (!part || sscanf(part, "%u", wait_us) != 1)
		fail("not an order", EINVAL);
	while ((part = strtok_r(NULL, ";", &rest)) && n < MAX_SENDERS) {
		struct sender *s = &senders[n++];

		if (sscanf(part, "%u %u %u %u %u %u %u", &s->cpu, &s->count, &s->size, &s->pace_us,
			   &s->after, &s->hold, &s->delay_us) != 7)
			fail("not a sender", EINVAL);
	}
	return n;
}

static void carry_out(char *line)
{
	struct sender senders[MAX_SENDERS];
	unsigned int wait_us;
	int n = parse(line, &wait_us, senders), err;
	long long ago_ns;

	skeleton->data_source->reserved = skeleton->data_source->done = 0;
	usleep(wait_us);
	if (n)
		pthread_barrier_init(&pinned, NULL, n);
	for (int i = 0; i < n; i++) {
		err = pthread_create(&senders[i].thread, NULL, send_all, &senders[i]);
		if (err)
			fail("pthread_create", err);
	}
	for (int i = 0; i < n; i++)
		pthread_join(senders[i].thread, NULL);
	if (skeleton->data_source->given_up)
		fail("a record was held for too long", ETIME);
	ago_ns = now_ns(CLOCK_BOOTTIME) - skeleton->data_source->submitted_ns;
	printf("{\"submitted_ns\": %lld, \"produced\": %llu, \"lost\": %llu}\n",
	       now_ns(CLOCK_REALTIME) - ago_ns, skeleton->bss->produced, skeleton->bss->lost);
	fflush(stdout);
}

/* ---- The Tracer's maps ---- */

/* Our map that corresponds to this one, or NULL. */
static struct bpf_map *counterpart(const struct bpf_map_info *info)
{
	const char *section = strchr(info->name, '.');

	if (info->type == BPF_MAP_TYPE_RINGBUF)
		return skeleton->maps.rb;
	if (section && strcmp(section, ".bss") == 0)
		return skeleton->maps.bss;
	if (section && strcmp(section, ".rodata") == 0)
		return skeleton->maps.rodata;
	return NULL;
}

static void share(int id)
{
	struct bpf_map_info info = {};
	unsigned int size = sizeof(info);
	int fd = bpf_map_get_fd_by_id(id), err;
	struct bpf_map *map;

	if (fd < 0 || bpf_obj_get_info_by_fd(fd, &info, &size))
		fail("cannot open a map", errno);
	map = counterpart(&info);
	if (map && map != skeleton->maps.rb && bpf_map__value_size(map) != info.value_size)
		fail("the Tracer was built from another source", EINVAL);
	if (map) {
		err = bpf_map__reuse_fd(map, fd) ?: bpf_map__set_autocreate(map, true);
		if (err)
			fail("cannot share a map", err);
	}
	close(fd);
}

static void load(int ids, char *id[])
{
	struct bpf_program *program;
	struct bpf_map *map;
	int err;

	skeleton = source_bpf__open();
	if (!skeleton)
		fail("cannot open", errno);
	bpf_object__for_each_program(program, skeleton->obj)
		bpf_program__set_autoload(program, program == skeleton->progs.send_record);
	bpf_object__for_each_map(map, skeleton->obj)
		bpf_map__set_autocreate(map, map == skeleton->maps.data_source);
	for (int i = 0; i < ids; i++)
		share(atoi(id[i]));
	err = source_bpf__load(skeleton);
	if (err)
		fail("cannot load", err);
}

int main(int argc, char *argv[])
{
	char line[256];

	load(argc - 1, argv + 1);
	while (fgets(line, sizeof(line), stdin))
		carry_out(line);
	source_bpf__destroy(skeleton);
	return 0;
}

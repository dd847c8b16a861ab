// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * Sends records into the ring buffer of a running Tracer, at a rate or as fast as it can.
 *
 *     synthetic RING_MAP_ID RECORDS_PER_S SECONDS CPU
 *
 * A rate of 0 means no limit. It prints its own counters as a JSON object: what it produced, what
 * found the ring full, and how long it took (ns). When it can read a byte, or the end, from
 * standard input, because the reader has caught up, one more run tells the reader's decoder of the
 * last losses; then it prints its counters again. So both sides can be compared exactly.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "../../bench/synthetic.h"
#include "synthetic.skel.h"

static int fail(const char *what, int err)
{
	fprintf(stderr, "synthetic: %s: %s\n", what, strerror(err < 0 ? -err : err));
	return 1;
}

static long long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int run_once(int program_fd)
{
	LIBBPF_OPTS(bpf_test_run_opts, options);

	return bpf_prog_test_run_opts(program_fd, &options);
}

/* Runs for that long; keeps the rate by waiting until the next run is due. */
static int run_for(int program_fd, double rate, double seconds)
{
	double ns_per_run = rate > 0 ? 1e9 * RECORDS_PER_RUN / rate : 0;
	long long begin = now_ns(), end = begin + (long long)(seconds * 1e9);
	int err = 0;

	for (long run = 0; !err && now_ns() < end; run++) {
		while (now_ns() < begin + (long long)(run * ns_per_run))
			;
		err = run_once(program_fd);
	}
	return err;
}

static struct synthetic_bpf *load(int ring_id)
{
	struct synthetic_bpf *skeleton = synthetic_bpf__open();
	struct bpf_map_info info = {};
	unsigned int size = sizeof(info);
	int ring_fd = bpf_map_get_fd_by_id(ring_id);

	if (!skeleton || ring_fd < 0 || bpf_obj_get_info_by_fd(ring_fd, &info, &size) ||
	    bpf_map__reuse_fd(skeleton->maps.rb, ring_fd))
		return NULL;
	skeleton->rodata->wakeup_bytes = info.max_entries / 4; /* as engine/tracer.py sets it */
	return synthetic_bpf__load(skeleton) ? NULL : skeleton;
}

static void print_counters(const struct synthetic_bpf *skeleton, long long wall_ns)
{
	printf("{\"produced\": %llu, \"lost\": %llu, \"wall_ns\": %lld}\n", skeleton->bss->produced,
	       skeleton->bss->lost, wall_ns);
	fflush(stdout);
}

int main(int argc, char *argv[])
{
	struct synthetic_bpf *skeleton;
	long long begin, wall_ns;
	int program_fd, err;
	cpu_set_t set;

	if (argc != 5)
		return fail("four arguments are needed", EINVAL);
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[4]), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		return fail("sched_setaffinity", errno);
	skeleton = load(atoi(argv[1]));
	if (!skeleton)
		return fail("cannot load", errno);
	program_fd = bpf_program__fd(skeleton->progs.send_records);
	begin = now_ns();
	err = run_for(program_fd, atof(argv[2]), atof(argv[3]));
	wall_ns = now_ns() - begin;
	if (err)
		return fail("cannot run", err);
	print_counters(skeleton, wall_ns);
	getchar();
	err = run_once(program_fd);
	if (err)
		return fail("cannot run", err);
	print_counters(skeleton, wall_ns);
	synthetic_bpf__destroy(skeleton);
	return 0;
}

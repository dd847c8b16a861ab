// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * The life of a handle, again and again, and its failures, for LeakSanitizer: leaks [TIMES].
 * run.py builds and runs it; Python itself would leak too much to tell.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bootstrap.h"
#include "shim.h"

static char buffer[SHIM_MIN_READ];

static void fail(const char *what, long result)
{
	fprintf(stderr, "leaks: %s: %ld\n", what, result);
	exit(1);
}

static void expect(const char *what, long result)
{
	if (result < 0)
		fail(what, result);
}

static void run_something(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		execl("/bin/true", "true", "an argument", NULL);
		_exit(1);
	}
	waitpid(pid, NULL, 0);
}

static struct shim_settings make_settings(void)
{
	struct shim_settings settings;

	memset(&settings, 0, sizeof(settings));
	settings.max_latency_ns = 10000000;
	settings.ring_size = 64 * 1024;
	settings.max_processes = 1000;
	settings.capture_args = 1;
	return settings;
}

/* Everything that a handle can do; what is in the ring at the end is not read. */
static void whole_life(void)
{
	struct shim_settings settings = make_settings();
	struct shim_stats stats;
	struct shim *shim;
	int n, records = 0;

	shim = shim_new();
	expect("open", shim_open(shim, &settings));
	expect("load", shim_load(shim));
	expect("attach", shim_attach(shim));
	run_something();
	while (records == 0) {
		expect("read", n = shim_read(shim, buffer, sizeof(buffer), 5000, 0, 0));
		records += n > 0;
		if (n == 0)
			fail("nothing was read", 0);
	}
	run_something();
	expect("wake", shim_wake(shim));
	expect("detach", shim_detach(shim));
	expect("stats", shim_stats(shim, &stats));
	if (stats.produced < stats.received + stats.lost)
		fail("counters", stats.produced);
	shim_free(shim);
}

static void closed_early(int steps)
{
	struct shim_settings settings = make_settings();
	struct shim *shim;

	shim = shim_new();
	expect("open", shim_open(shim, &settings));
	if (steps > 0)
		expect("load", shim_load(shim));
	if (steps > 1)
		expect("attach", shim_attach(shim));
	shim_free(shim);
}

/* The kernel refuses a map without room, and a cgroup that is none. */
static void refused(void)
{
	struct shim_settings settings = make_settings();
	struct shim *shim;

	settings.max_processes = 0;
	shim = shim_new();
	if (shim_open(shim, &settings) == 0 && shim_load(shim) == 0)
		fail("a map without room", 0);
	if (!shim_log(shim)[0])
		fail("nothing was said", 0);
	shim_free(shim);

	settings = make_settings();
	settings.filters.cgroups = 1;
	settings.cgroup[0] = STDERR_FILENO;
	shim = shim_new();
	expect("open", shim_open(shim, &settings));
	if (shim_load(shim) != -EBADF)
		fail("a cgroup that is none", 0);
	shim_free(shim);
}

int main(int argc, char **argv)
{
	int times = argc > 1 ? atoi(argv[1]) : 20;

	for (int i = 0; i < times; i++) {
		whole_life();
		closed_early(i % 3);
		refused();
	}
	shim_free(NULL);
	printf("%d lives of a handle\n", times);
	return 0;
}

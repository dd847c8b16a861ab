// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * Opens, uses and closes handles, with every failure, for LeakSanitizer: leaks [TIMES [OBJECT]].
 * run.py builds and runs it, because leaks in Python itself would hide ours.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

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

static struct shim *open_one(void)
{
	static const char *const others[] = {"handle_exec_old", "handle_exit_old", "exec_again",
					     "exit_again"};
	struct shim *shim = shim_new();

	expect("open", shim_open(shim, NULL, 0, 0));
	expect("ring", shim_set_max_entries(shim, "rb", 64 * 1024));
	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
		expect("autoload", shim_set_autoload(shim, others[i], 0));
	return shim;
}

static int load(struct shim *shim)
{
	return shim_load(shim, 10000000);
}

/* Everything that a handle can do; what is in the ring at the end is not read. */
static void whole_life(void)
{
	struct shim *shim = open_one();
	struct shim_stats stats;
	int n, records = 0;

	expect("load", load(shim));
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
	struct shim *shim = open_one();

	if (steps > 0)
		expect("load", load(shim));
	if (steps > 1)
		expect("attach", shim_attach(shim));
	shim_free(shim);
}

/* Opens an object from memory instead of the linked-in one. */
static void from_memory(const char *path)
{
	static char elf[1 << 20];
	FILE *file = fopen(path, "rb");
	size_t size = file ? fread(elf, 1, sizeof(elf), file) : 0;
	struct shim *shim = shim_new();

	if (!file || !size)
		fail(path, errno);
	fclose(file);
	expect("open", shim_open(shim, elf, size, 0));
	expect("ring", shim_set_max_entries(shim, "rb", 64 * 1024));
	expect("load", load(shim));
	expect("attach", shim_attach(shim));
	if (shim_attach_program(shim, "handle_exec", SHIM_XDP, 1) != -EALREADY)
		fail("attached twice", 0);
	shim_free(shim);
	shim = shim_new();
	if (shim_open(shim, elf, size / 2, 0) >= 0 || !shim_log(shim)[0])
		fail("half an object", 0);
	shim_free(shim);
}

/* The kernel refuses a map that is too large, and an entry that is not a cgroup. */
static void refused(void)
{
	struct shim *shim = open_one();
	int key = 0, fd = STDERR_FILENO;

	expect("entries", shim_set_max_entries(shim, "exec_start_more", 0));
	if (load(shim) == 0)
		fail("a map without room", 0);
	if (!shim_log(shim)[0])
		fail("nothing was said", 0);
	shim_free(shim);

	shim = open_one();
	expect("load", load(shim));
	if (shim_map_update(shim, "cgroups", &key, 4, &fd, 4) != -EBADF)
		fail("a cgroup that is none", 0);
	if (shim_map_update(shim, "nothing", &key, 4, &fd, 4) != -ENODEV)
		fail("a map that is none", 0);
	if (shim_set(shim, ".rodata", 0, &key, sizeof(key)) != -EINVAL)
		fail("a constant was changed", 0);
	shim_free(shim);
}

int main(int argc, char **argv)
{
	int times = argc > 1 ? atoi(argv[1]) : 20;

	for (int i = 0; i < times; i++) {
		whole_life();
		closed_early(i % 3);
		refused();
		if (argc > 2)
			from_memory(argv[2]);
	}
	shim_free(NULL);
	printf("%d lives of a handle\n", times);
	return 0;
}

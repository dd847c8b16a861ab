// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * A bounded storm of processes: N times vfork, exec of ./nothing beside this program, and wait4.
 *
 *     storm [-n SPAWNS] [-c CPU] [-i IDLE] [-p MICROSECONDS]
 *
 * -c binds all of it to one CPU; -i keeps that many idle processes alive meanwhile; -p spawns one
 * in each period of that many microseconds, otherwise each follows the previous one at once.
 *
 * It begins when it can read a byte or EOF from standard input, and exits only at EOF, so that a
 * measurement can exclude the storm's own exec and exit. SIGINT and
 * SIGTERM end it early. When it ends, all its processes have ended.
 *
 * The children run under a name of this storm's own, "nothing-PID", so that a tracer's lines about
 * them can be told from all others. When they have ended it prints one JSON object; times are in
 * ns, CPU times in us.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHUNKS 20 /* the median is taken over the means of this many parts of the storm */

static volatile sig_atomic_t ending;
static char path[4096]; /* of the link to ./nothing, named "nothing-PID" */
static char *name; /* its last part */

static void end(int signal)
{
	(void)signal;
	ending = 1;
}

static void fail(const char *what)
{
	fprintf(stderr, "storm: %s: %s\n", what, strerror(errno));
	if (*path)
		unlink(path);
	exit(1);
}

static long long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* A signal ends the wait too. */
static void await_input(void)
{
	char byte;

	if (read(STDIN_FILENO, &byte, 1) < 0 && errno != EINTR)
		fail("standard input");
}

static void make_link(void)
{
	char self[sizeof(path) - 32];
	ssize_t size = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (size < 0)
		fail("/proc/self/exe");
	self[size] = '\0';
	*strrchr(self, '/') = '\0';
	snprintf(path, sizeof(path), "%s/nothing-%d", self, getpid());
	name = strrchr(path, '/') + 1;
	if (symlink("nothing", path) && errno != EEXIST)
		fail(path);
}

static void bind_to(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity");
}

static pid_t spawn(bool idle)
{
	char *args[] = {name, idle ? "wait" : NULL, NULL};
	char *environment[] = {NULL};
	pid_t pid = vfork();

	if (pid < 0)
		fail("vfork");
	if (pid == 0) {
		if (idle)
			prctl(PR_SET_PDEATHSIG, SIGKILL);
		execve(path, args, environment);
		_exit(127);
	}
	return pid;
}

static void reap(pid_t pid, int expected)
{
	int status;

	while (wait4(pid, &status, 0, NULL) < 0)
		if (errno != EINTR)
			fail("wait4");
	if (status != expected) {
		fprintf(stderr, "storm: a process ended with status %#x\n", status);
		unlink(path);
		exit(1);
	}
}

/* Waits until the process sleeps, because a new process would run in the middle of the storm. */
static void await_sleep(pid_t pid)
{
	char file[64], line[128], state = 0;

	snprintf(file, sizeof(file), "/proc/%d/stat", pid);
	while (state != 'S') {
		FILE *stat = fopen(file, "r");

		if (!stat || !fgets(line, sizeof(line), stat))
			fail(file);
		fclose(stat);
		state = strrchr(line, ')')[2];
		if (state != 'S')
			usleep(1000);
	}
}

static pid_t *start_idle(long count)
{
	pid_t *pids = calloc(count ? count : 1, sizeof(*pids));

	if (!pids)
		fail("calloc");
	for (long i = 0; i < count; i++)
		pids[i] = spawn(true);
	for (long i = 0; i < count; i++)
		await_sleep(pids[i]);
	return pids;
}

static void end_idle(pid_t *pids, long count)
{
	for (long i = 0; i < count; i++)
		kill(pids[i], SIGTERM);
	for (long i = 0; i < count; i++)
		reap(pids[i], SIGTERM);
	free(pids);
}

static void await_time(long long ns)
{
	struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

	while (!ending && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

/* Returns how many were spawned; sets *spawn_ns to the mean. */
static long run_chunk(long count, long period_us, double *spawn_ns)
{
	long long begin = now_ns();
	long i;

	for (i = 0; i < count && !ending; i++) {
		reap(spawn(false), 0);
		if (period_us)
			await_time(begin + (i + 1) * period_us * 1000);
	}
	*spawn_ns = i ? (double)(now_ns() - begin) / i : 0;
	return i;
}

static int compare(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static double median(double *values, int count)
{
	qsort(values, count, sizeof(*values), compare);
	return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

static long long cpu_us(bool system)
{
	struct rusage self, children;
	long long us = 0;

	getrusage(RUSAGE_SELF, &self);
	getrusage(RUSAGE_CHILDREN, &children);
	for (int i = 0; i < 2; i++) {
		struct rusage *r = i ? &children : &self;
		struct timeval *t = system ? &r->ru_stime : &r->ru_utime;

		us += t->tv_sec * 1000000LL + t->tv_usec;
	}
	return us;
}

int main(int argc, char *argv[])
{
	long spawns = 20000, idle = 0, period_us = 0, done = 0;
	double chunk_ns[CHUNKS];
	long long begin, wall_ns, user_us, system_us;
	struct sigaction on_signal = {.sa_handler = end}; /* without SA_RESTART */
	int option, cpu = -1;
	pid_t *pids;

	while ((option = getopt(argc, argv, "n:c:i:p:")) != -1) {
		long *value = option == 'n' ? &spawns : option == 'i' ? &idle : &period_us;

		if (option == '?')
			return 2;
		if (option == 'c')
			cpu = atoi(optarg);
		else
			*value = atol(optarg);
	}
	sigaction(SIGINT, &on_signal, NULL);
	sigaction(SIGTERM, &on_signal, NULL);
	make_link();
	if (cpu >= 0)
		bind_to(cpu);
	pids = start_idle(idle);
	await_input();
	user_us = cpu_us(false);
	system_us = cpu_us(true);
	begin = now_ns();
	for (int i = 0; i < CHUNKS; i++)
		done += run_chunk(spawns * (i + 1) / CHUNKS - spawns * i / CHUNKS, period_us,
				  &chunk_ns[i]);
	wall_ns = now_ns() - begin;
	user_us = cpu_us(false) - user_us;
	system_us = cpu_us(true) - system_us;
	end_idle(pids, idle);
	unlink(path);
	printf("{\"name\": \"%s\", \"spawns\": %ld, \"idle\": %ld, \"wall_ns\": %lld, "
	       "\"spawn_ns\": %.0f, \"user_us\": %lld, \"system_us\": %lld}\n",
	       name, done, idle, wall_ns, median(chunk_ns, CHUNKS), user_us, system_us);
	fflush(stdout);
	if (!ending)
		await_input();
	return 0;
}

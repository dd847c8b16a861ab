// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * A process that behaves as its arguments say: one word after the other, "[ ... ]" being the words
 * of a child. workload.py writes the scripts; each word is explained where it is executed.
 *
 * It is also the witness. It appends one JSON line to the file BEHAVE_FD
 *   - "image" at the start of each program image, that is, for each successful exec;
 *   - "born" in each forked child;
 *   - "reap" for each child that it waits for: what wait4(2) returned.
 * All ids in it are those that /proc shows. Every loop and every sleep is bounded.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum {
	READY_FD = 198, /* "hang" reports here that it hangs */
	MAX_THREADS = 1024,
	MAX_WAIT_S = 10,
	KEPT_ARGS = 8192, /* bytes of arguments that the witness reports */
	FAILED = 98, /* exit status: this program or its script is wrong */
};

/* The words of one process, which one of its threads executes. */
struct script {
	char **word;
	int count;
	int next;
};

static int witness_fd = -1;
static char *self; /* this program's path */
static int my_pid; /* as /proc shows it */

static void run(struct script *s);

/* ---- Small things ---- */

static void die(const char *what)
{
	fprintf(stderr, "behave: %s: %s\n", what, strerror(errno));
	syscall(SYS_exit_group, FAILED);
}

static char *take(struct script *s)
{
	if (s->next >= s->count)
		die("a word is missing");
	return s->word[s->next++];
}

static int take_number(struct script *s)
{
	return atoi(take(s));
}

/* "[ ... ]": the words of a child. */
static struct script take_child(struct script *s)
{
	struct script child = {.word = s->word + s->next + 1};
	int depth = 0;

	do {
		char *word = take(s);

		depth += !strcmp(word, "[") - !strcmp(word, "]");
	} while (depth > 0);
	child.count = (int)(s->word + s->next - child.word) - 1;
	return child;
}

static void sleep_ms(int ms)
{
	struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};

	while (nanosleep(&t, &t) && errno == EINTR)
		;
}

static long long clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void exit_thread(int code)
{
	syscall(SYS_exit, code);
}

/* ---- Witness ---- */

struct who {
	int pid, ppid, sid, uid, gid;
	char state;
	char comm[64];
	unsigned long long start; /* clock ticks since boot */
};

/* The start of the file /proc/NAME/FILE; an empty string if it cannot be read. */
static void read_proc(char *text, size_t size, const char *name, const char *file)
{
	char path[64];
	ssize_t n = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/%s", name, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, text, size - 1);
		close(fd);
	}
	text[n > 0 ? n : 0] = '\0';
}

/* What /proc says about a process or a zombie; NAME is "self" or a pid. */
static struct who look_up(const char *name)
{
	struct who who = {};
	char text[2048];
	char *comm, *after, *line;

	read_proc(text, sizeof(text), name, "stat");
	who.pid = atoi(text);
	comm = strchr(text, '(');
	after = strrchr(text, ')');
	if (!comm || !after)
		return who;
	*after = '\0';
	snprintf(who.comm, sizeof(who.comm), "%s", comm + 1);
	sscanf(after + 1,
	       " %c %d %*d %d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %llu",
	       &who.state, &who.ppid, &who.sid, &who.start);
	read_proc(text, sizeof(text), name, "status");
	line = strstr(text, "\nUid:");
	if (line)
		sscanf(line, "\nUid: %d %*d %*d %*d Gid: %d", &who.uid, &who.gid);
	return who;
}

static struct who look_up_pid(pid_t pid)
{
	char name[16];

	snprintf(name, sizeof(name), "%d", pid);
	return look_up(name);
}

/* One write, so that lines of several processes do not mix: the file is open for appending. */
static void say(const char *line, int size)
{
	if (write(witness_fd, line, size) != size)
		die("witness");
}

static char *put_hex(char *to, const char *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		to += sprintf(to, "%02x", (unsigned char)bytes[i]);
	return to;
}

/* The start of a line: who it is about, and when. */
static char *put_who(char *line, const char *kind, const struct who *who)
{
	line += sprintf(line,
			"{\"kind\":\"%s\",\"pid\":%d,\"start\":%llu,\"ppid\":%d,\"sid\":%d,"
			"\"uid\":%d,\"gid\":%d,\"time_ns\":%lld,\"comm\":\"",
			kind, who->pid, who->start, who->ppid, who->sid, who->uid, who->gid,
			clock_ns(CLOCK_BOOTTIME));
	return stpcpy(put_hex(line, who->comm, strlen(who->comm)), "\"");
}

/* A new child reports its parent, because it may be an orphan already. */
static void say_born(void)
{
	struct who me = look_up("self");
	int maker = my_pid;
	char line[512];
	char *end = put_who(line, "born", &me);

	my_pid = me.pid;
	end += sprintf(end, ",\"ns_pid\":%d,\"by\":%d}\n", getpid(), maker);
	say(line, end - line);
}

/* The user has changed. Without a leader /proc still shows the old one. */
static void say_user(void)
{
	struct who me = look_up("self");
	char line[512];
	char *end;

	me.uid = getuid();
	me.gid = getgid();
	end = put_who(line, "user", &me);
	end = stpcpy(end, "}\n");
	say(line, end - line);
}

static void say_image(int argc, char **argv)
{
	static char line[2 * (KEPT_ARGS + 4128) + 512];
	const char *filename = (const char *)getauxval(AT_EXECFN);
	size_t size = argv[argc - 1] + strlen(argv[argc - 1]) + 1 - argv[0];
	struct who me = look_up("self");
	char *end = put_who(line, "image", &me);

	my_pid = me.pid;
	end += sprintf(end, ",\"ns_pid\":%d,\"args_size\":%zu", getpid(), size);
	end = put_hex(stpcpy(end, ",\"filename\":\""), filename, strlen(filename));
	end = put_hex(stpcpy(end, "\",\"args\":\""), argv[0], size < KEPT_ARGS ? size : KEPT_ARGS);
	end = stpcpy(end, "\"}\n");
	say(line, end - line);
}

static long long microseconds(struct timeval t)
{
	return t.tv_sec * 1000000LL + t.tv_usec;
}

static void say_reaped(struct who child, int status, struct rusage *u)
{
	char line[1024];
	char *end = put_who(line, "reap", &child);
	struct who me = look_up("self");

	end += sprintf(
		end,
		",\"by\":%d,\"by_start\":%llu,\"status\":%d,\"user_us\":%lld,\"system_us\":%lld,"
		"\"max_rss_kb\":%ld,\"minor_faults\":%ld,\"major_faults\":%ld,"
		"\"read_blocks\":%ld,\"write_blocks\":%ld,\"voluntary\":%ld,"
		"\"involuntary\":%ld}\n",
		me.pid, me.start, status, microseconds(u->ru_utime), microseconds(u->ru_stime),
		u->ru_maxrss, u->ru_minflt, u->ru_majflt, u->ru_inblock, u->ru_oublock, u->ru_nvcsw,
		u->ru_nivcsw);
	say(line, end - line);
}

/* Waits for one child (0: any) and reports it; false if there is none. */
static bool reap(pid_t pid)
{
	siginfo_t info = {};
	struct rusage usage;
	struct who child;
	int status;

	while (waitid(pid ? P_PID : P_ALL, pid, &info, WEXITED | WNOWAIT))
		if (errno != EINTR)
			return false;
	child = look_up_pid(info.si_pid); /* now it is a zombie: its start time can be read */
	if (wait4(info.si_pid, &status, 0, &usage) != info.si_pid)
		die("wait4");
	say_reaped(child, status, &usage);
	return true;
}

/* ---- Children ---- */

static pid_t fork_script(struct script child)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid)
		return pid;
	say_born();
	run(&child);
	_exit(0);
}

/* The argument list of a new image of this program that goes on with these words. */
static char **make_argv(char *name, struct script *s)
{
	char **argv = calloc(s->count - s->next + 2, sizeof(*argv));

	argv[0] = name;
	memcpy(argv + 1, s->word + s->next, (s->count - s->next) * sizeof(*argv));
	return argv;
}

static void vfork_exec(struct script child)
{
	char **argv = make_argv(self, &child);
	pid_t pid = vfork();

	if (!pid) {
		execve(self, argv, environ);
		_exit(FAILED);
	}
	reap(pid);
}

static void vfork_exit(int code)
{
	pid_t pid = vfork();

	if (!pid)
		_exit(code);
	reap(pid);
}

/* Runs a child and sends it a signal once it reports that it hangs. */
static void kill_child(int number, struct script child)
{
	int ready[2];
	char byte;
	pid_t pid;

	if (pipe2(ready, O_CLOEXEC) || dup2(ready[1], READY_FD) < 0)
		die("pipe");
	pid = fork_script(child);
	close(ready[1]);
	close(READY_FD);
	if (read(ready[0], &byte, 1) == 1)
		kill(pid, number);
	close(ready[0]);
	reap(pid);
}

static void hang(void)
{
	if (write(READY_FD, "", 1) != 1)
		die("hang");
	sleep_ms(MAX_WAIT_S * 1000);
	syscall(SYS_exit_group, FAILED);
}

/* Stops this process; a child sees that and continues it. */
static void stop_self(void)
{
	pid_t parent = getpid();
	pid_t helper = fork();

	if (!helper) {
		say_born();
		for (int i = 0; i < MAX_WAIT_S * 1000 && look_up_pid(parent).state != 'T'; i++)
			sleep_ms(1);
		kill(parent, SIGCONT);
		_exit(0);
	}
	kill(parent, SIGSTOP);
	reap(helper);
}

/* ---- Debuggers ---- */

static bool has_ended(int code)
{
	return code == CLD_EXITED || code == CLD_KILLED || code == CLD_DUMPED;
}

/*
 * Continues a tracee after each stop, with the signal that stopped it, until it has ended, or is no
 * tracee any more because another thread's exec replaced it. The kernel does not always report the
 * latter to a sleeping tracer, so this polls.
 */
static void let_run(pid_t pid)
{
	for (int i = 0; i < MAX_WAIT_S * 1000; i++) {
		siginfo_t info = {};
		int status, number;

		if (waitid(P_PID, pid, &info, WEXITED | WSTOPPED | WNOWAIT | WNOHANG | __WALL))
			return;
		if (has_ended(info.si_code))
			return;
		if (!info.si_pid) {
			sleep_ms(1);
			continue;
		}
		waitpid(pid, &status, __WALL);
		number = WSTOPSIG(status);
		ptrace(PTRACE_CONT, pid, 0L,
		       number == SIGSTOP || number == SIGTRAP || status >> 16 ? 0L : (long)number);
	}
}

static pid_t fork_tracee(struct script child)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	say_born();
	ptrace(PTRACE_TRACEME, 0, 0, 0);
	raise(SIGSTOP);
	run(&child);
	_exit(0);
}

static void trace_child(struct script child)
{
	pid_t pid = fork_tracee(child);

	let_run(pid);
	reap(pid);
}

/* Kills a tracee while it is stopped for its debugger. */
static void kill_tracee(void)
{
	pid_t pid = fork_tracee((struct script){});
	int status;

	waitpid(pid, &status, __WALL);
	kill(pid, SIGKILL);
	reap(pid);
}

/* A child whose debugger is not its parent: for the kernel, task->parent is then the debugger. */
static void attach_sibling(struct script child)
{
	int go[2];
	char byte;
	pid_t pid, debugger;

	if (pipe2(go, O_CLOEXEC))
		die("pipe");
	pid = fork();
	if (!pid) {
		say_born();
		close(go[1]);
		if (read(go[0], &byte, 1) != 1)
			die("debugger");
		run(&child);
		_exit(0);
	}
	debugger = fork();
	if (!debugger) {
		say_born();
		if (ptrace(PTRACE_SEIZE, pid, 0L, 0L) || write(go[1], "", 1) != 1)
			die("seize");
		let_run(pid);
		_exit(waitpid(pid, NULL, __WALL | WNOHANG) == pid ? 0 : FAILED);
	}
	close(go[0]);
	close(go[1]);
	reap(debugger);
	reap(pid);
}

/* ---- Threads ---- */

static pthread_t start_thread(void *(*body)(void *), void *arg)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 128 * 1024);
	errno = pthread_create(&thread, &attr, body, arg);
	if (errno)
		die("thread");
	return thread;
}

/* What a thread does at its end: "exit", "pexit", "sysexit:N", "group:N", "sleep:MS", "hang". */
static void *end_thread(void *arg)
{
	const char *how = arg;
	const char *colon = strchr(how, ':');
	int number = colon ? atoi(colon + 1) : 0;

	if (!strncmp(how, "sleep", 5))
		sleep_ms(number);
	else if (!strcmp(how, "hang"))
		sleep_ms(MAX_WAIT_S * 1000);
	else if (!strncmp(how, "sysexit", 7))
		exit_thread(number);
	else if (!strncmp(how, "group", 5))
		syscall(SYS_exit_group, number);
	else if (!strcmp(how, "pexit"))
		pthread_exit(NULL);
	return NULL;
}

static void *run_in_thread(void *arg)
{
	run(arg);
	_exit(0);
}

/* A new thread executes the rest of the script, while this one does what `how` says. */
static void go_on_in_thread(struct script *s, char *how)
{
	struct script *rest = malloc(sizeof(*rest)); /* this thread's stack may be unwound */

	*rest = *s;
	start_thread(run_in_thread, rest);
	end_thread(how);
	pthread_exit(NULL);
}

static pthread_barrier_t barrier;

struct member {
	int number;
	const char *how;
	int code;
};

static void *end_in_crowd(void *arg)
{
	struct member *m = arg;

	pthread_barrier_wait(&barrier);
	if (!strcmp(m->how, "each"))
		exit_thread(m->code);
	else if (!strcmp(m->how, "group"))
		syscall(SYS_exit_group, m->code);
	pthread_exit(NULL);
}

/*
 * count threads, the leader among them, end at once: "each" for itself with a code of its own,
 * "group" with each trying to end them all, "pexit" as pthread_exit() does.
 */
static void end_crowd(int count, const char *how)
{
	static struct member member[MAX_THREADS];

	pthread_barrier_init(&barrier, NULL, count);
	for (int i = 0; i < count; i++) {
		member[i] = (struct member){.number = i, .how = how, .code = i ? i : 200};
		if (i)
			start_thread(end_in_crowd, &member[i]);
	}
	end_in_crowd(&member[0]);
}

static void *burn(void *arg)
{
	long long ns = *(int *)arg * 1000000LL; /* bounded: this clock runs while the loop does */

	while (clock_ns(CLOCK_THREAD_CPUTIME_ID) < ns)
		;
	return NULL;
}

/* Burns ms of CPU time, spread over count threads. */
static void burn_in_threads(int ms, int count)
{
	pthread_t thread[MAX_THREADS];
	int each = ms / count;

	for (int i = 0; i < count; i++)
		thread[i] = start_thread(burn, &each);
	for (int i = 0; i < count; i++)
		pthread_join(thread[i], NULL);
}

/* ---- Memory, files, identity ---- */

static void touch(int mb)
{
	size_t size = (size_t)mb << 20;
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	madvise(p, size, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < size; i += 4096)
		p[i] = 1;
}

/* Writes a file through to the disk and reads it back from there. */
static void use_disk(int kb)
{
	static char block[1024];
	char name[] = "io-XXXXXX";
	int fd = mkstemp(name);

	if (fd < 0)
		return;
	for (int i = 0; i < kb; i++)
		if (write(fd, block, sizeof(block)) < 0)
			break;
	fsync(fd);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	lseek(fd, 0, SEEK_SET);
	for (int i = 0; i < kb; i++)
		if (read(fd, block, sizeof(block)) <= 0)
			break;
	close(fd);
	unlink(name);
}

/* With `on`, a core dump goes into a directory of its own below the current one. */
static void set_core_limit(bool on)
{
	struct rlimit limit = {.rlim_cur = on ? RLIM_INFINITY : 0, .rlim_max = RLIM_INFINITY};
	char name[32];

	setrlimit(RLIMIT_CORE, &limit);
	snprintf(name, sizeof(name), "core-%d", look_up("self").pid);
	if (on)
		mkdir(name, 0777); /* it is there when the pid was used before */
	if (on && chdir(name))
		perror("behave: core directory");
}

/* Whether the state of another thread is none of these: see proc_pid_stat(5). */
static bool another_than(const char *states)
{
	char path[64], self[64], state;
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *task;
	bool found = false;
	ssize_t size = 0;
	FILE *file;

	/* As /proc names it, because gettid(2) differs in another pid namespace. */
	if (!tasks || (size = readlink("/proc/thread-self", self, sizeof(self) - 1)) < 0)
		die("/proc/self/task");
	self[size] = '\0';
	while ((task = readdir(tasks))) {
		if (task->d_name[0] == '.' || !strcmp(task->d_name, strrchr(self, '/') + 1))
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%.20s/stat", task->d_name);
		file = fopen(path, "re");
		if (!file) /* gone */
			continue;
		if (fscanf(file, "%*d (%*[^)]) %c", &state) == 1)
			found |= !strchr(states, state);
		fclose(file);
	}
	closedir(tasks);
	return found;
}

static bool leader_has_ended(void)
{
	FILE *file = fopen("/proc/self/stat", "re");
	char state;

	if (!file || fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
		die("/proc/self/stat");
	fclose(file);
	return state == 'Z';
}

/*
 * glibc changes the user of each thread by a signal, and waits for it. A thread that ends by the
 * bare system call meanwhile never answers; those threads do so at once. Since glibc 2.43 a leader
 * that has ended so is waited for, too, so then this thread changes its own user when it is alone.
 */
static void become(int uid)
{
	while (another_than("SZX"))
		sleep_ms(1);
	if (leader_has_ended()) {
		while (another_than("ZX"))
			sleep_ms(1);
		if (syscall(SYS_setresgid, uid, uid, uid) || syscall(SYS_setresuid, uid, uid, uid))
			die("setuid");
	} else if (setresgid(uid, uid, uid) || setresuid(uid, uid, uid)) {
		die("setuid");
	}
	say_user();
}

static void in_new_pid_namespace(struct script child)
{
	int ours = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	pid_t pid;

	if (ours < 0 || unshare(CLONE_NEWPID))
		die("unshare");
	pid = fork_script(child);
	if (setns(ours, CLONE_NEWPID))
		die("setns");
	close(ours);
	reap(pid);
}

/* count children alive at once, for ms; then each is killed, one by SIGKILL, one by SIGTERM. */
static void keep_herd(int count, int ms)
{
	pid_t *pid = calloc(count, sizeof(*pid));

	for (int i = 0; i < count; i++) {
		pid[i] = fork();
		if (pid[i] < 0) {
			perror("behave: herd");
			count = i;
		} else if (!pid[i]) {
			sleep_ms(MAX_WAIT_S * 12 * 1000);
			_exit(FAILED);
		}
	}
	sleep_ms(ms);
	for (int i = 0; i < count; i++)
		kill(pid[i], i % 2 ? SIGTERM : SIGKILL);
	while (reap(0))
		;
	free(pid);
}

/* ---- Exec ---- */

/* Continues in a new image of the file at path; returns if that fails. */
static void exec_path(char *path, struct script *s)
{
	execve(path, make_argv(path, s), environ);
}

/* Like exec, with count more arguments of size bytes each after the script. */
static void exec_padded(struct script *s, int count, int size)
{
	char **argv = calloc(s->count - s->next + count + 3, sizeof(*argv));
	char *pad = calloc(size + 1, 1);
	int n = 0;

	memset(pad, 'x', size);
	argv[n++] = self;
	while (s->next < s->count)
		argv[n++] = take(s);
	argv[n++] = "--";
	while (count-- > 0)
		argv[n++] = pad;
	execve(self, argv, environ);
	die("exec with many arguments");
}

static void exec_fd(struct script *s)
{
	int fd = open(self, O_RDONLY);

	fexecve(fd, make_argv("by-descriptor", s), environ);
	die("fexecve");
}

/* ---- Words ---- */

static bool is(const char *word, const char *other)
{
	return !strcmp(word, other);
}

static void crash(void)
{
	volatile int *nowhere = NULL;

	*nowhere = 1;
}

static bool run_ending(struct script *s, const char *word)
{
	if (is(word, "exit"))
		_exit(take_number(s)); /* exit_group */
	else if (is(word, "cexit"))
		exit(take_number(s));
	else if (is(word, "sysexit"))
		exit_thread(take_number(s)); /* this thread only */
	else if (is(word, "pexit"))
		pthread_exit(NULL);
	else if (is(word, "raise"))
		raise(take_number(s));
	else if (is(word, "killself"))
		kill(getpid(), take_number(s));
	else if (is(word, "segv"))
		crash();
	else if (is(word, "abort"))
		abort();
	else if (is(word, "hang"))
		hang();
	else if (is(word, "crowd")) {
		int count = take_number(s);

		end_crowd(count, take(s));
	} else
		return false;
	return true;
}

static bool run_child_word(struct script *s, const char *word)
{
	int number;

	if (is(word, "fork"))
		reap(fork_script(take_child(s)));
	else if (is(word, "bg"))
		fork_script(take_child(s)); /* left for "reap", or an orphan */
	else if (is(word, "reap"))
		while (reap(0))
			;
	else if (is(word, "vforkexec"))
		vfork_exec(take_child(s));
	else if (is(word, "vforkexit"))
		vfork_exit(take_number(s));
	else if (is(word, "killed")) {
		number = take_number(s);
		kill_child(number, take_child(s));
	} else if (is(word, "traced"))
		trace_child(take_child(s));
	else if (is(word, "tracekill"))
		kill_tracee();
	else if (is(word, "attached"))
		attach_sibling(take_child(s));
	else if (is(word, "newpid"))
		in_new_pid_namespace(take_child(s));
	else if (is(word, "stop"))
		stop_self();
	else if (is(word, "herd")) {
		number = take_number(s);
		keep_herd(number, take_number(s));
	} else
		return false;
	return true;
}

static bool run_exec_word(struct script *s, const char *word)
{
	int number;

	if (is(word, "exec"))
		exec_path(self, s);
	else if (is(word, "execpath"))
		exec_path(take(s), s);
	else if (is(word, "execfd"))
		exec_fd(s);
	else if (is(word, "execpad")) {
		number = take_number(s);
		exec_padded(s, number, take_number(s));
	} else
		return false;
	return true;
}

static bool run_thread_word(struct script *s, const char *word)
{
	int number;

	if (is(word, "inthread"))
		go_on_in_thread(s, take(s));
	else if (is(word, "threads")) {
		number = take_number(s);
		for (char *how = take(s); number > 0; number--)
			start_thread(end_thread, how);
	} else if (is(word, "burn")) {
		number = take_number(s);
		burn_in_threads(number, take_number(s));
	} else
		return false;
	return true;
}

static bool run_state_word(struct script *s, const char *word)
{
	if (is(word, "sleep"))
		sleep_ms(take_number(s));
	else if (is(word, "touch"))
		touch(take_number(s));
	else if (is(word, "disk"))
		use_disk(take_number(s));
	else if (is(word, "core"))
		set_core_limit(take_number(s));
	else if (is(word, "uid"))
		become(take_number(s));
	else if (is(word, "comm"))
		prctl(PR_SET_NAME, take(s));
	else if (is(word, "setsid"))
		setsid();
	else
		return false;
	return true;
}

static void run(struct script *s)
{
	while (s->next < s->count) {
		const char *word = take(s);

		if (!run_state_word(s, word) && !run_child_word(s, word) &&
		    !run_exec_word(s, word) && !run_thread_word(s, word) && !run_ending(s, word)) {
			errno = EINVAL;
			die(word);
		}
	}
}

int main(int argc, char **argv)
{
	struct script s = {.word = argv, .count = argc, .next = 1};
	const char *fd = getenv("BEHAVE_FD");

	self = getenv("BEHAVE_SELF");
	if (!fd || !self)
		die("BEHAVE_FD and BEHAVE_SELF must be set");
	witness_fd = atoi(fd);
	say_image(argc, argv);
	for (int i = 1; i < argc; i++)
		if (is(argv[i], "--")) {
			s.count = i;
			break;
		}
	if (argc > 1 && argv[1][0] == '/')
		s.next = 2; /* the path of a "#!" script */
	run(&s);
	return 0;
}

// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * The only place that calls the skeleton and libbpf. It holds no Python: cffi wraps it (build.py).
 *
 * Reading: an epoll set holds four descriptors, each marked with what it tells (enum woken_by).
 *   - the ring buffer map, edge-triggered: the kernel woke us (see bpf/ring.bpf.h for when it does);
 *   - a timer: records have gathered long enough; whoever waits on shim_fd() sees it too;
 *   - an eventfd: shim_wake();
 *   - a pipe: shim_signal_fd().
 *
 * Calls: each counts itself in and out; shim_close() refuses new ones, and the last one that leaves
 * frees what there is. So nothing is freed under a call of another thread or an interrupted one.
 */
#define _GNU_SOURCE /* setresuid(), pipe2() */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <linux/capability.h>
#include <linux/membarrier.h>

#include "bootstrap.h"
#include "shim.h"
/* The generated code is not ours to tidy. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wsign-compare"
#include "bootstrap.skel.h"
#pragma GCC diagnostic pop

#define NSEC_PER_SEC 1000000000LL

/* Python takes records apart by these offsets, and copies them as bytes: no padding anywhere. */
_Static_assert(sizeof(struct record) == 24, "struct record has padding");
_Static_assert(sizeof(struct process) == 56, "struct process has padding");
_Static_assert(sizeof(struct exec_record) == 24 + 56 + 8, "struct exec_record has padding");
_Static_assert(sizeof(struct exit_record) == 24 + 56 + 8 + 8 + 80 + 8,
	       "struct exit_record has padding");
_Static_assert(sizeof(struct exit_record) + TEXT_SIZE <= SHIM_MIN_READ,
	       "a read buffer must hold any record");
_Static_assert(2 * (sizeof(struct exit_record) + TEXT_SIZE) <= SHIM_MIN_RING,
	       "any ring must hold any record");

enum { NOT_SUPPORTED = 524 }; /* the kernel's ENOTSUPP, which errno.h lacks */

enum woken_by { BY_RING = 1, BY_TIMER = 2, BY_STOP = 4, BY_SIGNAL = 8 };

struct shim {
	atomic_uint calls; /* in progress, and CLOSED */
	bool released;
	struct bootstrap_bpf *skeleton;
	bool old; /* handle_exec_old and handle_exit_old run */
	struct ring_buffer *rb;
	int epoll_fd;
	int timer_fd;
	int wake_fd;
	int signal_pipe[2];
	struct shim_settings settings;
	unsigned long long received;
	unsigned long long missed; /* as of the last shim_stats() that was allowed to know */
	unsigned long long lost; /* as of the last read that emptied the ring */
	unsigned long long told; /* of these, by records and SHIM_LOSS */
	unsigned long long batches; /* that were moved to the caller's buffer */
	int batch; /* what was returned for the last one */
	unsigned long long filled_at; /* bss->filled_at as of the last drain */
	long long looked_ns; /* when the last drain began: CLOCK_BOOTTIME as the kernel has it */
	bool gathering; /* the ring woke us, and the timer is set */
	bool behind; /* the last drain left a record that was not submitted yet */
	bool more; /* the last drain filled its buffer, so the ring may hold more */

	/* The read under way, for take_record(). */
	char *buffer;
	unsigned int size;
	unsigned int used;
	long long wall_offset_ns;
	long long namespace_ns; /* our time namespace's CLOCK_BOOTTIME is ahead of the kernel's */

	/* What libbpf said. */
	FILE *log_stream;
	char *log;
	size_t log_size;
};

static int take_record(void *ctx, void *data, size_t size);

/* ---- Calls in progress ---- */

#define CLOSED (1u << 31)

static void release(struct shim *s);

static bool enter(struct shim *s)
{
	unsigned int calls;

	if (!s)
		return false;
	calls = atomic_load(&s->calls);
	do {
		if (calls & CLOSED)
			return false;
	} while (!atomic_compare_exchange_weak(&s->calls, &calls, calls + 1));
	return true;
}

static int leave(struct shim *s, int result)
{
	if (atomic_fetch_sub(&s->calls, 1) == (CLOSED | 1))
		release(s);
	return result;
}

/* ---- What is about this tool, and not about any: its settings and its counters ---- */

static long long now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

static bool kernel_is_at_least(unsigned int want_major, unsigned int want_minor)
{
	unsigned int major = 0, minor = 0;
	struct utsname name;

	if (uname(&name) || sscanf(name.release, "%u.%u", &major, &minor) < 1)
		return false;
	return major > want_major || (major == want_major && minor >= want_minor);
}

/*
 * How many processes have a slot in the array of the process table: half of those it is made for,
 * and with their text, which takes 448 bytes each, an eighth.
 */
static unsigned int count_slots(const struct shim_settings *o)
{
	unsigned int most = o->max_processes / (o->capture_args ? 8 : 2), slots = 1;

	while (slots <= most / 2)
		slots *= 2;
	return slots;
}

/*
 * An entry of the map must outlive the exit of its process. Each CPU takes free entries by the 128,
 * and before Linux 6.16 the kernel recycled fresh ones when that left too few.
 */
static unsigned int count_claims(bool twice)
{
	int cpus = libbpf_num_possible_cpus();

	/* Then nobody claims anything: the tracepoint says which thread is the last. */
	if (kernel_is_at_least(6, 16) && !twice)
		return 1;
	return cpus > 32 ? 512 * cpus : 16384;
}

static int apply_settings(struct shim *s)
{
	const struct shim_settings *o = &s->settings;
	struct bootstrap_bpf *skeleton = s->skeleton;
	const bool old = s->old, twice = kernel_is_at_least(7, 0) && !old;
	unsigned int texts = o->capture_args ? o->max_processes : 1;
	/* Linux 5.10 has no map larger than 4 GiB, even of entries that are not there yet. */
	unsigned int short_texts = texts < 1 << 22 ? texts : 1 << 22;
	/* And whoever runs programs with long arguments shall not fill more than 64 MiB. */
	unsigned int long_texts = texts < 4096 ? texts : 4096;
	unsigned int slots = count_slots(o), slot_texts = o->capture_args ? slots : 1;
	int err;

	skeleton->rodata->min_duration_ns = o->min_duration_ns;
	skeleton->rodata->wakeup_bytes = o->ring_size / 4;
	skeleton->rodata->capture_args = o->capture_args;
	skeleton->rodata->filters = o->filters;
	skeleton->rodata->preemptible = twice;
	skeleton->rodata->slots = slots;
	err = bpf_map__set_max_entries(skeleton->maps.rb, o->ring_size);
	err = err ?: bpf_map__set_max_entries(skeleton->maps.exec_start, slots);
	err = err ?: bpf_map__set_max_entries(skeleton->maps.exec_start_more, o->max_processes);
	err = err ?: bpf_map__set_max_entries(skeleton->maps.exec_text, slot_texts);
	err = err ?: bpf_map__set_max_entries(skeleton->maps.exec_text_more, short_texts);
	err = err ?: bpf_map__set_max_entries(skeleton->maps.exec_text_long, long_texts);
	err = err ?: bpf_map__set_max_entries(skeleton->maps.captured, twice ? 2 : 1);
	err = err ?: bpf_map__set_max_entries(skeleton->maps.claims, count_claims(twice));
	/* A kernel without cgroups has no such map. */
	err = err ?: bpf_map__set_autocreate(skeleton->maps.cgroups, o->filters.cgroups > 0);
	err = err ?: bpf_program__set_autoload(skeleton->progs.handle_exec, !old);
	err = err ?: bpf_program__set_autoload(skeleton->progs.handle_exec_old, old);
	err = err ?: bpf_program__set_autoload(skeleton->progs.handle_exit, !old);
	err = err ?: bpf_program__set_autoload(skeleton->progs.handle_exit_old, old);
	err = err ?: bpf_program__set_autoload(skeleton->progs.exec_again, twice);
	err = err ?: bpf_program__set_autoload(skeleton->progs.exit_again, twice);
	return err;
}

/* What can only be set once the maps exist. */
static int apply_cgroups(struct shim *s)
{
	int map = bpf_map__fd(s->skeleton->maps.cgroups);

	for (unsigned int i = 0; i < s->settings.filters.cgroups; i++)
		if (bpf_map_update_elem(map, &i, &s->settings.cgroup[i], BPF_ANY))
			return -errno;
	return 0;
}

static unsigned long long counter(const volatile unsigned long long *c)
{
	return __atomic_load_n(c, __ATOMIC_ACQUIRE);
}

/* How often the kernel left out a program, for it was running on that CPU already. */
static unsigned long long left_out(const struct bpf_program *program)
{
	struct bpf_prog_info info = {};
	__u32 size = sizeof(info);
	int fd = bpf_program__fd(program);

	if (fd < 0 || bpf_obj_get_info_by_fd(fd, &info, &size))
		return 0;
	return info.recursion_misses;
}

/* At most this many events were missed: those for which each of the two was left out. */
static unsigned long long missed(const struct bpf_program *one, const struct bpf_program *again)
{
	unsigned long long first = left_out(one), second = left_out(again);

	return bpf_program__fd(again) < 0 || first < second ? first : second;
}

static void count(struct shim *s, struct shim_stats *stats)
{
	const struct bootstrap_bpf__bss *bss = s->skeleton->bss;
	const __typeof__(s->skeleton->progs) *progs = &s->skeleton->progs;

	stats->received = s->received;
	stats->produced = counter(&bss->produced);
	stats->lost = counter(&bss->lost);
	stats->untracked = counter(&bss->untracked);
	stats->truncated = counter(&bss->truncated);
	stats->missed =
		counter(&bss->unclaimed) +
		missed(s->old ? progs->handle_exec_old : progs->handle_exec, progs->exec_again) +
		missed(s->old ? progs->handle_exit_old : progs->handle_exit, progs->exit_again);
	/* After dropping privileges the query may fail: then the last known value stands. */
	s->missed = stats->missed > s->missed ? stats->missed : s->missed;
	stats->missed = s->missed;
}

int shim_stats(struct shim *s, struct shim_stats *stats)
{
	if (!enter(s))
		return -ESHUTDOWN;
	memset(stats, 0, sizeof(*stats));
	if (__atomic_load_n(&s->rb, __ATOMIC_ACQUIRE)) /* loaded */
		count(s, stats);
	return leave(s, 0);
}

/* ---- libbpf's log ---- */

/* libbpf's log function is told no handle: the one that calls libbpf in this thread stands here. */
static __thread struct shim *logging;
static libbpf_print_fn_t other_print; /* of another user of libbpf in this process */

static int keep_log(enum libbpf_print_level level, const char *format, va_list args)
{
	struct shim *s = logging;
	va_list copy;

	if (!s)
		return other_print ? other_print(level, format, args) : 0;
	if (level == LIBBPF_DEBUG && !s->settings.verbose)
		return 0;
	if (s->settings.verbose) {
		va_copy(copy, args);
		vfprintf(stderr, format, copy);
		va_end(copy);
	}
	return vfprintf(s->log_stream, format, args);
}

/*
 * Held while libbpf changes what a handle has, and while a fork is under way: so no child gets an
 * object half done. Recursive, because other hooks of a fork may close a handle.
 */
static pthread_mutex_t libbpf_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

void shim_before_fork(void)
{
	pthread_mutex_lock(&libbpf_lock);
}

void shim_after_fork(int in_child)
{
	/* A child has another thread id than the owner, so it cannot unlock. */
	if (in_child)
		libbpf_lock = (pthread_mutex_t)PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
	else
		pthread_mutex_unlock(&libbpf_lock);
}

/*
 * Around every change through libbpf. The verifier gives up with -EAGAIN while a signal is pending,
 * so signals wait; there is nothing here that would not end by itself.
 */
static void begin(struct shim *s, sigset_t *before)
{
	libbpf_print_fn_t other;
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, before);
	pthread_mutex_lock(&libbpf_lock);
	other = libbpf_set_print(keep_log);
	if (other != keep_log)
		other_print = other;
	logging = s;
}

static int end(int err, const sigset_t *before)
{
	logging = NULL;
	pthread_mutex_unlock(&libbpf_lock);
	pthread_sigmask(SIG_SETMASK, before, NULL);
	return err;
}

const char *shim_log(struct shim *s)
{
	if (!s || !s->log_stream)
		return "";
	fflush(s->log_stream);
	return s->log ? s->log : "";
}

int shim_kernel_has_struct(const char *name)
{
	struct btf *btf = btf__load_vmlinux_btf();
	bool has = btf && btf__find_by_name_kind(btf, name, BTF_KIND_STRUCT) > 0;

	btf__free(btf);
	return has;
}

const char *shim_libbpf_version(void)
{
	return libbpf_version_string();
}

/* ---- Open, load, attach, detach, close ---- */

static int watch(struct shim *s, int fd, uint32_t events, enum woken_by mark)
{
	struct epoll_event event = {.events = events, .data.u32 = mark};

	return epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int open_descriptors(struct shim *s)
{
	int err;

	s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	s->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->epoll_fd < 0 || s->timer_fd < 0 || s->wake_fd < 0 ||
	    pipe2(s->signal_pipe, O_CLOEXEC | O_NONBLOCK))
		return -errno;
	err = watch(s, s->timer_fd, EPOLLIN | EPOLLET, BY_TIMER);
	err = err ?: watch(s, s->wake_fd, EPOLLIN, BY_STOP);
	return err ?: watch(s, s->signal_pipe[0], EPOLLIN, BY_SIGNAL);
}

static bool children_share_time(void)
{
	struct stat ours, theirs;

	return stat("/proc/self/ns/time", &ours) ||
	       stat("/proc/self/ns/time_for_children", &theirs) || ours.st_ino == theirs.st_ino;
}

/* When the kernel began to load a program, whatever our time namespace; or -errno. */
static long long load_nothing(void)
{
	const struct bpf_insn nothing[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K},
					   {.code = BPF_JMP | BPF_EXIT}};
	int fd = bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, NULL, "GPL", nothing, 2, NULL), err;
	struct bpf_prog_info info = {};
	__u32 size = sizeof(info);

	if (fd < 0)
		return -errno;
	err = bpf_obj_get_info_by_fd(fd, &info, &size) ? -errno : 0;
	close(fd);
	return err ?: (long long)info.load_time;
}

/* The best of some, because each can be interrupted between the two clocks. */
static int measure_offset(long long *offset_ns)
{
	long long before, loaded, took, least = LLONG_MAX;

	for (int i = 0; i < 5; i++) {
		before = now_ns(CLOCK_BOOTTIME);
		loaded = load_nothing();
		if (loaded < 0)
			return loaded;
		took = now_ns(CLOCK_BOOTTIME) - before;
		if (took < least) {
			least = took;
			*offset_ns = before - loaded;
		}
	}
	return 0;
}

/*
 * What our time namespace adds to the CLOCK_BOOTTIME that the BPF programs see: time_namespaces(7).
 * /proc tells of the one that children get, which is ours unless this process called unshare(2).
 */
static int find_boottime_offset(long long *offset_ns)
{
	long long seconds, nanoseconds;
	char name[16];
	FILE *offsets;

	if (access("/proc/self", F_OK) || !children_share_time())
		return measure_offset(offset_ns);
	offsets = fopen("/proc/self/timens_offsets", "re");
	if (!offsets) /* a kernel without time namespaces */
		return 0;
	while (fscanf(offsets, "%15s %lld %lld", name, &seconds, &nanoseconds) == 3)
		if (strcmp(name, "boottime") == 0)
			*offset_ns = seconds * NSEC_PER_SEC + nanoseconds;
	fclose(offsets);
	return 0;
}

struct shim *shim_new(void)
{
	struct shim *s = calloc(1, sizeof(*s));

	if (s)
		s->epoll_fd = s->timer_fd = s->wake_fd = s->signal_pipe[0] = s->signal_pipe[1] = -1;
	return s;
}

static int open_programs(struct shim *s, bool old)
{
	bootstrap_bpf__destroy(s->skeleton);
	s->skeleton = bootstrap_bpf__open();
	s->old = old;
	return s->skeleton ? apply_settings(s) : -errno;
}

/*
 * A kernel before 5.17 has no bpf_loop(), and any kernel without JIT refuses its callback. If one
 * has it and not the JIT, or refuses what else only these programs have, the old ones will do.
 */
static int load_programs(struct shim *s)
{
	int err = bootstrap_bpf__load(s->skeleton);

	if (s->old || (err != -EINVAL && err != -NOT_SUPPORTED))
		return err;
	return open_programs(s, true) ?: bootstrap_bpf__load(s->skeleton);
}

static int open_skeleton(struct shim *s, const struct shim_settings *settings)
{
	sigset_t signals;
	int err;

	s->settings = *settings;
	s->log_stream = open_memstream(&s->log, &s->log_size);
	err = s->log_stream ? open_descriptors(s) : -ENOMEM;
	if (err)
		return err;
	begin(s, &signals);
	err = find_boottime_offset(&s->namespace_ns);
	return end(err ?: open_programs(s, !kernel_is_at_least(5, 17)), &signals);
}

int shim_open(struct shim *s, const struct shim_settings *settings)
{
	return enter(s) ? leave(s, open_skeleton(s, settings)) : -ESHUTDOWN;
}

static int load(struct shim *s)
{
	struct ring_buffer *rb;
	sigset_t signals;
	int ring_fd, err;

	begin(s, &signals);
	err = load_programs(s);
	err = err ?: apply_cgroups(s);
	if (err)
		return end(err, &signals);
	ring_fd = bpf_map__fd(s->skeleton->maps.rb);
	rb = ring_buffer__new(ring_fd, take_record, s, NULL);
	err = rb ? watch(s, ring_fd, EPOLLIN | EPOLLET, BY_RING) : -errno;
	__atomic_store_n(&s->rb, rb, __ATOMIC_RELEASE); /* shim_stats() may be under way */
	return end(err, &signals);
}

int shim_load(struct shim *s)
{
	return enter(s) ? leave(s, load(s)) : -ESHUTDOWN;
}

static int attach(struct shim *s)
{
	sigset_t signals;

	begin(s, &signals);
	return end(bootstrap_bpf__attach(s->skeleton), &signals);
}

int shim_attach(struct shim *s)
{
	return enter(s) ? leave(s, attach(s)) : -ESHUTDOWN;
}

static int detach(struct shim *s)
{
	const struct timespec grace = {.tv_nsec = 100000000};
	sigset_t signals;

	begin(s, &signals);
	bootstrap_bpf__detach(s->skeleton);
	end(0, &signals);
	/* Programs run under RCU, which this waits for; kernels with nohz_full CPUs refuse it. */
	if (syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0))
		nanosleep(&grace, NULL);
	return 0;
}

int shim_detach(struct shim *s)
{
	return enter(s) ? leave(s, detach(s)) : -ESHUTDOWN;
}

static void close_descriptor(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* Frees everything but the handle itself, which late callers may still ask. */
static void release(struct shim *s)
{
	sigset_t signals;

	begin(s, &signals);
	ring_buffer__free(s->rb);
	bootstrap_bpf__destroy(s->skeleton);
	close_descriptor(s->epoll_fd);
	close_descriptor(s->timer_fd);
	close_descriptor(s->wake_fd);
	close_descriptor(s->signal_pipe[0]);
	close_descriptor(s->signal_pipe[1]);
	s->released = true;
	end(0, &signals);
}

void shim_close(struct shim *s)
{
	if (!enter(s))
		return;
	atomic_fetch_or(&s->calls, CLOSED);
	leave(s, 0);
}

void shim_close_in_child(struct shim *s)
{
	if (!s || s->released)
		return;
	atomic_store(&s->calls, CLOSED); /* the threads that made calls are not in this process */
	release(s);
}

void shim_free(struct shim *s)
{
	if (!s)
		return;
	shim_close(s);
	if (s->log_stream)
		fclose(s->log_stream);
	free(s->log);
	free(s);
}

/* ---- Privileges ---- */

int shim_give_up_privileges(unsigned int uid, unsigned int gid)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return -errno;
	/* Without CAP_SETPCAP (not root) the bounding set stays; no_new_privs makes it idle. */
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) && errno != EPERM)
			return -errno;
	if (setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
		return -errno;
	/* Or other processes of the same user could trace this one, and take its descriptors. */
	if (syscall(SYS_capset, &header, none) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		return -errno;
	return 0;
}

/* ---- Read ---- */

/* libbpf calls this for each record; a negative result ends the round after this record. */
static int take_record(void *ctx, void *data, size_t size)
{
	struct shim *s = ctx;
	struct record head;
	char *to = s->buffer + s->used;

	memcpy(&head, data, sizeof(head));
	if (head.size < sizeof(head) || head.size > size)
		return -EBADMSG; /* not a record of ours */
	head.time_ns += s->wall_offset_ns;
	memcpy(to, &head, sizeof(head));
	memcpy(to + sizeof(head), (char *)data + sizeof(head), head.size - sizeof(head));
	s->used += head.size;
	s->received++;
	if (head.lost > s->told) /* a delayed reservation tells less than those before it */
		s->told = head.lost;
	return s->size - s->used < sizeof(struct exit_record) + TEXT_SIZE ? -ENOBUFS : 0;
}

/* Fires once after delay_ns; 0: not at all. Either way it is not readable until then. */
static int set_timer(struct shim *s, long long delay_ns)
{
	struct itimerspec t = {
		.it_value = {.tv_sec = delay_ns / NSEC_PER_SEC, .tv_nsec = delay_ns % NSEC_PER_SEC},
	};

	return timerfd_settime(s->timer_fd, 0, &t, NULL) ? -errno : 0;
}

/* As the BPF programs see it. */
static long long boottime_ns(const struct shim *s)
{
	return now_ns(CLOCK_BOOTTIME) - s->namespace_ns;
}

/*
 * Records gather for most of the bound, counted from the first of them (bpf/ring.bpf.h). The rest of
 * it is for waking up before, and for taking, decoding and printing the batch after.
 */
static long long left_to_gather(const struct shim *s)
{
	const long long first_ns = counter(&s->skeleton->bss->first_ns);
	const long long since_ns = first_ns > s->looked_ns ? first_ns : s->looked_ns;
	const long long gather_ns = s->settings.max_latency_ns - s->settings.max_latency_ns / 8;

	return since_ns + gather_ns - boottime_ns(s);
}

static int gather(struct shim *s, long long ns)
{
	s->gathering = true;
	return set_timer(s, ns);
}

/*
 * libbpf's rounds, each after a full barrier, until one finds nothing: see bpf/ring.bpf.h. *lost is
 * how many records had been lost when that one began.
 */
static int consume(struct shim *s, unsigned long long *lost)
{
	int n;

	do {
		atomic_thread_fence(memory_order_seq_cst);
		*lost = counter(&s->skeleton->bss->lost);
		n = ring_buffer__consume(s->rb);
	} while (n > 0);
	return n;
}

/* Takes what is there; returns the bytes used of the buffer. */
static int drain(struct shim *s, bool timer_is_set)
{
	const struct bootstrap_bpf__bss *bss = s->skeleton->bss;
	unsigned long long lost;
	int err = 0;

	if (timer_is_set)
		err = set_timer(s, 0);
	if (err)
		return err;
	s->gathering = false;
	s->used = 0;
	s->looked_ns = boottime_ns(s);
	s->wall_offset_ns = now_ns(CLOCK_REALTIME) - s->looked_ns;
	s->filled_at = counter(&bss->filled_at);
	err = consume(s, &lost);
	s->more = err < 0;
	if (err == -ENOBUFS)
		return set_timer(s, 1) ?: (int)s->used; /* for those who wait on shim_fd() */
	if (err < 0)
		return err;
	s->behind = counter(&bss->produced) - lost > s->received;
	if (!s->behind) /* else the losses may be of after that record */
		s->lost = lost;
	return (int)s->used;
}

enum { NO_REASON = -1 };

/* In how many ns it is time to take what is there; NO_REASON: what woke us is none. */
static long long due_in(const struct shim *s, unsigned int woken_by)
{
	long long left;

	if (s->more || woken_by & (BY_TIMER | BY_STOP))
		return 0;
	if (!(woken_by & BY_RING))
		return NO_REASON;
	if (s->gathering || s->behind || counter(&s->skeleton->bss->filled_at) != s->filled_at)
		return 0;
	left = left_to_gather(s);
	return left > 0 ? left : 0;
}

/* Waits, and says why it returned; 0: in vain. */
static int await(struct shim *s, int timeout_ms, unsigned int *woken_by)
{
	struct epoll_event events[4];
	int n = epoll_wait(s->epoll_fd, events, 4, timeout_ms);

	if (n < 0)
		return -errno;
	*woken_by = 0;
	for (int i = 0; i < n; i++)
		*woken_by |= events[i].data.u32;
	return 0;
}

static int read_records(struct shim *s, int timeout_ms, bool may_gather)
{
	const long long end = timeout_ms > 0 ? now_ns(CLOCK_MONOTONIC) + timeout_ms * 1000000LL : 0;
	unsigned int woken_by = 0;
	long long due_ns, left;
	int got, err;

	for (;;) {
		err = await(s, s->more ? 0 : timeout_ms, &woken_by);
		if (err)
			return err;
		due_ns = due_in(s, woken_by);
		if (due_ns == 0 || (timeout_ms == 0 && !may_gather)) {
			got = drain(s, s->gathering && !(woken_by & BY_TIMER));
			if (got || s->lost > s->told || woken_by & BY_STOP)
				return got;
		} else if (due_ns > 0) {
			err = gather(s, due_ns);
			if (err)
				return err;
		}
		if (woken_by & BY_SIGNAL)
			return -EINTR;
		if (timeout_ms == 0)
			return 0;
		if (timeout_ms > 0) {
			left = end - now_ns(CLOCK_MONOTONIC);
			timeout_ms = left > 0 ? (left + 999999) / 1000000 : 0;
			may_gather = false;
		}
	}
}

static int read_batch(struct shim *s, int timeout_ms, bool may_gather, unsigned long long taken)
{
	int got;

	if (s->batches != taken)
		return s->batches == taken + 1 ? s->batch : -EINVAL;
	got = read_records(s, timeout_ms, may_gather);
	if (got < 0)
		return got;
	if (s->lost > s->told) {
		s->told = s->lost;
		got += SHIM_LOSS;
	}
	if (got > 0) {
		s->batch = got;
		s->batches++;
	}
	return got;
}

int shim_read(struct shim *s, void *buffer, unsigned int size, int timeout_ms, int may_gather,
	      unsigned long long taken)
{
	if (!buffer || size < SHIM_MIN_READ || size >= SHIM_LOSS)
		return -EINVAL;
	if (!enter(s))
		return -ESHUTDOWN;
	s->buffer = buffer;
	s->size = size;
	return leave(s, s->rb ? read_batch(s, timeout_ms, may_gather, taken) : -EINVAL);
}

unsigned long long shim_lost(const struct shim *s)
{
	return s->lost;
}

int shim_wake(struct shim *s)
{
	const uint64_t one = 1;

	if (!enter(s))
		return -ESHUTDOWN;
	return leave(s, write(s->wake_fd, &one, sizeof(one)) == sizeof(one) ? 0 : -errno);
}

int shim_fd(struct shim *s)
{
	return enter(s) ? leave(s, s->epoll_fd) : -ESHUTDOWN;
}

int shim_signal_fd(struct shim *s)
{
	return enter(s) ? leave(s, s->signal_pipe[1]) : -ESHUTDOWN;
}

static int take_signals(struct shim *s, void *buffer, unsigned int size)
{
	ssize_t got = read(s->signal_pipe[0], buffer, size);

	if (got < 0)
		return errno == EAGAIN ? 0 : -errno;
	return got;
}

int shim_take_signals(struct shim *s, void *buffer, unsigned int size)
{
	return enter(s) ? leave(s, take_signals(s, buffer, size)) : -ESHUTDOWN;
}

// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * The only place that calls the skeleton and libbpf. It holds no Python: cffi wraps it (build.py).
 *
 * Reading: our own epoll set holds three descriptors.
 *   - the ring buffer map, edge-triggered: the kernel woke us (see bpf/ring.bpf.h for when it does);
 *   - a timer: the reader's side of that bargain, to look again one latency bound after it got
 *     records, so that whoever waits on shim_fd() keeps the promise without knowing of it;
 *   - an eventfd: shim_wake().
 */
#define _GNU_SOURCE /* setresuid() */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
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

struct shim {
	struct bootstrap_bpf *skeleton;
	struct ring_buffer *rb;
	int epoll_fd;
	int timer_fd;
	int wake_fd;
	struct shim_settings settings;
	unsigned long long received;
	unsigned long long missed; /* as of the last shim_stats() that was allowed to know */
	unsigned long long lost; /* as of the last read that emptied the ring */
	long long delay_ns; /* what the timer was set to last; 0: to nothing that counts as quiet */
	long long quiet_ns; /* at least this long ago something was read */
	bool more; /* the last read filled its buffer, so the ring may hold more */

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

/* ---- What is about this tool, and not about any: its settings and its counters ---- */

static bool kernel_is_at_least(unsigned int want_major, unsigned int want_minor)
{
	unsigned int major = 0, minor = 0;
	struct utsname name;

	if (uname(&name) || sscanf(name.release, "%u.%u", &major, &minor) != 2)
		return false;
	return major > want_major || (major == want_major && minor >= want_minor);
}

/* By version: a kernel that got bpf_loop() earlier runs the other program just as well. */
static bool has_bpf_loop(void)
{
	return kernel_is_at_least(5, 17);
}

static int apply_settings(struct shim *s)
{
	const struct shim_settings *o = &s->settings;
	struct bootstrap_bpf *skeleton = s->skeleton;
	const bool twice = kernel_is_at_least(7, 0);
	unsigned int texts = o->capture_args ? o->max_processes : 1;
	/* Linux 5.10 has no map larger than 4 GiB, even of entries that are not there yet. */
	unsigned int short_texts = texts < 1 << 22 ? texts : 1 << 22;
	/* And whoever runs programs with long arguments shall not fill more than 50 MB. */
	unsigned int long_texts = texts < 4096 ? texts : 4096;
	int err;

	skeleton->rodata->min_duration_ns = o->min_duration_ns;
	skeleton->rodata->max_latency_ns = o->max_latency_ns;
	skeleton->rodata->wakeup_bytes = o->ring_size / 4;
	skeleton->rodata->capture_args = o->capture_args;
	skeleton->rodata->filters = o->filters;
	skeleton->rodata->runs_twice = twice;
	err = bpf_map__set_max_entries(skeleton->maps.rb, o->ring_size);
	err = err ?: bpf_map__set_max_entries(skeleton->maps.exec_start, o->max_processes);
	err = err ?: bpf_map__set_max_entries(skeleton->maps.exec_text, short_texts);
	err = err ?: bpf_map__set_max_entries(skeleton->maps.exec_text_long, long_texts);
	err = err ?: bpf_program__set_autoload(skeleton->progs.handle_exit, has_bpf_loop());
	err = err ?: bpf_program__set_autoload(skeleton->progs.handle_exit_old, !has_bpf_loop());
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

int shim_stats(struct shim *s, struct shim_stats *stats)
{
	const struct bootstrap_bpf__bss *bss = s->skeleton->bss;
	const __typeof__(s->skeleton->progs) *progs = &s->skeleton->progs;

	memset(stats, 0, sizeof(*stats));
	stats->received = s->received;
	if (!bss || !s->rb)
		return 0; /* not loaded yet */
	stats->produced = counter(&bss->produced);
	stats->lost = counter(&bss->lost);
	stats->untracked = counter(&bss->untracked);
	stats->truncated = counter(&bss->truncated);
	stats->missed = missed(progs->handle_exec, progs->exec_again) +
			missed(has_bpf_loop() ? progs->handle_exit : progs->handle_exit_old,
			       progs->exit_again);
	/* Who has given up privileges may not ask any more, and gets what was known before. */
	s->missed = stats->missed > s->missed ? stats->missed : s->missed;
	stats->missed = s->missed;
	return 0;
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

static void start_logging(struct shim *s)
{
	libbpf_print_fn_t before = libbpf_set_print(keep_log);

	if (before != keep_log)
		other_print = before;
	logging = s;
}

static int stop_logging(int err)
{
	logging = NULL;
	return err;
}

const char *shim_log(struct shim *s)
{
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

static int watch(struct shim *s, int fd, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.fd = fd};

	return epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int open_descriptors(struct shim *s)
{
	int err;

	s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	s->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->epoll_fd < 0 || s->timer_fd < 0 || s->wake_fd < 0)
		return -errno;
	err = watch(s, s->timer_fd, EPOLLIN);
	return err ? err : watch(s, s->wake_fd, EPOLLIN);
}

/* What our time namespace adds to the CLOCK_BOOTTIME that the BPF programs see: time_namespaces(7). */
static long long boottime_offset_ns(void)
{
	FILE *offsets = fopen("/proc/self/timens_offsets", "re");
	long long seconds, nanoseconds, offset = 0;
	char name[16];

	if (!offsets)
		return 0;
	while (fscanf(offsets, "%15s %lld %lld", name, &seconds, &nanoseconds) == 3)
		if (strcmp(name, "boottime") == 0)
			offset = seconds * NSEC_PER_SEC + nanoseconds;
	fclose(offsets);
	return offset;
}

int shim_open(struct shim **shim, const struct shim_settings *settings)
{
	struct shim *s = calloc(1, sizeof(*s));
	int err;

	*shim = s;
	if (!s)
		return -ENOMEM;
	s->epoll_fd = s->timer_fd = s->wake_fd = -1;
	s->settings = *settings;
	s->namespace_ns = boottime_offset_ns();
	s->log_stream = open_memstream(&s->log, &s->log_size);
	if (!s->log_stream)
		return -ENOMEM;
	err = open_descriptors(s);
	if (err)
		return err;
	start_logging(s);
	s->skeleton = bootstrap_bpf__open();
	err = s->skeleton ? apply_settings(s) : -errno;
	return stop_logging(err);
}

int shim_load(struct shim *s)
{
	int ring_fd, err;

	start_logging(s);
	err = bootstrap_bpf__load(s->skeleton);
	err = err ?: apply_cgroups(s);
	if (err)
		return stop_logging(err);
	ring_fd = bpf_map__fd(s->skeleton->maps.rb);
	s->rb = ring_buffer__new(ring_fd, take_record, s, NULL);
	err = s->rb ? watch(s, ring_fd, EPOLLIN | EPOLLET) : -errno;
	return stop_logging(err);
}

int shim_attach(struct shim *s)
{
	start_logging(s);
	return stop_logging(bootstrap_bpf__attach(s->skeleton));
}

int shim_detach(struct shim *s)
{
	const struct timespec grace = {.tv_nsec = 100000000};

	start_logging(s);
	bootstrap_bpf__detach(s->skeleton);
	stop_logging(0);
	/* Programs run under RCU, which this waits for; kernels with nohz_full CPUs refuse it. */
	if (syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0))
		nanosleep(&grace, NULL);
	return 0;
}

static void close_descriptor(int fd)
{
	if (fd >= 0)
		close(fd);
}

void shim_close(struct shim *s)
{
	if (!s)
		return;
	start_logging(s);
	ring_buffer__free(s->rb);
	bootstrap_bpf__destroy(s->skeleton);
	stop_logging(0);
	close_descriptor(s->epoll_fd);
	close_descriptor(s->timer_fd);
	close_descriptor(s->wake_fd);
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
	return syscall(SYS_capset, &header, none) ? -errno : 0;
}

/* ---- Read ---- */

static long long now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

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

/* Is nothing in the ring, not even a record reserved and not sent yet? The map's poll says that. */
static bool ring_is_empty(struct shim *s)
{
	struct pollfd p = {.fd = bpf_map__fd(s->skeleton->maps.rb), .events = POLLIN};

	return poll(&p, 1, 0) == 0;
}

/*
 * When to look again, so that nothing waits longer than the bound (see bpf/ring.bpf.h): soon after
 * a quiet time, for an exit often follows its exec closely; then less and less often, up to the
 * bound, which is all there is to it while events keep coming.
 */
static int look_later(struct shim *s)
{
	long long bound = s->settings.max_latency_ns;

	s->delay_ns = s->delay_ns ? 2 * s->delay_ns : bound / 16 + 1;
	if (s->delay_ns > bound)
		s->delay_ns = bound;
	return set_timer(s, s->delay_ns);
}

/* After a look that found nothing: sleep without limit, once a whole bound has passed like that. */
static int look_later_or_sleep(struct shim *s)
{
	s->quiet_ns += s->delay_ns;
	if (s->quiet_ns < (long long)s->settings.max_latency_ns || !ring_is_empty(s))
		return look_later(s);
	s->delay_ns = 0;
	return set_timer(s, 0);
}

/* Takes what is there and sets the timer for the next look. */
static int drain(struct shim *s, bool timer_fired)
{
	int err;

	s->used = 0;
	s->wall_offset_ns = now_ns(CLOCK_REALTIME) - (now_ns(CLOCK_BOOTTIME) - s->namespace_ns);
	err = ring_buffer__consume(s->rb);
	s->more = err == -ENOBUFS;
	if (err < 0 && !s->more)
		return err;
	if (!s->more)
		s->lost = counter(&s->skeleton->bss->lost);
	if (s->used > 0)
		s->quiet_ns = 0;
	if (s->more) {
		s->delay_ns = 0;
		err = set_timer(s, 1); /* for those who wait on shim_fd() */
	} else if (s->used > 0) {
		err = look_later(s);
	} else if (timer_fired) {
		err = look_later_or_sleep(s);
	} else {
		err = 0;
	}
	return err ? err : (int)s->used;
}

int shim_read(struct shim *s, void *buffer, unsigned int size, int timeout_ms)
{
	long long end = timeout_ms > 0 ? now_ns(CLOCK_MONOTONIC) + timeout_ms * 1000000LL : 0;
	long long left;
	int got;

	if (size < SHIM_MIN_READ)
		return -EINVAL;
	s->buffer = buffer;
	s->size = size;
	for (;;) {
		struct epoll_event events[3];
		bool woken = false, timer_fired = false;
		int wait_ms = s->more ? 0 : timeout_ms;
		int n = epoll_wait(s->epoll_fd, events, 3, wait_ms);

		if (n < 0)
			return -errno;
		for (int i = 0; i < n; i++) {
			woken |= events[i].data.fd == s->wake_fd;
			timer_fired |= events[i].data.fd == s->timer_fd;
		}
		got = drain(s, timer_fired);
		if (got || woken || timeout_ms == 0)
			return got;
		if (timeout_ms > 0) {
			left = end - now_ns(CLOCK_MONOTONIC);
			timeout_ms = left > 0 ? (left + 999999) / 1000000 : 0;
		}
	}
}

int shim_wake(struct shim *s)
{
	const uint64_t one = 1;

	return write(s->wake_fd, &one, sizeof(one)) == sizeof(one) ? 0 : -errno;
}

unsigned long long shim_lost(const struct shim *s)
{
	return s->lost;
}

int shim_fd(struct shim *s)
{
	return s->epoll_fd;
}

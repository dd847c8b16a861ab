// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * The only place that calls libbpf. It does not use Python's API: cffi wraps it (build.py). It knows
 * no tool either: linked.c or the caller provides the object, and Python sets what is in it by name.
 *
 * Reading: an epoll set holds these descriptors, each marked with its meaning (enum woken_by).
 *   - the ring buffer map, edge-triggered: the kernel woke us (see bpf/ring.bpf.h for when it does);
 *   - a timer: records have gathered long enough; it makes shim_fd() readable, too;
 *   - an eventfd: shim_wake();
 *   - a pipe: shim_signal_fd();
 *   - for a command, the pipe or terminal that it writes to: shim_watch_output().
 *
 * Calls: each counts itself in and out; shim_close() refuses new ones, and the last one to leave
 * frees everything. So nothing is freed during a call of another thread or an interrupted one.
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
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <linux/capability.h>
#include <linux/membarrier.h>

#include "ring.h"
#include "shim.h"
#include "linked.h"

#define NSEC_PER_SEC 1000000000LL

/* Records are copied as bytes, so padding would leak old ring memory. */
_Static_assert(sizeof(struct record_header) == 24, "struct record_header has padding");
_Static_assert(4 * MAX_RECORD <= SHIM_MIN_READ, "a read buffer must hold some records");
_Static_assert(4 * MAX_RECORD <= SHIM_MIN_RING, "any ring must hold some records");

enum woken_by { BY_RING = 1, BY_TIMER = 2, BY_STOP = 4, BY_SIGNAL = 8, BY_OUTPUT = 16 };

struct shim {
	atomic_uint calls; /* how many are in progress, and CLOSED */
	bool released;
	struct bpf_object_skeleton *skeleton;
	void *parts; /* the memory that skeleton points to */
	struct bpf_object *names; /* owns the skeleton's names; NULL for the linked-in object */
	atomic_bool loading; /* load has begun; never cleared */
	atomic_bool loaded;
	struct ring_buffer *rb;
	/* Variables of ring.bpf.h. */
	const unsigned long long *produced;
	const unsigned long long *ring_lost;
	const unsigned long long *first_ns;
	const unsigned long long *ring_filled_at;
	int epoll_fd;
	int timer_fd;
	int wake_fd;
	int signal_pipe[2];
	unsigned long long max_latency_ns;
	bool verbose;
	unsigned long long received;
	unsigned long long lost; /* as of the last read that emptied the ring */
	unsigned long long told; /* of these, reported in records or by SHIM_LOSS */
	unsigned long long batches; /* how many were moved to the caller's buffer */
	int batch; /* the result returned for the last one */
	unsigned long long filled_at; /* *ring_filled_at as of the last drain */
	long long looked_ns; /* when the last drain began: CLOCK_BOOTTIME as the kernel has it */
	bool gathering; /* the ring woke us, so the timer is set */
	bool behind; /* the last drain left a record that was not submitted yet */
	bool more; /* the last drain filled its buffer, so the ring may hold more */

	/* The current read, for take_record(). */
	char *buffer;
	unsigned int size;
	unsigned int used;
	long long wall_offset_ns;
	long long namespace_ns; /* our time namespace's CLOCK_BOOTTIME is ahead of the kernel's */

	/* libbpf's messages. */
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

/* ---- Time and counters ---- */

static long long now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

static unsigned long long counter(const volatile unsigned long long *c)
{
	return __atomic_load_n(c, __ATOMIC_ACQUIRE);
}

int shim_stats(struct shim *s, struct shim_stats *stats)
{
	if (!enter(s))
		return -ESHUTDOWN;
	memset(stats, 0, sizeof(*stats));
	if (__atomic_load_n(&s->rb, __ATOMIC_ACQUIRE)) { /* loaded */
		stats->received = s->received;
		stats->produced = counter(s->produced);
		stats->lost = counter(s->ring_lost);
	}
	return leave(s, 0);
}

/* ---- libbpf's log ---- */

/* The handle that is calling libbpf in this thread, because libbpf passes none to its log function. */
static __thread struct shim *logging;
static libbpf_print_fn_t other_print; /* set by another user of libbpf in this process */

static int keep_log(enum libbpf_print_level level, const char *format, va_list args)
{
	struct shim *s = logging;
	va_list copy;

	if (!s)
		return other_print ? other_print(level, format, args) : 0;
	if (level == LIBBPF_DEBUG && !s->verbose)
		return 0;
	if (s->verbose) {
		va_copy(copy, args);
		vfprintf(stderr, format, copy);
		va_end(copy);
	}
	return vfprintf(s->log_stream, format, args);
}

/*
 * Held while libbpf changes what a handle has, and during a fork, so that no child inherits an object
 * in the middle of a change. Recursive, because other fork hooks may close a handle.
 */
static pthread_mutex_t libbpf_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

void shim_before_fork(void)
{
	pthread_mutex_lock(&libbpf_lock);
}

void shim_after_fork(int in_child)
{
	/* The child cannot unlock it, because its thread id is not the owner's. */
	if (in_child)
		libbpf_lock = (pthread_mutex_t)PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
	else
		pthread_mutex_unlock(&libbpf_lock);
}

/*
 * Around every change through libbpf. Signals are blocked because the verifier gives up with -EAGAIN
 * while one is pending. They do not wait for long: everything in here ends by itself.
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

/* The CLOCK_BOOTTIME of a program load, outside of any time namespace; or -errno. */
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

/* Takes the fastest of five measurements, because any may be interrupted between the two clocks. */
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
 * /proc shows the offsets for children, which are ours unless this process called unshare(2).
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

/* ---- The object: its maps and programs, by name ---- */

enum { MAX_PARTS = 256 }; /* maximum number of maps, and of programs, in an object */

/* The memory that the skeleton of an object points to, if the object was not linked in. */
struct parts {
	struct bpf_object *object;
	struct bpf_map *map[MAX_PARTS];
	void *memory[MAX_PARTS];
	struct bpf_program *program[MAX_PARTS];
	struct bpf_link *link[MAX_PARTS];
};

static int count_parts(const struct bpf_object *object, int *programs)
{
	struct bpf_program *program;
	struct bpf_map *map;
	int maps = 0;

	*programs = 0;
	bpf_object__for_each_map(map, object)
		maps++;
	bpf_object__for_each_program(program, object)
		(*programs)++;
	return maps <= MAX_PARTS && *programs <= MAX_PARTS ? maps : -E2BIG;
}

static void name_parts(struct bpf_object_skeleton *skeleton, struct parts *parts,
		       const struct bpf_object *names)
{
	struct bpf_program *program;
	struct bpf_map *map;
	int i = 0;

	bpf_object__for_each_map(map, names) {
		skeleton->maps[i].name = bpf_map__name(map);
		skeleton->maps[i].map = &parts->map[i];
		if (bpf_map__is_internal(map))
			skeleton->maps[i].mmaped = &parts->memory[i];
		i++;
	}
	i = 0;
	bpf_object__for_each_program(program, names) {
		skeleton->progs[i].name = bpf_program__name(program);
		skeleton->progs[i].prog = &parts->program[i];
		skeleton->progs[i].link = &parts->link[i];
		i++;
	}
}

/*
 * What bpftool would have generated. libbpf's functions for skeletons need the names of maps and
 * programs before they open the object, so it is opened once more to get them.
 */
static int make_skeleton(struct shim *s, const void *elf, unsigned long long size)
{
	struct bpf_object_skeleton *skeleton = calloc(1, sizeof(*skeleton));
	struct parts *parts = calloc(1, sizeof(*parts));
	int maps, programs;
	/* The kernel's names of maps include this; without it libbpf makes a name of the address. */
	LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = "tool");

	s->skeleton = skeleton;
	s->parts = parts;
	if (!skeleton || !parts)
		return -ENOMEM;
	s->names = bpf_object__open_mem(elf, size, &options);
	if (!s->names)
		return -errno;
	maps = count_parts(s->names, &programs);
	if (maps < 0)
		return maps;
	*skeleton = (struct bpf_object_skeleton){
		.sz = sizeof(*skeleton),
		.name = bpf_object__name(s->names),
		.data = elf,
		.data_sz = size,
		.obj = &parts->object,
		.map_skel_sz = sizeof(*skeleton->maps),
		.maps = calloc(maps + 1, sizeof(*skeleton->maps)),
		.prog_skel_sz = sizeof(*skeleton->progs),
		.progs = calloc(programs + 1, sizeof(*skeleton->progs)),
	};
	if (!skeleton->maps || !skeleton->progs)
		return -ENOMEM;
	skeleton->map_cnt = maps;
	skeleton->prog_cnt = programs;
	name_parts(skeleton, parts, s->names);
	return 0;
}

static int open_object(struct shim *s, const void *elf, unsigned long long size)
{
	sigset_t signals;
	int err;

	if (s->skeleton)
		return -EBUSY;
	s->log_stream = open_memstream(&s->log, &s->log_size);
	err = s->log_stream ? open_descriptors(s) : -ENOMEM;
	if (err)
		return err;
	begin(s, &signals);
	err = find_boottime_offset(&s->namespace_ns);
	if (!err && elf) {
		err = make_skeleton(s, elf, size);
	} else if (!err) {
		s->parts = linked_skeleton(&s->skeleton);
		err = s->parts ? 0 : -ENOMEM;
	}
	return end(err ?: bpf_object__open_skeleton(s->skeleton, NULL), &signals);
}

int shim_open(struct shim *s, const void *elf, unsigned long long size, int verbose)
{
	if (!enter(s))
		return -ESHUTDOWN;
	s->verbose = verbose;
	return leave(s, open_object(s, elf, size));
}

static struct bpf_object *object(const struct shim *s)
{
	return s->skeleton && s->skeleton->obj ? *s->skeleton->obj : NULL;
}

static struct bpf_map *find_map(const struct shim *s, const char *name)
{
	return object(s) ? bpf_object__find_map_by_name(object(s), name) : NULL;
}

static struct bpf_program *find_program(const struct shim *s, const char *name)
{
	return object(s) ? bpf_object__find_program_by_name(object(s), name) : NULL;
}

const char *shim_map_name(struct shim *s, unsigned int index)
{
	const struct bpf_object_skeleton *skeleton = s ? s->skeleton : NULL;

	return skeleton && index < (unsigned int)skeleton->map_cnt ? skeleton->maps[index].name
								   : NULL;
}

const char *shim_program_name(struct shim *s, unsigned int index)
{
	const struct bpf_object_skeleton *skeleton = s ? s->skeleton : NULL;

	return skeleton && index < (unsigned int)skeleton->prog_cnt ? skeleton->progs[index].name
								    : NULL;
}

static bool is_per_cpu(const struct bpf_map *map)
{
	switch (bpf_map__type(map)) {
	case BPF_MAP_TYPE_PERCPU_HASH:
	case BPF_MAP_TYPE_PERCPU_ARRAY:
	case BPF_MAP_TYPE_LRU_PERCPU_HASH:
	case BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE:
		return true;
	default:
		return false;
	}
}

/* How many bytes the kernel reads or writes for the value of a key. */
static unsigned int entry_size(const struct bpf_map *map)
{
	unsigned int size = bpf_map__value_size(map);

	return is_per_cpu(map) ? (size + 7) / 8 * 8 * libbpf_num_possible_cpus() : size;
}

static int describe_map(const struct bpf_map *map, struct shim_map *about)
{
	if (!map)
		return -ENOENT;
	*about = (struct shim_map){
		.type = bpf_map__type(map),
		.key_size = bpf_map__key_size(map),
		.value_size = bpf_map__value_size(map),
		.entry_size = entry_size(map),
		.per_cpu = is_per_cpu(map),
		.max_entries = bpf_map__max_entries(map),
		.key_type = bpf_map__btf_key_type_id(map),
		.value_type = bpf_map__btf_value_type_id(map),
	};
	return 0;
}

int shim_map(struct shim *s, const char *name, struct shim_map *about)
{
	return enter(s) ? leave(s, describe_map(find_map(s, name), about)) : -ESHUTDOWN;
}

static int set_max_entries(struct bpf_map *map, unsigned int max_entries)
{
	return map ? bpf_map__set_max_entries(map, max_entries) : -ENOENT;
}

int shim_set_max_entries(struct shim *s, const char *name, unsigned int max_entries)
{
	return enter(s) ? leave(s, set_max_entries(find_map(s, name), max_entries)) : -ESHUTDOWN;
}

static int set_autocreate(struct bpf_map *map, bool on)
{
	return map ? bpf_map__set_autocreate(map, on) : -ENOENT;
}

int shim_set_autocreate(struct shim *s, const char *name, int on)
{
	return enter(s) ? leave(s, set_autocreate(find_map(s, name), on)) : -ESHUTDOWN;
}

static int set_autoload(struct bpf_program *program, bool on)
{
	return program ? bpf_program__set_autoload(program, on) : -ENOENT;
}

int shim_set_autoload(struct shim *s, const char *name, int on)
{
	return enter(s) ? leave(s, set_autoload(find_program(s, name), on)) : -ESHUTDOWN;
}

int shim_autoload(struct shim *s, const char *name)
{
	struct bpf_program *program;

	if (!enter(s))
		return -ESHUTDOWN;
	program = find_program(s, name);
	return leave(s, program ? bpf_program__autoload(program) : -ENOENT);
}

/* ---- Global variables ---- */

/* The memory of a section with variables, such as ".bss"; the same before and after load. */
static char *section_memory(const struct shim *s, const char *section, unsigned int offset,
			    unsigned int size, bool to_write)
{
	const struct bpf_map *map = find_map(s, section);
	size_t all = 0;
	char *memory = map ? (char *)bpf_map__initial_value((struct bpf_map *)map, &all) : NULL;

	if (!memory || size > all || offset > all - size)
		return NULL;
	if (to_write && atomic_load(&s->loading) && bpf_map__map_flags(map) & BPF_F_RDONLY_PROG)
		return NULL; /* read-only from load on */
	return memory + offset;
}

int shim_get(struct shim *s, const char *section, unsigned int offset, void *to, unsigned int size)
{
	const char *from;

	if (!enter(s))
		return -ESHUTDOWN;
	from = section_memory(s, section, offset, size, false);
	if (from)
		memcpy(to, from, size);
	return leave(s, from ? 0 : -EINVAL);
}

int shim_set(struct shim *s, const char *section, unsigned int offset, const void *from,
	     unsigned int size)
{
	char *to;

	if (!enter(s))
		return -ESHUTDOWN;
	to = section_memory(s, section, offset, size, true);
	if (to)
		memcpy(to, from, size);
	return leave(s, to ? 0 : -EINVAL);
}

/* Where a variable of ring.bpf.h is, or NULL. */
static const unsigned long long *ring_variable(const struct shim *s, const char *name)
{
	const struct btf *btf = bpf_object__btf(object(s));
	int section = btf ? btf__find_by_name_kind(btf, ".bss", BTF_KIND_DATASEC) : -ENOENT;
	const struct btf_var_secinfo *variable;
	const struct btf_type *type;

	if (section < 0)
		return NULL;
	type = btf__type_by_id(btf, section);
	variable = btf_var_secinfos(type);
	for (int i = 0; i < btf_vlen(type); i++, variable++) {
		const struct btf_type *var = btf__type_by_id(btf, variable->type);

		if (strcmp(btf__name_by_offset(btf, var->name_off), name) == 0)
			return (void *)section_memory(s, ".bss", variable->offset,
						      sizeof(unsigned long long), false);
	}
	return NULL;
}

/* ---- Maps ---- */

/* The descriptor of a map with keys and, if given, values of these sizes; or -errno. */
static int map_fd(const struct shim *s, const char *name, unsigned int key_size,
		  const unsigned int *value_size)
{
	const struct bpf_map *map = find_map(s, name);

	if (!map || !atomic_load(&s->loaded) || !bpf_map__autocreate(map))
		return -ENODEV;
	if (key_size != bpf_map__key_size(map) || (value_size && *value_size != entry_size(map)))
		return -EMSGSIZE;
	return bpf_map__fd(map);
}

int shim_map_lookup(struct shim *s, const char *name, const void *key, unsigned int key_size,
		    void *value, unsigned int value_size)
{
	int fd;

	if (!enter(s))
		return -ESHUTDOWN;
	fd = map_fd(s, name, key_size, &value_size);
	return leave(s, fd < 0 ? fd : bpf_map_lookup_elem(fd, key, value) ? -errno : 0);
}

int shim_map_update(struct shim *s, const char *name, const void *key, unsigned int key_size,
		    const void *value, unsigned int value_size)
{
	int fd;

	if (!enter(s))
		return -ESHUTDOWN;
	fd = map_fd(s, name, key_size, &value_size);
	return leave(s, fd < 0 ? fd : bpf_map_update_elem(fd, key, value, BPF_ANY) ? -errno : 0);
}

int shim_map_delete(struct shim *s, const char *name, const void *key, unsigned int key_size)
{
	int fd;

	if (!enter(s))
		return -ESHUTDOWN;
	fd = map_fd(s, name, key_size, NULL);
	return leave(s, fd < 0 ? fd : bpf_map_delete_elem(fd, key) ? -errno : 0);
}

int shim_map_next(struct shim *s, const char *name, const void *key, void *next,
		  unsigned int key_size)
{
	int fd;

	if (!enter(s))
		return -ESHUTDOWN;
	fd = map_fd(s, name, key_size, NULL);
	return leave(s, fd < 0 ? fd : bpf_map_get_next_key(fd, key, next) ? -errno : 0);
}

int shim_possible_cpus(void)
{
	return libbpf_num_possible_cpus();
}

/* ---- Load, attach, detach, close ---- */

/* Sets up what the reader needs of a ring: see ring.bpf.h. */
static int open_ring(struct shim *s, struct bpf_map *map)
{
	struct ring_buffer *rb;
	int err;

	s->produced = ring_variable(s, "produced");
	s->ring_lost = ring_variable(s, "lost");
	s->first_ns = ring_variable(s, "first_ns");
	s->ring_filled_at = ring_variable(s, "filled_at");
	if (!s->produced || !s->ring_lost || !s->first_ns || !s->ring_filled_at)
		return -ENOKEY;
	rb = ring_buffer__new(bpf_map__fd(map), take_record, s, NULL);
	err = rb ? watch(s, bpf_map__fd(map), EPOLLIN | EPOLLET, BY_RING) : -errno;
	__atomic_store_n(&s->rb, rb, __ATOMIC_RELEASE); /* another thread may be in shim_stats() */
	return err;
}

static int load(struct shim *s)
{
	struct bpf_map *ring = find_map(s, "rb");
	sigset_t signals;
	int err;

	if (!object(s) || atomic_exchange(&s->loading, true))
		return -EINVAL;
	begin(s, &signals);
	err = bpf_object__load_skeleton(s->skeleton);
	atomic_store(&s->loaded, !err);
	if (!err && ring)
		err = open_ring(s, ring);
	return end(err, &signals);
}

int shim_load(struct shim *s, unsigned long long max_latency_ns)
{
	if (!enter(s))
		return -ESHUTDOWN;
	s->max_latency_ns = max_latency_ns;
	return leave(s, load(s));
}

static int attach(struct shim *s)
{
	sigset_t signals;

	if (!atomic_load(&s->loaded))
		return -EINVAL;
	begin(s, &signals);
	return end(bpf_object__attach_skeleton(s->skeleton), &signals);
}

int shim_attach(struct shim *s)
{
	return enter(s) ? leave(s, attach(s)) : -ESHUTDOWN;
}

static struct bpf_link *attach_at(const struct bpf_program *program, enum shim_place place,
				  int target)
{
	switch (place) {
	case SHIM_XDP:
		return bpf_program__attach_xdp(program, target);
	case SHIM_CGROUP:
		return bpf_program__attach_cgroup(program, target);
	}
	errno = EINVAL;
	return NULL;
}

static int attach_program(struct shim *s, const char *name, enum shim_place place, int target)
{
	struct bpf_program *program = find_program(s, name);
	struct bpf_link **link = NULL;
	sigset_t signals;

	if (!program || !atomic_load(&s->loaded))
		return -EINVAL;
	for (int i = 0; i < s->skeleton->prog_cnt; i++)
		if (*s->skeleton->progs[i].prog == program)
			link = s->skeleton->progs[i].link;
	if (!link || *link)
		return -EALREADY;
	begin(s, &signals);
	*link = attach_at(program, place, target);
	return end(*link ? 0 : -errno, &signals);
}

int shim_attach_program(struct shim *s, const char *name, int place, int target)
{
	return enter(s) ? leave(s, attach_program(s, name, place, target)) : -ESHUTDOWN;
}

static long long skipped(const struct bpf_program *program)
{
	struct bpf_prog_info info = {};
	__u32 size = sizeof(info);
	int fd = program ? bpf_program__fd(program) : -1;

	if (fd < 0)
		return -ENOENT;
	return bpf_obj_get_info_by_fd(fd, &info, &size) ? -errno : (long long)info.recursion_misses;
}

long long shim_skipped(struct shim *s, const char *name)
{
	long long result;

	if (!enter(s))
		return -ESHUTDOWN;
	result = skipped(find_program(s, name));
	leave(s, 0);
	return result;
}

static int detach(struct shim *s)
{
	const struct timespec grace = {.tv_nsec = 100000000};
	sigset_t signals;

	begin(s, &signals);
	bpf_object__detach_skeleton(s->skeleton);
	end(0, &signals);
	/* Programs run under RCU, so wait for a grace period; with nohz_full CPUs that is refused. */
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

/* Frees everything but the handle itself, because late callers may still pass it. */
static void release(struct shim *s)
{
	sigset_t signals;

	begin(s, &signals);
	ring_buffer__free(s->rb);
	bpf_object__destroy_skeleton(s->skeleton);
	bpf_object__close(s->names);
	free(s->parts);
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
	atomic_store(&s->calls, CLOSED); /* the threads in these calls do not exist here */
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
	/* Without CAP_SETPCAP (not root) the bounding set stays, which no_new_privs makes harmless. */
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) && errno != EPERM)
			return -errno;
	if (setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
		return -errno;
	/* Not dumpable: other processes of the user could trace this one and take its descriptors. */
	if (syscall(SYS_capset, &header, none) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		return -errno;
	return 0;
}

/* ---- Read ---- */

/* libbpf calls this for each record; a negative result ends the round after this record. */
static int take_record(void *ctx, void *data, size_t size)
{
	struct shim *s = ctx;
	struct record_header head;
	char *to = s->buffer + s->used;

	memcpy(&head, data, sizeof(head));
	if (head.size < sizeof(head) || head.size > size || head.size > MAX_RECORD)
		return -EBADMSG; /* not a record */
	head.time_ns += s->wall_offset_ns;
	memcpy(to, &head, sizeof(head));
	memcpy(to + sizeof(head), (char *)data + sizeof(head), head.size - sizeof(head));
	s->used += head.size;
	s->received++;
	if (head.lost > s->told) /* less in a record whose reservation was delayed */
		s->told = head.lost;
	return s->size - s->used < MAX_RECORD ? -ENOBUFS : 0;
}

/* Has the timer fire once after delay_ns; 0: stops it. It is not readable until it fires. */
static int set_timer(struct shim *s, long long delay_ns)
{
	struct itimerspec t = {
		.it_value = {.tv_sec = delay_ns / NSEC_PER_SEC, .tv_nsec = delay_ns % NSEC_PER_SEC},
	};

	return timerfd_settime(s->timer_fd, 0, &t, NULL) ? -errno : 0;
}

/* CLOCK_BOOTTIME as the BPF programs see it. */
static long long boottime_ns(const struct shim *s)
{
	return now_ns(CLOCK_BOOTTIME) - s->namespace_ns;
}

/*
 * Records gather for most of the bound, counted from the first of them (bpf/ring.bpf.h). The rest is
 * reserved for the wake-up before, and for taking, decoding and printing the batch after.
 */
static long long left_to_gather(const struct shim *s)
{
	const long long first_ns = counter(s->first_ns);
	const long long since_ns = first_ns > s->looked_ns ? first_ns : s->looked_ns;
	const long long gather_ns = s->max_latency_ns - s->max_latency_ns / 8;

	return since_ns + gather_ns - boottime_ns(s);
}

static int gather(struct shim *s, long long ns)
{
	s->gathering = true;
	return set_timer(s, ns);
}

/*
 * Runs libbpf's rounds, each after a full barrier, until one finds nothing: see bpf/ring.bpf.h. Sets
 * *lost to how many records had been lost when the last round began.
 */
static int consume(struct shim *s, unsigned long long *lost)
{
	int n;

	do {
		atomic_thread_fence(memory_order_seq_cst);
		*lost = counter(s->ring_lost);
		n = ring_buffer__consume(s->rb);
	} while (n > 0);
	return n;
}

/* Takes what is there; returns the bytes used of the buffer. */
static int drain(struct shim *s, bool timer_is_set)
{
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
	s->filled_at = counter(s->ring_filled_at);
	err = consume(s, &lost);
	s->more = err < 0;
	if (err == -ENOBUFS)
		return set_timer(s, 1) ?: (int)s->used; /* wakes a caller that waits on shim_fd() */
	if (err < 0)
		return err;
	s->behind = counter(s->produced) - lost > s->received;
	if (!s->behind) /* else some losses may be later than that record */
		s->lost = lost;
	return (int)s->used;
}

enum { NO_REASON = -1 };

/* After how many ns to take what is there; NO_REASON: nothing that woke us asks for it. */
static long long due_in(const struct shim *s, unsigned int woken_by)
{
	long long left;

	if (s->more || woken_by & (BY_TIMER | BY_STOP))
		return 0;
	if (!(woken_by & BY_RING))
		return NO_REASON;
	if (s->gathering || s->behind || counter(s->ring_filled_at) != s->filled_at)
		return 0;
	left = left_to_gather(s);
	return left > 0 ? left : 0;
}

/* Waits; sets *woken_by to what ended the wait, 0 for the timeout. Returns 0 or -errno. */
static int await(struct shim *s, int timeout_ms, unsigned int *woken_by)
{
	struct epoll_event events[5];
	int n = epoll_wait(s->epoll_fd, events, 5, timeout_ms);

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
		if (woken_by & BY_OUTPUT)
			return -EPIPE;
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

static int watch_output(struct shim *s, int fd)
{
	int err = watch(s, fd, 0, BY_OUTPUT); /* EPOLLERR and EPOLLHUP are always reported */

	return err == -EPERM ? 0 : err; /* a file, which has no reader to lose */
}

int shim_watch_output(struct shim *s, int fd)
{
	return enter(s) ? leave(s, watch_output(s, fd)) : -ESHUTDOWN;
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

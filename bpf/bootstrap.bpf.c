// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * Two programs: handle_exec sees every successful execve, handle_exit every end of a process. The
 * others are the same for kernels that need it otherwise: handle_exit_old, exec_again, exit_again.
 *
 * All are attached to BTF-enabled raw tracepoints, so their arguments are typed kernel pointers
 * that can be followed like any C pointer; the verifier makes a read of a bad one yield 0.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "bootstrap.h"
#include "ring.bpf.h"

#define SIGNAL_GROUP_EXIT 4 /* linux/sched/signal.h */

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Settings, written before load. What is off is removed by the verifier and costs nothing. */
const volatile unsigned long long min_duration_ns = 0; /* send only exits of at least this age */
const volatile bool capture_args = false; /* arguments on exec; file name and arguments on exit */
const volatile struct filters filters = {}; /* which processes to report */

/* Counters for user space. */
unsigned long long untracked = 0; /* execs that found exec_start full */
unsigned long long truncated = 0; /* records whose file name or arguments were cut or lost */

/*
 * What a running process last executed, by tgid. A tgid can be used again while a stale entry is
 * here (the exit was not seen): the start time tells the two processes apart.
 */
struct exec_state {
	u64 start_boottime_ns;
	u64 exec_boottime_ns;
	struct text text;
	u32 flags; /* as record.flags */
	u32 text_map; /* which map keeps the text: see enum text_map */
};

enum text_map { TEXT_NOWHERE, TEXT_SHORT, TEXT_LONG };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set from user space */
	__type(key, u32);
	__type(value, struct exec_state);
} exec_start SEC(".maps");

/*
 * File name and arguments of running processes, for their exit records. Allocated when needed: most
 * are short, few are long, and nobody knows how many there will be. Room is found by size, so that
 * neither takes more than it needs.
 */
enum { SHORT_FILENAME = 128, SHORT_ARGS = 384 };

struct short_text {
	char bytes[SHORT_FILENAME + SHORT_ARGS];
};

struct long_text {
	char bytes[TEXT_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct short_text);
} exec_text SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct long_text);
} exec_text_long SEC(".maps");

/* What a new entry of these two is made from. */
static const struct long_text no_text = {};

/* ---- Filters ---- */

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, FILTER_SIZE);
	__type(key, u32);
	__type(value, u32);
} cgroups SEC(".maps");

static __always_inline bool any_number(const volatile u32 *values, u32 count, u32 value)
{
	for (u32 i = 0; i < FILTER_SIZE && i < count; i++)
		if (values[i] == value)
			return true;
	return false;
}

static __always_inline bool any_comm(const char *comm)
{
	const volatile u64 *names = (const volatile u64 *)filters.comm;
	const u64 *name = (const u64 *)comm;

	for (u32 i = 0; i < FILTER_SIZE && i < filters.comms; i++)
		if (names[2 * i] == name[0] && names[2 * i + 1] == name[1])
			return true;
	return false;
}

static __always_inline bool any_cgroup(void)
{
	for (u32 i = 0; i < FILTER_SIZE && i < filters.cgroups; i++)
		if (bpf_current_task_under_cgroup(&cgroups, i) == 1)
			return true;
	return false;
}

/* The counts are constants to the verifier: a filter without values leaves no instruction. */
static __always_inline bool is_wanted(const struct process *p)
{
	if (filters.pids && !any_number(filters.pid, filters.pids, p->pid))
		return false;
	if (filters.ppids && !any_number(filters.ppid, filters.ppids, p->ppid))
		return false;
	if (filters.uids && !any_number(filters.uid, filters.uids, p->uid))
		return false;
	if (filters.comms && !any_comm(p->comm))
		return false;
	return !filters.cgroups || any_cgroup();
}

/* ---- Claims ---- */

/*
 * Several programs, or the same one for several threads, may come upon the same event: the first to
 * put it into this map speaks.
 *
 * From Linux 7.0 on a task can be preempted in the middle of a program, and until it goes on, the
 * kernel leaves that program out for all other tasks on that CPU. So there each program is attached
 * twice (runs_twice): when one is left out, the other is not, unless it was caught just so as well.
 */
const volatile bool runs_twice = false;

struct claim {
	u64 start_boottime_ns;
	u32 pid;
	u32 exec_id; /* which exec; 0: the exit */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384); /* an entry matters until all who may claim came by */
	__type(key, struct claim);
	__type(value, u32);
} claims SEC(".maps");

static __noinline bool is_first(struct claim *claim)
{
	u32 one = 1;

	return !bpf_map_update_elem(&claims, claim, &one, BPF_NOEXIST);
}

/* ---- Exec ---- */

/* Where an exec's file name and arguments are, and how much of them there is to copy. */
struct text_source {
	const char *filename; /* kernel memory */
	const void *args; /* memory of the new program */
	struct text size;
	u32 flags;
};

/*
 * The kernel keeps no length of a file name: a short one is measured, any other taken for long.
 * Not static, so the verifier looks at it once, and takes the result for any number.
 */
__noinline u32 measure_filename(u64 filename)
{
	char scratch[256];
	long size = bpf_probe_read_kernel_str(scratch, sizeof(scratch), (void *)filename);

	return size > 0 && size < (long)sizeof(scratch) ? size : FILENAME_SIZE;
}

static __always_inline void find_text(struct text_source *src, struct mm_struct *mm,
				      struct linux_binprm *bprm)
{
	u64 args_size;

	/* Read as a plain number, which measure_filename() takes. */
	bpf_probe_read_kernel(&src->filename, sizeof(src->filename), &bprm->filename);
	src->args = NULL;
	src->size.filename_size = measure_filename((u64)src->filename);
	src->size.args_size = 0;
	src->flags = 0;

	if (!capture_args)
		return;
	src->args = (const void *)mm->arg_start;
	args_size = mm->arg_end - mm->arg_start;
	if (args_size > ARGS_SIZE) {
		args_size = ARGS_SIZE;
		src->flags |= ARGS_TRUNCATED;
	}
	src->size.args_size = args_size;
}

/*
 * A value that is known to be in bounds already. Clang knows it too and drops the comparison; the
 * verifier, which has lost track by then, needs to see it.
 */
static __always_inline u32 at_most(u32 value, u32 limit)
{
	barrier_var(value);
	return value > limit ? limit : value;
}

/*
 * Copies the text to dst, which holds max_filename + max_args bytes, both constants: the verifier
 * adds up the largest values of both sizes. Returns what was copied.
 */
static __always_inline struct text copy_text(char *dst, struct text_source *src, u32 max_filename,
					     u32 max_args)
{
	struct text size = {};
	u32 args_size = src->size.args_size;
	long n;

	n = bpf_probe_read_kernel_str(dst, max_filename, src->filename);
	if (n <= 0) {
		dst[0] = '\0';
		n = 1;
	}
	if (n == 1 || n == FILENAME_SIZE)
		src->flags |= FILENAME_TRUNCATED;
	size.filename_size = n = at_most(n, max_filename);
	if (!capture_args || !args_size)
		return size;
	if (args_size > max_args)
		src->flags |= ARGS_TRUNCATED;
	args_size = at_most(args_size, max_args);
	if (bpf_probe_read_user(dst + n, args_size, src->args))
		src->flags |= ARGS_TRUNCATED;
	else
		size.args_size = args_size;
	return size;
}

/*
 * Keeps what the process executes, for its exit. Room for text is found by size. Not inlined, so
 * that the verifier need not follow each of its ends through all that comes after it.
 */
static __noinline void remember(u32 pid, u64 start_boottime_ns, u64 now, struct text_source *src)
{
	struct exec_state state = {
		.start_boottime_ns = start_boottime_ns,
		.exec_boottime_ns = now,
	};
	struct short_text *kept;
	struct long_text *kept_long;

	if (capture_args && src->size.filename_size <= SHORT_FILENAME &&
	    src->size.args_size <= SHORT_ARGS) {
		bpf_map_update_elem(&exec_text, &pid, &no_text, BPF_ANY);
		kept = bpf_map_lookup_elem(&exec_text, &pid);
		if (kept) {
			state.text = copy_text(kept->bytes, src, SHORT_FILENAME, SHORT_ARGS);
			state.text_map = TEXT_SHORT;
		}
	} else if (capture_args) {
		bpf_map_update_elem(&exec_text_long, &pid, &no_text, BPF_ANY);
		kept_long = bpf_map_lookup_elem(&exec_text_long, &pid);
		if (kept_long) {
			state.text = copy_text(kept_long->bytes, src, FILENAME_SIZE, ARGS_SIZE);
			state.text_map = TEXT_LONG;
		}
	}
	state.flags = src->flags;
	if (capture_args && state.text_map == TEXT_NOWHERE)
		state.flags |= TEXT_MISSING;
	if (bpf_map_update_elem(&exec_start, &pid, &state, BPF_ANY))
		__sync_fetch_and_add(&untracked, 1);
}

/* ---- Records ---- */

static __always_inline void submit(struct record *r, u32 head_size, struct text size, u16 kind,
				   u16 flags, u64 now)
{
	if (flags & (FILENAME_TRUNCATED | ARGS_TRUNCATED | TEXT_MISSING))
		__sync_fetch_and_add(&truncated, 1);
	ring_submit(r, head_size + size.filename_size + size.args_size, kind, flags, now);
}

/* pid.numbers[] is as long as pid namespaces are deep; its last entry is what the process sees. */
static __always_inline u32 pid_in_own_namespace(struct signal_struct *signal, u32 root_pid)
{
	u32 level = signal->pids[PIDTYPE_TGID]->level;
	u32 nr = root_pid;
	struct pid *pid;

	if (level == 0)
		return nr;
	/* A typed pointer takes no variable offset; read as a plain number, it does. */
	bpf_probe_read_kernel(&pid, sizeof(pid), &signal->pids[PIDTYPE_TGID]);
	bpf_probe_read_kernel(&nr, sizeof(nr),
			      (void *)&pid->numbers[0].nr +
				      level * bpf_core_field_size(pid->numbers[0]));
	return nr;
}

/*
 * All of it is the leader's, which stands for the process: threads can differ, and come and go.
 *
 * Each pointer is loaded once, here and below. At each load of a pointer the verifier searches all
 * of the kernel's BTF by name (Linux 6.18), which is most of the time that loading takes.
 */
static __always_inline void find_process(struct process *p, struct task_struct *leader,
					 struct signal_struct *signal)
{
	const struct cred *cred = leader->real_cred;

	p->start_boottime_ns = leader->start_boottime;
	p->cgroup_id = bpf_get_current_cgroup_id();
	p->pid = leader->tgid;
	p->ppid = leader->real_parent->tgid;
	p->uid = cred->uid.val;
	p->gid = cred->gid.val;
	p->sid = signal->pids[PIDTYPE_SID]->numbers[0].nr;
	p->ns_pid = pid_in_own_namespace(signal, p->pid);
	__builtin_memset(p->comm, 0, sizeof(p->comm));
	bpf_probe_read_kernel_str(p->comm, sizeof(p->comm), leader->comm);
}

static __always_inline void send_exec(struct exec_record *e, struct process *p, u64 now,
				      struct text_source *src, u32 max_filename, u32 max_args)
{
	if (!e)
		return;
	e->process = *p;
	e->text = copy_text(e->tail, src, max_filename, max_args);
	submit(&e->record, sizeof(*e), e->text, RECORD_EXEC, src->flags, now);
}

static __always_inline void on_exec(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct linux_binprm *bprm = (void *)ctx[2];
	u64 now = bpf_ktime_get_boot_ns();
	const bool send = !min_duration_ns && !filters.failed;
	struct claim claim = {.exec_id = task->self_exec_id};
	struct text_source src;
	struct process p;
	u32 filename_size, args_size;

	/* The one thread that is left after an exec is the leader. */
	if (send) {
		find_process(&p, task, task->signal);
	} else {
		p.pid = task->tgid;
		p.start_boottime_ns = task->start_boottime;
	}
	claim.start_boottime_ns = p.start_boottime_ns;
	claim.pid = p.pid;
	if (runs_twice && !is_first(&claim))
		return;
	find_text(&src, task->mm, bprm);
	remember(p.pid, p.start_boottime_ns, now, &src);
	if (!send || !is_wanted(&p))
		return;

	/* The size of a reservation must be a constant: one of a few, so that a small event is small. */
	filename_size = src.size.filename_size;
	args_size = src.size.args_size;
	if (filename_size <= 64 && args_size <= 64)
		send_exec(ring_reserve(sizeof(struct exec_record) + 128), &p, now, &src, 64, 64);
	else if (filename_size <= 128 && args_size <= 384)
		send_exec(ring_reserve(sizeof(struct exec_record) + 512), &p, now, &src, 128, 384);
	else if (filename_size <= 256 && args_size <= 1792)
		send_exec(ring_reserve(sizeof(struct exec_record) + 2048), &p, now, &src, 256,
			  1792);
	else
		send_exec(ring_reserve(sizeof(struct exec_record) + TEXT_SIZE), &p, now, &src,
			  FILENAME_SIZE, ARGS_SIZE);
}

SEC("tp_btf/sched_process_exec")
int handle_exec(u64 *ctx)
{
	on_exec(ctx);
	return 0;
}

/* ---- Exit ---- */

/*
 * Moves on whenever a thread is taken off the list of threads. It comes first in seqlock_t, however
 * deep it is nested: that differs from kernel to kernel.
 */
static __always_inline u32 stats_sequence(struct signal_struct *signal)
{
	u32 *sequence = (u32 *)&signal->stats_lock;

	barrier_var(sequence); /* else libbpf takes this for a load of the whole seqlock_t */
	return *sequence;
}

/*
 * One process, one exit. From Linux 6.16 on the tracepoint tells which thread was the last to end
 * (group_dead). Before, all that is known is that no thread is alive any more, and several threads
 * that end at once can find that: the first of them speaks. Others may come by after it, even when
 * they are the only ones left on the list of threads by then.
 */
static __always_inline bool is_last_thread(u64 *ctx, struct task_struct *leader,
					   struct signal_struct *signal)
{
	struct claim claim = {.start_boottime_ns = leader->start_boottime, .pid = leader->tgid};

	if (bpf_core_field_exists(((struct trace_event_raw_sched_process_exit *)0)->group_dead))
		/* An older verifier must not see this load. */
		return *(volatile u64 *)&ctx[1] && (!runs_twice || is_first(&claim));

	if (signal->live.counter)
		return false;
	/*
	 * Without exit_group(2) the status is the leader's (before Linux 5.19). That is set once it
	 * has no memory any more, and then it still has to come by here.
	 */
	if (!(signal->flags & SIGNAL_GROUP_EXIT) && leader->mm)
		return false;
	/* Its only thread ever: each that left the list of threads moved the sequence on. */
	if (signal->nr_threads == 1 && !stats_sequence(signal))
		return true;
	return is_first(&claim);
}

/* What wait4(2) will say, as the kernel finds it in wait_task_zombie(). */
static __always_inline u32 wait_status(struct task_struct *leader, struct signal_struct *signal)
{
	return signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code : leader->exit_code;
}

/* Adds up what a task_struct used; READ(member) reads it. */
#define ADD_TASK(usage, READ)                                     \
	do {                                                      \
		(usage)->utime_ns += READ(utime);                 \
		(usage)->stime_ns += READ(stime);                 \
		(usage)->runtime_ns += READ(se.sum_exec_runtime); \
		(usage)->minor_faults += READ(min_flt);           \
		(usage)->major_faults += READ(maj_flt);           \
		(usage)->read_bytes += READ(ioac.read_bytes);     \
		(usage)->write_bytes += READ(ioac.write_bytes);   \
		(usage)->voluntary_switches += READ(nvcsw);       \
		(usage)->involuntary_switches += READ(nivcsw);    \
	} while (0)

/* What the threads used that are gone for good. */
static __always_inline void use_of_gone_threads(struct usage *u, struct signal_struct *signal)
{
	u->utime_ns = signal->utime;
	u->stime_ns = signal->stime;
	u->runtime_ns = signal->sum_sched_runtime;
	u->max_rss_pages = signal->maxrss;
	u->minor_faults = signal->min_flt;
	u->major_faults = signal->maj_flt;
	/* Not signal->ioac: to that are added the children that were waited for. */
	u->read_bytes = signal->inblock << 9;
	u->write_bytes = signal->oublock << 9;
	u->voluntary_switches = signal->nvcsw;
	u->involuntary_switches = signal->nivcsw;
}

/*
 * Other threads are still there: ended, but not yet taken off the list of threads. Each that is
 * taken off meanwhile moves its share to signal_struct, which stats_lock tells: then start again.
 * The list is RCU-protected, and so is this program.
 */
struct walk {
	struct usage usage;
	struct signal_struct *signal;
	struct list_head *head;
	struct list_head *node;
	u32 sequence;
	u32 flags; /* USAGE_PARTIAL until the end of the list was reached undisturbed */
};

#define MAX_WALK 1024 /* steps, in all attempts */
#define MAX_WALK_OLD 128 /* an old verifier follows each step */

static __always_inline void start_walk(struct walk *w)
{
	w->sequence = stats_sequence(w->signal);
	use_of_gone_threads(&w->usage, w->signal);
	bpf_probe_read_kernel(&w->node, sizeof(w->node), &w->head->next);
}

/* Adds one thread; returns 1 at the end, as bpf_loop() wants it. */
static __always_inline long walk_one(struct walk *w)
{
	struct task_struct *t =
		(void *)w->node - bpf_core_field_offset(struct task_struct, thread_node);

	if (w->node == w->head) {
		if (stats_sequence(w->signal) == w->sequence && !(w->sequence & 1)) {
			w->flags = 0;
			return 1;
		}
		start_walk(w);
		return 0;
	}
#define READ(member)                                                      \
	({                                                                \
		u64 value = 0;                                            \
		bpf_probe_read_kernel(&value, sizeof(value), &t->member); \
		value;                                                    \
	})
	ADD_TASK(&w->usage, READ);
#undef READ
	bpf_probe_read_kernel(&w->node, sizeof(w->node), &w->node->next);
	return 0;
}

static long walk_step(__attribute__((unused)) u32 index, void *walk)
{
	return walk_one(walk);
}

static __always_inline u32 add_up_usage(struct usage *u, struct task_struct *leader,
					struct signal_struct *signal, bool old)
{
	struct walk walk = {.signal = signal, .flags = USAGE_PARTIAL};

	if (signal->nr_threads == 1) {
		use_of_gone_threads(u, signal);
#define READ(member) (leader->member)
		ADD_TASK(u, READ);
#undef READ
		return 0;
	}
	walk.head = &signal->thread_head;
	start_walk(&walk);
	if (old) {
#pragma clang loop unroll(disable)
		for (int i = 0; i < MAX_WALK_OLD && !walk_one(&walk); i++)
			;
	} else {
		bpf_loop(MAX_WALK, walk_step, &walk, 0);
	}
	*u = walk.usage;
	return walk.flags;
}

/* What an exit record says beyond who the process is. */
struct end {
	u64 duration_ns;
	struct usage usage;
	struct text size;
	u32 text_map;
	u32 status;
	u32 flags;
};

/* Not inlined, and keeping no pointer, so that its ends look alike to the verifier. */
static __noinline void recall(struct end *end, u32 pid, u64 start_boottime_ns, u64 now)
{
	struct exec_state *state = bpf_map_lookup_elem(&exec_start, &pid);
	u64 since = start_boottime_ns;

	if (state && state->start_boottime_ns == start_boottime_ns) {
		since = state->exec_boottime_ns;
		end->flags = state->flags | DURATION_SINCE_EXEC;
		end->text_map = state->text_map;
		end->size = state->text;
	}
	end->duration_ns = now > since ? now - since : 0;
}

static __always_inline void send_exit(struct exit_record *e, struct process *p, u64 now,
				      struct end *end, const char *text, u32 max_text)
{
	u32 text_size = end->size.filename_size + end->size.args_size;

	if (!e)
		return;
	e->process = *p;
	e->text = end->size;
	e->duration_ns = end->duration_ns;
	e->usage = end->usage;
	e->status = end->status;
	e->unused = 0;
	bpf_probe_read_kernel(e->tail, at_most(text_size, max_text), text);
	submit(&e->record, sizeof(*e), e->text, RECORD_EXIT, end->flags, now);
}

static __always_inline void report_exit(struct task_struct *leader, struct signal_struct *signal,
					u64 now, bool old)
{
	u32 pid = leader->tgid;
	struct end end = {};
	struct process p;
	char *text = NULL;
	u32 text_size;

	recall(&end, pid, leader->start_boottime, now);
	if (min_duration_ns && end.duration_ns < min_duration_ns)
		return;
	end.status = wait_status(leader, signal);
	if (filters.failed && !end.status)
		return;
	find_process(&p, leader, signal);
	if (!is_wanted(&p))
		return;
	end.flags |= add_up_usage(&end.usage, leader, signal, old);

	if (capture_args && end.text_map == TEXT_SHORT)
		text = bpf_map_lookup_elem(&exec_text, &pid);
	else if (capture_args && end.text_map == TEXT_LONG)
		text = bpf_map_lookup_elem(&exec_text_long, &pid);
	text_size = end.size.filename_size + end.size.args_size;
	if (!text) {
		end.size.filename_size = end.size.args_size = 0;
		send_exit(ring_reserve(sizeof(struct exit_record)), &p, now, &end, text, 0);
	} else if (text_size <= 128) {
		send_exit(ring_reserve(sizeof(struct exit_record) + 128), &p, now, &end, text, 128);
	} else if (text_size <= 512) {
		send_exit(ring_reserve(sizeof(struct exit_record) + 512), &p, now, &end, text, 512);
	} else {
		send_exit(ring_reserve(sizeof(struct exit_record) + TEXT_SIZE), &p, now, &end, text,
			  TEXT_SIZE);
	}
}

static __always_inline int on_exit(u64 *ctx, bool old)
{
	struct task_struct *task = (void *)ctx[0];
	struct task_struct *leader = task->group_leader;
	struct signal_struct *signal = task->signal;
	u32 pid = task->tgid;

	if (!is_last_thread(ctx, leader, signal))
		return 0;
	report_exit(leader, signal, bpf_ktime_get_boot_ns(), old);
	bpf_map_delete_elem(&exec_start, &pid);
	if (capture_args) {
		bpf_map_delete_elem(&exec_text, &pid);
		bpf_map_delete_elem(&exec_text_long, &pid);
	}
	return 0;
}

SEC("tp_btf/sched_process_exit")
int handle_exit(u64 *ctx)
{
	return on_exit(ctx, false);
}

/* These two are the same again: see runs_twice. */
SEC("tp_btf/sched_process_exec")
int exec_again(u64 *ctx)
{
	on_exec(ctx);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int exit_again(u64 *ctx)
{
	return on_exit(ctx, false);
}

/* For kernels before 5.17, which lack bpf_loop(); user space loads one of the two. */
SEC("tp_btf/sched_process_exit")
int handle_exit_old(u64 *ctx)
{
	return on_exit(ctx, true);
}

// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * Two programs: handle_exec sees every successful execve, handle_exit every end of a process.
 *
 * Both are attached to BTF-enabled raw tracepoints, so their arguments are typed kernel pointers
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
struct short_text {
	char bytes[512];
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

/* ---- Exec ---- */

/* Where an exec's file name and arguments are, and how much of them there is to copy. */
struct text_source {
	const char *filename; /* kernel memory */
	const void *args; /* memory of the new program */
	struct text size;
	u32 flags;
};

/* The kernel keeps no length of a file name: a short one is measured, any other taken for long. */
static __noinline u32 measure_filename(const char *filename)
{
	char scratch[256];
	long size = bpf_probe_read_kernel_str(scratch, sizeof(scratch), filename);

	return size > 0 && size < (long)sizeof(scratch) ? size : FILENAME_SIZE;
}

static __always_inline void find_text(struct text_source *src, struct task_struct *task,
				      struct linux_binprm *bprm)
{
	u64 args_size;

	src->filename = bprm->filename;
	src->args = NULL;
	src->size.filename_size = measure_filename(src->filename);
	src->size.args_size = 0;
	src->flags = 0;

	if (!capture_args)
		return;
	src->args = (const void *)task->mm->arg_start;
	args_size = task->mm->arg_end - task->mm->arg_start;
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
	u32 text_size = src->size.filename_size + src->size.args_size;
	struct exec_state state = {
		.start_boottime_ns = start_boottime_ns,
		.exec_boottime_ns = now,
	};
	struct short_text *kept;
	struct long_text *kept_long;

	if (capture_args && src->size.filename_size <= 128 && text_size <= sizeof(*kept)) {
		bpf_map_update_elem(&exec_text, &pid, &no_text, BPF_ANY);
		kept = bpf_map_lookup_elem(&exec_text, &pid);
		if (kept) {
			state.text = copy_text(kept->bytes, src, 128, sizeof(*kept) - 128);
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
				      level * bpf_core_type_size(struct upid));
	return nr;
}

static __noinline void fill_process(struct process *p, struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;
	u64 uid_gid = bpf_get_current_uid_gid();
	struct signal_struct *signal = task->signal;

	p->start_boottime_ns = leader->start_boottime;
	p->cgroup_id = bpf_get_current_cgroup_id();
	p->pid = task->tgid;
	p->ppid = task->real_parent->tgid;
	p->uid = (u32)uid_gid;
	p->gid = uid_gid >> 32;
	p->sid = signal->pids[PIDTYPE_SID]->numbers[0].nr;
	p->ns_pid = pid_in_own_namespace(signal, p->pid);
	bpf_probe_read_kernel(p->comm, sizeof(p->comm), leader->comm);
}

static __always_inline void send_exec(struct exec_record *e, struct task_struct *task, u64 now,
				      struct text_source *src, u32 max_filename, u32 max_args)
{
	if (!e)
		return;
	fill_process(&e->process, task);
	e->text = copy_text(e->tail, src, max_filename, max_args);
	submit(&e->record, sizeof(*e), e->text, RECORD_EXEC, src->flags, now);
}

SEC("tp_btf/sched_process_exec")
int handle_exec(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct linux_binprm *bprm = (void *)ctx[2];
	u64 now = bpf_ktime_get_boot_ns();
	struct text_source src;
	u32 filename_size, args_size;

	find_text(&src, task, bprm);
	remember(task->tgid, task->start_boottime, now, &src);
	if (min_duration_ns)
		return 0;

	/* The size of a reservation must be a constant: one of a few, so that a small event is small. */
	filename_size = src.size.filename_size;
	args_size = src.size.args_size;
	if (filename_size <= 64 && args_size <= 64)
		send_exec(ring_reserve(sizeof(struct exec_record) + 128), task, now, &src, 64, 64);
	else if (filename_size <= 128 && args_size <= 384)
		send_exec(ring_reserve(sizeof(struct exec_record) + 512), task, now, &src, 128,
			  384);
	else if (filename_size <= 256 && args_size <= 1792)
		send_exec(ring_reserve(sizeof(struct exec_record) + 2048), task, now, &src, 256,
			  1792);
	else
		send_exec(ring_reserve(sizeof(struct exec_record) + TEXT_SIZE), task, now, &src,
			  FILENAME_SIZE, ARGS_SIZE);
	return 0;
}

/* ---- Exit ---- */

/* The last thread of a process to end, and no other, speaks for it. */
static __always_inline bool is_last_thread(u64 *ctx, struct task_struct *task)
{
	if (bpf_core_field_exists(((struct trace_event_raw_sched_process_exit *)0)->group_dead))
		return *(volatile u64 *)&ctx[1];
	return task->signal->live.counter == 0;
}

/* What wait4(2) will say, as the kernel finds it in wait_task_zombie(). */
static __always_inline u32 wait_status(struct task_struct *leader)
{
	struct signal_struct *signal = leader->signal;

	return signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code : leader->exit_code;
}

/* What an exit record says beyond the process itself. */
struct end {
	u64 duration_ns;
	u32 status;
	u32 flags;
	struct text size;
	const char *text; /* in one of the maps */
};

static __always_inline void find_end_text(struct end *end, u32 pid, struct exec_state *state)
{
	end->text = NULL;
	if (state->text_map == TEXT_SHORT)
		end->text = bpf_map_lookup_elem(&exec_text, &pid);
	else if (state->text_map == TEXT_LONG)
		end->text = bpf_map_lookup_elem(&exec_text_long, &pid);
	if (end->text)
		end->size = state->text;
}

static __always_inline void send_exit(struct exit_record *e, struct task_struct *task, u64 now,
				      struct end *end, u32 max_text)
{
	u32 text_size = end->size.filename_size + end->size.args_size;

	if (!e)
		return;
	fill_process(&e->process, task);
	e->text = end->size;
	e->duration_ns = end->duration_ns;
	e->status = end->status;
	e->unused = 0;
	bpf_probe_read_kernel(e->tail, at_most(text_size, max_text), end->text);
	submit(&e->record, sizeof(*e), e->text, RECORD_EXIT, end->flags, now);
}

static __always_inline void report_exit(struct task_struct *task, u32 pid, u64 now)
{
	struct task_struct *leader = task->group_leader;
	struct exec_state *state = bpf_map_lookup_elem(&exec_start, &pid);
	struct end end = {};
	u32 text_size;
	u64 since;

	if (state && state->start_boottime_ns == leader->start_boottime) {
		since = state->exec_boottime_ns;
		end.flags = state->flags | DURATION_SINCE_EXEC;
		if (capture_args)
			find_end_text(&end, pid, state);
	} else {
		since = leader->start_boottime;
	}
	end.duration_ns = now > since ? now - since : 0;
	if (min_duration_ns && end.duration_ns < min_duration_ns)
		return;
	end.status = wait_status(leader);

	text_size = end.size.filename_size + end.size.args_size;
	if (text_size == 0)
		send_exit(ring_reserve(sizeof(struct exit_record)), task, now, &end, 0);
	else if (text_size <= 128)
		send_exit(ring_reserve(sizeof(struct exit_record) + 128), task, now, &end, 128);
	else if (text_size <= 512)
		send_exit(ring_reserve(sizeof(struct exit_record) + 512), task, now, &end, 512);
	else
		send_exit(ring_reserve(sizeof(struct exit_record) + TEXT_SIZE), task, now, &end,
			  TEXT_SIZE);
}

SEC("tp_btf/sched_process_exit")
int handle_exit(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	u32 pid = task->tgid;

	if (!is_last_thread(ctx, task))
		return 0;
	report_exit(task, pid, bpf_ktime_get_boot_ns());
	bpf_map_delete_elem(&exec_start, &pid);
	if (capture_args) {
		bpf_map_delete_elem(&exec_text, &pid);
		bpf_map_delete_elem(&exec_text_long, &pid);
	}
	return 0;
}

// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * Two programs: handle_exec sees every successful execve, handle_exit the end of every process. The
 * others are variants for other kernels: handle_exec_old and handle_exit_old before 5.17 or without
 * JIT, exec_again and exit_again from 7.0 on.
 *
 * All attach to BTF-enabled raw tracepoints, so their arguments are typed kernel pointers that can
 * be followed like any C pointer; a read through a bad pointer yields 0.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "bootstrap.h"
#include "ring.bpf.h"

#define SIGNAL_GROUP_EXIT 4 /* linux/sched/signal.h */
#define EEXIST 17 /* asm-generic/errno-base.h */

char LICENSE[] SEC("license") = "Dual BSD/GPL";

RECORD(1, exec_record);
RECORD(2, exit_record);
/* Python needs these constants. */
const enum record_flags *unused_flags __attribute__((unused));
const enum not_known *unused_not_known __attribute__((unused));

/* Settings, written before load. The verifier removes code that is switched off. */
const volatile unsigned long long min_duration_ns = 0; /* send only exits of at least this age */
const volatile bool capture_args = false; /* arguments on exec; file name and arguments on exit */
const volatile struct filters filters = {}; /* which processes to report */

/*
 * From Linux 7.0 on a task can be preempted in the middle of a program. Two things follow:
 *
 * - Until the task continues, the kernel skips that program for all other tasks on that CPU.
 * - A reserved record holds up all records behind it until it is submitted, and a preempted task
 *   may wait as long as others want the CPU.
 *
 * So the programs disable preemption from start to end, as the kernel did before. A few
 * instructions remain uncovered at either end, so each program is attached twice: if the kernel
 * skips one, the other still runs, unless it was preempted too.
 */
const volatile bool preemptible = false;
extern void bpf_preempt_disable(void) __ksym __weak;
extern void bpf_preempt_enable(void) __ksym __weak;
extern void bpf_local_irq_save(unsigned long *flags) __ksym __weak;
extern void bpf_local_irq_restore(unsigned long *flags) __ksym __weak;

static __always_inline void begin(void)
{
	if (preemptible)
		bpf_preempt_disable();
}

/*
 * bpf_preempt_enable() alone would be a preemption point inside the program, and cause the very
 * preemption that was put off. It is not one while interrupts are disabled, and neither is
 * restoring them: the task is preempted once the program has ended.
 */
static __always_inline void end(void)
{
	unsigned long flags;

	if (!preemptible)
		return;
	bpf_local_irq_save(&flags);
	bpf_preempt_enable();
	bpf_local_irq_restore(&flags);
}

/* Counters for user space. */
unsigned long long untracked = 0; /* execs that found no room in the process table */
unsigned long long truncated = 0; /* records whose file name or arguments were cut or lost */
unsigned long long unclaimed = 0; /* events not reported because the claim failed */

/* ---- The process table ---- */

/*
 * What each running process last executed, by tgid.
 *
 * exec_start is an array. A process gets the slot at its tgid modulo the number of slots if that is
 * free at its exec; the few processes that find it taken are in the hash map exec_start_more. A
 * slot costs no lock and one cache line, which a process that started just before has already
 * touched. Updating a hash map, with its bucket, entry and code no longer cached, was the largest
 * part of handle_exec.
 *
 * - Only a compare-and-swap from 0 takes a slot, and only its owner's exit sets it back to 0, so no
 *   two processes can have the same one.
 * - A process is in one of the two maps, because it looks for itself in both before it is added.
 * - slot->others counts the processes of that slot in exec_start_more. While it is 0, nobody needs
 *   to look there: a process that is there has counted itself.
 *
 * If the kernel skipped an exit, its entry remains, and a new process can get the same tgid. The
 * exec in the entry is then older than the process.
 */
struct slot {
	u32 pid; /* the tgid of its owner, or 0 */
	u32 others;
	u64 last_exec; /* the owner's result of last_exec() */
};

const volatile unsigned int slots = 1; /* entries of exec_start and exec_text; a power of two */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set from user space; so is every 1 below */
	__type(key, u32);
	__type(value, struct slot);
} exec_start SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64); /* like slot.last_exec */
} exec_start_more SEC(".maps");

/* Where the text of a running process is kept. */
enum text_map { TEXT_NOWHERE, TEXT_IN_SLOT, TEXT_SHORT, TEXT_LONG, TEXT_MAPS = 4 };

/* Packs the time of a process's last exec (CLOCK_BOOTTIME) and the place of its text. */
static __always_inline u64 last_exec(u64 now, enum text_map text_map)
{
	return now * TEXT_MAPS + text_map;
}

static __always_inline struct slot *slot_of(u32 pid)
{
	u32 i = pid & (slots - 1);

	return bpf_map_lookup_elem(&exec_start, &i);
}

static __always_inline u64 *find_last_exec(struct slot *slot, u32 pid)
{
	if (slot->pid == pid)
		return &slot->last_exec;
	return slot->others ? bpf_map_lookup_elem(&exec_start_more, &pid) : NULL;
}

/*
 * Returns NULL if the table is full. A new slot still holds its last owner's value, whose place of
 * the text never refers to an entry of this process. Kernels before 5.12 (old) lack the
 * compare-and-swap.
 */
static __always_inline u64 *add_last_exec(struct slot *slot, u32 pid, bool old)
{
	u64 none = 0;

	if (!old && !slot->pid && !__sync_val_compare_and_swap(&slot->pid, 0, pid))
		return &slot->last_exec;
	if (bpf_map_update_elem(&exec_start_more, &pid, &none, BPF_ANY)) {
		__sync_fetch_and_add(&untracked, 1);
		return NULL;
	}
	__sync_fetch_and_add(&slot->others, 1);
	return bpf_map_lookup_elem(&exec_start_more, &pid);
}

/* ---- File names and arguments ---- */

/*
 * The text of a running process is kept for its exit record: a short one in exec_text if the
 * process has a slot, any other in a hash map. Entries of the hash maps are allocated when needed,
 * because nobody knows how many there will be.
 */
enum { SHORT_TEXT = 432 }; /* a hash map's entry takes 512 bytes, with what the kernel adds */

struct short_text {
	struct text size;
	u32 flags; /* enum record_flags */
	u32 unused;
	char bytes[SHORT_TEXT];
};

struct long_text {
	struct text size; /* up to bytes the same as struct short_text */
	u32 flags;
	u32 unused;
	char bytes[TEXT_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct short_text);
} exec_text SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct short_text);
} exec_text_more SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct long_text);
} exec_text_long SEC(".maps");

/*
 * The text of an exec is captured here once, and copied to a map and to the ring. Each program has
 * an entry of its own: the kernel does not run the same program twice at a time on a CPU, but it
 * may run exec_again while handle_exec is preempted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2); /* handle_exec or handle_exec_old, exec_again */
	__type(key, u32);
	__type(value, struct long_text);
} captured SEC(".maps");

/*
 * For a value that is in bounds already. Clang would drop the comparison because it knows that, but
 * the verifier has lost track of the bound and needs to see it.
 */
static __always_inline u32 at_most(u32 value, u32 limit)
{
	barrier_var(value);
	return value > limit ? limit : value;
}

static __always_inline struct long_text *capture(u32 buffer, struct mm_struct *mm,
						 struct linux_binprm *bprm)
{
	struct long_text *text = bpf_map_lookup_elem(&captured, &buffer);
	u64 args_size = 0;
	u32 flags = 0;
	long n;

	if (!text)
		return NULL;
	n = bpf_probe_read_kernel_str(text->bytes, FILENAME_SIZE, bprm->filename);
	if (n <= 0) {
		text->bytes[0] = '\0';
		n = 1;
	}
	if (n == 1 || n == FILENAME_SIZE)
		flags |= FILENAME_TRUNCATED;
	n = at_most(n, FILENAME_SIZE);
	if (capture_args) {
		const void *args = (const void *)mm->arg_start; /* in the new program's memory */

		args_size = mm->arg_end - mm->arg_start;
		if (args_size > ARGS_SIZE) {
			args_size = ARGS_SIZE;
			flags |= ARGS_TRUNCATED;
		}
		if (bpf_probe_read_user(text->bytes + n, at_most(args_size, ARGS_SIZE), args)) {
			args_size = 0;
			flags |= ARGS_TRUNCATED;
		}
	}
	text->size.filename_size = n;
	text->size.args_size = args_size;
	text->flags = flags;
	return text;
}

static __always_inline enum text_map keep_text(struct slot *slot, u32 pid, struct long_text *text)
{
	u32 size = text->size.filename_size + text->size.args_size;
	u32 i = pid & (slots - 1);
	struct short_text *kept;

	if (size > SHORT_TEXT) {
		if (bpf_map_update_elem(&exec_text_long, &pid, text, BPF_ANY))
			return TEXT_NOWHERE;
		return TEXT_LONG;
	}
	if (slot->pid != pid) {
		if (bpf_map_update_elem(&exec_text_more, &pid, text, BPF_ANY))
			return TEXT_NOWHERE;
		return TEXT_SHORT;
	}
	kept = bpf_map_lookup_elem(&exec_text, &i);
	if (!kept)
		return TEXT_NOWHERE;
	size = at_most(size, SHORT_TEXT) + offsetof(struct short_text, bytes);
	bpf_probe_read_kernel(kept, size, text);
	return TEXT_IN_SLOT;
}

/* Both structs start alike, so the result is valid for either. */
static __always_inline struct short_text *find_text(u32 pid, u32 text_map)
{
	u32 i = pid & (slots - 1);

	if (text_map == TEXT_IN_SLOT)
		return bpf_map_lookup_elem(&exec_text, &i);
	if (text_map == TEXT_SHORT)
		return bpf_map_lookup_elem(&exec_text_more, &pid);
	if (text_map == TEXT_LONG)
		return bpf_map_lookup_elem(&exec_text_long, &pid);
	return NULL;
}

static __always_inline void forget_text(u32 pid, u32 text_map)
{
	if (text_map == TEXT_SHORT)
		bpf_map_delete_elem(&exec_text_more, &pid);
	if (text_map == TEXT_LONG)
		bpf_map_delete_elem(&exec_text_long, &pid);
}

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

/* The verifier knows the counts as constants, and removes the code of a filter without values. */
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
 * Several programs, or one program in several threads, may see the same event: the first to put a
 * claim into this map reports it.
 */
struct claim {
	u64 start_boottime_ns;
	u32 pid;
	u32 exec_id; /* which exec; 0: the exit */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1); /* an entry must stay until everybody who may claim it has tried */
	__type(key, struct claim);
	__type(value, u32);
} claims SEC(".maps");

static __noinline bool is_first(struct claim *claim)
{
	u32 one = 1;
	/* An int, because before Linux 6.4 the upper half of the result is undefined. */
	int err = bpf_map_update_elem(&claims, claim, &one, BPF_NOEXIST);

	if (err && err != -EEXIST) /* not known: the map has no memory, or its lock is busy */
		__sync_fetch_and_add(&unclaimed, 1);
	return !err;
}

/* ---- Records ---- */

/* The size of a reservation must be a constant; several of them keep small events small. */
static __always_inline void *reserve(u32 head_size, u32 text_size, u32 *room)
{
	if (!text_size)
		return ring_reserve(head_size + (*room = 0));
	if (text_size <= 64)
		return ring_reserve(head_size + (*room = 64));
	if (text_size <= 128)
		return ring_reserve(head_size + (*room = 128));
	if (text_size <= 256)
		return ring_reserve(head_size + (*room = 256));
	if (text_size <= 512)
		return ring_reserve(head_size + (*room = 512));
	if (text_size <= 2048)
		return ring_reserve(head_size + (*room = 2048));
	return ring_reserve(head_size + (*room = TEXT_SIZE));
}

static __always_inline void submit(struct record_header *r, u32 head_size, struct text size,
				   u8 kind, u16 flags, u64 now)
{
	if (flags & (FILENAME_TRUNCATED | ARGS_TRUNCATED | TEXT_MISSING))
		__sync_fetch_and_add(&truncated, 1);
	ring_submit(r, head_size + size.filename_size + size.args_size, kind, flags, now);
}

/* pid.numbers[] has an entry for each level of pid namespaces; the process sees the last one. */
static __always_inline u32 pid_in_own_namespace(struct signal_struct *signal, u32 root_pid)
{
	u32 level = signal->pids[PIDTYPE_TGID]->level;
	u32 nr = root_pid;
	struct pid *pid;

	if (level == 0)
		return nr;
	/* The verifier allows no variable offset on a typed pointer, but it does on one read so. */
	bpf_probe_read_kernel(&pid, sizeof(pid), &signal->pids[PIDTYPE_TGID]);
	bpf_probe_read_kernel(&nr, sizeof(nr),
			      (void *)&pid->numbers[0].nr +
				      level * bpf_core_field_size(pid->numbers[0]));
	return nr;
}

/*
 * All values are the leader's, which stands for the process because threads can differ, and come
 * and go.
 *
 * Each pointer is loaded once, here and below: at each such load the verifier searches all of the
 * kernel's BTF by name (Linux 6.18), which makes up most of the verifier's time.
 */
static __always_inline void find_process(struct process *p, struct task_struct *leader,
					 struct signal_struct *signal)
{
	const struct cred *cred = leader->real_cred;

	p->start_boottime_ns = leader->start_boottime;
	p->cgroup_id = NOT_KNOWN;
	if (bpf_core_field_exists(leader->cgroups)) /* CONFIG_CGROUPS */
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

/* ---- Exec ---- */

/* Notes an exec, for the exit record. */
static __always_inline void note_exec(u32 pid, u64 now, struct long_text *text, bool old)
{
	enum text_map text_map = TEXT_NOWHERE;
	struct slot *slot = slot_of(pid);
	u64 *last;

	if (!slot)
		return;
	last = find_last_exec(slot, pid);
	if (!last)
		last = add_last_exec(slot, pid, old);
	if (!last)
		return;
	if (capture_args && text) {
		text_map = keep_text(slot, pid, text);
		if (text_map != *last % TEXT_MAPS)
			forget_text(pid, *last % TEXT_MAPS);
	}
	*last = last_exec(now, text_map);
}

/*
 * Not inlined, so that the verifier need not follow each return path through all the code after the
 * call; and two functions, because an old verifier must not even see the compare-and-swap.
 */
static __noinline void remember(u32 pid, u64 now, struct long_text *text)
{
	note_exec(pid, now, text, false);
}

static __noinline void remember_old(u32 pid, u64 now, struct long_text *text)
{
	note_exec(pid, now, text, true);
}

static __always_inline void send_exec(struct process *p, struct long_text *text, u64 now)
{
	u32 text_size = text->size.filename_size + text->size.args_size;
	u32 room;
	struct exec_record *e = reserve(sizeof(*e), text_size, &room);

	if (!e)
		return;
	e->process = *p;
	e->text = text->size;
	bpf_probe_read_kernel(e->tail, at_most(text_size, room), text->bytes);
	submit(&e->header, sizeof(*e), e->text, KIND_exec_record, text->flags, now);
}

/* buffer: the program's entry of captured. */
static __always_inline void on_exec(u64 *ctx, u32 buffer, bool old)
{
	struct task_struct *task = (void *)ctx[0]; /* the only thread left, now the leader */
	struct linux_binprm *bprm = (void *)ctx[2];
	u64 now = bpf_ktime_get_boot_ns();
	bool wanted = !min_duration_ns && !filters.failed;
	struct claim claim = {
		.start_boottime_ns = task->start_boottime,
		.pid = task->tgid,
		.exec_id = task->self_exec_id,
	};
	struct long_text *text = NULL;
	struct process p;

	if (preemptible && !is_first(&claim))
		return;
	if (wanted) {
		find_process(&p, task, task->signal);
		wanted = is_wanted(&p);
	}
	if (wanted || capture_args)
		text = capture(buffer, task->mm, bprm);
	if (old)
		remember_old(claim.pid, now, text);
	else
		remember(claim.pid, now, text);
	if (wanted && text)
		send_exec(&p, text, now);
}

SEC("tp_btf/sched_process_exec")
int handle_exec(u64 *ctx)
{
	begin();
	on_exec(ctx, 0, false);
	end();
	return 0;
}

/* ---- Exit ---- */

/*
 * Changes whenever a thread is taken off the list of threads. The sequence is at offset 0 of
 * seqlock_t on every kernel, although it is nested more or less deeply.
 */
static __always_inline u32 stats_sequence(struct signal_struct *signal)
{
	u32 *sequence = (u32 *)&signal->stats_lock;

	barrier_var(sequence); /* or CO-RE would relocate a load of the whole seqlock_t */
	return *sequence;
}

/*
 * One process, one exit. From Linux 6.16 on the tracepoint tells which thread was the last to end
 * (group_dead). Before that, it is only known that no thread is alive any more, and several threads
 * that end at once can find that: the first of them to claim the exit reports it. Others may run
 * this after it, even if they are by then the only ones left on the list of threads.
 */
static __always_inline bool is_last_thread(u64 *ctx, struct task_struct *leader,
					   struct signal_struct *signal)
{
	struct claim claim = {.start_boottime_ns = leader->start_boottime, .pid = leader->tgid};

	if (bpf_core_field_exists(((struct trace_event_raw_sched_process_exit *)0)->group_dead))
		/* An older verifier must not see this load. */
		return *(volatile u64 *)&ctx[1] && (!preemptible || is_first(&claim));

	if (signal->live.counter)
		return false;
	/*
	 * Without exit_group(2) the status is the leader's (before Linux 5.19). The leader sets it
	 * before it releases its mm; while it has one, its own exit tracepoint is still to come.
	 */
	if (!(signal->flags & SIGNAL_GROUP_EXIT) && leader->mm)
		return false;
	/* The process never had another thread: one taken off the list changes the sequence. */
	if (signal->nr_threads == 1 && !stats_sequence(signal))
		return true;
	return is_first(&claim);
}

/* The status that wait4(2) will return, as the kernel finds it in wait_task_zombie(). */
static __always_inline u32 wait_status(struct task_struct *leader, struct signal_struct *signal)
{
	return signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code : leader->exit_code;
}

/* Whether the kernel has CONFIG_TASK_IO_ACCOUNTING. */
static __always_inline bool counts_io(void)
{
	return bpf_core_field_exists(((struct task_io_accounting *)0)->read_bytes);
}

/* Adds up what a task_struct used; READ(member) reads it. */
#define ADD_TASK(usage, READ)                                           \
	do {                                                            \
		(usage)->utime_ns += READ(utime);                       \
		(usage)->stime_ns += READ(stime);                       \
		(usage)->runtime_ns += READ(se.sum_exec_runtime);       \
		(usage)->minor_faults += READ(min_flt);                 \
		(usage)->major_faults += READ(maj_flt);                 \
		(usage)->voluntary_switches += READ(nvcsw);             \
		(usage)->involuntary_switches += READ(nivcsw);          \
		if (counts_io()) {                                      \
			(usage)->read_bytes += READ(ioac.read_bytes);   \
			(usage)->write_bytes += READ(ioac.write_bytes); \
		}                                                       \
	} while (0)

/* Sets what the threads used that have been taken off the list. */
static __always_inline void use_of_gone_threads(struct usage *u, struct signal_struct *signal)
{
	u->utime_ns = signal->utime;
	u->stime_ns = signal->stime;
	u->runtime_ns = signal->sum_sched_runtime;
	u->max_rss_pages = signal->maxrss;
	u->minor_faults = signal->min_flt;
	u->major_faults = signal->maj_flt;
	/* Not signal->ioac, which includes the children that were waited for. */
	u->read_bytes = signal->inblock << 9;
	u->write_bytes = signal->oublock << 9;
	u->voluntary_switches = signal->nvcsw;
	u->involuntary_switches = signal->nivcsw;
}

/*
 * The other threads have ended, but are not yet taken off the list of threads. One that is taken
 * off during the walk moves its share to signal_struct and changes the sequence of stats_lock: then
 * the walk starts again. The list is protected by RCU, and this program runs under RCU.
 */
struct walk {
	struct usage usage;
	struct signal_struct *signal;
	struct list_head *head;
	struct list_head *node;
	u32 sequence;
	u32 flags; /* USAGE_PARTIAL until a walk has reached the end undisturbed */
};

#define MAX_WALK 1024 /* steps, over all attempts */
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

/*
 * Returns the process's result of last_exec(), or 0. This and forget() are not static, so that the
 * verifier checks them once and assumes any number as the result.
 */
__noinline u64 recall(u32 pid)
{
	struct slot *slot = slot_of(pid);
	u64 *last = slot ? find_last_exec(slot, pid) : NULL;

	return last ? *last : 0;
}

/* The last step, because afterwards another process can take the slot and its text. */
__noinline int forget(u32 pid, u32 text_map)
{
	struct slot *slot = slot_of(pid);

	if (capture_args)
		forget_text(pid, text_map);
	if (!slot)
		return 0;
	if (slot->pid == pid)
		slot->pid = 0;
	else if (slot->others && !bpf_map_delete_elem(&exec_start_more, &pid))
		__sync_fetch_and_add(&slot->others, -1);
	return 0;
}

static __always_inline void report_exit(struct task_struct *leader, struct signal_struct *signal,
					u64 last, u64 now, bool old)
{
	u64 start = leader->start_boottime, exec = last / TEXT_MAPS;
	u64 since = exec > start ? exec : start, duration_ns = now > since ? now - since : 0;
	u32 status, flags, text_size = 0, room;
	struct short_text *text = NULL;
	struct exit_record *e;
	struct usage usage;
	struct process p;

	/* No branch, because the verifier would follow all the rest once for each value. */
	flags = ((start - 1 - exec) >> 63) * DURATION_SINCE_EXEC;
	if (min_duration_ns && duration_ns < min_duration_ns)
		return;
	status = wait_status(leader, signal);
	if (filters.failed && !status)
		return;
	find_process(&p, leader, signal);
	if (!is_wanted(&p))
		return;
	flags |= add_up_usage(&usage, leader, signal, old);
	if (!counts_io())
		usage.read_bytes = usage.write_bytes = NOT_KNOWN;

	if (capture_args && flags & DURATION_SINCE_EXEC) {
		text = find_text(p.pid, last % TEXT_MAPS);
		flags |= text ? text->flags : TEXT_MISSING;
	}
	if (text)
		text_size = text->size.filename_size + text->size.args_size;
	e = reserve(sizeof(*e), text_size, &room);
	if (!e)
		return;
	e->process = p;
	e->text.filename_size = e->text.args_size = 0;
	e->duration_ns = duration_ns;
	e->usage = usage;
	e->status = status;
	e->unused = 0;
	if (text) {
		e->text = text->size;
		bpf_probe_read_kernel(e->tail, at_most(text_size, room), text->bytes);
	}
	submit(&e->header, sizeof(*e), e->text, KIND_exit_record, flags, now);
}

static __always_inline void on_exit(u64 *ctx, bool old)
{
	struct task_struct *task = (void *)ctx[0];
	struct task_struct *leader = task->group_leader;
	struct signal_struct *signal = task->signal;
	u32 pid = task->tgid;
	u64 now, last;

	if (!is_last_thread(ctx, leader, signal))
		return;
	now = bpf_ktime_get_boot_ns();
	last = recall(pid);
	report_exit(leader, signal, last, now, old);
	forget(pid, last % TEXT_MAPS);
}

SEC("tp_btf/sched_process_exit")
int handle_exit(u64 *ctx)
{
	begin();
	on_exit(ctx, false);
	end();
	return 0;
}

/* The same two programs again: see preemptible. */
SEC("tp_btf/sched_process_exec")
int exec_again(u64 *ctx)
{
	begin();
	on_exec(ctx, 1, false);
	end();
	return 0;
}

SEC("tp_btf/sched_process_exit")
int exit_again(u64 *ctx)
{
	begin();
	on_exit(ctx, false);
	end();
	return 0;
}

/*
 * For kernels before 5.17, which lack bpf_loop(), and before 5.12 also the compare-and-swap. User
 * space loads either these two or the first two.
 */
SEC("tp_btf/sched_process_exec")
int handle_exec_old(u64 *ctx)
{
	on_exec(ctx, 0, true);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int handle_exit_old(u64 *ctx)
{
	on_exit(ctx, true);
	return 0;
}

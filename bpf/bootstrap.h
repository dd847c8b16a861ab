/* SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause */
/*
 * The records that the BPF programs write and user space reads, and their limits.
 *
 * With ring.h this is the only definition: the BPF programs include it, and Python finds offsets,
 * sizes and constants in the BTF of the compiled object. Each field is naturally aligned and the
 * compiler adds no padding, so every byte of a record has a name, and the BPF programs write each.
 */
#ifndef BOOTSTRAP_H
#define BOOTSTRAP_H

#include "ring.h"

enum limits {
	COMM_SIZE = 16, /* the kernel's TASK_COMM_LEN */
	FILENAME_SIZE = 4128, /* PATH_MAX with its NUL, after execveat(2)'s "/dev/fd/N/" */
	ARGS_SIZE = 8192, /* bytes of arguments kept, with the NUL that ends each */
	TEXT_SIZE = FILENAME_SIZE + ARGS_SIZE,
	FILTER_SIZE = 64, /* values that one filter takes */
};

/* header.flags */
enum record_flags {
	FILENAME_TRUNCATED = 1, /* longer than FILENAME_SIZE, or unreadable */
	ARGS_TRUNCATED = 2, /* longer than ARGS_SIZE, or unreadable */
	DURATION_SINCE_EXEC = 4, /* exit: else since the process was created */
	TEXT_MISSING = 8, /* exit: an exec was seen, but there was no room to keep its text */
	USAGE_PARTIAL = 16, /* exit: threads came and went while usage was added up */
};

/* A 64-bit value that the running kernel was configured without. */
enum not_known { NOT_KNOWN = -1 };

/* The process that an event is about. Ids are in the root namespaces unless noted. */
struct process {
	unsigned long long start_boottime_ns; /* task_struct.start_boottime of the group leader */
	unsigned long long cgroup_id; /* v2: bpf_get_current_cgroup_id(); or NOT_KNOWN */
	unsigned int pid; /* task_struct.tgid */
	unsigned int ppid; /* real_parent->tgid */
	unsigned int uid; /* real user id */
	unsigned int gid; /* real group id */
	unsigned int sid; /* session id */
	unsigned int ns_pid; /* the tgid in the process's own pid namespace */
	char comm[COMM_SIZE]; /* the leader's task_struct.comm, NUL-padded */
};

/* Each record ends with filename_size bytes of file name, then args_size bytes of arguments. */
struct text {
	unsigned int filename_size; /* with its NUL; 0: not known */
	unsigned int args_size; /* as in memory from mm->arg_start: each argument with its NUL */
};

/*
 * What all threads of a process used since its creation, without its children: the sum of
 * signal_struct, which counts threads that are gone, and the task_structs of those still there.
 */
struct usage {
	unsigned long long utime_ns; /* user time, as sampled by the scheduler tick */
	unsigned long long stime_ns; /* system time, likewise */
	unsigned long long runtime_ns; /* time on a CPU, as measured by the scheduler */
	unsigned long long max_rss_pages; /* signal->maxrss */
	unsigned long long minor_faults;
	unsigned long long major_faults;
	unsigned long long read_bytes; /* from storage: task_io_accounting; or NOT_KNOWN */
	unsigned long long write_bytes; /* to storage, likewise */
	unsigned long long voluntary_switches;
	unsigned long long involuntary_switches;
};

struct exec_record {
	struct record_header header;
	struct process process;
	struct text text;
	char tail[];
};

struct exit_record {
	struct record_header header;
	struct process process;
	struct text text; /* of the last exec, if one was seen */
	unsigned long long duration_ns;
	struct usage usage;
	unsigned int status; /* as wait4(2) returns it */
	unsigned int unused; /* always 0 */
	char tail[];
};

/* ---- Settings ---- */

/*
 * Which processes to report: those that match one value of every filter that has values. Cgroups
 * are in the map of that name, because only the kernel can tell what is below one.
 */
struct filters {
	unsigned int pids; /* the number of values in pid[]; the next ones likewise */
	unsigned int ppids;
	unsigned int uids;
	unsigned int comms;
	unsigned int cgroups;
	unsigned int failed; /* 0 or 1: only exits with a status other than 0 */
	unsigned int pid[FILTER_SIZE];
	unsigned int ppid[FILTER_SIZE];
	unsigned int uid[FILTER_SIZE];
	char comm[FILTER_SIZE][COMM_SIZE]; /* NUL-padded */
};

#endif

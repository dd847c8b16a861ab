/* SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause */
/*
 * What Python may call: one opaque handle, open -> load -> attach -> read ... -> close.
 *
 * Every function that returns int returns 0 or more, or -errno. A handle belongs to one thread at a
 * time; only shim_wake() and shim_stats() may be called by another while it lives.
 * cffi's declarations are made from this file, so no macros and no includes are needed to read it.
 */
#ifndef SHIM_H
#define SHIM_H

struct shim;

/* What is set before load; a field is the rodata variable or map size of the same name. */
struct shim_settings {
	unsigned long long min_duration_ns;
	unsigned long long max_latency_ns;
	unsigned int ring_size; /* bytes: a power of two and a multiple of the page size */
	unsigned int max_processes; /* entries of the state map */
	unsigned int capture_args; /* 0 or 1 */
	unsigned int verbose; /* 0 or 1: libbpf's debug messages too, and all of them to stderr */
	struct filters filters;
	int cgroup[FILTER_SIZE]; /* descriptors of directories; used by shim_load() only */
};

/* Totals since load; records are those of this handle's programs. */
struct shim_stats {
	unsigned long long produced; /* records the kernel had to send */
	unsigned long long received; /* records that shim_read() gave out */
	unsigned long long lost; /* records that found the ring full */
	unsigned long long untracked; /* execs that found the state map full */
	unsigned long long truncated; /* records with text cut or missing */
	unsigned long long missed; /* times the kernel skipped a program: bpf_prog_info */
};

/* A handle with the BPF object opened and the settings written. *shim is set even on failure, for
 * shim_log(), unless there was no memory for it. */
int shim_open(struct shim **shim, const struct shim_settings *settings);

/* Makes the maps and has the verifier check the programs. -EBADF: a cgroup is none (of v2). */
int shim_load(struct shim *shim);

/* From here on events are recorded. */
int shim_attach(struct shim *shim);

/* Stops recording; returns when no program runs any more. What is in the ring can still be read. */
int shim_detach(struct shim *shim);

/*
 * Moves records to buffer, back to back, each as long as its record.size; returns the bytes used.
 * Waits up to timeout_ms (-1: without limit) for the first one; 0 means that none came in time, or
 * shim_wake(). -EINTR: a signal came. size must be at least SHIM_MIN_READ.
 */
int shim_read(struct shim *shim, void *buffer, unsigned int size, int timeout_ms);

enum { SHIM_MIN_READ = 64 * 1024, SHIM_MIN_RING = 64 * 1024, SHIM_MAX_RING = 1024 * 1024 * 1024 };

/* Ends the wait of shim_read(), now and from now on. */
int shim_wake(struct shim *shim);

/* The descriptor that is readable when shim_read() has something to do; owned by the handle. */
int shim_fd(struct shim *shim);

/* How many records were lost before the last read that emptied the ring. */
unsigned long long shim_lost(const struct shim *shim);

int shim_stats(struct shim *shim, struct shim_stats *stats);

/* What libbpf and the kernel's verifier said on this handle; valid until the next call on it. */
const char *shim_log(struct shim *shim);

/* Detaches and frees everything. shim may be NULL. */
void shim_close(struct shim *shim);

/*
 * Gives up privileges, for good: all capabilities, from every set, the means to get any by executing
 * a program, and user and group (UINT_MAX: keep it). What was attached and opened goes on.
 */
int shim_give_up_privileges(unsigned int uid, unsigned int gid);

/* 1 when a struct of this name is among the kernel's types, else 0. */
int shim_kernel_has_struct(const char *name);

/* The version of the libbpf in use, such as "v1.7". */
const char *shim_libbpf_version(void);

#endif

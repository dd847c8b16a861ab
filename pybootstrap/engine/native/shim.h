/* SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause */
/*
 * What Python may call: one opaque handle, open -> load -> attach -> read ... -> close.
 *
 * Every function that returns int returns 0 or more, or -errno; -ESHUTDOWN if the handle is NULL or
 * closed. One thread at a time may open, load, attach, detach and read; any thread may call
 * shim_wake(), shim_stats(), shim_fd() and shim_close() at any time, also meanwhile. All functions
 * accept a handle until shim_free().
 * cffi's declarations are made from this file, so it must need no macros and no includes.
 */
#ifndef SHIM_H
#define SHIM_H

struct shim;

/* Totals since load; records are those of this handle's programs. */
struct shim_stats {
	unsigned long long produced; /* records that should reach the reader */
	unsigned long long received; /* records that shim_read() took */
	unsigned long long lost; /* records that found the ring full */
};

/* The description of a map, which is known before load, too. */
struct shim_map {
	unsigned int type; /* enum bpf_map_type */
	unsigned int key_size;
	unsigned int value_size; /* of one CPU */
	unsigned int entry_size; /* of all CPUs, each padded to 8 bytes; else value_size */
	unsigned int per_cpu; /* 0 or 1 */
	unsigned int max_entries;
	unsigned int key_type; /* in the object's BTF; 0: none */
	unsigned int value_type;
};

/* Where a program can be attached if its section does not say where. */
enum shim_place {
	SHIM_XDP, /* the index of an interface */
	SHIM_CGROUP, /* a descriptor of a directory of cgroup v2 */
};

/* A handle, or NULL if there is no memory for it. */
struct shim *shim_new(void);

/*
 * Opens an object file in memory, which is not needed after that; NULL: the one that is linked in.
 * verbose: print libbpf's messages to stderr, and log those for debugging, too.
 */
int shim_open(struct shim *shim, const void *elf, unsigned long long size, int verbose);

/* The name of the map or program with this index; NULL past the last. Valid until shim_close(). */
const char *shim_map_name(struct shim *shim, unsigned int index);
const char *shim_program_name(struct shim *shim, unsigned int index);

/* Settings of maps and programs, made before load. -ENOENT: there is none of this name. */
int shim_map(struct shim *shim, const char *name, struct shim_map *about);
int shim_set_max_entries(struct shim *shim, const char *name, unsigned int max_entries);
int shim_set_autocreate(struct shim *shim, const char *name, int on);
int shim_set_autoload(struct shim *shim, const char *name, int on);
int shim_autoload(struct shim *shim, const char *name);

/*
 * Global variables, by offset in a section such as ".bss". -EINVAL: it is outside the section, or
 * read-only, as ".rodata" is after load.
 */
int shim_get(struct shim *shim, const char *section, unsigned int offset, void *to,
	     unsigned int size);
int shim_set(struct shim *shim, const char *section, unsigned int offset, const void *from,
	     unsigned int size);

/*
 * Entries of a map, after load. -EMSGSIZE: keys or entries have another size (a per-CPU entry has the
 * values of all possible CPUs). -ENODEV: there is no such map. shim_map_next() with a key of NULL
 * finds the first key.
 */
int shim_map_lookup(struct shim *shim, const char *name, const void *key, unsigned int key_size,
		    void *value, unsigned int value_size);
int shim_map_update(struct shim *shim, const char *name, const void *key, unsigned int key_size,
		    const void *value, unsigned int value_size);
int shim_map_delete(struct shim *shim, const char *name, const void *key, unsigned int key_size);
int shim_map_next(struct shim *shim, const char *name, const void *key, void *next,
		  unsigned int key_size);

/* How many CPUs this machine can have. */
int shim_possible_cpus(void);

/*
 * Creates the maps and has the verifier check the programs. shim_read() reads the map "rb", if there
 * is one; -ENOKEY: then the object lacks the variables of ring.bpf.h. max_latency_ns: how long
 * shim_read() lets a record wait for others.
 */
int shim_load(struct shim *shim, unsigned long long max_latency_ns);

/* Attaches all programs whose section says where. */
int shim_attach(struct shim *shim);

/* Attaches one program at a place (enum shim_place). -EALREADY: it is attached. */
int shim_attach_program(struct shim *shim, const char *name, int place, int target);

/* How often the kernel skipped a program because it was already running on that CPU; or -errno. */
long long shim_skipped(struct shim *shim, const char *name);

/* Detaches all programs; returns when none is running any more. The ring can still be read. */
int shim_detach(struct shim *shim);

/*
 * Moves a batch of records to buffer, back to back, each as long as its header.size; returns the
 * bytes used, plus SHIM_LOSS if shim_lost() is more than the losses in the records. Waits up to
 * timeout_ms (-1: without limit) for the first one, and then lets more gather, as long as
 * max_latency_ns and timeout_ms allow. 0 means that none came in time, or shim_wake() was called.
 * -EINTR: a signal came.
 *
 * taken is how many batches the caller has dealt with. If a signal handler raises, the caller may
 * lose a result: then taken does not grow, and the same batch is returned again.
 *
 * With timeout_ms 0 it takes what is there; with may_gather, only what has gathered long enough, for
 * callers that wait on shim_fd().
 */
int shim_read(struct shim *shim, void *buffer, unsigned int size, int timeout_ms, int may_gather,
	      unsigned long long taken);

enum shim_limits {
	SHIM_MIN_READ = 64 * 1024, /* bytes of the buffer */
	SHIM_MIN_RING = 64 * 1024,
	SHIM_MAX_RING = 1024 * 1024 * 1024,
	SHIM_LOSS = 1024 * 1024 * 1024, /* a flag; the bits below it are the size of the batch */
};

/* How many records were lost as of the last shim_read() that emptied the ring. */
unsigned long long shim_lost(const struct shim *shim);

/* Ends the wait of shim_read(), now and from now on. */
int shim_wake(struct shim *shim);

/* The descriptor that is readable when shim_read() has something to do; owned by the handle. */
int shim_fd(struct shim *shim);

/* From here on shim_read() returns -EPIPE instead of waiting if fd, an output, has no reader. */
int shim_watch_output(struct shim *shim, int fd);

/*
 * The write end of a pipe, for signal.set_wakeup_fd(): while a byte is in it, shim_read() returns
 * -EINTR instead of waiting. Owned by the handle.
 */
int shim_signal_fd(struct shim *shim);

/* Takes up to size bytes from that pipe; returns how many. */
int shim_take_signals(struct shim *shim, void *buffer, unsigned int size);

int shim_stats(struct shim *shim, struct shim_stats *stats);

/* The messages of libbpf and the verifier for this handle; valid until its next call. */
const char *shim_log(struct shim *shim);

/* Detaches and frees everything else, once no other call is in progress. May be called again. */
void shim_close(struct shim *shim);

/* Around fork(2). */
void shim_before_fork(void);
void shim_after_fork(int in_child);

/* Closes in a child of fork(2), where the calls of the parent's other threads never end. */
void shim_close_in_child(struct shim *shim);

/* Closes, and frees the handle itself, which must not be used any more. */
void shim_free(struct shim *shim);

/*
 * Drops privileges for good: drops all capabilities, sets no_new_privs, and switches user and group
 * (UINT_MAX: keep it). Programs stay attached and descriptors open. The process is no longer dumpable:
 * see prctl(2), PR_SET_DUMPABLE.
 */
int shim_give_up_privileges(unsigned int uid, unsigned int gid);

/* 1 if a struct of this name is among the kernel's types, else 0. */
int shim_kernel_has_struct(const char *name);

/* The object file that is linked in; valid as long as the process. */
const void *shim_linked_object(unsigned long long *size);

/* The version of the libbpf in use, such as "v1.7". */
const char *shim_libbpf_version(void);

#endif

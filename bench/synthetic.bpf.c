// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * A source of exec records that needs no processes: each run sends RECORDS_PER_RUN of them, through
 * the project's own bpf/ring.bpf.h, to the ring of another process.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "bootstrap.h"
#include "ring.bpf.h"
#include "synthetic.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static const char text[] = "/usr/bin/sleep\0sleep\0"
			   "1000";

/* A record like a small real one: 64 + 64 bytes of room for text, most of it unused. */
static __always_inline void send(u64 number)
{
	struct exec_record *e = ring_reserve(sizeof(*e) + 128);

	if (!e)
		return;
	e->process.start_boottime_ns = number;
	e->process.cgroup_id = 1;
	e->process.pid = number;
	e->process.ppid = 1;
	e->process.uid = 1000;
	e->process.gid = 1000;
	e->process.sid = 1;
	e->process.ns_pid = number;
	__builtin_memcpy(e->process.comm, "sleep\0\0\0\0\0\0\0\0\0\0", COMM_SIZE);
	e->text.filename_size = sizeof("/usr/bin/sleep");
	e->text.args_size = sizeof(text) - sizeof("/usr/bin/sleep");
	__builtin_memcpy(e->tail, text, sizeof(text));
	ring_submit(&e->header, sizeof(*e) + sizeof(text), KIND_exec_record, 0,
		    bpf_ktime_get_boot_ns());
}

/* Never attached: run by BPF_PROG_TEST_RUN. */
SEC("raw_tp/sched_process_exec")
int send_records(void *ctx)
{
	(void)ctx;
	for (int i = 0; i < RECORDS_PER_RUN; i++)
		send(produced);
	return 0;
}

// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/* A tool that is not linked in: reports each fork of one process, and counts. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "ring.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct pair {
	short left;
	unsigned char right[3];
};

struct fork_record {
	struct record_header header;
	u32 parent;
	u32 child;
};

RECORD(1, fork_record);
const volatile unsigned int only_parent = 0;
const volatile struct pair pair = {};
const volatile bool flag = true;
unsigned long long seen = 0;
int level = -5;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, u32);
	__type(value, struct pair);
} pairs SEC(".maps");

SEC("tp_btf/sched_process_fork")
int on_fork(u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
	u32 key = 1;
	u64 *count = bpf_map_lookup_elem(&counts, &key);
	struct fork_record *r;

	if ((u32)parent->tgid != only_parent)
		return 0;
	__sync_fetch_and_add(&seen, 1);
	if (count)
		++*count;
	r = ring_reserve(sizeof(*r));
	if (!r)
		return 0;
	r->parent = parent->tgid;
	r->child = child->tgid;
	ring_submit(&r->header, sizeof(*r), KIND_fork_record, 0, bpf_ktime_get_boot_ns());
	return 0;
}

/* The section does not say where to attach it. */
SEC("xdp")
int on_packet(__attribute__((unused)) void *ctx)
{
	u32 key = 0;
	u64 *count = bpf_map_lookup_elem(&counts, &key);

	if (count)
		++*count;
	return 2; /* XDP_PASS */
}

// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/* Reports each TCP connection when its socket is closed. */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "ring.bpf.h"
#include "sock.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* What is known about an open connection. */
struct connection {
	u64 start_ns; /* CLOCK_BOOTTIME; 0: not known, it was open before this program ran */
	u32 pid; /* 0: not known yet */
	u32 syns; /* the number in bytes_acked: 1 if this end connected */
	char comm[16];
};

/* The record. Its members leave no gaps, so every byte of it is written. */
struct closed {
	struct record_header header;
	struct connection noted;
	u64 duration_ns; /* 0: not known */
	u64 sent;
	u64 received;
	u8 local_address[16]; /* IPv4 is mapped to IPv6: ::ffff:1.2.3.4 */
	u8 remote_address[16];
	u32 local_port;
	u32 remote_port;
};

RECORD(1, closed);

/* Settings. */
const volatile unsigned long long min_duration_ns = 0;
unsigned char unwanted[1 << 16] = {}; /* by port in network byte order; 1: do not report */

unsigned long long untracked = 0; /* failed updates of connections */

/* The key is the socket's address, which no other socket gets before this one is in TCP_CLOSE. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct connection);
} connections SEC(".maps");

/* state: the last one before TCP_CLOSE. */
static __always_inline void report(struct connection *c, struct tcp_sock *tcp, int state)
{
	struct sock_common *common = (void *)tcp;
	u16 local_port = ((struct inet_sock *)tcp)->inet_sport, remote_port = common->skc_dport;
	u64 now = bpf_ktime_get_boot_ns(), duration_ns = c->start_ns ? now - c->start_ns : 0;
	u64 fins = common->skc_flags >> bpf_core_enum_value(enum sock_flags, SOCK_DONE) & 1;
	struct closed *e;

	if ((duration_ns && duration_ns < min_duration_ns) ||
	    (unwanted[local_port] && unwanted[remote_port]))
		return;
	e = ring_reserve(sizeof(*e));
	if (!e)
		return;
	e->noted = *c;
	e->duration_ns = duration_ns;
	e->received = tcp->bytes_received - fins;
	e->sent = tcp->bytes_acked - c->syns;
	/* In all other states our FIN was sent last, and counts once it is acknowledged. */
	if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT && tcp->snd_una == tcp->write_seq)
		e->sent--;
	/* An excess byte shows that this end connected, before this program ran: its SYN. */
	if (!c->start_ns && e->sent > tcp->bytes_sent - tcp->bytes_retrans)
		e->sent--;
	BPF_CORE_READ_INTO(&e->local_address, common, skc_v6_rcv_saddr);
	BPF_CORE_READ_INTO(&e->remote_address, common, skc_v6_daddr);
	e->local_port = bpf_ntohs(local_port);
	e->remote_port = bpf_ntohs(remote_port);
	ring_submit(&e->header, sizeof(*e), KIND_closed, 0, now);
}

/*
 * A socket is locked while its state changes, so the changes come one by one. If a process owns the
 * lock, it is the current process, and the socket is its own. Else this is the network's soft
 * interrupt, and the current process is the one that it interrupted.
 */
SEC("tp_btf/inet_sock_set_state")
int on_state(u64 *ctx)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock((void *)ctx[0]);
	struct task_struct *task = (void *)bpf_get_current_task();
	struct connection c = {}, *noted;
	int old = ctx[1], state = ctx[2];
	u64 key = ctx[0];

	if (!tcp) /* another protocol */
		return 0;
	noted = bpf_map_lookup_elem(&connections, &key);
	if (old == TCP_CLOSE || old == TCP_LISTEN) {
		c.start_ns = bpf_ktime_get_boot_ns();
		c.syns = state == TCP_SYN_SENT;
	} else if (noted) {
		c = *noted;
	}
	if (!c.pid && ((struct sock *)tcp)->sk_lock.owned) {
		c.pid = bpf_get_current_pid_tgid() >> 32;
		BPF_CORE_READ_STR_INTO(&c.comm, task, group_leader, comm);
	}
	if (state != TCP_CLOSE) { /* notes listening sockets too, which does no harm */
		if (bpf_map_update_elem(&connections, &key, &c, BPF_ANY))
			__sync_fetch_and_add(&untracked, 1);
		return 0;
	}
	bpf_map_delete_elem(&connections, &key);
	/* Failed connections and listening sockets are not reported. */
	if (old != TCP_SYN_SENT && old != TCP_SYN_RECV && old != TCP_LISTEN && old != TCP_CLOSE)
		report(&c, tcp, old);
	return 0;
}

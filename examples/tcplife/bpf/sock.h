/* SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause */
/* The kernel's socket types, which vmlinux.h lacks: only the members that tcplife reads. */
#pragma once

/* ABI: linux/bpf.h has the same numbers as BPF_TCP_... */
enum { TCP_ESTABLISHED = 1, TCP_SYN_SENT, TCP_SYN_RECV, TCP_CLOSE = 7, TCP_CLOSE_WAIT };
enum { TCP_LISTEN = 10 };

/* Not ABI: ask for the running kernel's value with bpf_core_enum_value(). */
enum sock_flags { SOCK_DONE = 1 /* the peer's FIN has come */ };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* The other three begin with this one. */
struct sock_common {
	__be16 skc_dport;
	unsigned long skc_flags;
	struct {
		u8 bytes[16];
	} skc_v6_rcv_saddr, skc_v6_daddr; /* IPv4 addresses are here too, mapped to IPv6 */
};

struct sock {
	struct {
		int owned; /* a process has locked the socket */
	} sk_lock;
};

struct inet_sock {
	__be16 inet_sport; /* not skc_num, which is 0 once the port is released */
};

struct tcp_sock {
	u32 snd_una;
	u32 write_seq;
	u64 bytes_acked; /* includes SYN and FIN as a byte each, as sequence numbers do */
	u64 bytes_received; /* includes the FIN, likewise */
	u64 bytes_sent; /* data only, including bytes_retrans */
	u64 bytes_retrans;
};

#pragma clang attribute pop

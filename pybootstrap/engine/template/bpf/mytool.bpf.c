/* Reports each signal that is sent. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "ring.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* A record. Every byte must be written, so it has no padding: its size is a multiple of 8. */
struct sent {
	struct record_header header;
	u32 pid; /* who gets it */
	u32 sender_pid;
	u32 signal;
	u32 ignored; /* 0 or 1 */
	char comm[16]; /* TASK_COMM_LEN in the kernel */
	char sender_comm[16];
};

RECORD(1, sent);

/* A setting: written from Python before load, and a constant for the kernel. */
const volatile unsigned int only_signal = 0; /* 0: all */

/* A counter: read from Python at any time. */
unsigned long long others = 0; /* signals that are not only_signal */

enum { IGNORED = 1 }; /* TRACE_SIGNAL_IGNORED of include/trace/events/signal.h */

/* ctx has the arguments: signal, details, receiver, whether it is for all its threads, result. */
SEC("tp_btf/signal_generate")
int on_generate(u64 *ctx)
{
	struct task_struct *receiver = (void *)ctx[2];
	u32 signal = ctx[0];
	struct sent *s;

	if (only_signal && signal != only_signal) {
		__sync_fetch_and_add(&others, 1);
		return 0;
	}
	s = ring_reserve(sizeof(*s));
	if (!s)
		return 0;
	s->pid = receiver->tgid;
	s->sender_pid = bpf_get_current_pid_tgid() >> 32;
	s->signal = signal;
	s->ignored = ctx[4] == IGNORED;
	bpf_probe_read_kernel(s->comm, sizeof(s->comm), receiver->comm);
	bpf_get_current_comm(s->sender_comm, sizeof(s->sender_comm));
	ring_submit(&s->header, sizeof(*s), KIND_sent, 0, bpf_ktime_get_boot_ns());
	return 0;
}

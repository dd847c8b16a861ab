// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * A source of exec records that needs no processes. It is the tracer's own object with one more
 * program, so settings and counters are at the same place as in a running Tracer, and source.c lets
 * the two share them and the ring.
 */
#include "bootstrap.bpf.c"

/* STALE: small, and with a loss counter from before the first loss. */
enum size { SMALL, LARGE, STALE };
enum { HOLD_LIMIT_NS = 1000000000 }; /* the CPU does nothing else meanwhile */

/* The arguments of a run, set by source.c in place of those of a tracepoint. */
struct order {
	u64 number; /* becomes the event's pid */
	u64 sender; /* becomes its ppid */
	u64 size; /* enum size */
	/* Between reservation and submission: the other runs to wait for, and then the time. */
	u64 hold;
	u64 delay_ns;
};

/* Not in .data or .bss: those belong to the tracer. */
unsigned int reserved SEC(".data.source") = 0; /* how many runs have made their reservation */
unsigned int done SEC(".data.source") = 0; /* and how many have ended */
unsigned int given_up SEC(".data.source") = 0; /* whether one was held for too long */
unsigned long long submitted_ns SEC(".data.source") = 0; /* when the last was: CLOCK_BOOTTIME */
char large_args[ARGS_SIZE] SEC(".data.source") = {};

struct wait {
	u64 done; /* until so many runs have ended, */
	u64 end_ns; /* or it is so late */
};

enum { ROUNDS = 1 << 20 };

static long wait_one_round(__attribute__((unused)) u32 index, void *wait)
{
	const struct wait *w = wait;

	return *(volatile unsigned int *)&done >= w->done || bpf_ktime_get_ns() >= w->end_ns;
}

static long wait_many_rounds(__attribute__((unused)) u32 index, void *wait)
{
	return bpf_loop(ROUNDS, wait_one_round, wait, 0) < ROUNDS;
}

static __always_inline void wait_busily(u64 done, u64 ns)
{
	struct wait wait = {.done = done, .end_ns = bpf_ktime_get_ns() + ns};

	bpf_loop(ROUNDS, wait_many_rounds, &wait, 0);
}

static __always_inline void delay(const struct order *order)
{
	if (order->hold)
		wait_busily(order->hold, HOLD_LIMIT_NS);
	if (done < order->hold)
		given_up = 1;
	if (order->delay_ns)
		wait_busily(-1, order->delay_ns);
}

static const char filename[] = "/source";

static __always_inline void fill(struct exec_record *e, const struct order *order, u32 args_size)
{
	__builtin_memset(&e->process, 0, sizeof(e->process));
	e->process.pid = order->number;
	e->process.ppid = order->sender;
	__builtin_memcpy(e->tail, filename, sizeof(filename));
	e->text.filename_size = sizeof(filename);
	e->text.args_size = args_size;
	bpf_probe_read_kernel(e->tail + sizeof(filename), args_size, large_args);
}

static __always_inline void send(struct exec_record *e, const struct order *order, u64 now,
				 u32 args_size)
{
	const u32 size = sizeof(*e) + sizeof(filename) + args_size;

	__sync_fetch_and_add(&reserved, 1);
	if (!e)
		return;
	fill(e, order, args_size);
	if (order->size == STALE)
		e->header.lost = 0;
	delay(order);
	submitted_ns = bpf_ktime_get_boot_ns();
	ring_submit(&e->header, size, KIND_exec_record, 0, now);
}

/* Never attached: run by BPF_PROG_TEST_RUN. */
SEC("raw_tp/sched_process_exec")
int send_record(u64 *ctx)
{
	struct order order = {ctx[0], ctx[1], ctx[2], ctx[3], ctx[4]};
	u64 now = bpf_ktime_get_boot_ns();

	if (order.size == LARGE)
		send(ring_reserve(sizeof(struct exec_record) + TEXT_SIZE), &order, now, ARGS_SIZE);
	else
		send(ring_reserve(sizeof(struct exec_record) + 128), &order, now, 8);
	__sync_fetch_and_add(&done, 1);
	return 0;
}

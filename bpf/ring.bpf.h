/* SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause */
/*
 * The ring buffer, its wake-ups and its books; nothing here knows what a record says.
 *
 * Waking the reader costs far more than all the rest of a program, so it is done at most once per
 * latency bound. Both sides keep a promise for that:
 *
 *   here:    a record that comes a bound or more after the last wake-up wakes the reader;
 *   reader:  after it got records it looks again within a bound, and it sleeps without limit only
 *            when it looked a bound or more later and found nothing sent and nothing reserved.
 *
 * The decision is taken after the record was reserved. So a record that does not wake anybody was
 * either reserved before that last look, which then does not end in sleep, or less than a bound
 * after a wake-up that the reader answers. No record waits longer than the bound.
 */
#ifndef RING_BPF_H
#define RING_BPF_H

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* set from user space */
} rb SEC(".maps");

const volatile unsigned long long max_latency_ns = 0; /* 0: wake the reader for every record */
const volatile unsigned long long wakeup_bytes =
	0; /* unread bytes at which the ring counts as filling up */

/* Read by user space; each counter is only ever added to. */
unsigned long long produced = 0; /* records that should reach the reader */
unsigned long long lost = 0; /* those of them that found the ring full */

static u64 last_wakeup_ns = 0;

/* Not static, so the verifier looks at it once and not at each call. */
__noinline u64 wakeup_flags(void)
{
	u64 now, since;

	if (!max_latency_ns)
		return BPF_RB_FORCE_WAKEUP;
	now = bpf_ktime_get_boot_ns();
	since = now - last_wakeup_ns;
	/* A filling ring is said sooner, but a reader that does not run is not woken each time. */
	if (since < max_latency_ns && (since < max_latency_ns / 8 ||
				       bpf_ringbuf_query(&rb, BPF_RB_AVAIL_DATA) < wakeup_bytes))
		return BPF_RB_NO_WAKEUP;
	last_wakeup_ns = now;
	return BPF_RB_FORCE_WAKEUP;
}

/*
 * Room for a record of size bytes, which must be a constant, or NULL when the ring is full. Ring
 * memory is not zeroed: write every byte up to record.size.
 */
static __always_inline void *ring_reserve(u64 size)
{
	void *r;

	__sync_fetch_and_add(&produced, 1);
	r = bpf_ringbuf_reserve(&rb, size, 0);
	if (!r)
		__sync_fetch_and_add(&lost, 1);
	return r;
}

static __always_inline void ring_submit(struct record *r, u32 size, u16 kind, u16 flags,
					u64 time_ns)
{
	r->size = size;
	r->kind = kind;
	r->flags = flags;
	r->time_ns = time_ns;
	r->lost = lost;
	bpf_ringbuf_submit(r, wakeup_flags());
}

#endif

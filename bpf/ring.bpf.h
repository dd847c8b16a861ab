/* SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause */
/*
 * The ring buffer, its wake-ups and its loss counters; nothing here knows what a record says.
 *
 * Waking the reader costs far more than everything else a program does, and a batch of events costs
 * the reader little more than a single one. So a burst should cost one wake-up and one batch:
 *
 *   kernel:  a record wakes the reader if it is the next one that the reader will take. That is
 *            what bpf_ringbuf_submit() does without flags, and the rest of a burst wakes nobody.
 *   reader:  when woken it normally takes nothing yet. It lets records gather for most of the latency bound
 *            (shim.c), then takes all there are, moves its position past them, executes a full
 *            memory barrier, and looks once more. It sleeps when that look finds nothing to take.
 *
 * Why no wake-up is lost. The record at the position p of a sleeping reader is either not reserved,
 * or reserved and not submitted; what is behind it cannot be taken either. Its submission (1) marks
 * it, (2) executes a full barrier and (3) reads the reader's position. The reader (4) wrote p, (5)
 * executed a full barrier and (6) looked for the mark. If (6) did not see (1), then (3) sees (4),
 * and the record wakes the reader. So a record that is reserved and delayed on one CPU does no harm
 * when others are submitted behind it. It did when the decision was made from the time of the last
 * wake-up: the reader was woken for the others, found the head of the ring reserved, and slept,
 * while the delayed record was submitted without a wake-up.
 *
 * Why no event waits longer than the bound: the first that can be taken wakes the reader, all others
 * of its batch come later. The reader may be busy when it is woken, so it counts the bound from the
 * time of that first record: see first_ns. If it leaves a reserved record behind, it takes the next
 * batch as soon as it is woken, because that has waited once.
 *
 * A ring that fills up does not wait for the bound: see wakeup_flags().
 *
 * What this relies on; tests/unit/test_wakeups.py explores every interleaving of it:
 *
 *   1. bpf_ringbuf_submit() has a full barrier between mark and comparison (xchg() in
 *      bpf_ringbuf_commit(), Linux 5.8 to 7.2).
 *   2. libbpf writes its position after each record, and stops at one that is not submitted. No
 *      record is discarded: libbpf would not count it, and a round of only those would look empty.
 *   3. A ring has one reader.
 *   4. epoll reports a wake-up of the ring, edge-triggered, to the epoll_wait() under way or the next
 *      one, if the ring holds anything by then.
 *   5. A reader that sees a record reserved sees it counted in produced. Where it does not (weak
 *      memory), a batch may wait for the bound twice.
 *   6. Timers fire, and reader and reserved records get to run: the bound is one of waiting, and
 *      what an overloaded machine adds comes on top.
 */
#ifndef RING_BPF_H
#define RING_BPF_H

#include "ring.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* set from user space */
} rb SEC(".maps");

/* Unread bytes at which the ring counts as filling up: then the reader stops gathering. */
const volatile unsigned long long wakeup_bytes = 0;

/*
 * Records of this kind, a number from 1 to 255, are a struct type: RECORD(1, exec_record) defines
 * KIND_exec_record. The variables keep struct and number among the object's types for Python.
 */
#define RECORD(number, type)                                                          \
	enum kind_of_##type{KIND_##type = number};                                    \
	_Static_assert(KIND_##type >= 1 && KIND_##type <= 255, "kinds are 1 to 255"); \
	_Static_assert(__builtin_offsetof(struct type, header) == 0,                  \
		       "a record begins with struct record_header header");           \
	_Static_assert(sizeof(struct type) <= MAX_RECORD, "a record is too large");   \
	const struct type *record_##type __attribute__((unused));                     \
	const enum kind_of_##type *kind_##type __attribute__((unused))

/* What the ring adds to a record: 8 bytes before it, and up to 7 behind, to a multiple of 8. */
enum { MAX_OVERHEAD = 15 };

/* Read by user space; these two are only ever added to. */
unsigned long long produced = 0; /* records that should reach the reader */
unsigned long long lost = 0; /* those of them that found the ring full */

/*
 * The time of the first record in the ring: it notes that if the ring held no other when it was
 * submitted. If it did not, two were reserved at once, and this is the time of a record that the
 * reader has taken. Then its last look, at which there was nothing to take, is the best that it
 * knows. Either is too early rather than too late.
 */
unsigned long long first_ns = 0;

/* The reader's position, plus 1, when the ring was last found to fill up. */
unsigned long long filled_at = 0;

/*
 * A ring that fills up wakes the reader a second time, so that it takes what has gathered: once for
 * each of its positions, not for each record, which would be expensive while the reader does not
 * run. filled_at changes before the wake-up, so the reader knows what woke it, even when this
 * wake-up and that of the first record become one. Programs that run at the same time can each wake
 * the reader; one that finds its position noted leaves that to the one that noted it.
 *
 * Not static, so the verifier looks at it once and not at each call.
 */
__noinline u64 wakeup_flags(u64 reserved_size, u64 time_ns)
{
	u64 unread = bpf_ringbuf_query(&rb, BPF_RB_AVAIL_DATA), position;

	if (unread <= reserved_size + MAX_OVERHEAD)
		first_ns = time_ns;
	if (unread < wakeup_bytes)
		return 0;
	position = bpf_ringbuf_query(&rb, BPF_RB_CONS_POS) + 1;
	if (filled_at >= position)
		return 0;
	filled_at = position;
	return BPF_RB_FORCE_WAKEUP;
}

/*
 * Room for a record of size bytes, which must be a constant, or NULL when the ring is full. Ring
 * memory is not zeroed: write every byte up to header.size.
 */
static __always_inline void *ring_reserve(u64 size)
{
	u64 lost_before = lost;
	struct record_header *r;

	__sync_fetch_and_add(&produced, 1);
	r = bpf_ringbuf_reserve(&rb, size, 0);
	if (!r) {
		__sync_fetch_and_add(&lost, 1);
		return NULL;
	}
	r->lost = lost_before; /* by its submission others may be lost that come after it */
	r->size = size; /* until then */
	return r;
}

static __always_inline void ring_submit(struct record_header *r, u32 size, u8 kind, u16 flags,
					u64 time_ns)
{
	u64 wakeup = wakeup_flags(r->size, time_ns);

	r->size = size;
	r->kind = kind;
	r->unused = 0;
	r->flags = flags;
	r->time_ns = time_ns;
	bpf_ringbuf_submit(r, wakeup);
}

#endif

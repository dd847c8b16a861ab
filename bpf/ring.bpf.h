/* SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause */
/*
 * The ring buffer, its wake-ups and its loss counters; nothing here knows what a record contains.
 *
 * Waking the reader costs far more than everything else a program does, and a batch of events costs
 * the reader little more than a single one. So a burst should cost one wake-up and one batch:
 *
 *   kernel:  a record wakes the reader if it is the next one that the reader will take. That is
 *            what bpf_ringbuf_submit() does without flags; the rest of a burst wakes nobody.
 *   reader:  when woken, it normally takes nothing yet. It lets records gather for most of the
 *            latency bound (shim.c), then takes all there are, moves its position past them,
 *            executes a full memory barrier, and looks once more. It sleeps if that look finds
 *            nothing to take.
 *
 * Why no wake-up is lost. The record at the position p of a sleeping reader is either not reserved,
 * or reserved and not submitted; the reader cannot take anything behind it either. Its submission
 * (1) marks it, (2) executes a full barrier and (3) reads the reader's position. The reader (4)
 * wrote p, (5) executed a full barrier and (6) looked for the mark. If (6) did not see (1), then
 * (3) sees (4), and the record wakes the reader. So a record that is reserved and delayed on one
 * CPU does no harm if others are submitted behind it. (It would if the time of the last wake-up
 * decided: the others would wake the reader, which would find the head of the ring reserved and
 * sleep again, and the delayed record would be submitted without a wake-up.)
 *
 * Why no event waits longer than the bound. The first record that can be taken wakes the reader,
 * and all others of its batch come later. The reader may be busy when it is woken, so it counts the
 * bound from the time of that first record: see first_ns. If it leaves a reserved record behind, it
 * takes the next batch as soon as it is woken, because that record has already waited once.
 *
 * A ring that fills up does not wait for the bound: see wakeup_flags().
 *
 * Assumptions; tests/unit/test_wakeups.py explores every interleaving under them:
 *
 *   1. bpf_ringbuf_submit() has a full barrier between mark and comparison (xchg() in
 *      bpf_ringbuf_commit(), Linux 5.8 to 7.2).
 *   2. libbpf writes its position after each record, and stops at one that is not submitted. No
 *      record is discarded: libbpf would not count it, and a round of only those would look empty.
 *   3. A ring has one reader.
 *   4. epoll reports a wake-up of the ring, edge-triggered, to the epoll_wait() in progress or the
 *      next one, if the ring holds anything by then.
 *   5. A reader that sees a record reserved also sees it counted in produced. If it does not (weak
 *      memory), a batch may wait for the bound twice.
 *   6. Timers fire, and the reader and the programs that reserved records get to run. The bound
 *      limits the deliberate waiting; delays of an overloaded machine come on top.
 */
#ifndef RING_BPF_H
#define RING_BPF_H

#include "ring.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* set from user space */
} rb SEC(".maps");

/* The ring counts as filling up, and the reader stops gathering, at this many unread bytes. */
const volatile unsigned long long wakeup_bytes = 0;

/*
 * RECORD(1, exec_record) declares that records of kind 1 are a struct exec_record, and defines
 * KIND_exec_record. The variables keep struct and number in the object's BTF, for Python.
 */
#define RECORD(number, type)                                                          \
	enum kind_of_##type{KIND_##type = number};                                    \
	_Static_assert(KIND_##type >= 1 && KIND_##type <= 255, "kinds are 1 to 255"); \
	_Static_assert(__builtin_offsetof(struct type, header) == 0,                  \
		       "a record begins with struct record_header header");           \
	_Static_assert(sizeof(struct type) <= MAX_RECORD, "a record is too large");   \
	const struct type *record_##type __attribute__((unused));                     \
	const enum kind_of_##type *kind_##type __attribute__((unused))

/* The ring adds 8 bytes before a record, and pads it to a multiple of 8. */
enum { MAX_OVERHEAD = 15 };

/* Read by user space; these two never decrease. */
unsigned long long produced = 0; /* records that should reach the reader */
unsigned long long lost = 0; /* those of them that found the ring full */

/*
 * The time of the first record in the ring. A record notes its time here if the ring held no other
 * when it was submitted. If several were reserved at once, none may do so, and this remains the
 * time of a record that the reader has already taken. The reader then counts from its last look,
 * which found nothing to take. Both times are too early rather than too late.
 */
unsigned long long first_ns = 0;

/* The reader's position, plus 1, when a program last found the ring filling up. */
unsigned long long filled_at = 0;

/*
 * A ring that fills up wakes the reader a second time, so that it takes the records that have
 * gathered. This happens once for each position of the reader, not for each record, because that
 * would be expensive while the reader does not run. filled_at changes before the wake-up, so the
 * reader knows what woke it, even if this wake-up and that of the first record become one. Programs
 * that run at the same time can each wake the reader; a program that finds the position noted
 * leaves the wake-up to the one that noted it.
 *
 * Not static, so that the verifier checks it once and not at each call.
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
 * Returns room for a record of size bytes, which must be a constant, or NULL if the ring is full.
 * Ring memory is not zeroed: write every byte up to header.size.
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
	r->lost = lost_before; /* not read at submission: later records may be lost by then */
	r->size = size; /* ring_submit() needs it, and sets the final size */
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

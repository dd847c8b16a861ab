/* SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause */
/*
 * What every record in the ring starts with; nothing here knows what a record says. The BPF
 * programs, the shim and cffi's parser read it, so it is plain C without includes.
 */
#ifndef RING_H
#define RING_H

enum { MAX_RECORD = 16 * 1024 }; /* bytes of the largest record there can be */

struct record_header {
	unsigned int size; /* bytes in use, this head and the tail included */
	unsigned char kind; /* which struct it is: see RECORD() in ring.bpf.h */
	unsigned char unused; /* always 0 */
	unsigned short flags; /* the tool's */
	unsigned long long time_ns; /* in the ring CLOCK_BOOTTIME; the shim makes it wall clock */
	unsigned long long lost; /* how many records found the ring full before this one */
};

#endif

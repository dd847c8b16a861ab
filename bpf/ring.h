/* SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause */
/*
 * The header of every record in the ring; nothing here knows what a record contains. The BPF
 * programs, the shim and cffi's parser read this file, so it is plain C without includes.
 */
#ifndef RING_H
#define RING_H

enum { MAX_RECORD = 16 * 1024 }; /* bytes of the largest possible record */

struct record_header {
	unsigned int size; /* bytes in use, including this header and the tail */
	unsigned char kind; /* which struct it is: see RECORD() in ring.bpf.h */
	unsigned char unused; /* always 0 */
	unsigned short flags; /* defined by the tool */
	unsigned long long time_ns; /* CLOCK_BOOTTIME; the shim turns it into wall clock */
	unsigned long long lost; /* how many records found the ring full before this one */
};

#endif

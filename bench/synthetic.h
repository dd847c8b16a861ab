/* SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause */
/* Shared by the two halves of the synthetic source. */
#ifndef SYNTHETIC_H
#define SYNTHETIC_H

enum { RECORDS_PER_RUN = 64 };

#endif

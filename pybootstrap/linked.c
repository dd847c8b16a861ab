// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/* The object that is linked into the extension, by the skeleton that bpftool generates. */
#include <errno.h>
#include <stdlib.h>

#include "bootstrap.h"
#include "linked.h"
#include "shim.h"
/* Generated code; not ours to fix. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wsign-compare"
#include "bootstrap.skel.h"
#pragma GCC diagnostic pop

/* Records are copied as bytes, so padding would leak old ring memory. */
_Static_assert(sizeof(struct process) == 56, "struct process has padding");
_Static_assert(sizeof(struct exec_record) == 24 + 56 + 8, "struct exec_record has padding");
_Static_assert(sizeof(struct exit_record) == 24 + 56 + 8 + 8 + 80 + 8,
	       "struct exit_record has padding");
_Static_assert(sizeof(struct exit_record) + TEXT_SIZE <= MAX_RECORD, "a record is too large");

const void *shim_linked_object(unsigned long long *size)
{
	size_t bytes;
	const void *elf = bootstrap_bpf__elf_bytes(&bytes);

	*size = bytes;
	return elf;
}

void *linked_skeleton(struct bpf_object_skeleton **skeleton)
{
	struct bootstrap_bpf *object = calloc(1, sizeof(*object));

	if (object && bootstrap_bpf__create_skeleton(object)) {
		free(object);
		return NULL;
	}
	*skeleton = object ? object->skeleton : NULL;
	return object;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause */
#ifndef LINKED_H
#define LINKED_H

struct bpf_object_skeleton;

/*
 * Makes the skeleton of the object that is linked in. Returns the memory that it points to: free()
 * that after bpf_object__destroy_skeleton(). NULL: no memory.
 */
void *linked_skeleton(struct bpf_object_skeleton **skeleton);

#endif

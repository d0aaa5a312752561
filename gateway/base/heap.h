/* SPDX-License-Identifier: ISC */
/*
 * Heaps whose nodes stand inside the elements, so that to add one cannot lack memory: the
 * smallest key is first, O(log n) for all else. Equal keys come in any order. A node is in
 * one heap at most. One thread at a time.
 */
#pragma once

#include <stdint.h>

#include "gateway/base/compiler.h"

struct heap_node {
	uint64_t key; /* the rest is private */
	/* `before` is the sibling before it, or for the first child its parent. */
	struct heap_node *child, *next, *before;
};

/* Zeroed it is empty. */
struct heap {
	struct heap_node *first; /* of the smallest key; NULL: there is none */
};

void heap_add(struct heap *heap, struct heap_node *node, uint64_t key);

/* The node is in the heap. */
void heap_remove(struct heap *heap, struct heap_node *node);

#define heap_entry(node, type, member) container_of(node, type, member)

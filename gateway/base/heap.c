/* SPDX-License-Identifier: ISC */
/* Pairing heaps (Fredman et al., 1986); see heap.h. */
#include "gateway/base/heap.h"

#include <stddef.h>

/* The heap of both heaps: the one with the larger key becomes the other's first child. */
static struct heap_node *merge(struct heap_node *a, struct heap_node *b)
{
	if (a == NULL || b == NULL)
		return a != NULL ? a : b;
	struct heap_node *first = b->key < a->key ? b : a, *later = first == a ? b : a;
	later->before = first;
	later->next = first->child;
	if (first->child != NULL)
		first->child->before = later;
	first->child = later;
	return first;
}

static void detach(struct heap_node *node)
{
	node->before = node->next = NULL;
}

/* One heap of siblings: merged in pairs, then the pairs from the last to the first. */
static struct heap_node *merge_siblings(struct heap_node *first)
{
	struct heap_node *pairs = NULL, *heap = NULL;

	while (first != NULL) {
		struct heap_node *a = first, *b = first->next;
		first = b != NULL ? b->next : NULL;
		detach(a);
		if (b != NULL)
			detach(b);
		struct heap_node *pair = merge(a, b);
		pair->next = pairs;
		pairs = pair;
	}
	while (pairs != NULL) {
		struct heap_node *pair = pairs;
		pairs = pair->next;
		detach(pair);
		heap = merge(heap, pair);
	}
	return heap;
}

void heap_add(struct heap *heap, struct heap_node *node, uint64_t key)
{
	*node = (struct heap_node){.key = key};
	heap->first = merge(heap->first, node);
}

void heap_remove(struct heap *heap, struct heap_node *node)
{
	struct heap_node *below = merge_siblings(node->child);

	if (node == heap->first) {
		heap->first = below;
	} else {
		if (node->before->child == node)
			node->before->child = node->next;
		else
			node->before->next = node->next;
		if (node->next != NULL)
			node->next->before = node->before;
		heap->first = merge(heap->first, below);
	}
	detach(node);
	node->child = NULL;
}

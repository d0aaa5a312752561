/* SPDX-License-Identifier: ISC */
/*
 * Doubly linked lists whose links stand inside the elements. A list is a link
 * that points at itself when empty; an element that is in no list has next NULL,
 * so that list_remove() of it does nothing. One thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "gateway/base/compiler.h"

struct list {
	struct list *prev, *next;
};

static inline void list_init(struct list *list)
{
	list->prev = list->next = list;
}

static inline bool list_is_empty(const struct list *list)
{
	return list->next == list;
}

static inline bool list_contains_link(const struct list *link)
{
	return link->next != NULL;
}

static inline void list_append(struct list *list, struct list *link)
{
	link->prev = list->prev;
	link->next = list;
	list->prev->next = link;
	list->prev = link;
}

static inline void list_prepend(struct list *list, struct list *link)
{
	link->next = list->next;
	link->prev = list;
	list->next->prev = link;
	list->next = link;
}

static inline void list_remove(struct list *link)
{
	if (link->next == NULL)
		return;
	link->prev->next = link->next;
	link->next->prev = link->prev;
	link->prev = link->next = NULL;
}

/* Takes the first link off, or NULL. */
static inline struct list *list_pop(struct list *list)
{
	struct list *link = list->next;

	if (link == list)
		return NULL;
	/* Not list_remove(): analysers would take `list->next` for unchanged. */
	list->next = link->next;
	list->next->prev = list;
	link->prev = link->next = NULL;
	return link;
}

/* Appends all links of another list, which is empty then. */
static inline void list_move(struct list *list, struct list *from)
{
	if (list_is_empty(from))
		return;
	from->next->prev = list->prev;
	list->prev->next = from->next;
	from->prev->next = list;
	list->prev = from->prev;
	list_init(from);
}

#define list_entry(link, type, member) container_of(link, type, member)

/* `at` names a variable of the loop. NOLINTBEGIN(bugprone-macro-parentheses) */
#define list_for_each(at, head) for (struct list *at = (head)->next; at != (head); at = at->next)

/* The current link may be removed in the body. */
#define list_for_each_safe(at, head)                                                               \
	for (struct list *at = (head)->next, *at##_next = at->next; at != (head);                  \
	        at = at##_next, at##_next = at->next)
/* NOLINTEND(bugprone-macro-parentheses) */

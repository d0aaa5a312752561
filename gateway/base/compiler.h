/* SPDX-License-Identifier: ISC */
/* What the compiler can check or do for us, each under one short name. */
#pragma once

#include <stddef.h>

#define must_check        __attribute__((warn_unused_result))
#define printf_like(f, a) __attribute__((format(printf, f, a)))
#define noreturn_         __attribute__((noreturn))
/* A large local variable that is written before it is read: not zeroed, as all others are. */
#define uninitialized_ __attribute__((uninitialized))

/* Calls `fn(&variable)` when the variable goes out of scope. */
#define _cleanup_(fn) __attribute__((cleanup(fn)))

/* Hands a pointer over: its value, leaving NULL behind, so that _cleanup_ finds nothing. */
#define TAKE(p)                                                                                    \
	({                                                                                         \
		__typeof__(p) taken_ = (p);                                                        \
		(p) = NULL;                                                                        \
		taken_;                                                                            \
	})

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* The object of which `ptr` is the given member. */
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define MIN_OF(a, b)                                                                               \
	({                                                                                         \
		__typeof__(a) min_a_ = (a);                                                        \
		__typeof__(b) min_b_ = (b);                                                        \
		min_a_ < min_b_ ? min_a_ : min_b_;                                                 \
	})

#define MAX_OF(a, b)                                                                               \
	({                                                                                         \
		__typeof__(a) max_a_ = (a);                                                        \
		__typeof__(b) max_b_ = (b);                                                        \
		max_a_ > max_b_ ? max_a_ : max_b_;                                                 \
	})

/*
 * A condition that only a bug in this program can break. It aborts in release
 * builds too: going on with a broken invariant is how mail gets lost.
 */
#define assert_bug(cond)                                                                           \
	do {                                                                                       \
		if (__builtin_expect(!(cond), 0))                                                  \
			bug_abort(#cond, __FILE__, __LINE__);                                      \
	} while (0)

noreturn_ void bug_abort(const char *condition, const char *file, int line);

/* For _cleanup_: free() of the pointer that the variable holds. */
void freep(void *pointer_to_pointer);

/* For _cleanup_: closes the descriptor that the variable holds, unless it is negative. */
void closep(const int *fd);

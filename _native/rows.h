/* Copying rows: many spans of memory into one, and one into many.
 *
 * Plain memory, no Python: callers collect the spans while they hold the GIL and
 * may give it up around the copy. Nothing is allocated here. Source and target
 * must not overlap.
 */
#ifndef BT_ROWS_H
#define BT_ROWS_H

#include <stddef.h>

/* Below this, giving up the GIL costs more than it frees. */
#define BT_ROWS_RELEASE_BYTES (256 * 1024)

typedef struct {
    void *data;    /* borrowed; read by bt_gather, written by bt_scatter */
    size_t bytes;
} bt_span;

/* Copies the spans, one after the other, to `out`; returns the bytes written. */
size_t bt_gather(void *out, const bt_span *spans, size_t count);

/* Copies `in` to the spans, one after the other; returns the bytes read. */
size_t bt_scatter(const void *in, const bt_span *spans, size_t count);

#endif

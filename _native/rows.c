#include "rows.h"

#include <string.h>

size_t bt_gather(void *out, const bt_span *spans, size_t count) {
    char *at = out;
    for (size_t i = 0; i < count; i++) {
        if (spans[i].bytes == 0) continue; /* its pointer may be NULL */
        memcpy(at, spans[i].data, spans[i].bytes);
        at += spans[i].bytes;
    }
    return (size_t)(at - (char *)out);
}

size_t bt_scatter(const void *in, const bt_span *spans, size_t count) {
    const char *at = in;
    for (size_t i = 0; i < count; i++) {
        if (spans[i].bytes == 0) continue;
        memcpy(spans[i].data, at, spans[i].bytes);
        at += spans[i].bytes;
    }
    return (size_t)(at - (const char *)in);
}

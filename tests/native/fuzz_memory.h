/* Included before each source of the fuzzed core: its memory may run out. */
#ifndef FUZZ_MEMORY_H
#define FUZZ_MEMORY_H
#include <stdlib.h>

void *fuzz_realloc(void *old, size_t size);
void *fuzz_calloc(size_t count, size_t size);
void *fuzz_malloc(size_t size);

#define realloc fuzz_realloc
#define calloc fuzz_calloc
#define malloc fuzz_malloc

#endif

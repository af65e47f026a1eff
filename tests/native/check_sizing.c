/* How many costs a decision looks up, however many rows wait. */
#include <stdio.h>
#include <stdlib.h>

#include "fuzz_memory.h"
#include "sizing.h"
#undef calloc
#undef malloc
#undef realloc

void *fuzz_realloc(void *old, size_t size) { return realloc(old, size); }
void *fuzz_calloc(size_t count, size_t size) { return calloc(count, size); }
void *fuzz_malloc(size_t size) { return malloc(size); }

#define MANY_ROWS 1000000

static int64_t looked_up;
static bt_cost model;

static double cost_of(const void *policy, double rows) {
    (void)policy;
    looked_up++;
    return bt_cost_mean(&model, (int64_t)rows);
}

static void expect(int holds, const char *fact) {
    if (holds) return;
    fprintf(stderr, "%s\n", fact);
    exit(1);
}

static void check_shared_rows(void) {
    const bt_costs costs = {.model = &model, .of = cost_of};
    const bt_load load = {.rows = MANY_ROWS, .rows_all = MANY_ROWS, .idle_slots = 4, .total_slots = 4,
                          .most_rows = MANY_ROWS, .closed = 1};
    bt_cost_init(&model);
    for (int i = 0; i < 40; i++) {
        int64_t rows = 1 + i * 20;
        bt_cost_learn(&model, rows, 1e9 + 0.001 * (double)rows);
    }
    bt_size_decide(&costs, &load, NULL, 0, 0);
    expect(looked_up < 300, "rows are shared over slots after a few looks at the costs");
}

/* Down to half of it, as a size that was never run is compared with smaller ones. */
static void check_sizes_told_apart(void) {
    int64_t steps = 0, size = MANY_ROWS;
    while ((size = bt_cost_before(size)) > MANY_ROWS / 2) steps++;
    expect(steps < 20, "large sizes are told apart by a sixteenth of an octave");
    expect(bt_cost_before(136) == 135 && bt_cost_before(130) == 128 && bt_cost_before(128) == 127, "small ones by one");
    bt_cost_init(&model);
    for (size = 2000; size > 1; size = bt_cost_before(size)) {
        bt_cost_learn(&model, size, 1e6);
        expect(bt_cost_samples(&model, size) > 0.9, "each is known once it was run");
    }
}

int main(void) {
    check_shared_rows();
    check_sizes_told_apart();
    return 0;
}

/* What the cost model makes of batches, told one by one: ./check_cost SECTION runs the facts of one section. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cost.h"
#include "fuzz_memory.h"
#undef calloc
#undef malloc
#undef realloc

void *fuzz_realloc(void *old, size_t size) { return realloc(old, size); }
void *fuzz_calloc(size_t count, size_t size) { return calloc(count, size); }
void *fuzz_malloc(size_t size) { return malloc(size); }

/* ---- helpers ------------------------------------------------------------------ */

static const char *section;
static int checked;
static bt_cost c;
static uint64_t state;

static void start(void) {
    bt_cost_init(&c);
    state = 88172645463325252u;
}

static void expect(int holds, const char *fact, double found) {
    const char *broken = bt_cost_check(&c);
    checked++;
    if (holds && !broken) return;
    fprintf(stderr, "%s: %s: found %g (%s)\n", section, fact, found, broken ? broken : "invariants hold");
    exit(1);
}

static int is(const char *name) { return strcmp(section, name) == 0; }

static double uniform(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) / 9007199254740992.0;
}

static double normal(void) {
    double sum = 0.0;
    for (int i = 0; i < 12; i++) sum += uniform();
    return sum - 6.0;
}

static double line_ns(int64_t rows) { return 1e6 + 2e4 * (double)rows; }

static void learn(int64_t rows, double took_ns, int count) {
    for (int i = 0; i < count; i++) bt_cost_learn(&c, rows, took_ns);
}

/* ---- how sure it is -------------------------------------------------------------- */

static void sureness(void) {
    start();
    expect(isinf(bt_cost_error(&c, 8)), "before any batch nothing is sure", bt_cost_error(&c, 8));
    learn(8, line_ns(8), 3);
    expect(bt_cost_error(&c, 64) > 0.4, "one size says little of another", bt_cost_error(&c, 64));
    expect(bt_cost_samples(&c, 8) > 2.9, "every batch of a size counts", bt_cost_samples(&c, 8));
    expect(bt_cost_samples(&c, 64) <= 0.0, "no batch of a size counts for none", bt_cost_samples(&c, 64));

    start();
    for (int i = 0; i < 40; i++) learn(1 + 7 * (i % 5), line_ns(1 + 7 * (i % 5)) * (1.0 + 0.2 * normal()), 1);
    double few = bt_cost_error(&c, 8), distant = bt_cost_error(&c, 128);
    for (int i = 0; i < 400; i++) learn(1 + 7 * (i % 5), line_ns(1 + 7 * (i % 5)) * (1.0 + 0.2 * normal()), 1);
    double many = bt_cost_error(&c, 8);
    expect(many < 0.7 * few, "more batches make it surer", many / few);
    expect(distant > few, "what is far from all that was measured is less sure", distant / few);
    double seen = bt_cost_error(&c, 8), off = fabs(bt_cost_mean(&c, 8) / line_ns(8) - 1.0);
    expect(off < 3.0 * seen, "the mean is within three standard errors", off / seen);

    start();
    for (int i = 0; i < 200; i++) learn(1 + 7 * (i % 5), line_ns(1 + 7 * (i % 5)), 1);
    expect(bt_cost_error(&c, 8) < 0.01, "equal batches make it quite sure", bt_cost_error(&c, 8));
    expect(bt_cost_error(&c, 12) < 0.03, "and a line carries that to other sizes", bt_cost_error(&c, 12));

    start();
    for (int i = 0; i < 200; i++) learn(1 + 7 * (i % 5), 1e6 * (1.0 + (i % 5 > 2 ? 4.0 : 0.0)), 1);
    expect(bt_cost_error(&c, 12) > 0.1, "a step makes sizes between others unsure", bt_cost_error(&c, 12));
}

int main(int argc, char **argv) {
    section = argc > 1 ? argv[1] : "";
    if (is("sureness")) sureness();
    if (checked == 0) fprintf(stderr, "no section %s\n", section);
    return checked == 0;
}

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

/* ---- regimes, strays, noise, steps --------------------------------------------------- */

static const int64_t sizes[] = {1, 8, 3, 20, 5, 13};

/* `count` batches of the first `kinds` sizes, `slower` times slower, with normal noise. */
static void traffic(int kinds, int count, double slower, double noise) {
    for (int i = 0; i < count; i++) {
        int64_t rows = sizes[i % kinds];
        learn(rows, slower * line_ns(rows) * fmax(0.1, 1.0 + noise * normal()), 1);
    }
}

/* How far off the mean is for the sizes that were run. */
static double off(int kinds, double slower) {
    double most = 0.0;
    for (int i = 0; i < kinds; i++)
        most = fmax(most, fabs(bt_cost_mean(&c, sizes[i]) / (slower * line_ns(sizes[i])) - 1.0));
    return most;
}

static void regimes(void) {
    static const int kinds[] = {1, 2, 4, 6}, before[] = {2, 10, 100, 1000};
    for (int k = 0; k < 4; k++) {
        for (int b = 0; b < 4; b++) {
            for (int slower = 0; slower < 2; slower++) {
                double factor = slower ? 3.0 : 1.0 / 3.0;
                start();
                traffic(kinds[k], before[b], 1.0, 0.0);
                traffic(kinds[k], 50, factor, 0.0);
                expect(off(kinds[k], factor) < 0.15, "three times slower or faster is learned in 50 batches",
                       off(kinds[k], factor));
                start();
                traffic(kinds[k], before[b], 1.0, 0.2);
                traffic(kinds[k], 50, factor, 0.2);
                expect(off(kinds[k], factor) < 0.3, "and with a noise of 20 %", off(kinds[k], factor));
            }
        }
    }
}

static void strays(void) {
    static const int kinds[] = {1, 2, 4, 6}, before[] = {0, 1, 2, 5, 7, 8, 12, 100, 1000};
    for (int k = 0; k < 4; k++) {
        for (int b = 0; b < 9; b++) {
            start();
            traffic(kinds[k], before[b], 1.0, 0.0);
            learn(sizes[0], 100.0 * line_ns(sizes[0]), 1);
            if (before[b] > 0) expect(off(1, 1.0) < 0.2, "one batch 100 times slower is shrugged off", off(1, 1.0));
            traffic(kinds[k], 2 * kinds[k], 1.0, 0.0);
            expect(off(kinds[k], 1.0) < 0.15, "and soon forgotten, also the very first one", off(kinds[k], 1.0));
        }
    }
    start();
    traffic(4, 100, 1.0, 0.0);
    for (int i = 0; i < 20; i++) {
        learn(8, 100.0 * line_ns(8), 1);
        traffic(4, 12, 1.0, 0.0);
    }
    expect(off(4, 1.0) < 0.35, "nor is the model lost if every thirteenth batch is one", off(4, 1.0));
}

static double jump_ns(int64_t rows) { return line_ns(rows) * (rows > 64 ? 3.0 : 1.0); }

static void steps(void) {
    start();
    for (int i = 0; i < 300; i++) {
        int64_t rows = 1 + (i * 37) % 128, padded = 1;
        while (padded < rows) padded *= 2;
        learn(rows, line_ns(padded), 1);
    }
    for (int64_t rows = 2; rows <= 128; rows *= 2) {
        double there = bt_cost_mean(&c, rows) / line_ns(rows);
        expect(fabs(there - 1.0) < 0.2, "the table knows the size below a step", there);
    }
    expect(bt_cost_mean(&c, 65) > 1.2 * bt_cost_mean(&c, 64), "and the one above", bt_cost_mean(&c, 65));

    start();
    for (int i = 0; i < 100; i++) learn(1 + (i * 37) % 64, jump_ns(1 + (i * 37) % 64), 1);
    double before = bt_cost_mean(&c, 30);
    for (int i = 0; i < 12; i++) learn(100, jump_ns(100), 1);
    double after = bt_cost_mean(&c, 30), there = bt_cost_mean(&c, 100) / jump_ns(100);
    expect(fabs(after / before - 1.0) < 0.2, "a jump beyond all sizes is no change of regime", after / before);
    expect(fabs(there - 1.0) < 0.15, "and is learned", there);
}

/* A lone caller for a while, then a crowd: of one size nothing was known but a height. */
static void second_size(void) {
    static const int before[] = {1, 4, 9, 100};
    for (int b = 0; b < 4; b++) {
        start();
        learn(1, 5e6, before[b]);
        learn(128, 6e6, 1);
        double there = bt_cost_mean(&c, 64) / 5.5e6;
        expect(fabs(there - 1.0) < 0.05, "the second size gives the line its slope at once", there);
        start();
        learn(1, 5e6, before[b]);
        learn(2, 1e9, 1);
        learn(2, 6e6, 3);
        expect(bt_cost_mean(&c, 2) < 9e6, "were it a stray, it would be forgotten soon", bt_cost_mean(&c, 2));
    }
}

static void noise(void) {
    start();
    traffic(6, 600, 1.0, 0.2);
    expect(off(6, 1.0) < 0.1, "the mean is found in a noise of 20 %", off(6, 1.0));
    expect(c.high > 1.2 && c.high < 1.6, "and so is the upper quantile", c.high);
    expect(fabs(c.row_ns / 2e4 - 1.0) < 0.5, "and roughly what a row costs", c.row_ns);

    start();
    for (int i = 0; i < 20; i++) learn(i % 2 ? 8 : 64, line_ns(i % 2 ? 8 : 64), 1);
    double between = bt_cost_mean(&c, 30) / line_ns(30);
    expect(fabs(between - 1.0) < 0.02, "two sizes make a line", between);
}

int main(int argc, char **argv) {
    section = argc > 1 ? argv[1] : "";
    if (is("sureness")) sureness();
    if (is("regimes")) regimes();
    if (is("strays")) strays();
    if (is("steps")) steps();
    if (is("second size")) second_size();
    if (is("noise")) noise();
    if (checked == 0) fprintf(stderr, "no section %s\n", section);
    return checked == 0;
}

/* Greedy, a fixed window, BentoML's cork rule and a table of actions, for bench_policy_regret.py.
 *
 * Shares no line with the engine: a FIFO queue, workers that are separate devices, integer
 * nanoseconds. The bench compiles it and calls it through ctypes.
 */
#include <stdint.h>
#include <stdlib.h>

enum { GREEDY, WINDOW, CORK, TABLE };
enum { CALL, END };

typedef struct { int64_t at, order; int what; int64_t which; } event;
typedef struct { event *of; int64_t count, planned; } agenda;

static int earlier(const event *a, const event *b) { return a->at < b->at || (a->at == b->at && a->order < b->order); }

static void plan(agenda *h, int64_t at, int what, int64_t which) {
    event e = {at, h->planned++, what, which};
    int64_t i = h->count++;
    for (; i > 0 && earlier(&e, &h->of[(i - 1) / 2]); i = (i - 1) / 2) h->of[i] = h->of[(i - 1) / 2];
    h->of[i] = e;
}

static event next(agenda *h) {
    event first = h->of[0], last = h->of[--h->count];
    int64_t i = 0, c;
    while ((c = 2 * i + 1) < h->count) {
        if (c + 1 < h->count && earlier(&h->of[c + 1], &h->of[c])) c++;
        if (!earlier(&h->of[c], &last)) break;
        h->of[i] = h->of[c];
        i = c;
    }
    h->of[i] = last;
    return first;
}

/* The cork rule as its dispatcher.py has it: a line fitted to the last 50 batches over CALLS, polled
 * each millisecond; held while n * (since the last call + 1 ms + a) <= 0.95 * the mean first-caller wait. */
typedef struct { double size[50], took[50], a, mean_wait; int64_t seen; } cork;

static void cork_learn(cork *k, double size, double took) {
    k->size[k->seen % 50] = size;
    k->took[k->seen++ % 50] = took;
    double n = k->seen < 50 ? (double)k->seen : 50, x = 0, y = 0, xx = 0, xy = 0;
    for (int i = 0; i < (int)n; i++) x += k->size[i], y += k->took[i], xx += k->size[i] * k->size[i], xy += k->size[i] * k->took[i];
    double spread = n * xx - x * x;
    if (spread > 1e-9) k->a = (n * xy - x * y) / spread;
}

/* latency[i] of call i in ns. arrivals NULL: a closed loop whose think times are taken from `thinks`
 * in the order of the answers (the first `callers` of them before the first calls). TABLE takes table[n] calls
 * when n wait, or none until another comes if that is 0; n from `size` on is as `size`. 0, or -1 out of memory. */
int baseline(int rule, int64_t wait_ns, int64_t size, int64_t max_rows, int workers, int64_t calls,
             const int64_t *arrivals, int64_t callers, const int64_t *thinks, const int64_t *rows,
             const int64_t *cost, const int64_t *table, int64_t *latency) {
    agenda h = {malloc(sizeof(event) * (size_t)(calls + callers + workers + 8)), 0, 0};
    int64_t *called = malloc(sizeof(int64_t) * (size_t)calls), *caller = malloc(sizeof(int64_t) * (size_t)calls);
    int64_t *first = calloc((size_t)workers, sizeof(int64_t)), *taken = calloc((size_t)workers, sizeof(int64_t));
    int64_t *began = calloc((size_t)workers, sizeof(int64_t));
    if (!h.of || !called || !caller || !first || !taken || !began) return -1;
    cork k = {.mean_wait = 1e7};
    int64_t made = 0, head = 0, answered = 0, thought = 0, queued = 0, timer = INT64_MAX, now;
    int idle = workers;
    if (arrivals) plan(&h, arrivals[0], CALL, -1);
    else for (int64_t i = 0; i < callers; i++) plan(&h, thinks[thought++], CALL, i);
    while (answered < calls) {
        if (h.count && h.of[0].at <= timer) {
            event e = next(&h);
            now = e.at;
            if (e.what == CALL && made < calls) {
                caller[made] = e.which;
                queued += rows[made];
                called[made++] = now;
                if (arrivals && made < calls) plan(&h, arrivals[made], CALL, -1);
            } else if (e.what == END) {
                idle++;
                for (int64_t i = first[e.which]; i < first[e.which] + taken[e.which]; i++) {
                    latency[i] = now - called[i];
                    answered++;
                    if (!arrivals && made < calls) plan(&h, now + thinks[thought++], CALL, caller[i]);
                }
                cork_learn(&k, (double)taken[e.which], (double)(now - began[e.which]));
                taken[e.which] = 0;
            }
        } else now = timer;
        timer = INT64_MAX;
        while (idle > 0 && head < made) {
            int64_t until = now;
            if (rule == WINDOW && queued < (size < max_rows ? size : max_rows)) until = called[head] + wait_ns;
            double n = (double)(made - head);
            if (rule == CORK && queued < max_rows && n * ((double)(now - called[made - 1]) + 1e6 + k.a) <= 0.95 * k.mean_wait)
                until = now + 1000000;
            if (until > now) { timer = until; break; }
            int64_t most = max_rows;
            if (rule == TABLE && made < calls) most = table[made - head < size ? made - head : size];
            if (most == 0) break;
            int slot = 0;
            while (taken[slot]) slot++;
            int64_t sum = 0, from = head;
            while (head < made && (head == from || sum + rows[head] <= most)) sum += rows[head++];
            k.mean_wait += 0.05 * ((double)(now - called[from]) - k.mean_wait);
            queued -= sum;
            first[slot] = from, taken[slot] = head - from, began[slot] = now;
            idle--;
            plan(&h, now + cost[sum], END, slot);
        }
    }
    free(h.of), free(called), free(caller), free(first), free(taken), free(began);
    return 0;
}

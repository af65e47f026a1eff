/* Stand-in until the learned policy is there: greedy, or a fixed window. */
#include "policy.h"

#include <stdlib.h>
#include <string.h>

struct bt_policy {
    bt_policy_options options;
};

bt_policy *bt_policy_new(const bt_policy_options *options) {
    bt_policy *p = calloc(1, sizeof *p);
    if (p) p->options = *options;
    return p;
}

void bt_policy_free(bt_policy *p) { free(p); }

void bt_policy_set_options(bt_policy *p, const bt_policy_options *options) { p->options = *options; }

void bt_policy_arrived(bt_policy *p, int64_t now_ns, uint64_t group, uint64_t client, int64_t rows) {
    (void)p, (void)now_ns, (void)group, (void)client, (void)rows;
}

void bt_policy_left(bt_policy *p, int64_t now_ns, uint64_t group, int64_t rows) {
    (void)p, (void)now_ns, (void)group, (void)rows;
}

void bt_policy_started(bt_policy *p, int64_t now_ns, uint64_t group, int64_t calls, int64_t rows,
                       int64_t padded_rows, bt_release reason) {
    (void)p, (void)now_ns, (void)group, (void)calls, (void)rows, (void)padded_rows, (void)reason;
}

void bt_policy_finished(bt_policy *p, int64_t now_ns, uint64_t group, int64_t answered, int64_t rows,
                        int64_t padded_rows, int64_t took_ns, int ok) {
    (void)p, (void)now_ns, (void)group, (void)answered, (void)rows, (void)padded_rows, (void)took_ns, (void)ok;
}

int64_t bt_policy_cost_ns(const bt_policy *p, int64_t rows) {
    (void)p, (void)rows;
    return 0;
}

int64_t bt_policy_cost_high_ns(const bt_policy *p, int64_t rows) {
    (void)p, (void)rows;
    return 0;
}

int bt_policy_calibrated(const bt_policy *p) {
    (void)p;
    return 0;
}

int64_t bt_policy_padded_rows(const bt_policy *p, int64_t rows) {
    for (int64_t i = 0; i < p->options.allowed_count; i++) {
        if (p->options.allowed_rows[i] >= rows) return p->options.allowed_rows[i];
    }
    return rows;
}

bt_hold bt_policy_hold(bt_policy *p, int64_t now_ns, const bt_view *view) {
    const bt_policy_options *o = &p->options;
    int64_t full = o->max_batch_rows;
    if (o->rule == BT_RULE_FIXED && o->fixed_rows < full) full = o->fixed_rows;
    if (view->queued_rows >= full) return (bt_hold){now_ns, o->max_batch_rows, BT_RELEASE_FULL};
    if (o->rule != BT_RULE_FIXED) return (bt_hold){now_ns, o->max_batch_rows, BT_RELEASE_WORKER_FREE};
    int64_t wait_ns = o->fixed_wait_ns;
    if (o->max_wait_ns >= 0 && o->max_wait_ns < wait_ns) wait_ns = o->max_wait_ns;
    int64_t oldest_ns = view->oldest_arrival_ns;
    int64_t until_ns = oldest_ns > INT64_MAX - wait_ns ? INT64_MAX : oldest_ns + wait_ns;
    return (bt_hold){until_ns, o->max_batch_rows, BT_RELEASE_CAP};
}

void bt_policy_get_statistics(const bt_policy *p, bt_policy_statistics *out) {
    (void)p;
    memset(out, 0, sizeof *out);
}

const char *bt_policy_check(const bt_policy *p) {
    (void)p;
    return NULL;
}

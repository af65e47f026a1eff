/* The record of the last releases: why each batch was let go, what it was
 * predicted to cost, and what it did cost. A ring in the scheduler: nothing is
 * allocated, and a batch that ends after its entry was overwritten is counted
 * in the sums alone. */
#include "scheduler_state.h"

static bt_released *entry_of(bt_scheduler *s, int64_t number) {
    return &s->recent[(size_t)(number - 1) % BT_RECENT_RELEASES];
}

void bt_release_note(bt_scheduler *s, bt_batch *b, bt_release reason) {
    b->release = s->counted.batches;
    b->reason = reason;
    b->predicted_ns = bt_policy_cost_ns(s->policy, b->rows);
    *entry_of(s, b->release) = (bt_released){
        .number = b->release,
        .released_ns = s->now_ns,
        .reason = reason,
        .calls = (int64_t)b->part_count,
        .rows = b->rows,
        .padded_rows = b->padded_rows,
        .idle_slots = s->idle_slots,
        .held_ns = b->held_ns,
        .predicted_ns = b->predicted_ns,
        .took_ns = -1,
        .how = BT_RELEASE_RUNNING,
    };
}

void bt_release_ended(bt_scheduler *s, const bt_batch *b, bt_finish how) {
    int64_t took_ns = s->now_ns - b->started_ns;
    if (how == BT_OK && b->predicted_ns > 0) {
        s->counted.predicted_ns[b->reason] += b->predicted_ns;
        s->counted.actual_ns[b->reason] += took_ns;
    }
    bt_released *entry = entry_of(s, b->release);
    if (entry->number != b->release) return;
    entry->took_ns = took_ns;
    entry->how = (int32_t)how;
}

size_t bt_recent_releases(const bt_scheduler *s, bt_released *out, size_t capacity) {
    int64_t last = s->counted.batches;
    int64_t count = bt_least(last, bt_least((int64_t)capacity, BT_RECENT_RELEASES));
    for (int64_t i = 0; i < count; i++) {
        out[i] = s->recent[(size_t)(last - count + i) % BT_RECENT_RELEASES];
    }
    return (size_t)count;
}

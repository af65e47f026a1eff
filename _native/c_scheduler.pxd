"""Every extern of scheduler.h and policy.h; the comments are there."""

from libc.stdint cimport int32_t, int64_t, uint64_t


cdef extern from "policy.h" nogil:
    ctypedef enum bt_objective:
        BT_LATENCY
        BT_THROUGHPUT

    ctypedef enum bt_rule:
        BT_RULE_LEARNED
        BT_RULE_GREEDY
        BT_RULE_FIXED

    ctypedef enum bt_release:
        BT_RELEASE_FULL
        BT_RELEASE_WORKER_FREE
        BT_RELEASE_EVERYONE_HERE
        BT_RELEASE_HOLD_EXPIRED
        BT_RELEASE_BUDGET
        BT_RELEASE_CAP
        BT_RELEASE_RERUN
        BT_RELEASE_COUNT

    enum:
        BT_MAX_ALLOWED_SIZES

    ctypedef struct bt_policy_options:
        bt_rule rule
        bt_objective objective
        int64_t max_batch_rows
        int64_t max_wait_ns
        int64_t fixed_wait_ns
        int64_t fixed_rows
        int64_t allowed_rows[64]  # BT_MAX_ALLOWED_SIZES
        int64_t allowed_count

    ctypedef struct bt_view:
        uint64_t group
        int64_t queued_rows
        int64_t queued_calls
        int64_t oldest_arrival_ns
        int64_t newest_arrival_ns
        int64_t tightest_deadline_ns
        int64_t idle_slots
        int64_t total_slots
        int64_t queued_rows_all

    ctypedef struct bt_hold:
        int64_t hold_until_ns
        int64_t take_rows
        bt_release reason

    ctypedef struct bt_policy_statistics:
        int64_t calibrated
        double cost_base_ns
        double cost_row_ns
        double arrival_rate_hz
        double return_fraction
        int64_t return_median_ns
        int64_t held
        int64_t held_ns

    ctypedef struct bt_policy:
        pass

    bt_policy *bt_policy_new(const bt_policy_options *options)
    void bt_policy_free(bt_policy *p)
    void bt_policy_set_options(bt_policy *p, const bt_policy_options *options)
    void bt_policy_arrived(bt_policy *p, int64_t now_ns, uint64_t group, uint64_t client, int64_t rows)
    void bt_policy_left(bt_policy *p, int64_t now_ns, uint64_t group, int64_t rows)
    void bt_policy_started(bt_policy *p, int64_t now_ns, uint64_t group, int64_t calls, int64_t rows,
                           int64_t padded_rows, bt_release reason)
    void bt_policy_finished(bt_policy *p, int64_t now_ns, uint64_t group, int64_t answered, int64_t rows,
                            int64_t padded_rows, int64_t took_ns, int ok)
    int64_t bt_policy_cost_ns(const bt_policy *p, int64_t rows)
    int64_t bt_policy_cost_high_ns(const bt_policy *p, int64_t rows)
    int64_t bt_policy_padded_rows(const bt_policy *p, int64_t rows)
    int bt_policy_calibrated(const bt_policy *p)
    bt_hold bt_policy_hold(bt_policy *p, int64_t now_ns, const bt_view *view)
    void bt_policy_get_statistics(const bt_policy *p, bt_policy_statistics *out)
    const char *bt_policy_check(const bt_policy *p)


cdef extern from "scheduler.h" nogil:
    ctypedef uint64_t bt_id

    const int64_t BT_NEVER

    ctypedef struct bt_scheduler:
        pass

    ctypedef struct bt_options:
        int64_t max_batch_rows
        int64_t max_queue_rows
        int32_t isolate_errors
        int32_t one_call_a_batch
        bt_policy_options policy

    ctypedef enum bt_verdict:
        BT_ADMITTED
        BT_REFUSED_QUEUE
        BT_REFUSED_LATE
        BT_REFUSED_SIZE
        BT_REFUSED_MEMORY

    ctypedef struct bt_admission:
        bt_verdict verdict
        bt_id id
        int64_t predicted_ns

    ctypedef struct bt_part:
        bt_id id
        uint64_t tag
        int64_t first_row
        int64_t rows

    ctypedef enum bt_action:
        BT_IDLE
        BT_WAIT
        BT_RUN

    ctypedef struct bt_decision:
        bt_action action
        int64_t until_ns
        uint64_t batch
        uint64_t group
        int64_t rows
        int64_t padded_rows
        bt_release reason
        const bt_part *parts
        size_t part_count

    ctypedef enum bt_outcome:
        BT_PART
        BT_ANSWERED
        BT_RERUN
        BT_FAILED
        BT_LOST
        BT_BROKEN
        BT_GONE
        BT_EXPIRED

    ctypedef struct bt_settled:
        bt_id id
        uint64_t tag
        int64_t first_row
        int64_t rows
        int64_t batch_offset
        bt_outcome outcome

    ctypedef enum bt_finish:
        BT_OK
        BT_RAISED
        BT_DIED
        BT_INVALID
        BT_UNRUN
        BT_UNSENT

    enum:
        BT_BATCH_ROWS_BUCKETS

    ctypedef struct bt_statistics:
        int64_t queued_calls
        int64_t queued_rows
        int64_t in_flight_batches
        int64_t calls
        int64_t answered
        int64_t failed
        int64_t refused
        int64_t expired
        int64_t cancelled
        int64_t batches
        int64_t batch_rows[40]  # BT_BATCH_ROWS_BUCKETS
        int64_t released[7]     # BT_RELEASE_COUNT
        int64_t predicted_ns[7]
        int64_t actual_ns[7]
        int64_t groups
        bt_policy_statistics policy

    enum:
        BT_RECENT_RELEASES
        BT_RELEASE_RUNNING

    ctypedef struct bt_released:
        int64_t number
        int64_t released_ns
        bt_release reason
        int64_t calls
        int64_t rows
        int64_t padded_rows
        int64_t idle_slots
        int64_t held_ns
        int64_t predicted_ns
        int64_t took_ns
        int32_t how

    bt_scheduler *bt_scheduler_new(const bt_options *options)
    void bt_scheduler_free(bt_scheduler *s)
    int bt_set_options(bt_scheduler *s, const bt_options *options)
    void bt_refused(bt_scheduler *s, int64_t calls)
    bt_admission bt_admit(bt_scheduler *s, int64_t now_ns, int64_t rows, uint64_t group, int64_t deadline_ns,
                          uint64_t client, uint64_t tag)
    int bt_cancel(bt_scheduler *s, bt_id id)
    int bt_expire(bt_scheduler *s, bt_id id)
    int bt_decide(bt_scheduler *s, int64_t now_ns, int64_t idle_slots, int64_t total_slots, bt_decision *out)
    size_t bt_expired(bt_scheduler *s, bt_settled *out, size_t capacity)
    const bt_settled *bt_finished(bt_scheduler *s, uint64_t batch, int64_t now_ns, bt_finish how, size_t *count)
    void bt_get_statistics(const bt_scheduler *s, bt_statistics *out)
    size_t bt_recent_releases(const bt_scheduler *s, bt_released *out, size_t capacity)
    const char *bt_check(const bt_scheduler *s)
    int64_t bt_live_objects()

/* Calls and batches of the native plane: from a record to its answer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plane_state.h"

#define FIRST_RAN 8 /* batches before the first BT_EVENT_RAN */

bt_wire_error bt_plain_error(uint16_t code, const char *text)
{
    bt_wire_error e;
    memset(&e, 0, sizeof e);
    e.code = code;
    e.exit_code = -1;
    e.number = -1;
    e.texts[0] = (const uint8_t *)text;
    e.text_bytes[0] = (uint32_t)strlen(text);
    return e;
}

int bt_error_of(const bt_message *m, bt_wire_error *out)
{
    bt_packet packet;
    bt_record record;
    bt_body body;
    if (m == NULL || bt_packet_open(&packet, m->frame[0].data, m->frame[0].bytes, m->frames) != BT_WIRE_OK ||
        bt_packet_next(&packet, &record) != 1 || record.type != BT_ERROR ||
        bt_record_check(&record, bt_message_frame_size, m, &body) != BT_WIRE_OK)
        return -1;
    *out = body.error;
    return 0;
}

static void fail_request(bt_plane *p, bt_peer *client, uint64_t request, const bt_wire_error *error)
{
    bt_write_error(&bt_peer_post(p, client)->w, request, error);
}

static void fail_text(bt_plane *p, bt_peer *client, uint64_t request, uint16_t code, const char *text)
{
    bt_wire_error e = bt_plain_error(code, text);
    fail_request(p, client, request, &e);
}

/* The call's outcome is an error: told, and forgotten. */
static void fail_entry(bt_plane *p, uint32_t place, const bt_wire_error *error)
{
    bt_entry *e = &p->ledger.entry[place];
    bt_peer *client = e->owner;
    fail_request(p, client, e->request, error);
    bt_ledger_remove(&p->ledger, &client->calls, place);
}

/* ---- admission ---------------------------------------------------------------- */

static void refuse(bt_plane *p, bt_peer *client, uint64_t request, const bt_admission *a,
                   const bt_wire_rows *call)
{
    char text[256];
    long long limit = p->max_queue_rows;
    bt_statistics now;
    switch (a->verdict) {
    case BT_REFUSED_QUEUE:
        bt_get_statistics(p->scheduler, &now);
        snprintf(text, sizeof text, "%lld rows are queued, and %u more would exceed max_queue_rows, %lld",
                 (long long)now.queued_rows, call->rows, limit);
        break;
    case BT_REFUSED_LATE:
        snprintf(text, sizeof text,
                 "an answer is predicted in %.3g ms, after the %.3g ms that the call has left",
                 (double)a->predicted_ns * 1e-6, (double)call->budget_ns * 1e-6);
        break;
    case BT_REFUSED_SIZE:
        snprintf(text, sizeof text, "a call of %u rows is larger than max_queue_rows, %lld", call->rows, limit);
        break;
    default:
        snprintf(text, sizeof text, "no memory for one more call");
    }
    int too_large = a->verdict == BT_REFUSED_SIZE;
    bt_wire_error e = bt_plain_error(too_large ? BT_E_INVALID_PAYLOAD : BT_E_OVERLOADED, text);
    if (!too_large) e.number = a->predicted_ns;
    fail_request(p, client, request, &e);
}

/* For fairness: the connection, or one of those that it calls for. */
static uint64_t client_of(const bt_peer *peer, const bt_wire_rows *rows)
{
    return peer->number + ((uint64_t)rows->client << 32);
}

void bt_plane_call(bt_plane *p, bt_peer *client, bt_message *m, const bt_record *r, const bt_wire_rows *rows)
{
    bt_wire_error failing;
    uint32_t place;
    if (rows->method == BT_METHOD_STATISTICS) {
        bt_plane_ask(p, client, r->id);
        return;
    }
    if (rows->method != BT_METHOD_RUN) {
        fail_text(p, client, r->id, BT_E_MALFORMED, "no such method here");
        return;
    }
    if (p->state != BT_OPEN) {
        fail_text(p, client, r->id, BT_E_CLOSED, "the service is closing");
        return;
    }
    if (p->failing != NULL && bt_error_of(p->failing, &failing) == 0) {
        fail_request(p, client, r->id, &failing);
        return;
    }
    switch (bt_ledger_add(&p->ledger, client, &client->calls, r->id, m, rows, &place)) {
    case BT_WIRE_OK:
        break;
    case BT_WIRE_VALUE: /* a message that came twice */
        p->dropped++;
        return;
    case BT_WIRE_COUNT:
        fail_text(p, client, r->id, BT_E_MALFORMED, "calls of one key have buffers of one shape");
        return;
    default:
        fail_text(p, client, r->id, BT_E_OVERLOADED, "the dispatcher is out of memory");
        return;
    }
    if (p->refuses_pickle && client != p->local && bt_ledger_holds_pickle(&p->ledger, place)) {
        bt_ledger_remove(&p->ledger, &client->calls, place);
        fail_text(p, client, r->id, BT_E_INVALID_PAYLOAD, "pickle is not allowed on this connection");
        return;
    }
    int64_t now_ns = p->arrived_ns;
    int64_t deadline_ns =
        rows->budget_ns < 0 || rows->budget_ns > BT_NEVER - now_ns ? BT_NEVER : now_ns + rows->budget_ns;
    bt_entry *e = &p->ledger.entry[place];
    bt_admission a = bt_admit(p->scheduler, now_ns, rows->rows, p->ledger.group[e->group].number, deadline_ns,
                              client_of(client, rows), bt_ledger_tag(&p->ledger, place));
    if (a.verdict == BT_ADMITTED) {
        e->id = a.id;
        return;
    }
    bt_ledger_remove(&p->ledger, &client->calls, place);
    refuse(p, client, r->id, &a, rows);
}

static void cancel_entry(bt_plane *p, bt_peer *client, uint32_t place)
{
    bt_cancel(p->scheduler, p->ledger.entry[place].id);
    bt_ledger_remove(&p->ledger, &client->calls, place);
}

void bt_plane_cancel(bt_plane *p, bt_peer *client, uint64_t request)
{
    uint32_t place = bt_ledger_find(&p->ledger, client, request);
    if (place != BT_NOWHERE) cancel_entry(p, client, place);
}

void bt_plane_cancel_all(bt_plane *p, bt_peer *client)
{
    while (client->calls != BT_NOWHERE) cancel_entry(p, client, client->calls);
}

void bt_plane_fail_all(bt_plane *p, const bt_wire_error *error)
{
    for (bt_peer *client = p->peers; client != NULL; client = client->next) {
        while (client->calls != BT_NOWHERE) {
            uint64_t request = p->ledger.entry[client->calls].request;
            cancel_entry(p, client, client->calls);
            fail_request(p, client, request, error);
        }
    }
}

static void expire(bt_plane *p)
{
    bt_settled due[64];
    size_t n;
    while ((n = bt_expired(p->scheduler, due, sizeof due / sizeof *due)) > 0) {
        for (size_t i = 0; i < n; i++) {
            uint32_t place = bt_ledger_place(&p->ledger, due[i].tag);
            if (place == BT_NOWHERE) continue;
            char text[80];
            snprintf(text, sizeof text, "the call had no answer within the %.3g ms that it had left",
                     (double)p->ledger.entry[place].rows.budget_ns * 1e-6);
            bt_wire_error e = bt_plain_error(BT_E_DEADLINE, text);
            fail_entry(p, place, &e);
        }
    }
}

/* ---- batches -------------------------------------------------------------------- */

static bt_slice *slices(bt_plane *p, size_t count)
{
    if (count > p->slice_capacity) {
        size_t capacity = 2 * count;
        bt_slice *grown = realloc(p->slices, capacity * sizeof *grown);
        if (grown == NULL) return NULL;
        p->slices = grown;
        p->slice_capacity = capacity;
    }
    return p->slices;
}

/* Gathers the decision's rows into one record for the worker. Not 0: why it
 * cannot be sent is in *error and `text`. */
static int write_batch(bt_plane *p, bt_peer *worker, const bt_decision *d, bt_wire_error *error, char *text)
{
    *error = bt_plain_error(BT_E_OVERLOADED, "no memory to send the call");
    bt_slice *s = slices(p, d->part_count ? d->part_count : 1);
    const bt_group *group = NULL;
    if (s == NULL) return -1;
    for (size_t i = 0; i < d->part_count; i++) {
        uint32_t place = bt_ledger_place(&p->ledger, d->parts[i].tag);
        if (place == BT_NOWHERE) return -1;
        const bt_entry *e = &p->ledger.entry[place];
        group = &p->ledger.group[e->group];
        s[i].message = e->message;
        s[i].rows = &e->rows;
        s[i].first_row = (uint32_t)d->parts[i].first_row;
        s[i].count = (uint32_t)d->parts[i].rows;
        s[i].offsets = NULL;
    }
    if (group == NULL) return -1;
    return (int)bt_peer_write(p, worker, BT_BATCH, d->batch, (uint32_t)d->padded_rows, group->key,
                              group->key_bytes, s, d->part_count, error, text);
}

void bt_plane_dispatch(bt_plane *p)
{
    bt_decision d;
    for (;;) {
        int64_t idle, total, now_ns = bt_now_ns();
        bt_peer_slots(p, &idle, &total);
        if (bt_decide(p->scheduler, now_ns, idle, total, &d) != 0) {
            p->until_ns = now_ns + 1000000; /* out of memory: ask again */
            return;
        }
        expire(p);
        p->until_ns = d.until_ns;
        if (d.action != BT_RUN) return;
        bt_peer *worker = bt_peer_free_worker(p);
        char text[BT_TEXT_BYTES];
        bt_wire_error e = bt_plain_error(BT_E_OVERLOADED, "no worker is free");
        if (worker == NULL || write_batch(p, worker, &d, &e, text) != 0) {
            /* Its calls may well fit one by one; a call alone is told why it does not. */
            bt_plane_ended(p, d.batch, BT_UNSENT, &e);
            continue;
        }
        bt_running *running = &worker->running[worker->busy++];
        running->batch = d.batch;
        running->rows = (uint32_t)d.rows;
        running->kill_ns = p->run_timeout_ns < 0 ? BT_NEVER : now_ns + p->run_timeout_ns;
    }
}

/* Takes the batch from the worker; -1 for one that it does not have: late or
 * repeated words change nothing. */
static int64_t take_running(bt_plane *p, bt_peer *worker, uint64_t batch)
{
    for (uint32_t i = 0; i < worker->busy; i++) {
        if (worker->running[i].batch != batch) continue;
        uint32_t rows = worker->running[i].rows;
        worker->running[i] = worker->running[--worker->busy];
        worker->freed_at = ++p->clock;
        return rows;
    }
    p->dropped++;
    return -1;
}

/* ---- answers ----------------------------------------------------------------------- */

/* The rows of the slices are the call's answer. */
static void write_answer(bt_plane *p, uint32_t place, const bt_wire_rows *first, bt_slice *slices, size_t count)
{
    bt_entry *e = &p->ledger.entry[place];
    bt_peer *client = e->owner;
    bt_wire_error error;
    char text[BT_TEXT_BYTES];
    if (bt_peer_write(p, client, BT_ANSWER, e->request, 0, first->key, first->key_bytes, slices, count, &error,
                      text) != BT_WRITTEN)
        fail_entry(p, place, &error);
    else
        bt_ledger_remove(&p->ledger, &client->calls, place);
}

static void fail_for_memory(bt_plane *p, uint32_t place)
{
    bt_wire_error e = bt_plain_error(BT_E_OVERLOADED, "no memory for the answer");
    fail_entry(p, place, &e);
}

enum { SHOWN_KEY_BYTES = 200 };

static int shown_bytes(uint32_t key_bytes)
{
    return (int)(key_bytes < SHOWN_KEY_BYTES ? key_bytes : SHOWN_KEY_BYTES);
}

/* Fails a call with the keys of two parts that cannot be joined: what they are, as text. */
static void parts_differ(bt_plane *p, uint32_t place, const bt_wire_rows *one, const bt_wire_rows *other)
{
    char text[2 * SHOWN_KEY_BYTES + 64];
    snprintf(text, sizeof text, "the parts of one call differ: %.*s and %.*s", shown_bytes(one->key_bytes),
             (const char *)one->key, shown_bytes(other->key_bytes), (const char *)other->key);
    bt_wire_error e = bt_plain_error(BT_E_RESULT, text);
    fail_entry(p, place, &e);
}

/* A call whose rows came in several batches: joined if they can be. */
static void answer_cut(bt_plane *p, uint32_t place)
{
    bt_entry *e = &p->ledger.entry[place];
    size_t count = 0;
    const bt_answer *first = e->answers;
    for (const bt_answer *a = first; a != NULL; a = a->next, count++) {
        if (a->rows.key_bytes == first->rows.key_bytes && bt_same_layout(&a->rows, &first->rows) &&
            memcmp(a->rows.key, first->rows.key, first->rows.key_bytes) == 0)
            continue;
        parts_differ(p, place, &first->rows, &a->rows);
        return;
    }
    bt_slice *s = calloc(count, sizeof *s);
    size_t i = 0;
    for (const bt_answer *a = first; s != NULL && a != NULL; a = a->next, i++) {
        s[i].message = a->message;
        s[i].rows = &a->rows;
        s[i].first_row = a->batch_offset;
        s[i].count = a->count;
    }
    if (s == NULL)
        fail_for_memory(p, place);
    else
        write_answer(p, place, &first->rows, s, count);
    free(s);
}

static void answer(bt_plane *p, const bt_settled *part, bt_message *m, const bt_wire_rows *rows,
                   const uint64_t *const *offsets)
{
    uint32_t place = bt_ledger_place(&p->ledger, part->tag);
    if (place == BT_NOWHERE) return;
    bt_entry *e = &p->ledger.entry[place];
    if (part->outcome == BT_ANSWERED && e->answers == NULL) {
        bt_slice s = {.message = m, .rows = rows, .first_row = (uint32_t)part->batch_offset,
                      .count = (uint32_t)part->rows, .offsets = offsets};
        write_answer(p, place, rows, &s, 1);
        return;
    }
    if (bt_ledger_keep_answer(e, m, rows, (uint32_t)part->batch_offset, (uint32_t)part->rows,
                              part->first_row) != 0) {
        bt_cancel(p->scheduler, e->id);
        fail_for_memory(p, place);
    } else if (part->outcome == BT_ANSWERED) {
        answer_cut(p, place);
    }
}

/* Where each row starts in each VAR buffer, so that n slices cost n and not n * n. */
static uint64_t **row_offsets(const bt_wire_rows *rows)
{
    uint64_t **offsets = calloc(rows->buffers ? rows->buffers : 1, sizeof *offsets);
    bt_wire_walk walk;
    bt_wire_buffer b;
    uint16_t i = 0;
    if (offsets == NULL) return NULL;
    for (bt_wire_rows_walk(rows, &walk); bt_wire_rows_next(rows, &walk, &b); i++) {
        if (b.row_bytes != BT_VAR) continue;
        offsets[i] = malloc(((size_t)rows->rows + 1) * sizeof **offsets);
        if (offsets[i] == NULL) {
            while (i-- > 0) free(offsets[i]);
            free(offsets);
            return NULL;
        }
        uint64_t at = 0;
        for (uint32_t row = 0; row < rows->rows; row++) {
            uint32_t length = bt_get32(b.lengths + (size_t)4 * row);
            offsets[i][row] = at;
            at += length == BT_NO_BLOB ? 0 : length;
        }
        offsets[i][rows->rows] = at;
    }
    return offsets;
}

static int has_var(const bt_wire_rows *rows)
{
    for (uint16_t i = 0; i < rows->buffers; i++)
        if ((int32_t)bt_get32(rows->descriptors + (size_t)BT_DESCRIPTOR_BYTES * i + 8) == BT_VAR) return 1;
    return 0;
}

void bt_plane_result(bt_plane *p, bt_peer *worker, bt_message *m, const bt_record *r, const bt_wire_rows *rows)
{
    int64_t expected = take_running(p, worker, r->id);
    if (expected < 0) return;
    if (rows->rows != expected) {
        char text[128];
        snprintf(text, sizeof text, "a worker was given %lld rows and answered %u", (long long)expected, rows->rows);
        bt_wire_error e = bt_plain_error(BT_E_RESULT, text);
        bt_plane_ended(p, r->id, BT_INVALID, &e);
        return;
    }
    size_t count;
    const bt_settled *parts = bt_finished(p->scheduler, r->id, bt_now_ns(), BT_OK, &count);
    if (++p->ended_well >= FIRST_RAN && (p->ended_well & (p->ended_well - 1)) == 0)
        bt_plane_event(p, BT_EVENT_RAN, NULL, NULL, NULL);
    uint64_t **offsets = has_var(rows) ? row_offsets(rows) : NULL;
    for (size_t i = 0; i < count; i++) {
        /* bt_cancel, on the rare way out of memory, would end the life of `parts`. */
        bt_settled part = parts[i];
        if (part.outcome == BT_ANSWERED || part.outcome == BT_PART)
            answer(p, &part, m, rows, (const uint64_t *const *)offsets);
    }
    if (offsets == NULL) return;
    for (uint16_t i = 0; i < rows->buffers; i++) free(offsets[i]);
    free(offsets);
}

void bt_plane_ended(bt_plane *p, uint64_t batch, bt_finish how, const bt_wire_error *error)
{
    size_t count;
    const bt_settled *parts = bt_finished(p->scheduler, batch, bt_now_ns(), how, &count);
    for (size_t i = 0; i < count; i++) {
        if (parts[i].outcome != BT_FAILED && parts[i].outcome != BT_LOST && parts[i].outcome != BT_BROKEN) continue;
        uint32_t place = bt_ledger_place(&p->ledger, parts[i].tag);
        if (place != BT_NOWHERE) fail_entry(p, place, error);
    }
}

void bt_plane_raised(bt_plane *p, bt_peer *worker, const bt_record *r, const bt_wire_error *error)
{
    if (take_running(p, worker, r->id) < 0) return;
    bt_plane_ended(p, r->id, error->code == BT_E_RESULT ? BT_INVALID : BT_RAISED, error);
}

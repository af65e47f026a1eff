/* Drives the native plane from many threads at once, over the libzmq that pyzmq brought:
 *
 *   drive_plane SEED LIVES CALLS
 *
 * In each life of a plane there are callers of its own process, clients and workers with sockets, one
 * thread that hears its events and one that asks it for numbers. Calls are cancelled, run out of time or come
 * broken; workers answer, raise, answer nonsense or die. Some lives are drained, others end in the middle.
 * In some the plane's thread runs out of memory now and then, and its owner of some calls that it was to group.
 * Every call has exactly one outcome (where memory fails, this may be that its connection's outcomes are lost), and every
 * answer is its caller's own rows. Built with -fsanitize=thread or address; the program ends with 0 if nothing was found.
 *
 * libzmq is not instrumented: what the sanitizers cannot see of it, the wrappers below tell them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fuzz_memory.h"
#include "plane.h"
#include "wake.h"
#undef calloc
#undef malloc
#undef realloc

#define CALLERS 2
#define CLIENTS 2
#define WORKERS 3
#define AT_ONCE 64
#define LARGE_ROW_BYTES 20000
#define PATIENCE_MS 20000

enum { PAIR = 0, DEALER = 5, ROUTER = 6, LINGER = 17, SNDHWM = 23, MANDATORY = 33, DISCONNECTED = 0x200 };

typedef struct {
    void *socket;
    int fd;
    short events, revents;
} pollitem;

static struct {
    void *(*context)(void);
    int (*term)(void *context);
    void *(*socket)(void *context, int type);
    int (*close)(void *socket);
    int (*bind)(void *socket, const char *endpoint);
    int (*connect)(void *socket, const char *endpoint);
    int (*set)(void *socket, int option, const void *value, size_t bytes);
    int (*monitor)(void *socket, const char *endpoint, int events);
    int (*poll)(pollitem *items, int count, long timeout_ms);
} z;

static void fail(const char *what, ...)
{
    va_list more;
    va_start(more, what);
    vfprintf(stderr, what, more);
    va_end(more);
    fputc('\n', stderr);
    abort();
}

/* ---- what sanitizers cannot see --------------------------------------------------- */

static bt_zmq_table real;
/* Messages with content that came off a socket and were neither closed nor sent on. libzmq loses some
 * of its own when sockets close, so that the leak detector's word on its blocks says nothing of ours. */
static atomic_long received;

static int came_off_a_socket(const bt_zmsg *m) { return real.msg_get(m, BT_ZMQ_SOURCE_FD) >= 0; }

static int msg_recv(bt_zmsg *m, void *socket, int flags)
{
    int got = real.msg_recv(m, socket, flags);
    if (got >= 0 && came_off_a_socket(m)) atomic_fetch_add(&received, 1);
    return got;
}

static int msg_copy(bt_zmsg *to, bt_zmsg *from)
{
    if (came_off_a_socket(from)) atomic_fetch_add(&received, 1);
    return real.msg_copy(to, from);
}

static int msg_close(bt_zmsg *m)
{
    if (came_off_a_socket(m)) atomic_fetch_sub(&received, 1);
    return real.msg_close(m);
}

/* What one thread wrote into a block happens before libzmq's has it freed. */
void __tsan_acquire(void *address) __attribute__((weak));
void __tsan_release(void *address) __attribute__((weak));

typedef struct {
    bt_zmq_free release;
    void *hint;
} handed;

static void release_handed(void *data, void *hint)
{
    if (__tsan_acquire) __tsan_acquire(hint);
    handed h = *(handed *)hint;
    free(hint);
    h.release(data, h.hint);
}

static int msg_init_data(bt_zmsg *m, void *data, size_t bytes, bt_zmq_free release, void *hint)
{
    handed *h = malloc(sizeof *h);
    *h = (handed){release, hint};
    if (__tsan_release) __tsan_release(h);
    return real.msg_init_data(m, data, bytes, release_handed, h);
}

/* Of the thread that sets it: one allocation in so many fails. */
static _Thread_local uint32_t memory_odds;

static int memory_fails(void)
{
    static _Thread_local uint64_t n;
    if (memory_odds == 0) return 0;
    n = n * 6364136223846793005u + 1442695040888963407u;
    return (n >> 33) % memory_odds == 0;
}

void *fuzz_realloc(void *old, size_t size) { return memory_fails() ? NULL : realloc(old, size); }
void *fuzz_calloc(size_t count, size_t size) { return memory_fails() ? NULL : calloc(count, size); }
void *fuzz_malloc(size_t size) { return memory_fails() ? NULL : malloc(size); }

static void load(void)
{
    const char *missing = bt_zmq_load(LIBRARY);
    void *library = dlopen(LIBRARY, RTLD_NOW);
    if (missing || !library) fail("no libzmq: %s", missing ? missing : dlerror());
    *(void **)&z.context = dlsym(library, "zmq_ctx_new");
    *(void **)&z.term = dlsym(library, "zmq_ctx_term");
    *(void **)&z.socket = dlsym(library, "zmq_socket");
    *(void **)&z.close = dlsym(library, "zmq_close");
    *(void **)&z.bind = dlsym(library, "zmq_bind");
    *(void **)&z.connect = dlsym(library, "zmq_connect");
    *(void **)&z.set = dlsym(library, "zmq_setsockopt");
    *(void **)&z.monitor = dlsym(library, "zmq_socket_monitor");
    *(void **)&z.poll = dlsym(library, "zmq_poll");
    real = bt_zmq;
    bt_zmq.msg_recv = msg_recv;
    bt_zmq.msg_copy = msg_copy;
    bt_zmq.msg_close = msg_close;
    bt_zmq.msg_init_data = msg_init_data;
}

/* ---- one life of a plane --------------------------------------------------------- */

enum { UNUSED, ASKED, GIVEN_UP, OVER };

typedef struct {
    void *context;
    char endpoint[64];
    bt_plane *plane;
    bt_scheduler *scheduler;
    uint32_t calls;         /* of each caller and client */
    int short_of_memory;
    atomic_int ended;       /* whoever speaks to the plane may stop */
    atomic_ulong outcomes, answers;
    sem_t drained;
} life;

/* One thread. Callers and clients have calls, each numbered from 1 on. */
typedef struct {
    life *l;
    int number;
    uint64_t random;
    pthread_t thread;
    atomic_int *state;
    sem_t room;             /* calls that may be made before there is an outcome */
    /* of clients and workers */
    void *socket;
    bt_inbox inbox;
    bt_outgoing out;
    int lost, leaving;
} actor;

static life current;
static actor caller[CALLERS], client[CLIENTS], worker[WORKERS], listener, inspector;

static uint32_t draw(actor *a, uint32_t below)
{
    a->random ^= a->random << 13;
    a->random ^= a->random >> 7;
    a->random ^= a->random << 17;
    return (uint32_t)((a->random >> 11) % below);
}

static uint64_t id_of(const actor *a, uint32_t call) { return (uint64_t)(a->number + 1) << 32 | call; }

static void pause_ms(int ms) { z.poll(NULL, 0, ms); }

/* 1 when the semaphore was taken, 0 when the plane was told to end before that. */
static int wait_for(life *l, sem_t *s, const char *what)
{
    for (int waited_ms = 0; !atomic_load(&l->ended); waited_ms += 50) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 50000000;
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        if (sem_timedwait(s, &until) == 0) return 1;
        if (waited_ms > PATIENCE_MS) fail("waited in vain for %s", what);
    }
    return 0;
}

/* ---- calls and what comes of them ------------------------------------------------- */

static void release_block(void *data, void *hint)
{
    (void)hint;
    free(data);
}

/* Each row begins with the call's id. */
static void write_call(actor *a, bt_outgoing *o, uint32_t call)
{
    static const char *const keys[] = {"small", "large", "texts"};
    uint64_t id = id_of(a, call);
    uint32_t kind = draw(a, 8) % 3, rows = draw(a, 6);
    uint32_t row_bytes = kind == 1 ? LARGE_ROW_BYTES : 16;
    size_t bytes = (size_t)row_bytes * rows;
    int framed = bytes > BT_INLINE_MAX_BYTES;
    int64_t budget_ns = draw(a, 10) == 0 ? (int64_t)draw(a, 3000000) : -1;
    uint8_t *data = calloc(1, bytes + 1);
    for (uint32_t i = 0; i < rows; i++) bt_put64(data + (size_t)i * row_bytes, id);
    atomic_store(&a->state[call], ASKED);
    bt_write_rows_begin(&o->w, BT_CALL, id, budget_ns, rows, rows, 0, 1, 5, 0);
    bt_write_descriptor(&o->w, bytes, kind == 2 ? BT_VAR : (int32_t)row_bytes, (uint32_t)framed);
    bt_write_padded(&o->w, keys[kind], 5);
    if (kind == 2) {
        uint8_t *lengths = bt_write_padded(&o->w, NULL, (size_t)4 * rows);
        for (uint32_t i = 0; i < rows; i++) bt_put32(lengths + 4 * i, row_bytes);
    }
    if (framed) {
        bt_outgoing_add(o, data, bytes, release_block, NULL);
    } else {
        bt_write_padded(&o->w, data, bytes);
        free(data);
    }
    bt_write_rows_end(&o->w, (uint16_t)framed);
}

static void check_answer(const bt_message *m, const bt_record *r, const bt_wire_rows *rows)
{
    bt_wire_walk walk;
    bt_wire_buffer b;
    uint8_t first[8];
    bt_wire_rows_walk(rows, &walk);
    if (rows->buffers != 1 || !bt_wire_rows_next(rows, &walk, &b)) fail("an answer has one buffer");
    size_t row_bytes = b.row_bytes == BT_VAR ? 16 : (size_t)b.row_bytes;
    if (b.bytes != row_bytes * rows->rows) fail("an answer has all of its rows");
    for (uint32_t i = 0; i < rows->rows; i++) {
        bt_copy_range(m, &b, i * row_bytes, 8, first);
        if (bt_get64(first) != r->id) fail("somebody else's answer");
    }
}

/* A call's outcome, an answer or an error. */
static void settle(actor *a, const bt_message *m, const bt_record *r, const bt_body *body)
{
    uint32_t call = (uint32_t)r->id;
    if (r->id >> 32 != (uint64_t)(a->number + 1) || call > a->l->calls) fail("an outcome of no call");
    if (r->type == BT_ANSWER) {
        check_answer(m, r, &body->rows);
        atomic_fetch_add(&a->l->answers, 1);
    }
    int before = atomic_exchange(&a->state[call], OVER);
    if (before == OVER || before == UNUSED) fail("a call has two outcomes");
    atomic_fetch_add(&a->l->outcomes, 1);
    if (before == ASKED) sem_post(&a->room);
}

static void give_up(actor *a, bt_outgoing *o, uint32_t call)
{
    int asked = ASKED;
    if (!atomic_compare_exchange_strong(&a->state[call], &asked, GIVEN_UP)) return;
    bt_write_empty(&o->w, BT_CANCEL, id_of(a, call));
    sem_post(&a->room);
}

/* Some calls, and some older ones given up. Returns the number of the next call. */
static uint32_t write_calls(actor *a, bt_outgoing *o, uint32_t next)
{
    for (uint32_t n = 1 + draw(a, 8); n > 0 && next <= a->l->calls; n--) {
        if (sem_trywait(&a->room) != 0) break;
        write_call(a, o, next++);
    }
    if (draw(a, 4) == 0 && next > 1) give_up(a, o, next - 1 - draw(a, next - 1 < 20 ? next - 1 : 20));
    return next;
}

static uint32_t unsettled(actor *a)
{
    uint32_t n = 0;
    for (uint32_t i = 1; i <= a->l->calls; i++) n += atomic_load(&a->state[i]) == ASKED;
    return n;
}

/* ---- callers of the plane's own process --------------------------------------------- */

static void *run_caller(void *argument)
{
    actor *a = argument;
    uint32_t next = 1;
    while (next <= a->l->calls) {
        if (!wait_for(a->l, &a->room, "an outcome of a call of this process")) break;
        sem_post(&a->room);
        uint32_t first = next;
        bt_outgoing_start(&a->out);
        next = write_calls(a, &a->out, next);
        bt_message *m = bt_outgoing_take(&a->out);
        if (m == NULL) fail("no packet");
        if (bt_plane_command(a->l->plane, BT_COMMAND_LOCAL, NULL, m, 0) == 0) continue;
        if (!atomic_load(&a->l->ended)) fail("a plane that lives takes every command");
        for (; first < next; first++) atomic_store(&a->state[first], OVER);
        break;
    }
    return NULL;
}

static bt_message *error_message(uint16_t code, const char *text)
{
    bt_outgoing o = {0};
    bt_wire_error e = {.code = code, .exit_code = -1, .number = -1, .texts = {(const uint8_t *)text}};
    e.text_bytes[0] = (uint32_t)strlen(text);
    bt_outgoing_start(&o);
    bt_write_error(&o.w, 0, &e);
    bt_message *m = bt_outgoing_take(&o);
    bt_outgoing_free(&o);
    return m;
}

static void read_local(bt_message *m)
{
    bt_packet p;
    bt_record r;
    bt_body body;
    if (bt_packet_open(&p, m->frame[0].data, m->frame[0].bytes, m->frames) != BT_WIRE_OK) fail("a packet");
    while (bt_packet_next(&p, &r) == 1) {
        if (bt_record_check(&r, bt_message_frame_size, m, &body) != BT_WIRE_OK) fail("a record");
        if (r.type != BT_ANSWER && r.type != BT_ERROR) fail("an outcome, not a record of type %d", r.type);
        if (r.id >> 32 == 0 || r.id >> 32 > CALLERS) fail("an outcome of nobody");
        settle(&caller[(r.id >> 32) - 1], m, &r, &body);
    }
}

/* No outcome comes any more for the calls of this process that were made so far. */
static void lose_local(void)
{
    for (int i = 0; i < CALLERS; i++) {
        for (uint32_t call = 1; call <= caller[i].l->calls; call++) {
            int asked = ASKED;
            if (!atomic_compare_exchange_strong(&caller[i].state[call], &asked, GIVEN_UP)) continue;
            atomic_fetch_add(&caller[i].l->outcomes, 1);
            sem_post(&caller[i].room);
        }
    }
}

static void reply(life *l)
{
    bt_zmsg numbers;
    bt_zmq.msg_init_size(&numbers, 2);
    memcpy(bt_zmq.msg_data(&numbers), "{}", 2);
    bt_plane_command(l->plane, BT_COMMAND_REPLY, NULL, bt_message_new(&numbers, 1), 0);
}

static void *run_listener(void *argument)
{
    actor *a = argument;
    life *l = a->l;
    for (bt_event *e, *next; (e = bt_plane_events(l->plane)) != NULL;) {
        for (; e != NULL; e = next) {
            next = e->next;
            if (e->kind == BT_EVENT_LOCAL) read_local(e->message);
            if (e->kind == BT_EVENT_LOST) lose_local();
            if (e->kind == BT_EVENT_ASK && draw(a, 10) == 0)
                bt_plane_no_numbers(l->plane);
            else if (e->kind == BT_EVENT_ASK)
                reply(l);
            if (e->kind == BT_EVENT_DRAINED) sem_post(&l->drained);
            if (e->kind == BT_EVENT_KILL)
                bt_plane_command(l->plane, BT_COMMAND_DIED, e->token, error_message(BT_E_WORKER_DIED, e->why), 0);
            if (e->kind == BT_EVENT_GROUP && draw(a, 10) == 0) {
                bt_plane_not_grouped(l->plane, e->ticket);
            } else if (e->kind == BT_EVENT_GROUP) { /* with the keys that they have */
                bt_plane_command(l->plane, BT_COMMAND_GROUPED, NULL, e->message, (int64_t)e->ticket);
                e->message = NULL;
            }
            bt_event_free(e);
        }
    }
    return NULL;
}

static void *run_inspector(void *argument)
{
    actor *a = argument;
    life *l = a->l;
    while (!atomic_load(&l->ended)) {
        bt_plane_counters counters;
        bt_statistics numbers;
        uint32_t pids[8];
        bt_plane_lock(l->plane);
        const char *broken = bt_plane_check(l->plane);
        bt_plane_count(l->plane, &counters);
        bt_get_statistics(l->scheduler, &numbers);
        bt_plane_workers(l->plane, pids, 8);
        bt_plane_unlock(l->plane);
        if (broken != NULL) fail("%s", broken);
        bt_plane_describe(l->plane, (const uint8_t *)"{\"again\": 1}", draw(a, 13));
        bt_plane_command(l->plane, BT_COMMAND_WAKE, NULL, NULL, 0);
        bt_plane_command(l->plane, BT_COMMAND_TIMEOUT, NULL, NULL, draw(a, 4) ? -1 : 100000000);
        bt_plane_command(l->plane, BT_COMMAND_QUEUE_ROWS, NULL, NULL, 400);
        pause_ms(1);
    }
    return NULL;
}

/* ---- sockets -------------------------------------------------------------------------- */

static void send_out(actor *a)
{
    bt_message *m = bt_outgoing_take(&a->out);
    if (m == NULL) fail("no packet");
    bt_message_send(m, a->socket, NULL, 0);
    bt_message_drop(m);
}

static void hang_up(actor *a)
{
    if (a->socket != NULL) z.close(a->socket);
    a->socket = NULL;
    a->lost = a->leaving = 0;
}

static void greet(actor *a, uint16_t role, const char *description)
{
    int none = 0;
    bt_wire_greeting g = {.role = role, .lowest_version = 1, .highest_version = 1, .credits = 1 + draw(a, 2),
                          .pid = 1, .name_bytes = 5, .name = (const uint8_t *)"model",
                          .description_bytes = (uint32_t)strlen(description),
                          .description = (const uint8_t *)description};
    hang_up(a);
    a->socket = z.socket(a->l->context, DEALER);
    z.set(a->socket, LINGER, &none, sizeof none);
    if (z.connect(a->socket, a->l->endpoint) != 0) fail("connect");
    bt_outgoing_start(&a->out);
    bt_write_greeting(&a->out.w, BT_HELLO, &g);
    send_out(a);
}

/* The next message; NULL if none comes in time, or comes no more. */
static bt_message *receive(actor *a, int ms)
{
    pollitem item = {a->socket, 0, 1, 0};
    if (bt_inbox_receive(&a->inbox, a->socket) != 1) {
        if (ms == 0 || z.poll(&item, 1, ms) <= 0) return NULL;
        if (bt_inbox_receive(&a->inbox, a->socket) != 1) return NULL;
    }
    return bt_message_new(a->inbox.zmsg, a->inbox.count);
}

static bt_message *receive_until_ended(actor *a)
{
    for (int waited_ms = 0; !atomic_load(&a->l->ended); waited_ms += 50) {
        bt_message *m = receive(a, 50);
        if (m != NULL) return m;
        if (waited_ms > PATIENCE_MS) fail("waited in vain for a message");
    }
    return NULL;
}

/* ---- clients ----------------------------------------------------------------------------- */

static void read_client(actor *a, bt_message *m)
{
    bt_packet p;
    bt_record r;
    bt_body body;
    if (bt_packet_open(&p, m->frame[0].data, m->frame[0].bytes, m->frames) != BT_WIRE_OK) fail("a packet");
    while (bt_packet_next(&p, &r) == 1) {
        if (bt_record_check(&r, bt_message_frame_size, m, &body) != BT_WIRE_OK) fail("a record");
        if (r.type == BT_BYE || (r.type == BT_ERROR && r.id == 0)) a->lost = 1;
        if ((r.type == BT_ANSWER || r.type == BT_ERROR) && r.id > UINT32_MAX) settle(a, m, &r, &body);
        if (r.type == BT_PING) {
            bt_outgoing_start(&a->out);
            bt_write_empty(&a->out.w, BT_PONG, r.id);
            send_out(a);
        }
    }
    bt_message_drop(m);
}

/* A connection that is given up takes its calls with it. */
static void forget_calls(actor *a)
{
    for (uint32_t i = 1; i <= a->l->calls; i++) {
        int asked = ASKED;
        if (atomic_compare_exchange_strong(&a->state[i], &asked, OVER)) sem_post(&a->room);
    }
}

static void send_noise(actor *a, uint32_t call)
{
    bt_zmsg zmsg;
    bt_outgoing_start(&a->out);
    write_call(a, &a->out, call);
    bt_message *m = bt_outgoing_take(&a->out);
    bt_zmq.msg_init_size(&zmsg, m->frame[0].bytes);
    uint8_t *packet = bt_zmq.msg_data(&zmsg);
    memcpy(packet, m->frame[0].data, m->frame[0].bytes);
    packet[BT_PACKET_HEADER + 44] = 1; /* reserved: it is refused by the call's id */
    bt_zmq.msg_close(&m->zmsg[0]);
    bt_zmq.msg_init(&m->zmsg[0]);
    bt_zmq.msg_move(&m->zmsg[0], &zmsg);
    bt_message_send(m, a->socket, NULL, 0);
    bt_message_drop(m);
    if (draw(a, 2)) return;
    bt_zmq.msg_init_size(&zmsg, 40);
    for (int i = 0; i < 40; i++) ((uint8_t *)bt_zmq.msg_data(&zmsg))[i] = (uint8_t)draw(a, 256);
    if (bt_zmq.msg_send(&zmsg, a->socket, BT_ZMQ_DONTWAIT) < 0) bt_zmq.msg_close(&zmsg);
}

static void *run_client(void *argument)
{
    actor *a = argument;
    uint32_t next = 1;
    bt_message *m;
    greet(a, BT_ROLE_CLIENT, "");
    while (!atomic_load(&a->l->ended) && (next <= a->l->calls || unsettled(a) > 0)) {
        if (a->lost || draw(a, 200) == 0) {
            forget_calls(a);
            greet(a, BT_ROLE_CLIENT, "");
        }
        bt_outgoing_start(&a->out);
        uint32_t what = draw(a, 40);
        if (what == 0 && next <= a->l->calls && sem_trywait(&a->room) == 0) {
            send_noise(a, next++);
        } else {
            if (what == 1) bt_write_empty(&a->out.w, BT_PING, 1);
            if (what == 2) {
                bt_write_rows_begin(&a->out.w, BT_CALL, 7, -1, 0, 0, BT_METHOD_STATISTICS, 0, 0, 0);
                bt_write_rows_end(&a->out.w, 0);
            }
            next = write_calls(a, &a->out, next);
            send_out(a);
        }
        if (unsettled(a) > 0 && (m = receive_until_ended(a)) != NULL) read_client(a, m);
        while (!a->lost && (m = receive(a, 0)) != NULL) read_client(a, m);
    }
    if (draw(a, 2)) {
        bt_outgoing_start(&a->out);
        bt_write_empty(&a->out.w, BT_BYE, 0);
        send_out(a);
    }
    hang_up(a);
    return NULL;
}

/* ---- workers -------------------------------------------------------------------------------- */

/* The model returns what it got. */
static void write_result(actor *a, bt_message *m, const bt_record *r, const bt_wire_rows *rows)
{
    bt_slice all = {.message = m, .rows = rows, .count = rows->rows};
    if (bt_write_slices(&a->out, BT_RESULT, r->id, -1, 0, (const uint8_t *)"result", 6, &all, 1) != 0)
        fail("a result");
}

/* 0 if the worker is to die of it. Worker 0 lives, so that there is always one. */
static int run_batch(actor *a, bt_message *m, const bt_record *r, const bt_wire_rows *rows)
{
    static const bt_wire_error raised = {.code = BT_E_RUNNER, .exit_code = -1, .number = -1};
    uint32_t what = draw(a, 100);
    if (what < 4) {
        bt_write_error(&a->out.w, r->id, &raised);
    } else if (what < 6) {
        bt_slice none = {.message = m, .rows = rows};
        bt_write_slices(&a->out, BT_RESULT, r->id, -1, 0, (const uint8_t *)"result", 6, &none, 1);
    } else if (what < 7) {
        write_result(a, m, r, rows);
        write_result(a, m, r, rows); /* said twice */
    } else if (what < 10 && a->number != 0) {
        return 0;
    } else {
        write_result(a, m, r, rows);
    }
    return 1;
}

/* 0: the worker dies; 1: it goes on; -1: it leaves. */
static int work(actor *a, bt_message *m)
{
    bt_packet p;
    bt_record r;
    bt_body body;
    int go_on = 1;
    bt_outgoing_start(&a->out);
    if (bt_packet_open(&p, m->frame[0].data, m->frame[0].bytes, m->frames) != BT_WIRE_OK) fail("a packet");
    while (go_on == 1 && bt_packet_next(&p, &r) == 1) {
        if (bt_record_check(&r, bt_message_frame_size, m, &body) != BT_WIRE_OK) fail("a record");
        if (r.type == BT_BATCH) go_on = run_batch(a, m, &r, &body.rows);
        if (r.type == BT_STOP || r.type == BT_BYE) go_on = a->leaving ? 0 : -1;
        if (r.type == BT_BYE && !atomic_load(&a->l->ended)) go_on = 0; /* no memory for a worker like this */
        if (r.type == BT_ERROR) go_on = 0; /* was given up, or came too late */
    }
    if (go_on == 1 && !a->leaving && draw(a, 100) == 0) {
        bt_write_empty(&a->out.w, BT_STOP, 0); /* wants no more */
        a->leaving = 1;
    }
    if (go_on == 0 && draw(a, 3) == 0) bt_write_empty(&a->out.w, BT_BYE, 0);
    if (go_on == 0 && draw(a, 3) == 0) bt_write_empty(&a->out.w, BT_ANSWER, 0); /* breaks a rule */
    if (a->out.w.records > 0) send_out(a);
    bt_message_drop(m);
    return go_on;
}

static void *run_worker(void *argument)
{
    actor *a = argument;
    for (int lives = 0; !atomic_load(&a->l->ended); lives++) {
        char token[BT_TOKEN_BYTES], description[BT_TOKEN_BYTES + 20];
        int supervised = a->number != 0 && draw(a, 2) == 0, go_on = 1;
        snprintf(token, sizeof token, "worker-%d-%d", a->number, lives);
        snprintf(description, sizeof description, supervised ? "{\"token\": \"%s\"}" : "{}", token);
        greet(a, BT_ROLE_WORKER, description);
        bt_message *m;
        while (go_on == 1 && (m = receive(a, 50)) != NULL) go_on = work(a, m);
        while (go_on == 1 && (m = receive_until_ended(a)) != NULL) go_on = work(a, m);
        hang_up(a);
        if (supervised)
            bt_plane_command(a->l->plane, BT_COMMAND_DIED, token, error_message(BT_E_WORKER_DIED, "died"), 0);
        if (go_on == -1) break;
    }
    return NULL;
}

/* ---- a life, from its start to its end ------------------------------------------------- */

static void *run_plane(void *argument)
{
    life *l = ((actor *)argument)->l;
    memory_odds = l->short_of_memory ? 200 : 0;
    bt_plane_run(l->plane);
    return NULL;
}

static void start(life *l, actor *a, int number, uint64_t seed, void *(*run)(void *))
{
    memset(a, 0, sizeof *a);
    a->l = l;
    a->number = number;
    a->random = (seed * 64 + (uint64_t)number + 1) * 0x9E3779B97F4A7C15u;
    a->state = calloc(l->calls + 1, sizeof *a->state);
    sem_init(&a->room, 0, AT_ONCE);
    bt_outgoing_start(&a->out);
    if (pthread_create(&a->thread, NULL, run, a) != 0) fail("no thread");
}

static void finish(actor *a)
{
    bt_inbox_free(&a->inbox);
    bt_outgoing_free(&a->out);
    sem_destroy(&a->room);
    free(a->state);
}

static void join(actor *a, int count)
{
    for (int i = 0; i < count; i++) pthread_join(a[i].thread, NULL);
}

static void live(const char *folder, uint64_t seed, uint32_t calls)
{
    life *l = &current;
    actor plane;
    int high = 20, none = 0, yes = 1, drained = seed % 2 == 0;
    memset(l, 0, sizeof *l);
    l->calls = calls;
    l->short_of_memory = seed % 5 >= 3;
    l->context = z.context();
    sem_init(&l->drained, 0, 0);
    void *router = z.socket(l->context, ROUTER), *monitor = z.socket(l->context, PAIR);
    snprintf(l->endpoint, sizeof l->endpoint, "ipc://%s/%llu", folder, (unsigned long long)seed);
    z.set(router, MANDATORY, &yes, sizeof yes);
    z.set(router, LINGER, &none, sizeof none);
    z.set(router, SNDHWM, &high, sizeof high);
    if (z.monitor(router, "inproc://monitor", DISCONNECTED) < 0 || z.connect(monitor, "inproc://monitor") != 0)
        fail("no monitor");
    if (z.bind(router, l->endpoint) != 0) fail("cannot bind %s", l->endpoint);
    bt_options rules = {.max_batch_rows = 32, .max_queue_rows = 400, .isolate_errors = 1,
                        .policy = {.rule = seed % 3 ? BT_RULE_LEARNED : BT_RULE_GREEDY, .max_batch_rows = 32,
                                   .max_wait_ns = -1}};
    l->scheduler = bt_scheduler_new(&rules);
    bt_plane_options options = {.name = "model", .description = (const uint8_t *)"{}", .description_bytes = 2,
                                .router = router, .monitor = monitor, .scheduler = l->scheduler,
                                .max_queue_rows = 400, .run_timeout_ns = -1, .max_message_bytes = 1 << 30,
                                .max_unread_bytes = 1 << 18,
                                .groups = seed % 3 == 1};
    l->plane = bt_plane_new(&options);
    if (l->scheduler == NULL || l->plane == NULL) fail("no plane");
    start(l, &plane, 60, seed, run_plane);
    start(l, &listener, 50, seed, run_listener);
    start(l, &inspector, 40, seed, run_inspector);
    for (int i = 0; i < WORKERS; i++) start(l, &worker[i], i, seed + 1000, run_worker);
    for (int i = 0; i < CALLERS; i++) start(l, &caller[i], i, seed, run_caller);
    for (int i = 0; i < CLIENTS; i++) start(l, &client[i], 20 + i, seed, run_client);
    if (drained) {
        join(caller, CALLERS);
        join(client, CLIENTS);
        bt_plane_command(l->plane, BT_COMMAND_DRAIN, NULL, NULL, 0);
        wait_for(l, &l->drained, "the last answer");
        bt_plane_command(l->plane, BT_COMMAND_DISMISS, NULL, NULL, 0);
    } else {
        for (int ms = 0; atomic_load(&l->outcomes) < calls && ms < PATIENCE_MS; ms++) {
            pause_ms(1);
        }
        bt_plane_command(l->plane, BT_COMMAND_FAILING, NULL, error_message(BT_E_UNREACHABLE, "for a while"), 0);
        pause_ms(1);
        bt_plane_command(l->plane, BT_COMMAND_FAILING, NULL, NULL, 0);
    }
    atomic_store(&l->ended, 1);
    bt_plane_command(l->plane, BT_COMMAND_END, NULL, error_message(BT_E_CLOSED, "ended"), 0);
    join(&plane, 1);
    join(&listener, 1);
    bt_plane_close(l->plane);
    if (!drained) {
        join(caller, CALLERS);
        join(client, CLIENTS);
    }
    join(worker, WORKERS);
    join(&inspector, 1);
    for (int i = 0; i < CALLERS; i++)
        if (unsettled(&caller[i]) > 0) fail("%u calls of this process have no outcome", unsettled(&caller[i]));
    printf("life %llu: %lu outcomes, %lu of them answers\n", (unsigned long long)seed, atomic_load(&l->outcomes),
           atomic_load(&l->answers));
    bt_plane_free(l->plane);
    bt_scheduler_free(l->scheduler);
    z.monitor(router, NULL, 0);
    z.close(monitor);
    z.close(router);
    for (int i = 0; i < WORKERS; i++) finish(&worker[i]);
    for (int i = 0; i < CALLERS; i++) finish(&caller[i]);
    for (int i = 0; i < CLIENTS; i++) finish(&client[i]);
    finish(&plane), finish(&listener), finish(&inspector);
    sem_destroy(&l->drained);
    z.term(l->context);
    if (atomic_load(&received) != 0) fail("%ld messages were not let go of", atomic_load(&received));
}

int main(int argc, char **argv)
{
    char folder[] = "/tmp/drive-plane-XXXXXX";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc != 4) return 2;
    if (mkdtemp(folder) == NULL) fail("no folder");
    load();
    uint64_t seed = strtoull(argv[1], NULL, 10);
    for (uint64_t i = 0; i < strtoull(argv[2], NULL, 10); i++) live(folder, seed + i, (uint32_t)atoi(argv[3]));
    rmdir(folder);
    return 0;
}

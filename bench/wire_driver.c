/* The C side of bench_wire.py:
 *
 *   driver echo OUTSTANDING SECONDS BYTES  a ROUTER that echoes, in a process of its own, and a
 *                                          DEALER: so many bytes a message, nothing parsed
 *   driver sockets ENDPOINT SECONDS KEY    64 clients of the service at ENDPOINT, 4 calls outstanding
 *                                          each, of one float32 (1, 128); KEY in hexadecimal
 *
 * Prints numbers: calls, seconds, CPU seconds (of the echo: its server's first), p50 and p99 in us.
 */
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"
#include "zmqapi.h"

#define SOCKETS 64
#define OUTSTANDING 4
#define ROW_BYTES 512
#define SAMPLES 200000

enum { DEALER = 5, ROUTER = 6, LINGER = 17, POLLIN = 1 };

typedef struct {
    void *socket;
    int fd;
    short events, revents;
} pollitem;

static void *(*ctx_new)(void);
static void *(*socket_new)(void *context, int type);
static int (*socket_bind)(void *socket, const char *endpoint);
static int (*socket_connect)(void *socket, const char *endpoint);
static int (*socket_set)(void *socket, int option, const void *value, size_t bytes);
static int (*poll_items)(pollitem *items, int count, long timeout_ms);

static double samples[SAMPLES];
static long sampled;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double cpu_of(const struct rusage *u)
{
    return (double)(u->ru_utime.tv_sec + u->ru_stime.tv_sec) +
           (double)(u->ru_utime.tv_usec + u->ru_stime.tv_usec) * 1e-6;
}

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, bt_zmq.error_text ? bt_zmq.error_text(bt_zmq.error()) : "");
    exit(1);
}

static void load(void)
{
    const char *missing = bt_zmq_load(LIBRARY);
    void *library = dlopen(LIBRARY, RTLD_NOW);
    if (missing || !library) {
        fprintf(stderr, "no libzmq: %s\n", missing ? missing : dlerror());
        exit(1);
    }
    ctx_new = dlsym(library, "zmq_ctx_new");
    socket_new = dlsym(library, "zmq_socket");
    socket_bind = dlsym(library, "zmq_bind");
    socket_connect = dlsym(library, "zmq_connect");
    socket_set = dlsym(library, "zmq_setsockopt");
    poll_items = dlsym(library, "zmq_poll");
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_tail(void)
{
    qsort(samples, (size_t)sampled, sizeof *samples, by_size);
    if (sampled == 0) fail("no answer");
    printf(" %.1f %.1f\n", samples[sampled / 2] * 1e6, samples[sampled * 99 / 100] * 1e6);
}

static void note(double seconds)
{
    if (sampled < SAMPLES) samples[sampled++] = seconds;
}

/* ---- echo --------------------------------------------------------------------- */

static void echo_server(const char *endpoint)
{
    load();
    void *socket = socket_new(ctx_new(), ROUTER);
    if (socket_bind(socket, endpoint) != 0) fail("bind");
    for (;;) {
        bt_zmsg m;
        bt_zmq.msg_init(&m);
        if (bt_zmq.msg_recv(&m, socket, 0) < 0) fail("receive");
        int more = bt_zmq.msg_more(&m);
        if (bt_zmq.msg_send(&m, socket, more ? BT_ZMQ_SNDMORE : 0) < 0) fail("send");
    }
}

static void echo(int outstanding, double seconds, size_t size)
{
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "ipc:///tmp/batching-echo-%d", (int)getpid());
    pid_t server = fork();
    if (server == 0) echo_server(endpoint);
    load();
    void *socket = socket_new(ctx_new(), DEALER);
    if (socket_connect(socket, endpoint) != 0) fail("connect");
    static double sent[65536];
    unsigned head = 0, tail = 0;
    long made = 0;
    double started = now_s(), stop = started + seconds;
    for (;;) {
        while (head - tail < (unsigned)outstanding && now_s() < stop) {
            bt_zmsg m;
            bt_zmq.msg_init_size(&m, size);
            memset(bt_zmq.msg_data(&m), 1, size);
            if (bt_zmq.msg_send(&m, socket, 0) < 0) fail("send");
            sent[head++ & 65535] = now_s();
        }
        if (head == tail) break;
        bt_zmsg m;
        bt_zmq.msg_init(&m);
        if (bt_zmq.msg_recv(&m, socket, 0) < 0) fail("receive");
        bt_zmq.msg_close(&m);
        note(now_s() - sent[tail++ & 65535]);
        made++;
    }
    double took = now_s() - started;
    struct rusage own, theirs;
    getrusage(RUSAGE_SELF, &own);
    kill(server, SIGKILL);
    wait4(server, NULL, 0, &theirs);
    unlink(endpoint + strlen("ipc://"));
    printf("%ld %.6f %.6f %.6f", made, took, cpu_of(&theirs), cpu_of(&own));
    print_tail();
}

/* ---- 64 sockets ------------------------------------------------------------------ */

static uint8_t key[4096];
static uint32_t key_bytes;
static float row[ROW_BYTES / sizeof(float)];

static void send_packet(void *socket, bt_writer *w)
{
    bt_zmsg m;
    if (bt_writer_finish(w) != 0) fail("packet");
    bt_zmq.msg_init_size(&m, w->bytes);
    memcpy(bt_zmq.msg_data(&m), w->data, w->bytes);
    if (bt_zmq.msg_send(&m, socket, 0) < 0) fail("send");
}

static void send_calls(void *socket, bt_writer *w, uint64_t *next, int count, double *sent)
{
    bt_writer_start(w);
    while (count-- > 0) {
        uint64_t id = ++*next;
        sent[id % OUTSTANDING] = now_s();
        row[0] = (float)(id % 1000);
        bt_write_rows_begin(w, BT_CALL, id, -1, 1, 1, 0, 1, key_bytes, 0);
        bt_write_descriptor(w, ROW_BYTES, ROW_BYTES, 0);
        bt_write_padded(w, key, key_bytes);
        bt_write_padded(w, row, ROW_BYTES);
        bt_write_rows_end(w, 0);
    }
    send_packet(socket, w);
}

static size_t no_frames(const void *message, uint32_t frame)
{
    (void)message, (void)frame;
    return 0;
}

/* Answers in one message; each is checked to be its call's own row. */
static int read_answers(void *socket, double *sent)
{
    bt_zmsg m;
    bt_packet p;
    bt_record r;
    bt_body body;
    int answers = 0;
    bt_zmq.msg_init(&m);
    if (bt_zmq.msg_recv(&m, socket, BT_ZMQ_DONTWAIT) < 0) return -1;
    if (bt_packet_open(&p, bt_zmq.msg_data(&m), bt_zmq.msg_size(&m), 1) != BT_WIRE_OK) fail("packet");
    while (bt_packet_next(&p, &r) == 1) {
        if (r.type == BT_WELCOME) continue;
        if (r.type == BT_PING) {
            static bt_writer pong;
            bt_writer_start(&pong);
            bt_write_empty(&pong, BT_PONG, r.id);
            send_packet(socket, &pong);
            continue;
        }
        if (r.type != BT_ANSWER || bt_record_check(&r, no_frames, NULL, &body) != BT_WIRE_OK) fail("answer");
        bt_wire_walk walk;
        bt_wire_buffer b;
        float first;
        bt_wire_rows_walk(&body.rows, &walk);
        bt_wire_rows_next(&body.rows, &walk, &b);
        memcpy(&first, b.data, sizeof first);
        if (first != (float)(r.id % 1000)) fail("somebody else's answer");
        note(now_s() - sent[r.id % OUTSTANDING]);
        answers++;
    }
    bt_zmq.msg_close(&m);
    return answers;
}

static void sockets(const char *endpoint, double seconds)
{
    static pollitem items[SOCKETS];
    static double sent[SOCKETS][OUTSTANDING];
    static uint64_t next[SOCKETS];
    bt_writer w = {0};
    int linger = 0;
    long made = 0, out = 0;
    load();
    void *context = ctx_new();
    for (int i = 0; i < SOCKETS; i++) {
        void *s = socket_new(context, DEALER);
        bt_wire_greeting g = {.role = BT_ROLE_CLIENT, .lowest_version = 1, .highest_version = 1, .name_bytes = 4,
                              .name = (const uint8_t *)"noop"};
        socket_set(s, LINGER, &linger, sizeof linger);
        if (socket_connect(s, endpoint) != 0) fail("connect");
        bt_writer_start(&w);
        bt_write_greeting(&w, BT_HELLO, &g);
        send_packet(s, &w);
        items[i] = (pollitem){s, 0, POLLIN, 0};
        bt_zmsg m;
        bt_zmq.msg_init(&m);
        if (bt_zmq.msg_recv(&m, s, 0) < 0) fail("welcome");
        bt_zmq.msg_close(&m);
    }
    double started = now_s(), stop = started + seconds;
    for (int i = 0; i < SOCKETS; i++) send_calls(items[i].socket, &w, &next[i], OUTSTANDING, sent[i]), out += OUTSTANDING;
    while (out > 0) {
        if (poll_items(items, SOCKETS, 5000) <= 0) fail("no answer for 5 s");
        for (int i = 0; i < SOCKETS; i++) {
            if (!(items[i].revents & POLLIN)) continue;
            int answers, all = 0;
            while ((answers = read_answers(items[i].socket, sent[i])) >= 0) all += answers;
            made += all;
            out -= all;
            if (all && now_s() < stop) send_calls(items[i].socket, &w, &next[i], all, sent[i]), out += all;
        }
    }
    double took = now_s() - started;
    struct rusage own;
    getrusage(RUSAGE_SELF, &own);
    printf("%ld %.6f %.6f", made, took, cpu_of(&own));
    print_tail();
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "echo") == 0) {
        echo(atoi(argv[2]), atof(argv[3]), (size_t)atol(argv[4]));
        return 0;
    }
    if (argc == 5 && strcmp(argv[1], "sockets") == 0) {
        for (const char *p = argv[4]; p[0] && p[1] && key_bytes < sizeof key; p += 2) {
            unsigned byte;
            sscanf(p, "%2x", &byte);
            key[key_bytes++] = (uint8_t)byte;
        }
        sockets(argv[2], atof(argv[3]));
        return 0;
    }
    fprintf(stderr, "see the comment at the top\n");
    return 2;
}

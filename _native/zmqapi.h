/* libzmq as pyzmq brought it: a table of functions looked up at run time.
 *
 * The pyzmq wheel holds libzmq inside (or beside) its extension module and no
 * zmq.h. Opening that very file again and asking it for symbols gives the copy
 * that made the sockets: there is never a second one in the process. What is
 * declared here is libzmq's stable ABI since 4.0.
 */
#ifndef BT_ZMQAPI_H
#define BT_ZMQAPI_H

#include <stddef.h>

enum {
    BT_ZMQ_DONTWAIT = 1,
    BT_ZMQ_SNDMORE = 2,
    BT_ZMQ_FD = 14,
    BT_ZMQ_EVENTS = 15,
    BT_ZMQ_SOURCE_FD = 2, /* of a message: the descriptor it came in on */
    BT_ZMQ_POLLIN = 1,
    BT_ZMQ_POLLOUT = 2,
};

typedef struct {
    _Alignas(void *) unsigned char opaque[64];
} bt_zmsg;

typedef void (*bt_zmq_free)(void *data, void *hint);

typedef struct {
    void (*version)(int *major, int *minor, int *patch);
    int (*error)(void);
    const char *(*error_text)(int number);
    int (*msg_init)(bt_zmsg *m);
    int (*msg_init_size)(bt_zmsg *m, size_t bytes);
    int (*msg_init_data)(bt_zmsg *m, void *data, size_t bytes, bt_zmq_free release, void *hint);
    int (*msg_move)(bt_zmsg *to, bt_zmsg *from);
    int (*msg_copy)(bt_zmsg *to, bt_zmsg *from);
    int (*msg_close)(bt_zmsg *m);
    void *(*msg_data)(bt_zmsg *m);
    size_t (*msg_size)(const bt_zmsg *m);
    int (*msg_more)(const bt_zmsg *m);
    int (*msg_get)(const bt_zmsg *m, int property);
    int (*msg_send)(bt_zmsg *m, void *socket, int flags);
    int (*msg_recv)(bt_zmsg *m, void *socket, int flags);
    int (*getsockopt)(void *socket, int option, void *value, size_t *bytes);
} bt_zmq_table;

/* Filled by bt_zmq_load, read by everybody after. */
extern bt_zmq_table bt_zmq;

/* Looks everything up in the library at `path`. NULL on success; else the name
 * of the symbol that is missing, or the dynamic linker's own words. */
const char *bt_zmq_load(const char *path);

/* 1 if the socket can be received from now (POLLIN) or sent to (POLLOUT); asks
 * libzmq, which also handles what its I/O threads left for this socket. */
int bt_zmq_events(void *socket);

/* Lets a connection's end take in whole batches at once, if it is one on this machine. */
void bt_zmq_widen(int descriptor);

/* The descriptor that becomes readable when bt_zmq_events may have changed; -1 on error. */
int bt_zmq_descriptor(void *socket);

#endif

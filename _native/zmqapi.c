#include "zmqapi.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/socket.h>

#define SEND_BYTES (1 << 20)

bt_zmq_table bt_zmq;

const char *bt_zmq_load(const char *path)
{
    static const struct {
        const char *name;
        size_t offset;
    } symbols[] = {
        {"zmq_version", offsetof(bt_zmq_table, version)},
        {"zmq_errno", offsetof(bt_zmq_table, error)},
        {"zmq_strerror", offsetof(bt_zmq_table, error_text)},
        {"zmq_msg_init", offsetof(bt_zmq_table, msg_init)},
        {"zmq_msg_init_size", offsetof(bt_zmq_table, msg_init_size)},
        {"zmq_msg_init_data", offsetof(bt_zmq_table, msg_init_data)},
        {"zmq_msg_move", offsetof(bt_zmq_table, msg_move)},
        {"zmq_msg_copy", offsetof(bt_zmq_table, msg_copy)},
        {"zmq_msg_close", offsetof(bt_zmq_table, msg_close)},
        {"zmq_msg_data", offsetof(bt_zmq_table, msg_data)},
        {"zmq_msg_size", offsetof(bt_zmq_table, msg_size)},
        {"zmq_msg_more", offsetof(bt_zmq_table, msg_more)},
        {"zmq_msg_get", offsetof(bt_zmq_table, msg_get)},
        {"zmq_msg_send", offsetof(bt_zmq_table, msg_send)},
        {"zmq_msg_recv", offsetof(bt_zmq_table, msg_recv)},
        {"zmq_getsockopt", offsetof(bt_zmq_table, getsockopt)},
    };
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return dlerror();
    /* Never closed: pyzmq keeps the library for the life of the process anyway. */
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *found = dlsym(library, symbols[i].name);
        if (found == NULL) return symbols[i].name;
        memcpy((char *)&bt_zmq + symbols[i].offset, &found, sizeof found);
    }
    return NULL;
}

int bt_zmq_events(void *socket)
{
    int events = 0;
    size_t bytes = sizeof events;
    return bt_zmq.getsockopt(socket, BT_ZMQ_EVENTS, &events, &bytes) == 0 ? events : 0;
}

int bt_zmq_descriptor(void *socket)
{
    int descriptor = -1;
    size_t bytes = sizeof descriptor;
    return bt_zmq.getsockopt(socket, BT_ZMQ_FD, &descriptor, &bytes) == 0 ? descriptor : -1;
}

/* libzmq leaves a local socket the kernel's buffer, which a packet of a hundred calls fills by half: the kernel
 * then calls it full until the other end has read, and wakes libzmq once more for nothing, for every packet.
 * On tcp the kernel finds the size itself, unless it is given one. */
void bt_zmq_widen(int descriptor)
{
    struct sockaddr_storage name;
    socklen_t bytes = sizeof name;
    int size = SEND_BYTES;
    if (getsockname(descriptor, (struct sockaddr *)&name, &bytes) == 0 && name.ss_family == AF_UNIX)
        setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
}

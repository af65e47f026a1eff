#define _GNU_SOURCE
#include "wake.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/eventfd.h>
#endif

int bt_wake_open(bt_wake *w)
{
#ifdef __linux__
    w->reader = w->writer = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return w->reader < 0 ? -1 : 0;
#else
    int ends[2];
    if (pipe(ends) != 0) return -1;
    for (int i = 0; i < 2; i++) {
        fcntl(ends[i], F_SETFD, FD_CLOEXEC);
        fcntl(ends[i], F_SETFL, O_NONBLOCK);
    }
    w->reader = ends[0];
    w->writer = ends[1];
    return 0;
#endif
}

void bt_wake_close(bt_wake *w)
{
    if (w->writer != w->reader) close(w->writer);
    if (w->reader >= 0) close(w->reader);
    w->reader = w->writer = -1;
}

void bt_wake_signal(const bt_wake *w)
{
    uint64_t one = 1;
    /* Full means that a wake-up is on its way already. */
    while (write(w->writer, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

void bt_wake_clear(const bt_wake *w)
{
    uint64_t rest[16];
    ssize_t n;
    do {
        n = read(w->reader, rest, w->reader == w->writer ? sizeof *rest : sizeof rest);
    } while ((n < 0 && errno == EINTR) || n == (ssize_t)sizeof rest);
}

int64_t bt_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int poll_until(struct pollfd *fds, nfds_t n, int64_t until_ns)
{
    if (until_ns == INT64_MAX) return poll(fds, n, -1);
    int64_t left = until_ns - bt_now_ns();
    if (left <= 0) return poll(fds, n, 0);
#ifdef __linux__
    struct timespec t = {left / 1000000000, left % 1000000000};
    return ppoll(fds, n, &t, NULL);
#else
    int64_t ms = (left + 999999) / 1000000;
    return poll(fds, n, ms > 86400000 ? 86400000 : (int)ms);
#endif
}

unsigned bt_sleep(const int *descriptors, int count, int64_t until_ns)
{
    struct pollfd fds[BT_SLEEP_DESCRIPTORS];
    unsigned readable = 0;
    /* poll passes over those below 0 by itself. */
    for (int i = 0; i < count; i++) fds[i] = (struct pollfd){.fd = descriptors[i], .events = POLLIN};
    if (poll_until(fds, (nfds_t)count, until_ns) <= 0) return 0;
    for (int i = 0; i < count; i++) readable |= (unsigned)(fds[i].revents != 0) << i;
    return readable;
}

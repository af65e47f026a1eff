/* How one thread wakes another that sleeps in poll, and that sleep itself. */
#ifndef BT_WAKE_H
#define BT_WAKE_H

#include <stdint.h>

typedef struct {
    int reader; /* readable after bt_wake */
    int writer;
} bt_wake;

int bt_wake_open(bt_wake *w);   /* 0, or -1 and errno */
void bt_wake_close(bt_wake *w);
void bt_wake_signal(const bt_wake *w);
void bt_wake_clear(const bt_wake *w);

#define BT_SLEEP_DESCRIPTORS 4 /* at most */

int64_t bt_now_ns(void);        /* CLOCK_MONOTONIC */

/* Sleeps until one of the descriptors is readable or the time has come
 * (INT64_MAX: never). Descriptors below 0 are passed over. Returns which are readable,
 * bit by bit. */
unsigned bt_sleep(const int *descriptors, int count, int64_t until_ns);

#endif

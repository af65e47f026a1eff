/* Peers of the native plane that leave, and workers that must: on purpose, lost, hanging. */
#include <stdio.h>

#include "plane_state.h"

void bt_plane_lose(bt_plane *p, bt_peer *worker, const bt_wire_error *error)
{
    worker->gone = p->someone_gone = 1;
    while (worker->busy > 0) bt_plane_ended(p, worker->running[--worker->busy].batch, BT_DIED, error);
}

/* Has the supervisor end the worker. */
static void give_up(bt_plane *p, bt_peer *worker, const char *why)
{
    if (worker->hung) return;
    worker->hung = 1;
    bt_plane_word(p, worker->last_word, BT_EVENT_KILL, worker->token, why);
    worker->last_word = NULL;
}

void bt_plane_leave(bt_plane *p, bt_peer *peer)
{
    if (peer->gone) return;
    if (peer->role != BT_ROLE_WORKER) {
        peer->gone = p->someone_gone = 1;
        bt_plane_cancel_all(p, peer);
        return;
    }
    if (peer->token[0] != 0) {
        /* Its supervisor tells how it died, and then its batches are dealt with. */
        give_up(p, peer, "it lost its connection");
        return;
    }
    char text[96];
    snprintf(text, sizeof text, "worker %u lost its connection with the call's batch", peer->pid);
    bt_wire_error e = bt_plain_error(BT_E_WORKER_DIED, text);
    bt_plane_lose(p, peer, &e);
}

/* The worker may leave once it has finished what it has: it gets no batch any more. */
void bt_plane_release(bt_plane *p, bt_peer *worker)
{
    worker->leaving = 1;
    bt_write_empty(&bt_peer_post(p, worker)->w, BT_STOP, 0);
}

/* It leaves on purpose, and so has started none of the batches that it has not answered. */
void bt_plane_goodbye(bt_plane *p, bt_peer *peer)
{
    bt_wire_error e = bt_plain_error(BT_E_WORKER_DIED, "a worker left with the call's batch");
    while (peer->busy > 0) bt_plane_ended(p, peer->running[--peer->busy].batch, BT_UNRUN, &e);
    bt_plane_leave(p, peer);
}

/* A supervised worker is killed by its supervisor, which then tells of its death;
 * any other is dismissed and given up. */
void bt_plane_kill(bt_plane *p, bt_peer *worker, const char *why)
{
    char text[BT_WHY_BYTES + 40];
    if (worker->hung || worker->gone) return;
    if (worker->token[0] != 0) {
        give_up(p, worker, why);
        return;
    }
    snprintf(text, sizeof text, "dismissed: %s", why);
    bt_plane_reply(p, worker->identity, worker->identity_bytes, BT_E_UNREACHABLE, text);
    snprintf(text, sizeof text, "a worker was given up: %s", why);
    bt_wire_error e = bt_plain_error(BT_E_WORKER_DIED, text);
    bt_plane_lose(p, worker, &e);
}

void bt_plane_kill_hung(bt_plane *p, int64_t now_ns)
{
    char why[BT_WHY_BYTES];
    if (p->run_timeout_ns < 0) return;
    snprintf(why, sizeof why, "its batch took longer than run_timeout_ms=%g", (double)p->run_timeout_ns * 1e-6);
    for (bt_peer *w = p->workers; w != NULL; w = w->next_worker) {
        if (w->hung || w->gone) continue;
        int late = 0;
        for (uint32_t i = 0; i < w->busy; i++) late |= w->running[i].kill_ns <= now_ns;
        if (late) bt_plane_kill(p, w, why);
    }
}

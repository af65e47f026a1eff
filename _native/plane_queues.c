/* The native plane's queues: commands of its owner in, events out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plane_state.h"

void bt_plane_tell(bt_plane *p, bt_event *e)
{
    pthread_mutex_lock(&p->gate);
    *p->last_event = e;
    p->last_event = &e->next;
    pthread_cond_signal(&p->arrived);
    pthread_mutex_unlock(&p->gate);
}

void bt_plane_word(bt_plane *p, bt_event *e, bt_event_kind kind, const char *token, const char *why)
{
    e->kind = kind;
    if (why != NULL) snprintf(e->why, sizeof e->why, "%s", why);
    if (token != NULL) memcpy(e->token, token, BT_TOKEN_BYTES);
    bt_plane_tell(p, e);
}

int bt_plane_event(bt_plane *p, bt_event_kind kind, const char *token, const char *why, bt_message *message)
{
    bt_event *e = calloc(1, sizeof *e);
    if (e == NULL) {
        if (message != NULL) bt_message_drop(message);
        return -1;
    }
    e->message = message;
    bt_plane_word(p, e, kind, token, why);
    return 0;
}

bt_event *bt_plane_events(bt_plane *p)
{
    pthread_mutex_lock(&p->gate);
    while (p->events == NULL && !p->last_taken) pthread_cond_wait(&p->arrived, &p->gate);
    bt_event *events = p->events;
    p->events = NULL;
    p->last_event = &p->events;
    for (bt_event *e = events; e != NULL; e = e->next)
        if (e->kind == BT_EVENT_ENDED) p->last_taken = 1;
    pthread_mutex_unlock(&p->gate);
    return events;
}

void bt_event_free(bt_event *e)
{
    if (e->message != NULL) bt_message_drop(e->message);
    free(e);
}

int bt_plane_command(bt_plane *p, bt_command_kind kind, const char *token, bt_message *message, int64_t number)
{
    bt_command *c = kind == BT_COMMAND_END ? &p->ending : calloc(1, sizeof *c);
    int refused = c == NULL ? -2 : 0;
    pthread_mutex_lock(&p->gate);
    /* Asked to end twice, it ends as it was asked first. */
    if (c == &p->ending && c->kind != 0) refused = -1;
    if (refused == 0 && p->closed) refused = -1;
    if (refused == 0) {
        c->kind = kind;
        c->message = message;
        c->number = number;
        if (token != NULL) strncpy(c->token, token, BT_TOKEN_BYTES - 1);
        /* Inside the gate: a plane that has ended gives its descriptor back. */
        if (p->commands == NULL) bt_wake_signal(&p->wake);
        *p->last_command = c;
        p->last_command = &c->next;
    }
    pthread_mutex_unlock(&p->gate);
    if (refused == 0) return 0;
    if (message != NULL) bt_message_drop(message);
    if (c != &p->ending) free(c);
    return refused;
}

void bt_plane_not_grouped(bt_plane *p, uint64_t ticket)
{
    pthread_mutex_lock(&p->gate);
    p->lost_below = ticket + 1;
    if (!p->closed) bt_wake_signal(&p->wake);
    pthread_mutex_unlock(&p->gate);
}

void bt_plane_no_numbers(bt_plane *p)
{
    pthread_mutex_lock(&p->gate);
    p->no_numbers = 1;
    if (!p->closed) bt_wake_signal(&p->wake);
    pthread_mutex_unlock(&p->gate);
}

uint64_t bt_plane_lost(bt_plane *p, int *no_numbers)
{
    pthread_mutex_lock(&p->gate);
    *no_numbers = p->no_numbers;
    p->no_numbers = 0;
    uint64_t below = p->lost_below;
    pthread_mutex_unlock(&p->gate);
    return below;
}

bt_command *bt_plane_take_commands(bt_plane *p, int close)
{
    pthread_mutex_lock(&p->gate);
    bt_command *commands = p->commands;
    p->commands = NULL;
    p->last_command = &p->commands;
    p->closed |= close;
    pthread_mutex_unlock(&p->gate);
    return commands;
}

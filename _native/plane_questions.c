/* Questions of clients for the dispatcher's numbers.
 *
 * Python answers them, on the thread that waits for events: one event is out at
 * a time, and one answer goes to everybody who had asked when that event left. So
 * a flood of questions costs a flood of small answers and no Python; and the
 * numbers are never older than the question.
 */
#include <stdlib.h>
#include <string.h>

#include "plane_state.h"

/* Of one client, that wait. */
#define MOST_OF_A_CLIENT 64u

static void tell(bt_plane *p)
{
    p->asked = p->questions;
    if (p->asked > 0 && bt_plane_event(p, BT_EVENT_ASK, NULL, NULL, NULL) != 0) {
        bt_wire_error e = bt_plain_error(BT_E_OVERLOADED, "no memory for a question");
        bt_plane_fail_questions(p, &e);
    }
}

static int room_for_question(bt_plane *p)
{
    if (p->questions < p->question_capacity) return 1;
    uint32_t capacity = p->question_capacity ? 2 * p->question_capacity : 16;
    bt_question *grown = realloc(p->question, capacity * sizeof *grown);
    if (grown == NULL) return 0;
    p->question = grown;
    p->question_capacity = capacity;
    return 1;
}

void bt_plane_ask(bt_plane *p, bt_peer *client, uint64_t request)
{
    if (client->questions >= MOST_OF_A_CLIENT || !room_for_question(p)) {
        bt_wire_error e = bt_plain_error(BT_E_OVERLOADED, "too many questions of one client wait for an answer");
        bt_write_error(&bt_peer_post(p, client)->w, request, &e);
        return;
    }
    p->question[p->questions++] = (bt_question){client, request};
    client->questions++;
    if (p->asked == 0) tell(p);
}

/* The first `count` are done with. */
static void strike(bt_plane *p, uint32_t count)
{
    p->questions -= count;
    memmove(p->question, p->question + count, p->questions * sizeof *p->question);
}

void bt_plane_answer_questions(bt_plane *p, const bt_message *numbers)
{
    uint32_t bytes = (uint32_t)numbers->frame[0].bytes;
    for (uint32_t i = 0; i < p->asked; i++) {
        bt_peer *client = p->question[i].client;
        if (client == NULL) continue;
        bt_writer *w = &bt_peer_post(p, client)->w;
        bt_write_rows_begin(w, BT_ANSWER, p->question[i].request, -1, 0, 0, 0, 0, 0, bytes);
        bt_write_padded(w, numbers->frame[0].data, bytes);
        bt_write_rows_end(w, 0);
        client->questions--;
    }
    strike(p, p->asked);
    tell(p);
}

void bt_plane_fail_questions(bt_plane *p, const bt_wire_error *error)
{
    for (uint32_t i = 0; i < p->questions; i++) {
        bt_peer *client = p->question[i].client;
        if (client == NULL) continue;
        bt_write_error(&bt_peer_post(p, client)->w, p->question[i].request, error);
        client->questions--;
    }
    p->questions = p->asked = 0;
}

void bt_plane_forget_questions(bt_plane *p, const bt_peer *client)
{
    /* Their places stay: `asked` counts them. */
    for (uint32_t i = 0; i < p->questions && client->questions > 0; i++)
        if (p->question[i].client == client) p->question[i].client = NULL;
}

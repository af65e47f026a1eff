/* What the files of the native plane share; nobody else includes this. */
#ifndef BT_PLANE_STATE_H
#define BT_PLANE_STATE_H

#include <pthread.h>

#include "plane.h"
#include "wake.h"

#define BT_IDENTITY_BYTES 256
#define BT_BUCKETS 256
#define BT_TEXT_BYTES 160 /* of a message of ours, about an error */

typedef struct {
    uint64_t batch;
    uint32_t rows;
    int64_t kill_ns;     /* BT_NEVER: no timeout */
} bt_running;

typedef struct bt_peer {
    struct bt_peer *next;         /* all peers */
    struct bt_peer *next_same;    /* in its bucket */
    struct bt_peer *next_dirty;
    uint64_t number;              /* for fairness; 0 is this process */
    uint8_t identity[BT_IDENTITY_BYTES];
    size_t identity_bytes;
    int fd;                       /* that it came in on; -1 unknown */
    uint16_t role;
    uint8_t dirty;
    int gone;                     /* left; freed at the end of the turn */
    uint32_t calls;               /* head of its list in the ledger */
    bt_outgoing out;
    bt_message *queue, **queue_end; /* full packets that leave before `out` */
    uint64_t queued_bytes;        /* of those */
    int trouble;                  /* errno of what could not be sent: leaves at the end of the turn */
    /* a client's: what it was sent, and what it is known to have read */
    uint64_t sent_bytes, read_bytes;
    uint64_t ping, ping_bytes;    /* id of the PING that is out, 0: none; what was sent before it */
    uint32_t questions;           /* that wait for an answer */
    uint32_t passed;              /* messages that the owner has, to group their calls */
    /* a worker's */
    struct bt_peer *next_worker;
    char token[BT_TOKEN_BYTES];
    bt_event *last_word;          /* for its supervisor, made beforehand: told when it hangs or is lost */
    uint8_t hung;
    uint8_t leaving;              /* was told that no batch follows */
    uint32_t pid;
    uint32_t credits;
    uint32_t busy;
    bt_running *running;          /* `busy` of `credits` */
    uint64_t freed_at;
} bt_peer;

typedef struct bt_command {
    struct bt_command *next;
    bt_command_kind kind;
    char token[BT_TOKEN_BYTES];
    bt_message *message;
    int64_t number;
} bt_command;

/* A message that the owner has, to group its calls; it is kept, so that they can be failed. */
typedef struct bt_passed {
    struct bt_passed *next;
    uint64_t ticket, client;
    int64_t rows;
    bt_message *message;
} bt_passed;

/* For the dispatcher's numbers. */
typedef struct {
    bt_peer *client;              /* NULL: it is gone */
    uint64_t request;
} bt_question;

typedef enum { BT_OPEN, BT_DRAINING, BT_ENDED } bt_plane_state;

typedef struct {
    bt_record record;
    bt_body body;
} bt_checked;

struct bt_plane {
    char *name;
    uint8_t *description;
    uint32_t name_bytes, description_bytes;
    void *router, *monitor;
    bt_scheduler *scheduler;
    int64_t run_timeout_ns;
    int64_t max_queue_rows;
    int groups, refuses_pickle;
    uint64_t max_message_bytes, max_unread_bytes;

    pthread_mutex_t lock;         /* held for a turn: everything below up to the queues */
    bt_plane_state state;
    bt_ledger ledger;
    bt_peer *peers, *workers, *dirty, *local;
    int someone_gone;             /* peers to be freed at the end of the turn */
    bt_peer *bucket[BT_BUCKETS];  /* by hash of the identity */
    int may_have_input;           /* the socket; 0: it had none, and nothing was sent since */
    int monitor_unread;
    int64_t arrived_ns;           /* the message that is being obeyed */
    uint64_t next_number, clock, next_ping;
    uint64_t dropped, cut_off;
    uint64_t ended_well;          /* batches */
    bt_event *drained, *last;     /* made beforehand: somebody waits for them */
    int local_lost;               /* an outcome of this process's own calls could not be kept: all of them fail */
    bt_question *question;
    uint32_t questions, question_capacity;
    uint32_t asked;               /* the first so many are those that Python was asked for */
    bt_passed *passed, **last_passed; /* oldest first */
    int64_t passed_rows;          /* of all of them: not in the queue yet, and bounded like it */
    uint64_t next_ticket;
    bt_message *failing;          /* an ERROR record for every call, or NULL */
    int64_t until_ns;             /* the scheduler's */
    bt_inbox inbox, monitor_inbox;
    bt_checked *checked;          /* scratch: records of one message */
    uint32_t checked_capacity;
    bt_slice *slices;             /* scratch: parts of one batch */
    size_t slice_capacity;

    pthread_mutex_t gate;         /* the two queues */
    pthread_cond_t arrived;
    int closed;                   /* no command is taken any more */
    uint64_t lost_below;          /* messages below this ticket that did not come back from the owner will not */
    int no_numbers;               /* the owner cannot answer the questions that it was asked */
    bt_command ending;            /* BT_COMMAND_END's: needs no memory */
    bt_command *commands, **last_command;
    bt_event *events, **last_event;
    int last_taken;
    bt_wake wake;
};

/* plane_peers.c */
bt_peer *bt_peer_new(bt_plane *p, uint16_t role, const void *identity, size_t bytes, int fd);
bt_peer *bt_peer_find(bt_plane *p, const void *identity, size_t bytes);
void bt_peer_free(bt_plane *p, bt_peer *peer);
bt_outgoing *bt_peer_post(bt_plane *p, bt_peer *peer);  /* where the next record for it goes */
/* Writes the rows into what leaves for the peer. Not BT_WRITTEN: *error says why, in `text`. */
bt_written bt_peer_write(bt_plane *p, bt_peer *peer, bt_record_type type, uint64_t id, uint32_t padded_rows,
                         const uint8_t *key, uint32_t key_bytes, bt_slice *slices, size_t count,
                         bt_wire_error *error, char *text);
void bt_peer_slots(const bt_plane *p, int64_t *idle, int64_t *total);
bt_peer *bt_peer_free_worker(bt_plane *p);
int bt_plane_flush(bt_plane *p);                        /* 1 if a peer was lost on the way */
void bt_plane_reply(bt_plane *p, const void *identity, size_t bytes, uint16_t code, const char *text);
void bt_plane_pong(bt_plane *p, bt_peer *peer, uint64_t id);
int bt_plane_holds(const bt_plane *p);                  /* whether something waits for a client to read */
/* Something of the peer's, or for it, was lost for want of memory, and nobody knows of which calls: its
 * connection ends with them. Of this process's own calls all fail, once there is memory to say so. */
void bt_plane_forgo(bt_plane *p, bt_peer *peer);
void bt_plane_tell_lost(bt_plane *p);
/* plane_messages.c */
void bt_plane_receive_all(bt_plane *p);
void bt_plane_receive(bt_plane *p, bt_message *m, const void *identity, size_t bytes);
void bt_plane_read_monitor(bt_plane *p);
void bt_plane_grouped(bt_plane *p, const bt_command *c);
/* Those below the ticket that did not come back fail: the owner lost them. */
void bt_plane_fail_passed(bt_plane *p, uint64_t below);

/* plane_queues.c */
bt_command *bt_plane_take_commands(bt_plane *p, int close);
/* What bt_plane_not_grouped and bt_plane_no_numbers said; before the commands are taken. */
uint64_t bt_plane_lost(bt_plane *p, int *no_numbers);
void bt_plane_tell(bt_plane *p, bt_event *e);
/* The event, of this kind, with a token and a reason if there are any. */
void bt_plane_word(bt_plane *p, bt_event *e, bt_event_kind kind, const char *token, const char *why);
/* 0, or -1 without memory: the message was dropped. */
int bt_plane_event(bt_plane *p, bt_event_kind kind, const char *token, const char *why, bt_message *message);

/* plane_questions.c */
void bt_plane_ask(bt_plane *p, bt_peer *client, uint64_t request);
void bt_plane_answer_questions(bt_plane *p, const bt_message *numbers);
void bt_plane_fail_questions(bt_plane *p, const bt_wire_error *error);
void bt_plane_forget_questions(bt_plane *p, const bt_peer *client);

/* plane_calls.c */
void bt_plane_call(bt_plane *p, bt_peer *client, bt_message *m, const bt_record *r, const bt_wire_rows *rows);
void bt_plane_cancel(bt_plane *p, bt_peer *client, uint64_t request);
void bt_plane_dispatch(bt_plane *p);
void bt_plane_result(bt_plane *p, bt_peer *worker, bt_message *m, const bt_record *r, const bt_wire_rows *rows);
void bt_plane_raised(bt_plane *p, bt_peer *worker, const bt_record *r, const bt_wire_error *error);
void bt_plane_ended(bt_plane *p, uint64_t batch, bt_finish how, const bt_wire_error *error);
void bt_plane_fail_all(bt_plane *p, const bt_wire_error *error);
void bt_plane_cancel_all(bt_plane *p, bt_peer *client);

/* plane_workers.c */
void bt_plane_leave(bt_plane *p, bt_peer *peer);
void bt_plane_release(bt_plane *p, bt_peer *worker);
void bt_plane_goodbye(bt_plane *p, bt_peer *peer);
void bt_plane_lose(bt_plane *p, bt_peer *worker, const bt_wire_error *error);
void bt_plane_kill(bt_plane *p, bt_peer *worker, const char *why);
void bt_plane_kill_hung(bt_plane *p, int64_t now_ns);

/* Says of something so large that it is above max_message_bytes. */
void bt_too_large(const bt_plane *p, uint64_t bytes, const char *what, char *text);
/* An error of this code and text, without anything else. */
bt_wire_error bt_plain_error(uint16_t code, const char *text);
/* The error in a message of one ERROR record, which a command brought. */
int bt_error_of(const bt_message *m, bt_wire_error *out);

#endif

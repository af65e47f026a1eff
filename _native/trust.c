#include "trust.h"

#include <string.h>

#define MOST_DEPTH 64
#define MOST_SLOTS 64
#define PLAIN_BYTE 2    /* the first of an element without pickle */
#define PICKLE_BYTE 0x80 /* the first of a pickle, and never of UTF-8 */

typedef enum { NO_KIND, LIST, NDARRAY, SERIES, RAGGED, FRAME, OTHER } kind;

typedef struct {
    uint32_t index;    /* of the element */
    char head[8];      /* the first element, if it is a short text */
} level;

typedef struct {
    const uint8_t *at, *end;
    level level[MOST_DEPTH + 1];
    uint32_t depth;
    uint8_t is_static[MOST_SLOTS];
    kind kind[MOST_SLOTS];
    uint32_t slots;
} scan;

/* ---- a key is JSON: arrays, texts, numbers ---------------------------------------- */

static int hex(uint8_t c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One character of a text, its escape undone; -1 at the end of the text, -2 for what is none. */
static int character(scan *s)
{
    static const char escaped[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    if (s->at >= s->end) return -2;
    uint8_t c = *s->at++;
    if (c == '"') return -1;
    if (c != '\\') return c;
    if (s->at >= s->end) return -2;
    c = *s->at++;
    if (c == 'u') {
        int value = 0;
        if (s->end - s->at < 4) return -2;
        for (int i = 0; i < 4; i++) {
            int digit = hex(*s->at++);
            if (digit < 0) return -2;
            value = value << 4 | digit;
        }
        return value;
    }
    const char *found = memchr(escaped, c, sizeof escaped - 1);
    return found == NULL ? -2 : meant[found - escaped];
}

/* A text, behind its first quote: its start in `out`, or "" if it is longer than that. */
static int text(scan *s, char *out, size_t size)
{
    size_t n = 0;
    int c;
    while ((c = character(s)) >= 0) {
        if (n < size) out[n] = (char)(c < 0x80 ? c : 0x7f);
        n++;
    }
    out[n < size ? n : 0] = 0;
    return c == -1 ? 0 : -1;
}

/* ---- what it says -------------------------------------------------------------------- */

static kind kind_of(const char *name)
{
    static const struct { const char *name; kind kind; } known[] = {
        {"list", LIST}, {"ndarray", NDARRAY}, {"series", SERIES}, {"ragged", RAGGED}, {"frame", FRAME},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) return known[i].kind;
    return OTHER;
}

/* A key is [[[name, by keyword, static], ...], [[kind, ...] or a static value, ...], bucket]. */
static int slot_at(const scan *s, uint32_t part, uint32_t place)
{
    if (s->depth != 3 || s->level[1].index != part || s->level[3].index != place) return -1;
    return s->level[2].index < MOST_SLOTS ? (int)s->level[2].index : -1;
}

static int take_text(scan *s)
{
    char value[8];
    level *here = &s->level[s->depth];
    if (text(s, value, sizeof value) != 0) return -1;
    /* A pickled value or dtype; an array of objects, or a column of them. */
    if (here->index == 1 && strcmp(here->head, "pickle") == 0) return -1;
    int quoted = here->index == 1 && strcmp(here->head, "str") == 0;
    if (!quoted && (strcmp(value, "|O") == 0 || strcmp(value, "O") == 0 || strcmp(value, "object") == 0)) return -1;
    if (here->index == 0) memcpy(here->head, value, sizeof value);
    int slot = slot_at(s, 1, 0);
    if (slot >= 0) {
        s->kind[slot] = kind_of(value);
        if ((uint32_t)slot >= s->slots) s->slots = (uint32_t)slot + 1;
    }
    return 0;
}

static void take_number(scan *s)
{
    int is_zero = *s->at == '0' || *s->at == 'f', slot = slot_at(s, 0, 2);
    if (slot >= 0) s->is_static[slot] = !is_zero;
    while (s->at < s->end && strchr(",] \t\r\n", *s->at) == NULL) s->at++;
}

static int scan_key(scan *s)
{
    while (s->at < s->end) {
        uint8_t c = *s->at;
        /* Other encodings of JSON, which a reader may understand, have bytes like these. */
        if (c < 0x20 || c > 0x7e) return -1;
        switch (c) {
        case '[':
            if (s->depth == MOST_DEPTH) return -1;
            s->level[++s->depth] = (level){0};
            s->at++;
            break;
        case ']':
            if (s->depth == 0) return -1;
            s->depth--;
            s->at++;
            break;
        case ',':
            s->level[s->depth].index++;
            s->at++;
            break;
        case '"':
            s->at++;
            if (take_text(s) != 0) return -1;
            break;
        case '{':
            return -1;
        case ' ':
            s->at++;
            break;
        default:
            take_number(s);
        }
    }
    return s->depth == 0 ? 0 : -1;
}

/* ---- the buffers --------------------------------------------------------------------------- */

/* How many a kind has; -1: as many as it likes. */
static int buffers_of(kind k) { return k == RAGGED ? 2 : k == FRAME || k == OTHER ? -1 : 1; }

static uint8_t rule_of(kind k)
{
    if (k == LIST) return BT_PLAIN_BLOB;
    return k == SERIES || k == FRAME ? BT_TEXT_BLOB : BT_ANY_BLOB;
}

/* Counted from both ends, up to the kinds with any number of buffers; what is left
 * in the middle is theirs. -1: an array with a blob a row, which is one of objects. */
static int fill_rules(const scan *s, const uint8_t *row_bytes, uint16_t buffers, uint8_t *rules)
{
    kind order[MOST_SLOTS];
    int n = 0, first = 0, last, from = 0, to = buffers;
    for (uint32_t i = 0; i < s->slots; i++)
        if (!s->is_static[i] && s->kind[i] != NO_KIND) order[n++] = s->kind[i];
    memset(rules, BT_ANY_BLOB, buffers);
    last = n - 1;
    for (; first <= last && buffers_of(order[first]) > 0; from += buffers_of(order[first++])) {
        if (from + buffers_of(order[first]) > to) return -1;
        if (order[first] == NDARRAY && (int32_t)bt_get32(row_bytes + 4 * from) == BT_VAR) return -1;
        rules[from] = rule_of(order[first]);
    }
    for (; last > first && buffers_of(order[last]) > 0; to -= buffers_of(order[last--])) {
        if (to - buffers_of(order[last]) < from) return -1;
        if (order[last] == NDARRAY && (int32_t)bt_get32(row_bytes + 4 * (to - 1)) == BT_VAR) return -1;
        rules[to - buffers_of(order[last])] = rule_of(order[last]);
    }
    int frames_only = first <= last;
    for (int i = first; i <= last; i++) frames_only &= order[i] == FRAME;
    if (frames_only) memset(rules + from, BT_TEXT_BLOB, (size_t)(to - from));
    return 0;
}

int bt_trust_key(const uint8_t *key, uint32_t key_bytes, const uint8_t *row_bytes, uint16_t buffers, uint8_t *rules)
{
    scan s;
    memset(&s, 0, sizeof s);
    s.at = key;
    s.end = key + key_bytes;
    if (scan_key(&s) != 0) return -1;
    return fill_rules(&s, row_bytes, buffers, rules);
}

/* ---- the blobs -------------------------------------------------------------------------------- */

static int first_bytes_keep(const uint8_t *data, const uint8_t *lengths, uint32_t *row, uint32_t rows, uint64_t bytes,
                            uint8_t rule)
{
    uint64_t at = 0;
    for (; *row < rows && at < bytes; (*row)++) {
        uint32_t length = bt_get32(lengths + (size_t)4 * *row);
        if (length == BT_NO_BLOB || length == 0) continue;
        if (rule == BT_PLAIN_BLOB ? data[at] != PLAIN_BYTE : data[at] == PICKLE_BYTE) return 0;
        at += length;
    }
    return 1;
}

int bt_trust_blobs(const bt_message *m, const bt_wire_rows *rows, const uint8_t *rules)
{
    bt_wire_walk walk;
    bt_wire_buffer b;
    bt_wire_rows_walk(rows, &walk);
    for (uint16_t i = 0; bt_wire_rows_next(rows, &walk, &b); i++) {
        uint32_t row = 0;
        if (rules[i] == BT_ANY_BLOB || b.row_bytes != BT_VAR) continue;
        if (b.frames == 0 && !first_bytes_keep(b.data, b.lengths, &row, rows->rows, b.bytes, rules[i])) return 0;
        /* Frames end where rows end. */
        for (uint32_t f = 0; f < b.frames; f++) {
            const bt_frame *frame = &m->frame[b.first_frame + f];
            if (!first_bytes_keep(frame->data, b.lengths, &row, rows->rows, frame->bytes, rules[i])) return 0;
        }
    }
    return 1;
}

/* Whether a call holds pickle, by the look of its key and its blobs.
 *
 * For connections whose other end nobody has vouched for: whoever can have a
 * pickle read can run code. Decoders refuse it as well; this is the door before
 * them. A key is looked at once for each distinct key, and says what the blobs of
 * each buffer must look like; that is one byte of each blob of each call.
 *
 * Known are the keys and blobs that batching.payloads makes. What stands in a
 * kind of a user's own is that kind's business, and its decoder's.
 */
#ifndef BT_TRUST_H
#define BT_TRUST_H

#include "message.h"

typedef enum {
    BT_ANY_BLOB = 0,   /* a buffer of fixed rows, or of somebody else's */
    BT_PLAIN_BLOB = 1, /* an element of a list: it says itself that it is no pickle */
    BT_TEXT_BLOB = 2,  /* a column's text */
} bt_blob_rule;

/* Fills a rule for each buffer. `row_bytes` holds an i32 for each, little-endian. 0; or -1 if the
 * key holds pickle, or is none. */
int bt_trust_key(const uint8_t *key, uint32_t key_bytes, const uint8_t *row_bytes, uint16_t buffers,
                 uint8_t *rules);

/* Whether the blobs keep the rules. */
int bt_trust_blobs(const bt_message *m, const bt_wire_rows *rows, const uint8_t *rules);

#endif

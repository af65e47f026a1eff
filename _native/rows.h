#ifndef BT_ROWS_H
#define BT_ROWS_H
#endif

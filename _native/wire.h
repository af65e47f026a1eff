#ifndef BT_WIRE_H
#define BT_WIRE_H
#endif

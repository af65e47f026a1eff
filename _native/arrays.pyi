"""For native callers only: see include/batching/_native/arrays.pxd."""

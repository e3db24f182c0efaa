"""Running programs that nobody has read: what a model writes, walled off by the kernel (Linux)."""

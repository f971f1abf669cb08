// The kernels for one level of instructions. Each level has a file, so that all are compiled at once.
#include "../cpu.cpp"

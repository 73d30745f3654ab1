/* The one kernel of a mock mesh: never run, but loadable. The call gives the ELF relocations and the counter a
 * non-empty .data section; the runtime's loader insists on both. */
int counter = 1;

__attribute__((noinline)) int step(int x) { return x + counter; }

__attribute__((section(".start"), used)) void _start(void) { counter = step(counter); }

// CUDA's words with a meaning on the CPU, so that g++ compiles the kernels' sources unchanged.
//
// The threads of a block are fibres: each runs until it must wait for others, at a barrier or in a
// warp's exchange. Who goes first is the caller's choice: one order lets the first warp run as far
// as it can before the second starts, one the last warp, and one has all warps take turns. A kernel
// whose result depends on that order has a race. What hardware leaves undefined is an error here: a
// barrier that some living thread does not reach, an exchange with a lane that takes no part, an
// index outside of an array in shared memory, integer overflow, a pack that does not lie on a multiple
// of its size. Shared memory starts as NaN. The buffers a kernel gets lie between pages that must not
// be touched (see `emulator_map`).
//
// One launch at a time, in one thread of the process.

#pragma once

#include <link.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <utility>
#include <vector>

#define __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
// Static storage in a function, and a declaration of what is defined elsewhere with `extern`: of
// C++'s storage classes only this one can be both. It also keeps shared memory apart from all other
// variables, in the block that `Shared` finds.
#define __shared__ thread_local

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static const int warpSize = 32;

namespace emulator {

const int LANES = 32, STACK = 64 << 10;
const size_t PAGE = sysconf(_SC_PAGESIZE);

enum State { NEW, READY, AT_BARRIER, IN_WARP, DONE };
enum Operation { SYNC, SHUFFLE, MATCH, BALLOT };

struct Thread {
    State state;
    int fibre;
    const char *where;         // the function waited in, and its line
    int line;
    unsigned mask;             // the lanes an exchange waits for
    Operation operation;
    int source;                // the lane whose value is asked for
    unsigned char value[16];   // sent, and once all have arrived, received
    size_t size;
};

// Contexts start fibres; from then on jumps lead in and out, which take no system calls.
struct Fibre {
    jmp_buf inside;
    char *stack;
    bool started;
};

// Copies to shared memory that a thread has started (tensor.h), closed groups first.
struct Copy {
    float *to;
    const float *from;  // null for zeros
    int count;
};
struct Copies {
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

// Products of groups of warps that a thread has started (tensor.h).
struct Product {
    float (*sums)[4];
    const char *a, *b;
};
struct Products {
    bool opened = false, shown = true;
    std::vector<Product> started, closed;
};

static std::vector<Thread> threads;
static std::vector<Copies> copies;      // by thread
static std::vector<Products> products;  // by thread
static unsigned long long blocks_begun;
static int launch_seed;
static std::vector<int> order;
static std::vector<Fibre> fibres;
static std::vector<int> idle;
static size_t next, stop;      // how many of `order` have been started, and may be at present
static bool in_turns;          // whether warps take turns, or run as far as they can
static int current, current_fibre;
static ucontext_t caller;
static jmp_buf scheduler;
static char message[512];
static void *fault_address;
static int fault_writes;
static void (*body)(void **);
static void **body_arguments;

static uint3 place(int number)
{
    unsigned n = number;
    return {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
}

// Give up this launch; its fibres never go on, and the next launch starts them afresh.
static void fail()
{
    for (Fibre &fibre : fibres)
        fibre.started = false;
    setcontext(&caller);
}

static void describe_thread(char *text, size_t size, int number)
{
    uint3 t = place(number);
    snprintf(text, size, "thread (%u, %u, %u) of block (%u, %u, %u)",
             t.x, t.y, t.z, blockIdx.x, blockIdx.y, blockIdx.z);
}

static void on_signal(int signal, siginfo_t *info, void *context)
{
    char who[96];
    describe_thread(who, sizeof who, current);
    if (signal == SIGILL || signal == SIGTRAP) {  // where a check of the compiler traps
        snprintf(message, sizeof message,
                 "%s: an index outside of a shared or local array, integer overflow, or an address "
                 "that is no multiple of what is moved", who);
    } else {
        fault_address = info->si_addr;
#if defined(__x86_64__)
        fault_writes = ((ucontext_t *)context)->uc_mcontext.gregs[REG_ERR] >> 1 & 1;
#else
        fault_writes = -1;
        (void)context;
#endif
        snprintf(message, sizeof message, "%s", who);
    }
    fail();
}

static void leave_fibre()
{
    if (!_setjmp(fibres[current_fibre].inside))
        _longjmp(scheduler, 1);
}

static void wait(State state, const char *where, int line)
{
    Thread &thread = threads[current];
    int number = current;
    thread.state = state;
    thread.where = where;
    thread.line = line;
    leave_fibre();
    current = number;
    threadIdx = place(number);
}

// A fibre runs new threads of a warp one by one, until one has to wait; another takes over then.
// When there are no more it is idle, and goes on here the next time.
static void fibre_main()
{
    int own = current_fibre;
    for (;;) {
        while (next < stop) {
            current = order[next++];
            Thread &thread = threads[current];
            thread.state = READY;
            thread.fibre = own;
            threadIdx = place(current);
            body(body_arguments);
            threads[current].state = DONE;
        }
        idle.push_back(own);
        leave_fibre();
    }
}

static void resume(int number)
{
    current_fibre = number;
    Fibre &fibre = fibres[number];
    if (_setjmp(scheduler))
        return;
    if (fibre.started)
        _longjmp(fibre.inside, 1);
    fibre.started = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fibre.stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, fibre_main, 0);
    setcontext(&context);
}

static void start_threads()
{
    if (idle.empty()) {
        void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        mprotect(stack, PAGE, PROT_NONE);  // below its end lies another stack
        idle.push_back(fibres.size());
        fibres.push_back({{}, (char *)stack, false});
    }
    int number = idle.back();
    idle.pop_back();
    resume(number);
}

static bool living(int number)
{
    return number < (int)threads.size() && threads[number].state != DONE;
}

// Let the warp of this thread go on if all lanes it waits for have come; false if not.
static bool release_warp(int number)
{
    Thread &thread = threads[number];
    int first = number / LANES * LANES;
    for (int lane = 0; lane < LANES; ++lane) {
        if (!(thread.mask >> lane & 1) || !living(first + lane))
            continue;
        Thread &other = threads[first + lane];
        if (other.state != IN_WARP || other.mask != thread.mask || other.line != thread.line ||
            other.operation != thread.operation)
            return false;
    }
    Thread sent[LANES] = {};
    bool present[LANES] = {};
    for (int lane = 0; lane < LANES; ++lane) {
        present[lane] = thread.mask >> lane & 1 && living(first + lane);
        if (present[lane])
            sent[lane] = threads[first + lane];
    }
    for (int lane = 0; lane < LANES; ++lane) {
        if (!present[lane])
            continue;
        Thread &mine = threads[first + lane];
        unsigned votes = 0;
        for (int other = 0; other < LANES; ++other) {
            if (!present[other])
                continue;
            bool yes = mine.operation == MATCH
                ? !memcmp(sent[other].value, sent[lane].value, mine.size) : sent[other].value[0];
            votes |= (unsigned)yes << other;
        }
        if (mine.operation == SHUFFLE) {
            if (!present[mine.source]) {
                char who[96];
                describe_thread(who, sizeof who, first + lane);
                snprintf(message, sizeof message, "%s: %s (line %d) reads lane %d, which takes no "
                         "part", who, mine.where, mine.line, mine.source);
                fail();
            }
            memcpy(mine.value, sent[mine.source].value, mine.size);
        } else if (mine.operation != SYNC) {
            memcpy(mine.value, &votes, sizeof votes);
        }
        mine.state = READY;
    }
    return true;
}

// Let the whole block go on if all its living threads wait at one barrier.
static bool release_block()
{
    int line = 0, waiting = 0;
    for (Thread &thread : threads) {
        if (thread.state == DONE)
            continue;
        if (thread.state != AT_BARRIER || (line && thread.line != line))
            return false;
        line = thread.line;
        ++waiting;
    }
    for (Thread &thread : threads)
        if (thread.state == AT_BARRIER)
            thread.state = READY;
    return waiting > 0;
}

static void fail_divergence()
{
    int one = -1, other = -1;
    for (int number : order) {
        Thread &thread = threads[number];
        if (thread.state == DONE)
            continue;
        if (one < 0)
            one = number;
        else if (thread.line != threads[one].line || thread.state != threads[one].state)
            other = number;
    }
    char who[96];
    describe_thread(who, sizeof who, one);
    int length = snprintf(message, sizeof message, "%s waits in %s (line %d) for threads that "
                          "never come there", who, threads[one].where, threads[one].line);
    if (other >= 0) {
        uint3 t = place(other);
        snprintf(message + length, sizeof message - length,
                 ": thread (%u, %u, %u) waits in %s (line %d)", t.x, t.y, t.z,
                 threads[other].where, threads[other].line);
    }
    fail();
}

// Run the threads [first, last) of `order`, a warp, until all wait or are done; false if none could.
static bool run_warp(size_t first, size_t last)
{
    bool moved = false;
    stop = last;
    for (size_t i = first; i < last; ++i) {
        State state = threads[order[i]].state;
        moved |= state == NEW || state == READY;
        if (state == NEW)
            start_threads();
        else if (state == READY)
            resume(threads[order[i]].fibre);
    }
    for (size_t i = first; i < last; ++i)
        if (threads[order[i]].state == IN_WARP)
            moved |= release_warp(order[i]);
    return moved;
}

static void run_block()
{
    for (Thread &thread : threads)
        thread.state = NEW;
    copies.assign(threads.size(), Copies());
    products.assign(threads.size(), Products());
    ++blocks_begun;
    next = 0;
    for (;;) {
        bool moved = false, left = false;
        for (size_t first = 0, last; first < order.size(); first = last) {
            int warp = order[first] / LANES;
            for (last = first; last < order.size() && order[last] / LANES == warp; ++last) {}
            while (run_warp(first, last)) {
                moved = true;
                if (in_turns)
                    break;
            }
        }
        for (const Thread &thread : threads)
            left |= thread.state != DONE;
        if (!left)
            return;
        if (!release_block() && !moved)
            fail_divergence();
    }
}

// ---- shared memory

static thread_local volatile char shared_anchor;

struct Shared {
    char *start = nullptr;
    size_t size = 0;

    Shared()
    {
        shared_anchor = 1;  // a module's block exists once something in it has been used
        dl_iterate_phdr(find, this);
    }

    static int find(struct dl_phdr_info *info, size_t, void *self)
    {
        bool here = false;
        const ElfW(Phdr) *block = nullptr;
        uintptr_t mine = (uintptr_t)&find;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
            const ElfW(Phdr) &header = info->dlpi_phdr[i];
            uintptr_t start = info->dlpi_addr + header.p_vaddr;
            here |= header.p_type == PT_LOAD && mine >= start && mine < start + header.p_memsz;
            if (header.p_type == PT_TLS)
                block = &header;
        }
        if (!here || !block)
            return 0;
        ((Shared *)self)->start = (char *)info->dlpi_tls_data;
        ((Shared *)self)->size = block->p_memsz;
        return 1;
    }
};

// Where the dynamic shared memory of this source lies; null where it has none.
static char *dynamic_shared();
static size_t dynamic_shared_size();

static void check_shared(size_t asked)
{
    char *start = dynamic_shared();
    for (size_t i = asked; start && i < dynamic_shared_size(); ++i)
        if (start[i] != (char)0xFF) {
            snprintf(message, sizeof message, "block (%u, %u, %u) writes to byte %zu of its "
                     "dynamic shared memory, of which it has %zu", blockIdx.x, blockIdx.y,
                     blockIdx.z, i, asked);
            fail();
        }
}

// ---- launches

static void shuffle(std::vector<int> &values, int seed)
{
    uint64_t random = seed;
    for (size_t i = values.size(); i > 1; --i) {
        random = random * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX
        std::swap(values[i - 1], values[(random >> 33) % i]);
    }
}

static std::vector<int> numbers(size_t count, int seed)
{
    std::vector<int> result(count);
    for (size_t i = 0; i < count; ++i)
        result[i] = seed == 1 ? count - 1 - i : i;
    if (seed > 1)
        shuffle(result, seed);
    return result;
}

// Threads in an order that leaves warps together: whole warps in their order, lanes in theirs.
static std::vector<int> warp_order(size_t count, int seed)
{
    std::vector<int> result;
    for (int warp : numbers((count + LANES - 1) / LANES, seed))
        for (int lane : numbers(LANES, seed))
            if ((size_t)(warp * LANES + lane) < count)
                result.push_back(warp * LANES + lane);
    return result;
}

static size_t launch_shared;

static void run_blocks()
{
    Shared shared;
    for (int number : numbers((size_t)gridDim.x * gridDim.y * gridDim.z, launch_seed)) {
        unsigned n = number;
        blockIdx = {n % gridDim.x, n / gridDim.x % gridDim.y, n / gridDim.x / gridDim.y};
        memset(shared.start, 0xFF, shared.size);
        run_block();
        check_shared(launch_shared);
    }
    message[0] = 0;
    setcontext(&caller);
}

// While one lives, faults go to `on_signal`; afterwards, to whom they went before.
struct Signals {
    static constexpr int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
    struct sigaction before[4];
    stack_t stack_before;

    Signals()
    {
        static char own_stack[64 << 10];  // a thread's may be what has run over
        stack_t stack = {own_stack, 0, sizeof own_stack};
        sigaltstack(&stack, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        for (int i = 0; i < 4; ++i)
            sigaction(numbers[i], &action, &before[i]);
    }

    ~Signals()
    {
        for (int i = 0; i < 4; ++i)
            sigaction(numbers[i], &before[i], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};

static const char *launch(void (*kernel)(void **), const unsigned *sizes, size_t shared, int seed,
                          void **arguments)
{
    static char *stack = (char *)mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    gridDim = dim3(sizes[0], sizes[1], sizes[2]);
    blockDim = dim3(sizes[3], sizes[4], sizes[5]);
    body = kernel;
    body_arguments = arguments;
    launch_shared = shared;
    launch_seed = seed;
    threads.assign((size_t)blockDim.x * blockDim.y * blockDim.z, Thread());
    order = warp_order(threads.size(), seed);
    in_turns = seed > 1;
    idle.clear();
    for (size_t i = 0; i < fibres.size(); ++i)
        idle.push_back(i);
    fault_address = nullptr;
    Signals signals;
    static ucontext_t main_context;
    getcontext(&main_context);
    main_context.uc_stack.ss_sp = stack;
    main_context.uc_stack.ss_size = 1 << 20;
    main_context.uc_link = nullptr;
    makecontext(&main_context, run_blocks, 0);
    swapcontext(&caller, &main_context);
    return message;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>)
{
    kernel(*(A *)arguments[I]...);
}

template <class... A>
void call(void (*kernel)(A...), void **arguments)
{
    call(kernel, arguments, std::index_sequence_for<A...>());
}

// ---- exchanges

template <class T>
T exchange(Operation operation, unsigned mask, T value, int source, const char *where, int line)
{
    static_assert(sizeof(T) <= sizeof(Thread::value), "too large for an exchange");
    Thread &thread = threads[current];
    int lane = current % LANES;
    if (!(mask >> lane & 1)) {
        char who[96];
        describe_thread(who, sizeof who, current);
        snprintf(message, sizeof message, "%s: lane %d is not in the mask of %s (line %d)", who,
                 lane, where, line);
        fail();
    }
    thread.mask = mask;
    thread.operation = operation;
    thread.source = source;
    thread.size = sizeof value;
    memcpy(thread.value, &value, sizeof value);
    wait(IN_WARP, where, line);
    memcpy(&value, threads[current].value, sizeof value);
    return value;
}

// The lane that a shuffle reads: its own where the one asked for is outside of its segment.
inline int lane_of(int asked, int width)
{
    int lane = current % LANES, first = lane / width * width;
    return asked >= first && asked < first + width ? asked : lane;
}

}  // namespace emulator

#define EMULATOR_LINE int line = __builtin_LINE()

inline void __syncthreads(EMULATOR_LINE)
{
    emulator::wait(emulator::AT_BARRIER, "__syncthreads", line);
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, EMULATOR_LINE)
{
    emulator::exchange(emulator::SYNC, mask, 0, 0, "__syncwarp", line);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_LINE)
{
    int first = emulator::current % 32 / width * width;
    return emulator::exchange(emulator::SHUFFLE, mask, value, first + source % width,
                              "__shfl_sync", line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_LINE)
{
    int source = emulator::lane_of(emulator::current % 32 + (int)delta, width);
    return emulator::exchange(emulator::SHUFFLE, mask, value, source, "__shfl_down_sync", line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_LINE)
{
    int source = emulator::lane_of(emulator::current % 32 - (int)delta, width);
    return emulator::exchange(emulator::SHUFFLE, mask, value, source, "__shfl_up_sync", line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATOR_LINE)
{
    int source = emulator::lane_of((emulator::current % 32) ^ bits, width);
    return emulator::exchange(emulator::SHUFFLE, mask, value, source, "__shfl_xor_sync", line);
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMULATOR_LINE)
{
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof value);
    return (unsigned)emulator::exchange(emulator::MATCH, mask, bits, 0, "__match_any_sync", line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_LINE)
{
    unsigned vote = predicate != 0;
    return emulator::exchange(emulator::BALLOT, mask, vote, 0, "__ballot_sync", line);
}

inline int __any_sync(unsigned mask, int predicate, EMULATOR_LINE)
{
    return __ballot_sync(mask, predicate, line) != 0;
}

inline int __all_sync(unsigned mask, int predicate, EMULATOR_LINE)
{
    return __ballot_sync(mask, !predicate, line) == 0;
}

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T> T __ldg(const T *address) { return *address; }
inline unsigned __float_as_uint(float x)
{
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
template <class T> T max(T a, T b) { return a > b ? a : b; }
template <class T> T min(T a, T b) { return a < b ? a : b; }

#include "tensor.h"

// Threads take turns and are never interrupted, so that plain operations are atomic.
#define EMULATOR_ATOMIC(name, T, result) \
    inline T name(T *address, T value) \
    { \
        T old = *address; \
        *address = (result); \
        return old; \
    }
#define EMULATOR_ATOMIC_OF(T) \
    EMULATOR_ATOMIC(atomicMax, T, old > value ? old : value) \
    EMULATOR_ATOMIC(atomicMin, T, old < value ? old : value) \
    EMULATOR_ATOMIC(atomicExch, T, value) \
    EMULATOR_ATOMIC(atomicOr, T, old | value) \
    EMULATOR_ATOMIC(atomicAnd, T, old & value)
EMULATOR_ATOMIC_OF(int)
EMULATOR_ATOMIC_OF(unsigned)
EMULATOR_ATOMIC_OF(unsigned long long)
EMULATOR_ATOMIC(atomicAdd, int, old + value)
EMULATOR_ATOMIC(atomicAdd, unsigned, old + value)
EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + value)
EMULATOR_ATOMIC(atomicAdd, float, old + value)
EMULATOR_ATOMIC(atomicAdd, double, old + value)

template <class T>
T atomicCAS(T *address, T expected, T value)
{
    T old = *address;
    if (old == expected)
        *address = value;
    return old;
}

// ---- what the caller of the library sees

// `size` bytes of whole pages between two pages that fault when touched.
extern "C" void *emulator_map(size_t size)
{
    using emulator::PAGE;
    char *start = (char *)mmap(nullptr, size + 2 * PAGE, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return nullptr;
    mprotect(start, PAGE, PROT_NONE);
    mprotect(start + PAGE + size, PAGE, PROT_NONE);
    return start + PAGE;
}

extern "C" void emulator_unmap(void *start, size_t size)
{
    munmap((char *)start - emulator::PAGE, size + 2 * emulator::PAGE);
}

extern "C" void *emulator_fault_address() { return emulator::fault_address; }
extern "C" int emulator_fault_writes() { return emulator::fault_writes; }

// Defines `emulate_<kernel>(sizes, shared, seed, arguments)`: sizes of grid and block, (x, y, z)
// each; seed 0 runs blocks and warps forward, 1 backward, each warp as far as it can go, others
// shuffled and in turns. Returns the error, empty if there is none.
#define EMULATE(kernel) \
    extern "C" const char *emulate_##kernel( \
        const unsigned *sizes, size_t shared, int seed, void **arguments) \
    { \
        auto run = [](void **arguments) { emulator::call(kernel, arguments); }; \
        return emulator::launch(run, sizes, shared, seed, arguments); \
    }

#define EMULATE_DYNAMIC_SHARED(type, name, size) \
    alignas(16) thread_local type name[(size) / sizeof(type)]; \
    static char *emulator::dynamic_shared() { return (char *)name; } \
    static size_t emulator::dynamic_shared_size() { return sizeof name; }

#define EMULATE_NO_DYNAMIC_SHARED \
    static char *emulator::dynamic_shared() { return nullptr; } \
    static size_t emulator::dynamic_shared_size() { return 0; }

// What kernels/cuda/tensor.cuh names, on the CPU. Part of cuda.h.
//
// A copy is made when it is waited for, and no sooner: a kernel that reads too early finds what was
// there before. In one of the runs it is made at once: a kernel that copies too early overwrites what
// is still read. A product's fragments are exchanged between lanes as the hardware lays them out.

#pragma once

namespace emulator {

struct Fragments {
    unsigned a[4], b[2];
};

const int EARLY = 1;  // the run in which copies are made at once

static void fail_here(const char *what)
{
    char who[96];
    describe_thread(who, sizeof who, current);
    snprintf(message, sizeof message, "%s: %s", who, what);
    fail();
}

inline void make(const Copy &copy)
{
    for (int i = 0; i < copy.count; ++i)
        copy.to[i] = copy.from ? copy.from[i] : 0;
    products[current].shown = false;
}

inline float float_of(unsigned bits)
{
    float value = __uint_as_float(bits);
    if (value == value && bits & 0x1FFF) {
        snprintf(message, sizeof message, "an operand of a product is no TF32 number");
        fail();
    }
    return value;
}

}  // namespace emulator

inline int kept(int value) { return value; }

inline unsigned to_tf32(float x)
{
    unsigned bits = __float_as_uint(x);
    return x == x && x - x == 0 ? (bits + 0x1000) & ~0x1FFFu : bits & ~0x1FFFu;
}

// What each lane of a warp gives, in order. Two sets take turns: a lane gives its next value only
// when all have given this one.
template <class T>
const T *exchange_all(const T &value, const char *where, int line)
{
    using namespace emulator;
    static std::vector<T> given[2];
    static std::vector<unsigned char> turns;
    static unsigned long long turns_of;
    if (turns_of != blocks_begun) {  // an earlier block may have ended in the middle of an exchange
        turns_of = blocks_begun;
        given[0].resize(1024), given[1].resize(1024), turns.assign(1024, 0);
    }
    std::vector<T> &all = given[turns[current] ^= 1];
    all[current] = value;
    exchange(SYNC, 0xFFFFFFFFu, 0, 0, where, line);
    return &all[current / LANES * LANES];
}

inline void multiply_tf32(
    float (&sums)[4], const unsigned (&a)[4], const unsigned *b, EMULATOR_LINE)
{
    using namespace emulator;
    Fragments mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    const Fragments *lanes = exchange_all(mine, "multiply_tf32", line);
    int lane = current % LANES;
    for (int part = 0; part < 4; ++part) {
        int row = lane / 4 + part / 2 * 8, column = lane % 4 * 2 + part % 2;
        for (int k = 0; k < 8; ++k) {
            unsigned left = lanes[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2];
            unsigned right = lanes[column * 4 + k % 4].b[k / 4];
            sums[part] += float_of(left) * float_of(right);
        }
    }
}

inline void load_matrices(unsigned (&elements)[4], const float *row, EMULATOR_LINE)
{
    using namespace emulator;
    if ((uintptr_t)row % 16)
        fail_here("a row of a matrix begins at no multiple of 16 bytes");
    const float *const *rows = exchange_all(row, "load_matrices", line);
    int lane = current % LANES;
    for (int matrix = 0; matrix < 4; ++matrix)
        elements[matrix] = __float_as_uint(rows[matrix * 8 + lane / 4][lane % 4]);
}

// ---- products of groups of four warps. They are made when they are waited for, and no sooner.

namespace emulator {

// Element [row, k] of a matrix as `describe` has it: bits of the address choose the quad.
inline float operand(const char *matrix, int row, int k)
{
    uintptr_t address = (uintptr_t)matrix + row * 128 + k * 4;
    return float_of(*(const unsigned *)(address ^ (address >> 7 & 7) << 4));
}

inline void make(const Product &product)
{
    int lane = current % LANES, warp = current / LANES % 4;
    for (int j = 0; j < 16; ++j)
        for (int part = 0; part < 4; ++part) {
            int row = 16 * warp + lane / 4 + part / 2 * 8, column = 8 * j + lane % 4 * 2 + part % 2;
            for (int k = 0; k < 8; ++k)
                product.sums[j][part] += operand(product.a, row, k) * operand(product.b, column, k);
        }
}

}  // namespace emulator

inline void show_copies() { emulator::products[emulator::current].shown = true; }

inline void open_products() { emulator::products[emulator::current].opened = true; }

inline void start_product(float (&sums)[16][4], const float *a, const float *b)
{
    using namespace emulator;
    for (const float *matrix : {a, b})
        if ((uintptr_t)matrix % 1024 >= 128 || (uintptr_t)matrix % 32)
            fail_here("a matrix of a product begins where none can");
    bool shown = products[current].shown;
    if (launch_seed != EARLY)  // otherwise others may have copied what comes next already
        for (const Products &other : products)
            shown &= other.shown;
    if (!products[current].opened || !shown)
        fail_here("a product was started before open_products or show_copies");
    products[current].started.push_back({sums, (const char *)a, (const char *)b});
}

inline void close_products()
{
    emulator::Products &mine = emulator::products[emulator::current];
    mine.closed.insert(mine.closed.end(), mine.started.begin(), mine.started.end());
    mine.started.clear();
    mine.opened = false;
}

inline void wait_for_products(float (&)[16][4])
{
    emulator::Products &mine = emulator::products[emulator::current];
    for (const emulator::Product &product : mine.closed)
        emulator::make(product);
    mine.closed.clear();
}

template <int COUNT, bool AGAIN = false>
void copy_later(float *shared, const float *global, bool wanted)
{
    using namespace emulator;
    if (COUNT == 4 && (uintptr_t)shared % 16)
        fail_here("the target of a copy of 16 bytes is no multiple of 16");
    if (COUNT == 4 && (uintptr_t)global % 16)
        fail_here("the source of a copy of 16 bytes is no multiple of 16");
    Copy copy = {shared, wanted ? global : nullptr, COUNT};
    if (launch_seed == EARLY)
        make(copy);
    else
        copies[current].open.push_back(copy);
}

inline void close_copies()
{
    emulator::Copies &mine = emulator::copies[emulator::current];
    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
}

template <int OPEN>
void wait_for_copies()
{
    auto &groups = emulator::copies[emulator::current].groups;
    while (groups.size() > OPEN) {
        for (const emulator::Copy &copy : groups.front())
            emulator::make(copy);
        groups.erase(groups.begin());
    }
}

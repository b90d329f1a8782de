// What kernels/cuda/tensor.cuh names, on the CPU. Part of cuda.h.
//
// A copy is made when it is waited for, and no sooner: a kernel that reads too early finds what was
// there before. A product's fragments are exchanged between the lanes as the hardware lays them out.

#pragma once

namespace emulator {

struct Fragments {
    unsigned a[4], b[2];
};

static void fail_copy(const char *what)
{
    char who[96];
    describe_thread(who, sizeof who, current);
    snprintf(message, sizeof message, "%s: a copy of 16 bytes whose %s is no multiple of 16", who,
             what);
    fail();
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
    given[0].resize(1024), given[1].resize(1024), turns.resize(1024);
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
        fail_copy("row of a matrix");
    const float *const *rows = exchange_all(row, "load_matrices", line);
    int lane = current % LANES;
    for (int matrix = 0; matrix < 4; ++matrix)
        elements[matrix] = __float_as_uint(rows[matrix * 8 + lane / 4][lane % 4]);
}

template <int COUNT, bool AGAIN = false>
void copy_later(float *shared, const float *global, bool wanted)
{
    using namespace emulator;
    if (COUNT == 4 && (uintptr_t)shared % 16)
        fail_copy("target");
    if (COUNT == 4 && (uintptr_t)global % 16 && wanted)
        fail_copy("source");
    copies[current].open.push_back({shared, wanted ? global : nullptr, COUNT});
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
            for (int i = 0; i < copy.count; ++i)
                copy.to[i] = copy.from ? copy.from[i] : 0;
        groups.erase(groups.begin());
    }
}

// Pooling; the definitions stand in kernels/reference/pool.py.
//
// A thread is one element of the result, or a pack of them. Gradients are gathered too, by every
// pixel from the windows it lies in, so that no two threads add to one number. Only unpooling has
// to scatter: without windows, a pixel cannot tell who chose it. There a warp has a plane for
// itself.

#include "packs.cuh"

// An element of planes (planes, height, width).
struct Pixel {
    long long plane;
    int row, column;

    __device__ Pixel(long long i, int height, int width)
    {
        int p;
        plane = divide(i, height * width, &p);
        row = p / width;
        column = p - row * width;
    }
};

// The pixels of the real taps of a window along one axis: first, first + dilation, ... < stop.
struct Span {
    int first, stop;

    __device__ Span(int output, int stride, int before, int size, int dilation, int extent)
    {
        int start = output * stride - before;
        stop = start + (size - 1) * dilation + 1;
        if (stop > extent)
            stop = extent;
        first = start >= 0 ? start : start + (-start + dilation - 1) / dilation * dilation;
    }
};

// The largest of some pixels that are looked at in their order, and which it is.
struct Winner {
    real best;
    int pixel;

    __device__ void consider(real value, int other)
    {
        // `not <=` lets a NaN win; `best == best` keeps the first NaN.
        if (!(value <= best) && best == best) {
            best = value;
            pixel = other;
        }
    }
};

// A window of SIZE x SIZE taps, all of which are read before the first is looked at.
template <int SIZE>
__device__ inline void consider_square(
    Winner &winner, const real *x, Span rows, Span columns, int w, int dh, int dw)
{
    real taps[SIZE][SIZE];
    #pragma unroll
    for (int i = 0; i < SIZE; ++i)
        #pragma unroll
        for (int j = 0; j < SIZE; ++j) {
            int r = rows.first + i * dh, c = columns.first + j * dw;
            // What is not there never wins.
            bool there = r < rows.stop && c < columns.stop;
            taps[i][j] = there ? x[r * w + c] : winner.best;
        }
    #pragma unroll
    for (int i = 0; i < SIZE; ++i)
        #pragma unroll
        for (int j = 0; j < SIZE; ++j)
            winner.consider(taps[i][j], (rows.first + i * dh) * w + columns.first + j * dw);
}

extern "C" __global__ void max_pool2d(
    const real *x, real *y, int *switches, int h, int w, int oh, int ow, int kh, int kw, int sh,
    int sw, int top, int left, int dh, int dw, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    Pixel output(i, oh, ow);
    Span rows(output.row, sh, top, kh, dh, h), columns(output.column, sw, left, kw, dw, w);
    x += output.plane * h * w;
    int first = rows.first * w + columns.first;
    Winner winner = {x[first], first};
    if (kh == 2 && kw == 2)
        consider_square<2>(winner, x, rows, columns, w, dh, dw);
    else if (kh == 3 && kw == 3)
        consider_square<3>(winner, x, rows, columns, w, dh, dw);
    else
        for (int r = rows.first; r < rows.stop; r += dh)
            for (int c = columns.first; c < columns.stop; c += dw)
                winner.consider(x[r * w + c], r * w + c);
    y[i] = winner.best;
    switches[i] = winner.pixel;
}

// The windows of one axis in which a pixel lies: first, first + 1, ... last.
struct Windows {
    int first, last;

    __device__ Windows(int pixel, int stride, int before, int size, int outputs)
    {
        int reach = pixel + before;
        first = reach < size ? 0 : (reach - size) / stride + 1;
        last = min(reach / stride, outputs - 1);
    }
};

// The sum of dy over those windows that chose the pixel, in their order. At most REACH windows of
// an axis hold it, whose switches are all read before the first is looked at.
template <int REACH>
__device__ inline real chosen_sum(
    const real *dy, const int *switches, Windows rows, Windows columns, int ow, int pixel)
{
    bool chosen[REACH][REACH];
    #pragma unroll
    for (int v = 0; v < REACH; ++v)
        #pragma unroll
        for (int u = 0; u < REACH; ++u) {
            int row = rows.first + v, column = columns.first + u;
            bool there = row <= rows.last && column <= columns.last;
            chosen[v][u] = there && switches[row * ow + column] == pixel;
        }
    real total = 0;
    #pragma unroll
    for (int v = 0; v < REACH; ++v)
        #pragma unroll
        for (int u = 0; u < REACH; ++u)
            if (chosen[v][u])
                total += dy[(rows.first + v) * ow + columns.first + u];
    return total;
}

__device__ inline real any_chosen_sum(
    const real *dy, const int *switches, Windows rows, Windows columns, int ow, int pixel)
{
    real total = 0;
    for (int v = rows.first; v <= rows.last; ++v)
        for (int u = columns.first; u <= columns.last; ++u)
            if (switches[v * ow + u] == pixel)
                total += dy[v * ow + u];
    return total;
}

// A thread has a pack of neighbours in a row. rh and rw: what dilated windows span; reach: how many
// of them hold a pixel, at most, along an axis.
extern "C" __global__ void max_pool2d_backward(
    const real *dy, const int *switches, real *dx, int h, int w, int oh, int ow, int rh, int rw,
    int sh, int sw, int top, int left, int reach, long long threads)
{
    long long i = thread_number();
    if (i >= threads)
        return;
    Pixel first(i, h, (w + PACK - 1) / PACK);
    first.column *= PACK;
    Windows rows(first.row, sh, top, rh, oh);
    dy += first.plane * oh * ow;
    switches += first.plane * oh * ow;
    int start = first.row * w + first.column;
    Pack pack = {};
    #pragma unroll
    for (int k = 0; k < PACK; ++k) {
        if (first.column + k >= w)
            continue;
        Windows columns(first.column + k, sw, left, rw, ow);
        pack.values[k] = reach == 1 ? chosen_sum<1>(dy, switches, rows, columns, ow, start + k)
            : reach == 2 ? chosen_sum<2>(dy, switches, rows, columns, ow, start + k)
            : reach == 3 ? chosen_sum<3>(dy, switches, rows, columns, ow, start + k)
            : any_chosen_sum(dy, switches, rows, columns, ow, start + k);
    }
    dx += first.plane * h * w + start;
    if (w % PACK == 0 && at_pack(dx))
        *(Pack *)dx = pack;
    else
        #pragma unroll
        for (int k = 0; k < PACK; ++k)
            if (first.column + k < w)
                dx[k] = pack.values[k];
}

// Sets *outside (unless it is null) and does nothing for a switch outside of the plane.
__device__ inline bool is_pixel(int pixel, int pixels, int *outside)
{
    bool inside = 0 <= pixel && pixel < pixels;
    if (!inside && outside)
        atomicOr(outside, 1);
    return inside;
}

extern "C" __global__ void max_pool2d_gather(
    const real *x, const int *switches, real *y, int *outside, int outputs, int pixels,
    long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    int p;
    long long plane = divide(i, outputs, &p);
    if (is_pixel(switches[i], pixels, outside))
        y[i] = x[plane * pixels + switches[i]];
}

// A warp takes the elements of its plane 32 at a time, in order. Those of the 32 that share a pixel
// are added up by the first of them, in order too: the sums are the reference's to the bit.
extern "C" __global__ void max_unpool2d(
    const real *y, const int *switches, real *x, int *outside, long long planes, int outputs,
    int pixels)
{
    long long plane = thread_number() / WARP;
    int lane = threadIdx.x % WARP;
    if (plane >= planes)
        return;
    y += plane * outputs;
    switches += plane * outputs;
    x += plane * pixels;
    for (int p = lane; p < pixels; p += WARP)
        x[p] = 0;
    for (int first = 0; first < outputs; first += WARP) {
        int p = first + lane, pixel = -1;
        real value = 0;
        if (p < outputs && is_pixel(switches[p], pixels, outside)) {
            pixel = switches[p];
            value = y[p];
        }
        __syncwarp();  // what other lanes wrote to x before is there now
        unsigned twins = __match_any_sync(ALL_LANES, pixel);
        bool leads = pixel >= 0 && lane == __ffs(twins) - 1;
        real total = leads ? x[pixel] : (real)0;
        while (__any_sync(ALL_LANES, twins)) {
            real next = __shfl_sync(ALL_LANES, value, twins ? __ffs(twins) - 1 : lane);
            if (twins)
                total += next;
            twins &= twins - 1;
        }
        if (leads)
            x[pixel] = total;
    }
}

// The factor of one axis in the number of taps that divides the sum of a window.
__device__ inline int tap_count(
    int output, int stride, int before, int after, int size, int extent, int include_pad)
{
    int start = output * stride - before;
    int stop = min(start + size, include_pad ? extent + after : extent);
    return stop - (include_pad ? start : max(start, 0));
}

extern "C" __global__ void avg_pool2d(
    const real *x, real *y, int h, int w, int oh, int ow, int kh, int kw, int sh, int sw,
    int top, int bottom, int left, int right, int include_pad, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    Pixel output(i, oh, ow);
    Span rows(output.row, sh, top, kh, 1, h), columns(output.column, sw, left, kw, 1, w);
    x += output.plane * h * w;
    wide total = 0;
    for (int r = rows.first; r < rows.stop; ++r)
        for (int c = columns.first; c < columns.stop; ++c)
            total += x[r * w + c];
    wide count = tap_count(output.row, sh, top, bottom, kh, h, include_pad);
    count *= tap_count(output.column, sw, left, right, kw, w, include_pad);
    y[i] = (real)(total / count);
}

extern "C" __global__ void avg_pool2d_backward(
    const real *dy, real *dx, int h, int w, int oh, int ow, int kh, int kw, int sh, int sw,
    int top, int bottom, int left, int right, int include_pad, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    Pixel pixel(i, h, w);
    Windows rows(pixel.row, sh, top, kh, oh), columns(pixel.column, sw, left, kw, ow);
    dy += pixel.plane * oh * ow;
    wide total = 0;
    for (int v = rows.first; v <= rows.last; ++v) {
        int count = tap_count(v, sh, top, bottom, kh, h, include_pad);
        for (int u = columns.first; u <= columns.last; ++u) {
            wide taps = (wide)count * tap_count(u, sw, left, right, kw, w, include_pad);
            total += dy[v * ow + u] / taps;
        }
    }
    dx[i] = (real)total;
}

// A warp a plane.
extern "C" __global__ void global_avg_pool2d(
    const real *x, real *y, long long planes, int pixels)
{
    long long plane = thread_number() / WARP;
    if (plane >= planes)
        return;
    wide total = 0;
    for (int p = threadIdx.x % WARP; p < pixels; p += WARP)
        total += x[plane * pixels + p];
    total = warp_sum(total);
    if (threadIdx.x % WARP == 0)
        y[plane] = (real)(total / pixels);
}

extern "C" __global__ void global_avg_pool2d_backward(
    const real *dy, real *dx, int pixels, long long size)
{
    Elements here(size, at_pack(dx));
    if (!here.inside())
        return;
    int p;
    long long plane = divide(here.first, pixels, &p);
    Pack pack = {};
    real share = dy[plane] / (real)pixels;
    #pragma unroll
    for (int k = 0; k < PACK; ++k) {
        pack.values[k] = share;
        if (++p == pixels && k + 1 < here.count) {
            p = 0;
            share = dy[++plane] / (real)pixels;
        }
    }
    here.store(dx, pack);
}

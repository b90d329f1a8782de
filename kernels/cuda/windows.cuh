// The arithmetic of positions, pixels and taps that the ways of convolving share.

#pragma once

#include "common.cuh"

// A number high * (middles * lows) + middle * lows + low, to which others of its kind are added
// without divisions, which are slow. Where lows * middles is 1, so are the carries.
struct Digits {
    int high, middle, low;

    __device__ Digits(long long number, int middles, int lows)
    {
        long long rest = divide(number, lows, &low);
        high = (int)divide(rest, middles, &middle);
    }

    __device__ void add(const Digits &step, int middles, int lows)
    {
        low += step.low;
        middle += step.middle;
        high += step.high;
        if (low >= lows) {
            low -= lows;
            ++middle;
        }
        if (middle >= middles) {
            middle -= middles;
            ++high;
        }
    }
};

// Along one axis, the pixels of x that the same taps of the kernel reach, of the `stride` classes
// into which the stride divides them: pixels first + p stride for p < pixels, and taps
// tap + t tap_step for t < taps. Tap t takes pixel p to the output start + p - t back.
struct Residue {
    int first, pixels, tap, tap_step, taps, start, back;

    __device__ Residue(int number, int extent, int before, int stride, int kernel, int dilation)
    {
        first = ((number - before) % stride + stride) % stride;
        pixels = first < extent ? (extent - first - 1) / stride + 1 : 0;
        for (tap = 0; tap < kernel && tap * dilation % stride != number;)
            ++tap;
        for (tap_step = 1; tap_step < kernel && tap_step * dilation % stride;)
            ++tap_step;
        taps = tap < kernel ? (kernel - tap - 1) / tap_step + 1 : 0;
        start = (first + before - tap * dilation) / stride;
        back = tap_step * dilation / stride;
    }
};

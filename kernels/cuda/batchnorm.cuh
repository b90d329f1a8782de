// What batch normalisation and its gradients share.

#pragma once

#include "channels.cuh"

// A mean as two numbers of type T: `mean` and the `rest` that rounding took from it, so that
// x - mean - rest loses no digits, without float64.
template <class T>
struct Centre {
    T mean, rest;

    __device__ Centre(T mean, T rest) : mean(mean), rest(rest) {}
    __device__ explicit Centre(wide exact) : mean((T)exact), rest((T)(exact - mean)) {}

    __device__ T distance(T x) const { return x - mean - rest; }
};

// The number type of pointwise_math.h on a GPU: a float whose division and sigmoid use the GPU's approximate
// instructions. According to NVIDIA's error bounds of ex2 and rcp, division is accurate to 2 ulp and sigmoid to 4
// ulp. The exact versions need about twice as many instructions, and function calls.
#pragma once

#include <cmath>

#include "../pointwise_math.h"
#include "device.cuh"

namespace pwlu {

struct Number {
  float value;

  Number() = default;
  __device__ explicit constexpr Number(float value) : value(value) {}
};

__device__ __forceinline__ Number operator+(Number a, Number b) { return Number(a.value + b.value); }
__device__ __forceinline__ Number operator-(Number a, Number b) { return Number(a.value - b.value); }
__device__ __forceinline__ Number operator*(Number a, Number b) { return Number(a.value * b.value); }
__device__ __forceinline__ Number fma(Number a, Number b, Number c) {
  return Number(std::fma(a.value, b.value, c.value));
}
__device__ __forceinline__ Number abs(Number a) { return Number(fabsf(a.value)); }
__device__ __forceinline__ Number where_positive(Number c, Number a, Number b) { return c.value > 0 ? a : b; }

// In pointwise_math.h, the first argument is always a constant, and so never NaN.
__device__ __forceinline__ Number min(Number a, Number b) {
#if __CUDA_ARCH__ >= 800
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a.value), "f"(b.value));
  return Number(least);
#else
  return a.value < b.value ? a : b;
#endif
}
__device__ __forceinline__ Number max(Number a, Number b) {
#if __CUDA_ARCH__ >= 800
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a.value), "f"(b.value));
  return Number(most);
#else
  return a.value > b.value ? a : b;
#endif
}

// 2^a and 1 / a, with subnormal results flushed to 0.
__device__ __forceinline__ float normal_power_of_2(float a) {
#ifdef __CUDA_ARCH__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(a));
  return power;
#else
  return a < -126 ? 0 : std::exp2(a);
#endif
}
__device__ __forceinline__ float normal_reciprocal(float a) {
#ifdef __CUDA_ARCH__
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(a));
  return reciprocal;
#else
  return a > 0x1p126f ? 0 : 1 / a;
#endif
}

// Uses b / 4, since the reciprocal of b itself may be subnormal.
__device__ __forceinline__ Number operator/(Number a, Number b) {
  return Number(a.value * (0.25f * normal_reciprocal(0.25f * b.value)));
}

// 1 / (1 + e^a) with a = -z, where e^a = 2^b (1 + a - b ln 2) and b is a / ln 2, rounded. From a = 88 on, it is 0.
__device__ __forceinline__ Sigmoid<Number> sigmoid(Number z) {
  const float a = min(Number(88.0f), Number(-z.value)).value, b = a * 1.44269504f, power = normal_power_of_2(b);
  const float rest = std::fma(b, 1.90465421e-9f, std::fma(b, -0.693147182f, a));  // ln 2 in two parts
  const float e = std::fma(power, rest, power), value = normal_reciprocal(1 + e);
  return {Number(value), Number(e * value * value)};
}
__device__ __forceinline__ Number times_sigmoid(Number u, Number z) { return u * sigmoid(z).value; }

}  // namespace pwlu

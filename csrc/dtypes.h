// The element types of tensors: conversion to and from the type of arithmetic, and from a `Type` to a C++ type.
#pragma once

#include "view.h"

namespace vk {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T, class S>
VK_INLINE T widen(S value) {
  return T(value);
}
template <class T>
VK_INLINE T widen(BFloat16 value) {
  return T(bits_as<float>(uint32_t(value.bits) << 16));
}
template <class T>
VK_INLINE T widen(Float16 value) {
#ifdef __CUDA_ARCH__
  float single;
  asm("cvt.f32.f16 %0, %1;" : "=f"(single) : "h"(value.bits));
  return T(single);
#else
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);
  const float subnormal = float(int32_t(magnitude)) * 0x1p-24f;
  const uint32_t bits = magnitude < 0x400u ? bits_as<uint32_t>(subnormal) : normal;
  return T(bits_as<float>(bits | uint32_t(value.bits & 0x8000u) << 16));
#endif
}

// A float64 as a float that is rounded to odd: rounding this float to a half type rounds the float64 once, to nearest
// even.
template <class T>
VK_INLINE float single(T value) {
  if constexpr (is_float<T>) {
    return value;
  } else {
    const float nearest = float(value);
    const double back = nearest;
    const uint32_t bits = bits_as<uint32_t>(nearest);
    const uint32_t down = bits - ((back < 0 ? -back : back) > (value < 0 ? -value : value) ? 1u : 0u);
    return bits_as<float>(back == value || value != value ? bits : (down | 1u));
  }
}
template <class D, class T>
VK_INLINE void narrow(T value, D* to) {
  *to = D(value);
}
template <class T>
VK_INLINE void narrow(T value, BFloat16* to) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(single(value)));
#else
  const uint32_t bits = bits_as<uint32_t>(single(value));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = uint16_t(value != value ? 0x7fc0u : rounded);
#endif
}
template <class T>
VK_INLINE void narrow(T value, Float16* to) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(single(value)));
#else
  const uint32_t bits = bits_as<uint32_t>(single(value));
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 1/2 moves a subnormal half into the low bits, and the addition rounds it.
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  to->bits = uint16_t(half | (bits >> 16 & 0x8000u));
#endif
}

template <class S>
constexpr Type type_of = Type::kFloat64;
template <>
inline constexpr Type type_of<float> = Type::kFloat32;
template <>
inline constexpr Type type_of<BFloat16> = Type::kBFloat16;
template <>
inline constexpr Type type_of<Float16> = Type::kFloat16;

constexpr int size_of(Type type) {
  switch (type) {
    case Type::kFloat64:
    case Type::kInt64: return 8;
    case Type::kFloat32:
    case Type::kInt32: return 4;
    case Type::kBFloat16:
    case Type::kFloat16:
    case Type::kInt16: return 2;
    default: return 1;
  }
}

constexpr bool is_half(Type type) { return type == Type::kBFloat16 || type == Type::kFloat16; }

// Calls f with a null pointer to the type's C++ type.
template <class F>
VK_INLINE void with_float_type(Type type, const F& f) {
  switch (type) {
    case Type::kFloat64: return f((double*)nullptr);
    case Type::kFloat32: return f((float*)nullptr);
    case Type::kBFloat16: return f((BFloat16*)nullptr);
    case Type::kFloat16: return f((Float16*)nullptr);
    default: return;
  }
}
template <class F>
VK_INLINE void with_integer_type(Type type, const F& f) {
  switch (type) {
    case Type::kUInt8: return f((uint8_t*)nullptr);
    case Type::kInt8: return f((int8_t*)nullptr);
    case Type::kInt16: return f((int16_t*)nullptr);
    case Type::kInt32: return f((int32_t*)nullptr);
    case Type::kInt64: return f((int64_t*)nullptr);
    default: return;
  }
}
template <class F>
VK_INLINE void with_type(Type type, const F& f) {
  with_float_type(type, f);
  with_integer_type(type, f);
}

}  // namespace vk

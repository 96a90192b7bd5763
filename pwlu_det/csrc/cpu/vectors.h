// Stretches of memory as vectors, whichever the including file has chosen.
#pragma once

#include "elements.h"

namespace {

// Calls step(from, count) for each whole vector of n elements, and once more for what remains.
template <typename Step>
PWLU_INLINE void for_vectors(int64_t n, const Step& step) {
  int64_t i = 0;
  for (; i + Vec::kSize <= n; i += Vec::kSize) step(i, int(Vec::kSize));
  if (i < n) step(i, int(n - i));
}

// What remains is padded with zeros.
template <typename T>
PWLU_INLINE Vec load(const T* p, int count) {
  if (count == Vec::kSize) return Vec::load(p);
  T padded[Vec::kSize] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return Vec::load(padded);
}

template <typename T>
PWLU_INLINE void store(Vec v, T* p, int count) {
  if (count == Vec::kSize) return v.store(p);
  T padded[Vec::kSize];
  v.store(padded);
  std::memcpy(p, padded, count * sizeof(T));
}

// Sums by bin of pairs (g, g * distance). Each lane adds to sums of its own, [lanes, bins], in float, and for at
// most kStretch vectors; then they are added up in double. All in a fixed order.
//
// A few vectors' pairs are put down before they are added: the one is work for the vector units, the other a chain
// of loads and stores, and the processor overlaps more of each when they do not alternate.
class BinSums {
 public:
  static constexpr int kStretch = 256, kSlots = 64;

  BinSums(int lanes, int bins) : bins_(bins), size_(lanes * bins), sums_(few_) {
    if (size_ > kFew) sums_ = new Pair[size_];
    clear();
  }
  BinSums(const BinSums&) = delete;
  ~BinSums() {
    if (sums_ != few_) delete[] sums_;
  }

  void clear() { std::fill_n(sums_, size_, Pair{0, 0}); }

  // `at` gives for each lane its place in [lanes, bins].
  PWLU_INLINE void put(int64_t slot, const Index& at, Vec g, Vec moment) {
    at.times8().store(bytes_[slot]);
    store_pairs(g, moment, more_[slot]);
  }
  PWLU_INLINE void add(int64_t slots) {
    char* sums = reinterpret_cast<char*>(sums_);
    for (int64_t i = 0; i < slots; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < Vec::kSize; ++j) *reinterpret_cast<Pair*>(sums + bytes_[i][kPairLanes[j]]) += more_[i][j];
    }
  }

  bool finite() const {  // lanes are as many as fill vectors
    Vec trap(0.0f);
    for (int i = 0; i < 2 * size_; i += Vec::kSize) {
      trap = fma(Vec::load(reinterpret_cast<const float*>(sums_) + i), Vec(0.0f), trap);
    }
    return !any_nan(trap);
  }
  void add_to(Moments moments, int lane) const {
    for (int bin = 0; bin < bins_; ++bin) {
      moments.amount[bin] += sums_[lane * bins_ + bin][0];
      moments.moment[bin] += sums_[lane * bins_ + bin][1];
    }
  }

 private:
  static constexpr int kFew = 18 * 32;

  int bins_, size_;
  Pair* sums_;
  alignas(64) Pair more_[kSlots][Vec::kSize];
  alignas(64) uint32_t bytes_[kSlots][Vec::kSize];
  alignas(64) Pair few_[kFew];
};

}  // namespace

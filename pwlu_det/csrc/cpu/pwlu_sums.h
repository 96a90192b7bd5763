// Sums over PWLU's bins.
#pragma once

#include "pwlu_elements.h"
#include "vectors.h"

namespace {

// Sums of pairs (g, g * distance) by bin. Each lane has its own sums, [lanes, bins], in float. After a small number
// of vectors, they are added up in double. The order is fixed.
//
// The pairs of several vectors are stored before they are added: storing them is work for the vector units, adding
// them is a chain of loads and stores, and the processor overlaps more of both when they do not alternate.
class PwluBinSums {
 public:
  // The number of vectors that a sum in float may run over: n additions of similar numbers have an error of n / 2^26
  // of their sum. kStretch is smaller because the lanes of one channel are added up in float as well.
  static constexpr int kStretch = 32, kBlockStretch = 64, kSlots = 64;

  // Room for `lanes` lanes, a multiple of the vector size. For one channel, each lane starts at a vector boundary.
  PwluBinSums(int lanes, int bins, bool one_channel)
      : lanes_(lanes),
        bins_(bins),
        stride_(one_channel ? (bins + kPairs - 1) / kPairs * kPairs : bins),
        sums_(few_),
        total_(few_total_) {
    if (size() > kFew) sums_ = new Pair[size()];
    if (stride_ > kFewBins) total_ = new Pair[stride_];
    clear();
  }
  PwluBinSums(const PwluBinSums&) = delete;
  ~PwluBinSums() {
    if (sums_ != few_) delete[] sums_;
    if (total_ != few_total_) delete[] total_;
  }

  // The stride between lanes.
  int stride() const { return stride_; }

  // `at` holds the index in [lanes, stride] for each lane.
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

  // Adds the sums to the moments, unless some are not finite, and resets them. All lanes belong to one channel.
  bool take(Moments moments) {
    float *sums = reinterpret_cast<float*>(sums_), *total = reinterpret_cast<float*>(total_);
    Vec trap(0.0f);
    for (int i = 0; i < 2 * stride_; i += Vec::kSize) {
      Vec sum(0.0f);
      for (int lane = 0; lane < Vec::kSize; ++lane) {
        float* own = sums + lane * 2 * stride_ + i;
        sum = sum + Vec::load(own);
        Vec(0.0f).store(own);
      }
      sum.store(total + i);
      trap = fma(sum, Vec(0.0f), trap);
    }
    if (any_nan(trap)) return false;
    add_to(moments, total_);
    return true;
  }
  // The same with one channel per lane.
  bool take(const Moments* moments, int channels) {
    Vec trap(0.0f);
    for (int i = 0; i < 2 * size(); i += Vec::kSize) {
      trap = fma(Vec::load(reinterpret_cast<const float*>(sums_) + i), Vec(0.0f), trap);
    }
    const bool finite = !any_nan(trap);
    for (int c = 0; c < channels && finite; ++c) add_to(moments[c], sums_ + c * stride_);
    clear();
    return finite;
  }

 private:
  static constexpr int kPairs = Vec::kSize / 2, kFewBins = 64, kFew = 20 * 32;

  int size() const { return lanes_ * stride_; }
  void clear() { std::fill_n(sums_, size(), Pair{0, 0}); }
  void add_to(Moments moments, const Pair* sums) const {
    for (int bin = 0; bin < bins_; ++bin) {
      moments.amount[bin] += sums[bin][0];
      moments.moment[bin] += sums[bin][1];
    }
  }

  int lanes_, bins_, stride_;
  Pair *sums_, *total_;
  alignas(64) Pair more_[kSlots][Vec::kSize];
  alignas(64) uint32_t bytes_[kSlots][Vec::kSize];
  alignas(64) Pair few_[kFew], few_total_[kFewBins];
};

}  // namespace

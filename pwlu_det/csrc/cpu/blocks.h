// Kernels over channels_last memory: the lanes of a vector are neighbouring channels, each with a table of its own.
#pragma once

#include "vectors.h"

namespace {

// The rows of a block lie apart, where the processor does not fetch ahead by itself.
template <typename T>
PWLU_INLINE void fetch_ahead(const T* p, int64_t stride) {
  constexpr int64_t kRowsAhead = 4;
  __builtin_prefetch(p + kRowsAhead * stride);
}

// Where the elements of a vector fall in the tables of their channels.
struct Located {
  Index at;  // [channels, bins]
  Vec distance;
};

class Locator {
 public:
  explicit Locator(const Block<float>& block)
      : left_(block.left),
        right_(block.right),
        length_(block.length),
        middle_(block.middle),
        scale_(block.scale),
        last_(block.functions->line.last) {
    for (int c = 0; c < pwlu::kBlockChannels + kLanePadding; ++c) first_[c] = c * block.bins();
  }

  PWLU_INLINE Located operator()(Vec x, int64_t channel) const {
    const Vec left = Vec::load(left_ + channel), minus_one(-1.0f);
    const Vec k = min(max(floor((x - left) * Vec::load(scale_ + channel)), minus_one), last_);
    const Vec center = fma(k, Vec::load(length_ + channel), Vec::load(middle_ + channel));
    const Vec distance = x - min(max(center, left), Vec::load(right_ + channel));
    return {Index(k - minus_one) + Index::load(first_ + channel), distance};
  }

 private:
  const float *left_, *right_, *length_, *middle_, *scale_;
  const Vec last_;
  int32_t first_[pwlu::kBlockChannels + kLanePadding];
};

template <typename T>
void forward_block(const T* x, T* y, int64_t rows, int64_t stride, const Block<float>& block) {
  const auto carefully = [&](bool all) {
    for (int c = 0; c < block.channels; ++c) forward_carefully(x + c, y + c, rows, stride, block.functions[c], all);
  };
  if (!block.fits) return carefully(true);
  const Locator locate(block);
  const float* pairs = block.pairs;
  const Vec zero(0.0f);
  Vec trap(0.0f);  // becomes NaN with the first y that is not finite
  for (int64_t r = 0; r < rows; ++r) {
    for_vectors(block.channels, [&](int64_t c, int count) {
      const T* from = x + r * stride + c;
      fetch_ahead(from, stride);
      const Located element = locate(load(from, count), c);
      Vec value, slope;
      load_pairs(pairs, element.at, value, slope);
      const Vec yv = fma(slope, element.distance, value);
      trap = fma(yv, zero, trap);
      store(yv, y + r * stride + c, count);
    });
  }
  if (any_nan(trap)) carefully(false);
}

template <typename T>
void backward_block(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride, const Block<float>& block,
                    const Moments* moments) {
  const auto carefully = [&](int64_t at, int64_t n) {
    for (int c = 0; c < block.channels; ++c, ++at) {
      backward_carefully(grad + at, x + at, grad_x + at, n, stride, block.functions[c], moments[c]);
    }
  };
  if (!block.fits) return carefully(0, rows);
  const Locator locate(block);
  const float* pairs = block.pairs;
  const int channels = block.channels, vectors = (channels + Vec::kSize - 1) / Vec::kSize;
  const int64_t rows_at_once = BinSums::kSlots / vectors;
  BinSums sums(vectors * Vec::kSize, block.bins(), false);
  for (int64_t start = 0; start < rows; start += BinSums::kBlockStretch) {
    const int64_t end = std::min(start + BinSums::kBlockStretch, rows);
    for (int64_t from = start; from < end; from += rows_at_once) {
      int64_t slot = 0;
      for (int64_t r = from; r < std::min(from + rows_at_once, end); ++r) {
        for_vectors(channels, [&](int64_t c, int count) {
          const int64_t i = r * stride + c;
          fetch_ahead(x + i, stride);
          fetch_ahead(grad + i, stride);
          const Vec g = load(grad + i, count);
          const Located element = locate(load(x + i, count), c);
          Vec value, slope;
          load_pairs(pairs, element.at, value, slope);
          store(g * slope, grad_x + i, count);
          sums.put(slot++, element.at, g, g * element.distance);
        });
      }
      sums.add(slot);
    }
    if (!sums.take(moments, channels)) carefully(start * stride, end - start);
  }
}

template <typename T>
void relu_sums_block(const T* x, T* y, int64_t rows, int64_t stride, int channels, const double* shift,
                     ShiftedSums* sums) {
  for_vectors(channels, [&](int64_t c, int count) {
    double shifts[Vec::kSize] = {};
    std::copy_n(shift + c, count, shifts);
    DoubleSums vector_sums(shifts);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec xv = load(x + r * stride + c, count);
      store(relu(xv), y + r * stride + c, count);
      vector_sums.add(xv);
    }
    ShiftedSums lanes[Vec::kSize];
    vector_sums.store(lanes);
    for (int i = 0; i < count; ++i) sums[c + i] += lanes[i];
  });
}

}  // namespace

// PWLU's kernels for channels_last memory: the lanes of a vector are adjacent channels, each with its own table.
#pragma once

#include "pwlu_sums.h"

namespace {

// The rows of a block are not adjacent in memory, so the processor does not prefetch them automatically.
template <typename T>
PWLU_INLINE void fetch_ahead(const T* p, int64_t stride) {
  constexpr int64_t kRowsAhead = 4;
  __builtin_prefetch(p + kRowsAhead * stride);
}

// Locates x: the indices in the tables [channels, bins], and the distances from the centers.
class BlockLocator {
 public:
  explicit BlockLocator(const PwluBlock<float>& block)
      : left_(block.left),
        right_(block.right),
        length_(block.length),
        middle_(block.middle),
        scale_(block.scale),
        last_inner_(block.functions->line.last - 1),
        last_(block.functions->line.last) {
    for (int c = 0; c < pwlu::kBlockChannels + kLanePadding; ++c) first_[c] = c * block.bins();
  }

  struct Place {
    Index at;
    Vec distance;
  };
  PWLU_INLINE Place operator()(Vec x, int64_t channel) const {
    const Vec left = Vec::load(left_ + channel), right = Vec::load(right_ + channel), minus_one(-1.0f);
    const Vec last = where_negative(x - right, last_inner_, last_);
    const Vec k = min(max(floor((x - left) * Vec::load(scale_ + channel)), minus_one), last);
    const Vec center = fma(k, Vec::load(length_ + channel), Vec::load(middle_ + channel));
    const Vec distance = x - min(max(center, left), right);
    return {Index(k - minus_one) + Index::load(first_ + channel), distance};
  }

 private:
  const float *left_, *right_, *length_, *middle_, *scale_;
  const Vec last_inner_, last_;
  int32_t first_[pwlu::kBlockChannels + kLanePadding];
};

template <typename T>
void forward_block(const T* x, T* y, int64_t rows, int64_t stride, const PwluBlock<float>& block) {
  const auto carefully = [&](bool all) {
    for (int c = 0; c < block.channels; ++c) forward_carefully(x + c, y + c, rows, stride, block.functions[c], all);
  };
  if (!block.fits) return carefully(true);
  const BlockLocator locate(block);
  const float* pairs = block.pairs;
  const Vec zero(0.0f);
  Vec trap(0.0f);  // becomes NaN at the first y that is not finite
  for (int64_t r = 0; r < rows; ++r) {
    for_vectors(block.channels, [&](int64_t c, int count) {
      const T* from = x + r * stride + c;
      fetch_ahead(from, stride);
      const auto place = locate(load(from, count), c);
      Vec value, slope;
      load_pairs(pairs, place.at, value, slope);
      const Vec yv = fma(slope, place.distance, value);
      trap = fma(yv, zero, trap);
      store(yv, y + r * stride + c, count);
    });
  }
  if (any_nan(trap)) carefully(false);
}

template <typename T>
void backward_block_carefully(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride,
                              const PwluBlock<float>& block, const Moments* moments) {
  for (int c = 0; c < block.channels; ++c) {
    backward_carefully(grad + c, x + c, pwlu::advance(grad_x, c), rows, stride, block.functions[c],
                       pwlu::advance(moments, c));
  }
}

template <typename T>
void backward_block_of_x(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride,
                         const PwluBlock<float>& block) {
  const BlockLocator locate(block);
  const float* pairs = block.pairs;
  for (int64_t r = 0; r < rows; ++r) {
    for_vectors(block.channels, [&](int64_t c, int count) {
      const int64_t i = r * stride + c;
      fetch_ahead(x + i, stride);
      fetch_ahead(grad + i, stride);
      const auto place = locate(load(x + i, count), c);
      Vec value, slope;
      load_pairs(pairs, place.at, value, slope);
      store(load(grad + i, count) * slope, grad_x + i, count);
    });
  }
}

// The moments and, if kX is set, the gradient of x.
template <bool kX, typename T>
void backward_block(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride, const PwluBlock<float>& block,
                    const Moments* moments) {
  const BlockLocator locate(block);
  const float* pairs = block.pairs;
  const int channels = block.channels, vectors = (channels + Vec::kSize - 1) / Vec::kSize;
  const int64_t rows_at_once = PwluBinSums::kSlots / vectors;
  PwluBinSums sums(vectors * Vec::kSize, block.bins(), false);
  for (int64_t start = 0; start < rows; start += PwluBinSums::kBlockStretch) {
    const int64_t end = std::min(start + PwluBinSums::kBlockStretch, rows);
    for (int64_t from = start; from < end; from += rows_at_once) {
      int64_t slot = 0;
      for (int64_t r = from; r < std::min(from + rows_at_once, end); ++r) {
        for_vectors(channels, [&](int64_t c, int count) {
          const int64_t i = r * stride + c;
          fetch_ahead(x + i, stride);
          fetch_ahead(grad + i, stride);
          const Vec g = load(grad + i, count);
          const auto place = locate(load(x + i, count), c);
          if constexpr (kX) {
            Vec value, slope;
            load_pairs(pairs, place.at, value, slope);
            store(g * slope, grad_x + i, count);
          }
          sums.put(slot++, place.at, g, g * place.distance);
        });
      }
      sums.add(slot);
    }
    if (sums.take(moments, channels)) continue;
    const int64_t at = start * stride;
    backward_block_carefully(grad + at, x + at, kX ? grad_x + at : nullptr, end - start, stride, block, moments);
  }
}

template <typename T>
void backward_any_block(const T* grad, const T* x, T* grad_x, int64_t rows, int64_t stride,
                        const PwluBlock<float>& block, const Moments* moments) {
  if (!block.fits) return backward_block_carefully(grad, x, grad_x, rows, stride, block, moments);
  if (!moments) return backward_block_of_x(grad, x, grad_x, rows, stride, block);
  if (!grad_x) return backward_block<false>(grad, x, grad_x, rows, stride, block, moments);
  backward_block<true>(grad, x, grad_x, rows, stride, block, moments);
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

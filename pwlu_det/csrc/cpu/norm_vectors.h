// The kernels of a norm followed by an activation, for the vectors of an instruction set.
#pragma once

#include "../pointwise_math.h"
#include "arithmetic.h"
#include "norm_kernels.h"

namespace {

using pwlu::NormRows;

template <typename T>
struct NormVectors {
  using R = typename Arithmetic<T>::Number;
  using V = typename Arithmetic<T>::V;
  using Sums = typename Arithmetic<T>::Sums;
  static constexpr int64_t kVectorsAtOnce = 64;  // summed in the compute type before they are added up in double

  // The parameters of one channel in all lanes, or of adjacent channels.
  struct Norm {
    V mean, scale, slope, offset, beta;
    PWLU_INLINE Norm(const NormRows& rows, int c, bool added = false) {
      const auto get = [&](int row) {
        if (added) row += pwlu::kNormParameters;
        const R* values = Arithmetic<T>::of(rows.p) + row * rows.p.stride + c;
        return rows.stride == 1 ? V(*values) : V::load(values);
      };
      mean = get(pwlu::kNormMean), scale = get(pwlu::kNormScale), beta = get(pwlu::kNormBeta);
      slope = get(pwlu::kNormSlope), offset = get(pwlu::kNormOffset);
    }
    PWLU_INLINE V normalise(V x, V beta) const { return fma(x - mean, scale, beta); }
    PWLU_INLINE V gradient(V dz, V x) const { return fma(scale, dz, fma(slope, x - mean, offset)); }
  };

  // Calls run(i, at, count, values) for each vector, which is at `i` in memory and at `at` in a buffer, with the
  // values make(channel).
  template <typename Make, typename F>
  static PWLU_INLINE void for_rows(const NormRows& rows, const Make& make, const F& run) {
    if (rows.stride == 1) {
      const auto values = make(0);
      return for_vectors<V>(rows.rows, [&](int64_t i, int count) { run(i, i, count, values); });
    }
    for (int64_t r = 0; r < rows.rows; ++r) {
      for_vectors<V>(rows.p.channels, [&](int64_t c, int count) {
        run(r * rows.stride + c, r * rows.p.channels + c, count, make(int(c)));
      });
    }
  }

  // Rows that are few enough for sums in the compute type, with the same channels in the lanes of all vectors.
  struct Part {
    int64_t begin, end;
    int channel, count;  // the number of lanes, except in the last vector of a single channel
  };
  // Calls run(part) for all of the rows.
  template <typename F>
  static PWLU_INLINE void for_parts(const NormRows& rows, const F& run) {
    const bool one = rows.stride == 1;
    const int64_t size = kVectorsAtOnce * (one ? V::kSize : 1);
    for (int64_t begin = 0; begin < rows.rows; begin += size) {
      const int64_t end = std::min(rows.rows, begin + size);
      if (one) {
        run(Part{begin, end, 0, V::kSize});
      } else {
        for_vectors<V>(rows.p.channels, [&](int64_t c, int count) { run(Part{begin, end, int(c), count}); });
      }
    }
  }
  // Calls run(i, at, count, chain) for each vector of a part, with a chain of 0 and 1 in turn: two independent chains
  // of additions hide their latency.
  template <typename F>
  static PWLU_INLINE void for_part(const NormRows& rows, const Part& part, const F& run) {
    const bool one = rows.stride == 1;
    const int64_t size = one ? V::kSize : 1, memory = size * rows.stride, buffer = one ? size : rows.p.channels;
    int64_t i = part.begin * rows.stride + part.channel, at = part.begin * (one ? 1 : buffer) + part.channel;
    int64_t left = part.end - part.begin;
    for (; left >= 2 * size; left -= 2 * size, i += 2 * memory, at += 2 * buffer) {
      run(i, at, part.count, 0);
      run(i + memory, at + buffer, part.count, 1);
    }
    for (; left > 0; left -= size, i += memory, at += buffer) {
      run(i, at, one ? int(std::min<int64_t>(left, V::kSize)) : part.count, 0);
    }
  }

  static void statistics(const T* x, const NormRows& rows, const double* shift, pwlu::ShiftedSums* sums) {
    for_parts(rows, [&](const Part& part) PWLU_INLINED {
      double shifts[V::kSize] = {};
      const bool one = rows.stride == 1;
      for (int lane = 0; lane < part.count; ++lane) shifts[lane] = shift[one ? 0 : part.channel + lane];
      const V first{R(*shift)};
      Sums chains[2] = {Sums(shifts), Sums(shifts)};
      for_part(rows, part, [&](int64_t i, int64_t, int count, int chain) PWLU_INLINED {
        const V xv = load(x + i, count);
        chains[chain].add(one ? first_lanes(xv, count, first) : xv);  // unused lanes add nothing
      });
      for (const Sums& chain : chains) {
        pwlu::ShiftedSums lanes[V::kSize];
        chain.store(lanes);
        for (int lane = 0; lane < part.count; ++lane) sums[one ? 0 : part.channel + lane] += lanes[lane];
      }
    });
  }

  static void normalise(const T* x, const T* added, const NormRows& rows, R* z) {
    const auto own = [&](int c) { return Norm(rows, c); };
    if (!added) {
      return for_rows(rows, own, [&](int64_t i, int64_t at, int count, const Norm& norm) {
        store(norm.normalise(load(x + i, count), norm.beta), z + at, count);
      });
    }
    const auto both = [&](int c) { return std::pair<Norm, Norm>(Norm(rows, c), Norm(rows, c, true)); };
    for_rows(rows, both, [&](int64_t i, int64_t at, int count, const auto& norms) {
      const V zv = norms.first.normalise(load(x + i, count), norms.first.beta);
      store(norms.second.normalise(load(added + i, count), zv), z + at, count);
    });
  }

  static void sum(const R* dz, const T* x, const T* added, const NormRows& rows, double* sums) {
    for_parts(rows, [&](const Part& part) PWLU_INLINED {
      const Norm norm(rows, part.channel), other(rows, part.channel, true);
      const V zero{R(0)};
      V own[2][pwlu::kNormSums] = {{zero, zero, zero}, {zero, zero, zero}};
      for_part(rows, part, [&](int64_t i, int64_t at, int count, int chain) PWLU_INLINED {
        const V d = load(dz + at, count);
        own[chain][0] = own[chain][0] + d;
        own[chain][1] = fma(d, load(x + i, count) - norm.mean, own[chain][1]);
        if (added) own[chain][2] = fma(d, load(added + i, count) - other.mean, own[chain][2]);
      });
      for (int k = 0; k < pwlu::kNormSums; ++k) {
        R lanes[V::kSize];
        (own[0][k] + own[1][k]).store(lanes);
        for (int lane = 0; lane < part.count; ++lane) {
          sums[(rows.stride == 1 ? 0 : part.channel + lane) * pwlu::kNormSums + k] += lanes[lane];
        }
      }
    });
  }

  static void gradient(const R* dz, const T* x, const NormRows& rows, bool added, T* grad_x) {
    const auto own = [&](int c) { return Norm(rows, c, added); };
    if (!x) {
      return for_rows(rows, own, [&](int64_t i, int64_t at, int count, const Norm& norm) {
        store(fma(norm.scale, load(dz + at, count), V(R(0))), grad_x + i, count);
      });
    }
    for_rows(rows, own, [&](int64_t i, int64_t at, int count, const Norm& norm) {
      store(norm.gradient(load(dz + at, count), load(x + i, count)), grad_x + i, count);
    });
  }

  static void load_rows(const T* x, const NormRows& rows, R* buffer) {
    for_rows(
        rows, [](int) { return 0; },
        [&](int64_t i, int64_t at, int count, int) { store(load(x + i, count), buffer + at, count); });
  }
  static void store_rows(const R* buffer, const NormRows& rows, T* x) {
    for_rows(
        rows, [](int) { return 0; },
        [&](int64_t i, int64_t at, int count, int) { store(load(buffer + at, count), x + i, count); });
  }

  static void relu(const R* z, R* y, int64_t n) {
    for_vectors<V>(n, [&](int64_t i, int count) { store(pwlu::relu(load(z + i, count)), y + i, count); });
  }
  static void relu_backward(const R* grad, const R* z, R* dz, int64_t n) {
    for_vectors<V>(n, [&](int64_t i, int count) {
      store(where_positive(load(z + i, count), load(grad + i, count), V(R(0))), dz + i, count);
    });
  }
};

template <typename T>
constexpr pwlu::NormDtype<T> norm_dtype() {
  using Own = NormVectors<T>;
  return {Own::statistics, Own::normalise,  Own::sum,  Own::gradient,
          Own::load_rows,  Own::store_rows, Own::relu, Own::relu_backward};
}

constexpr pwlu::NormKernels norm_kernels() {
  return {norm_dtype<float>(), norm_dtype<BFloat16>(), norm_dtype<Half>(), norm_dtype<double>()};
}

}  // namespace

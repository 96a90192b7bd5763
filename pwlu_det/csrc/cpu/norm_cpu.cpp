// A norm followed by an activation, as one op, on a CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../norm_arguments.h"
#include "../tensors.h"
#include "convert.h"
#include "dispatch.h"
#include "norm_values.h"
#include "norm_work.h"

namespace pwlu {
namespace {

// Writes the mean and the variance of a group of channels; `p` is their part of any table.
template <typename T, typename R = Compute<T>>
void compute_statistics(const NormWork& work, const NormGroup& group, const ChannelParameters& p, const T* x, R* mean,
                        R* var) {
  const NormDtype<T>& run = kernels().norm->of<T>();
  double shift[kBlockChannels];  // the first element of each channel
  for (int c = 0; c < group.channels; ++c) {
    const double first = to_float(x[work.first(group.channel + c)]);
    shift[c] = std::isfinite(first) ? first : 0;
  }
  const auto sums = work.sum_pieces<ShiftedSums>(group, group.channels, [&](const Pixels& pixels, ShiftedSums* own) {
    work.for_memory(group, pixels, p, [&](int64_t offset, int64_t, const NormRows& rows) {
      run.statistics(x + offset, rows, shift, own);
    });
  });
  for (int c = 0; c < group.channels; ++c) {
    const double count = double(work.pixels()), difference = sums[c].sum / count;
    const double variance = sums[c].square / count - difference * difference;
    mean[group.channel + c] = R(shift[c] + difference);
    var[group.channel + c] = R(variance < 0 ? 0 : variance);  // not std::max, which would hide NaN
  }
}

// The steps of the ops on a group of channels. The table holds the results of earlier steps.
template <typename T>
struct NormSteps {
  using R = Compute<T>;

  const NormWork& work;
  NormTable& table;
  const Stage<R>& stage;
  const T *x, *added;  // added may be null
  const NormDtype<T>& run = kernels().norm->of<T>();

  void forward(const NormGroup& group, T* y) const {
    work.for_pieces(group, [&](int64_t, const Pixels& piece) {
      alignas(64) R z[kBufferSize], buffer[kBufferSize];
      work.for_chunks(group, piece, [&](const Pixels& chunk) {
        R* result = room(y, group, chunk, buffer);
        normalise(group, chunk, z);
        stage.forward(z, result, chunk.end - chunk.begin, group);
        write(result, y, group, chunk);
      });
    });
  }

  // Where the results of backward are stored. Null pointers stand for results that are not requested.
  struct Gradients {
    T *x, *added;
    bool added_norm, batch_statistics;
    bool with_sums;  // for the parameters of the activation
  };

  // Calls the activation's backward. Returns the sums: kNormSums for each channel of the group, then those for the
  // parameters of the activation.
  std::vector<double> backward(const NormGroup& group, const T* grad, const Gradients& to) const {
    const int64_t norm_sums = group.channels * kNormSums;
    const int64_t functions = stage.functions == 1 ? 1 : group.channels;
    return work.sum_pieces<double>(
        group, norm_sums + functions * stage.width, [&](const Pixels& piece, double* sums) {
          alignas(64) R z[kBufferSize], g[kBufferSize], buffer[kBufferSize];
          double* own = to.with_sums && stage.width ? sums + norm_sums : nullptr;
          if (!to.x && !own) return;
          work.for_chunks(group, piece, [&](const Pixels& chunk) {
            const R* from = read(grad, group, chunk, g);
            normalise(group, chunk, z);
            if (!to.x) return stage.backward(from, z, nullptr, chunk.end - chunk.begin, group, own);
            R* dz = to.batch_statistics ? room(kept(to), group, chunk, buffer) : buffer;
            stage.backward(from, z, dz, chunk.end - chunk.begin, group, own);
            for_memory(group, chunk, [&](int64_t offset, int64_t at, const NormRows& rows) {
              run.sum(dz + at, x + offset, to.added_norm ? added + offset : nullptr, rows, sums);
              if (to.batch_statistics) return;
              run.gradient(dz + at, nullptr, rows, false, to.x + offset);
              if (added) run.gradient(dz + at, nullptr, rows, true, to.added + offset);
            });
            if (to.batch_statistics) write(dz, kept(to), group, chunk);
          });
        });
  }

  // With batch statistics: the gradients from dz, which backward() has stored, and the table.
  void finish(const NormGroup& group, const Gradients& to) const {
    work.for_pieces(group, [&](int64_t, const Pixels& piece) {
      alignas(64) R buffer[kBufferSize];
      work.for_chunks(group, piece, [&](const Pixels& chunk) {
        const R* dz = read(kept(to), group, chunk, buffer);
        for_memory(group, chunk, [&](int64_t offset, int64_t at, const NormRows& rows) {
          if (to.added_norm) run.gradient(dz + at, added + offset, rows, true, to.added + offset);
          run.gradient(dz + at, x + offset, rows, false, to.x + offset);  // last, as it may overwrite dz
        });
      });
    });
  }

 private:
  // dz is the gradient of an added tensor without a norm. Otherwise it is kept in place of that of x.
  static T* kept(const Gradients& to) { return to.added && !to.added_norm ? to.added : to.x; }

  template <typename F>
  void for_memory(const NormGroup& group, const Pixels& chunk, const F& f) const {
    work.for_memory(group, chunk, table.of(group), f);
  }
  void normalise(const NormGroup& group, const Pixels& chunk, R* z) const {
    for_memory(group, chunk, [&](int64_t offset, int64_t at, const NormRows& rows) {
      run.normalise(x + offset, advance(added, offset), rows, z + at);
    });
  }

  // These three avoid the buffer where the memory is contiguous and of the compute type.
  bool direct(const NormGroup& group, const Pixels& chunk) const {
    return std::is_same_v<T, R> && work.is_contiguous(group, chunk);
  }
  const R* read(const T* from, const NormGroup& group, const Pixels& chunk, R* buffer) const {
    if (direct(group, chunk)) return reinterpret_cast<const R*>(from + work.offset(group, chunk));
    for_memory(group, chunk,
               [&](int64_t offset, int64_t at, const NormRows& rows) { run.load(from + offset, rows, buffer + at); });
    return buffer;
  }
  R* room(T* to, const NormGroup& group, const Pixels& chunk, R* buffer) const {
    return direct(group, chunk) ? reinterpret_cast<R*>(to + work.offset(group, chunk)) : buffer;
  }
  void write(const R* result, T* to, const NormGroup& group, const Pixels& chunk) const {
    if (direct(group, chunk)) return;
    for_memory(group, chunk,
               [&](int64_t offset, int64_t at, const NormRows& rows) { run.store(result + at, rows, to + offset); });
  }
};

// Writes the norms to the table, on channels [first, last).
void set_norms(NormTable& table, const std::vector<NormValues>& norms, bool added, int64_t first, int64_t last) {
  for (int64_t c = first; c < last; ++c) {
    table.set(kNormParameters + kNormScale, c, added);
    double beta = 0;
    for (size_t i = 0; i < norms.size(); ++i) {
      table.set(i * kNormParameters + kNormMean, c, norms[i].mean[c]);
      table.set(i * kNormParameters + kNormScale, c, norms[i].scale(c));
      beta += norms[i].bias[c];
    }
    table.set(kNormBeta, c, beta);
  }
}

// The arguments in the kernels' layout.
struct NormInputs {
  at::MemoryFormat format;
  Tensor x, added;  // added may be undefined
  NormWork work;
  NormTable table;

  explicit NormInputs(const NormArguments& a)
      : format(format_of(a.x)),
        x(a.x.contiguous(format)),
        added(a.added.empty() ? Tensor() : a.added[0].contiguous(format)),
        work(x, format),
        table(x.size(1)) {}
};

template <typename T>
const T* data_of(const Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}
template <typename T>
T* room_of(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

// The norm of x, and that of the added tensor if it has one. With batch statistics, mean and variance are zeros.
std::vector<NormValues> norms_of(const NormArguments& a) {
  std::vector<NormValues> norms;
  const auto take = [&](at::TensorList norm, double eps) {
    const Tensor none = at::zeros_like(norm[0]);
    const bool given = norm.size() == 4;
    norms.push_back(norm_values(given ? norm[2] : none, given ? norm[3] : none, norm[0], norm[1], eps));
  };
  take(a.norm, a.eps);
  if (a.added.size() > 1) take(a.added.slice(1), a.added_eps);
  return norms;
}

std::tuple<Tensor, Tensor> norm_activation_cpu(const Tensor& x, at::TensorList norm, double eps, at::TensorList added,
                                               double added_eps, c10::string_view activation,
                                               at::TensorList parameters) {
  const NormArguments a{"norm_activation", x, norm, eps, added, added_eps, activation, parameters};
  check_norm(a, nullptr, false);
  NormInputs in(a);
  auto norms = norms_of(a);
  const bool batch_statistics = norm.size() == 2;
  const Tensor y = at::empty_like(in.x);
  const int64_t channels = x.size(1), num_statistics = batch_statistics ? 2 * norms.size() : 0;
  const Tensor statistics = at::zeros({num_statistics, channels}, x.options().dtype(compute_dtype(x)));
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    using R = Compute<T>;
    const auto stage = make_stage<R>(a.activation, parameters, channels, in.work.channels_last());
    if (x.numel() == 0) return;
    const NormSteps<T> steps{in.work, in.table, *stage, data_of<T>(in.x), data_of<T>(in.added)};
    R* const results = room_of<R>(statistics);
    in.work.for_groups([&](const NormGroup& group) {
      for (size_t i = 0; i < norms.size() && batch_statistics; ++i) {
        R *mean = results + 2 * i * channels, *var = mean + channels;
        compute_statistics(in.work, group, in.table.of(group), i ? steps.added : steps.x, mean, var);
        for (int64_t c = group.channel; c < group.channel + group.channels; ++c) {
          norms[i].mean[c] = mean[c];
          norms[i].var[c] = var[c];
        }
      }
      set_norms(in.table, norms, in.added.defined(), group.channel, group.channel + group.channels);
      steps.forward(group, room_of<T>(y));
    });
  });
  return {with_layout_of(x, in.x, y), statistics};
}

Tensor norm_statistics_cpu(const Tensor& x) {
  check_tensors("norm_statistics", {{"x: B C *", x}});
  const auto format = format_of(x);
  const Tensor dense = x.contiguous(format);
  const NormWork work(dense, format);
  const int64_t channels = x.size(1);
  const NormTable table(channels);
  const Tensor statistics = at::zeros({2, channels}, x.options().dtype(compute_dtype(x)));
  if (x.numel() == 0) return statistics;
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    auto* const mean = room_of<Compute<T>>(statistics);
    work.for_groups([&](const NormGroup& group) {
      compute_statistics(work, group, table.of(group), data_of<T>(dense), mean, mean + channels);
    });
  });
  return statistics;
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> norm_activation_backward_cpu(
    const Tensor& grad, const Tensor& x, at::TensorList norm, double eps, at::TensorList added, double added_eps,
    c10::string_view activation, at::TensorList parameters, bool batch_statistics, std::array<bool, 2> output_mask) {
  const NormArguments a{"norm_activation_backward", x, norm, eps, added, added_eps, activation, parameters};
  check_norm(a, &grad, true);
  NormInputs in(a);
  const auto norms = norms_of(a);
  const Tensor g = grad.contiguous(in.format);
  const auto [with_x, with_parameters] = output_mask;
  const int64_t channels = x.size(1);
  const Tensor grad_x = with_x ? at::empty_like(in.x) : Tensor();
  const Tensor grad_added = with_x && in.added.defined() ? at::empty_like(in.added) : Tensor();
  // The gradients of the norms' weights and biases.
  const Tensor grad_norm = at::zeros({with_x ? int64_t(2 * norms.size()) : 0, channels}, at::kDouble);
  std::vector<Tensor> grad_parameters;
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    using R = Compute<T>;
    const auto stage = make_stage<R>(a.activation, parameters, channels, in.work.channels_last());
    const int64_t width = stage->width;
    // By function, or by group if all channels share one.
    const bool shared = stage->functions == 1;
    std::vector<double> sums((shared ? in.work.num_groups() : channels) * width, 0.0);
    const NormSteps<T> steps{in.work, in.table, *stage, data_of<T>(in.x), data_of<T>(in.added)};
    const typename NormSteps<T>::Gradients to{room_of<T>(grad_x), room_of<T>(grad_added), norms.size() > 1,
                                              batch_statistics, with_parameters};
    double* const of_norm = grad_norm.data_ptr<double>();
    const auto run = [&](const NormGroup& group) {
      set_norms(in.table, norms, in.added.defined(), group.channel, group.channel + group.channels);
      const auto own = steps.backward(group, data_of<T>(g), to);
      std::copy(own.begin() + group.channels * kNormSums, own.end(),
                sums.begin() + (shared ? group.index : group.channel) * width);
      for (int c = 0; c < group.channels && with_x; ++c) {
        const int64_t channel = group.channel + c;
        for (size_t i = 0; i < norms.size(); ++i) {
          const double by_bias = own[c * kNormSums], by_weight = own[c * kNormSums + 1 + i] * norms[i].rstd(channel);
          const double share = norms[i].scale(channel) / double(in.work.pixels());
          of_norm[2 * i * channels + channel] = by_weight;
          of_norm[(2 * i + 1) * channels + channel] = by_bias;
          in.table.set(i * kNormParameters + kNormSlope, channel, -share * norms[i].rstd(channel) * by_weight);
          in.table.set(i * kNormParameters + kNormOffset, channel, -share * by_bias);
        }
      }
      if (with_x && batch_statistics) steps.finish(group, to);
    };
    if (x.numel() > 0) in.work.for_groups(run);
    for (int64_t i = 1; i < in.work.num_groups() && shared; ++i) {
      for (int64_t k = 0; k < width; ++k) sums[k] += sums[i * width + k];
    }
    if (with_parameters) grad_parameters = stage->gradients(sums.data());
  });
  for (size_t i = grad_parameters.size(); i < parameters.size(); ++i)
    grad_parameters.push_back(not_computed(parameters[i]));
  const Tensor no_added = not_computed(x);
  return {with_layout_of(x, in.x, grad_x), grad_norm.to(compute_dtype(x)),
          in.added.defined() ? with_layout_of(added[0], in.added, grad_added) : no_added, grad_parameters};
}

}  // namespace
}  // namespace pwlu

#define PWLU_ARGUMENTS \
  "Tensor x, Tensor[] norm, float eps, Tensor[] added, float added_eps, str activation, Tensor[] parameters"

TORCH_LIBRARY_FRAGMENT(pwlu_det, m) {
  m.def("norm_activation(" PWLU_ARGUMENTS ") -> (Tensor, Tensor)");
  m.def("norm_activation_backward(Tensor grad, " PWLU_ARGUMENTS
        ", bool batch_statistics, bool[2] output_mask) -> (Tensor, Tensor, Tensor, Tensor[])");
  m.def("norm_statistics(Tensor x) -> (Tensor)");
}

#undef PWLU_ARGUMENTS

TORCH_LIBRARY_IMPL(pwlu_det, CPU, m) {
  using namespace pwlu;
  if (!kernels().norm) return;
  m.impl("norm_activation", &norm_activation_cpu);
  m.impl("norm_activation_backward", &norm_activation_backward_cpu);
  m.impl("norm_statistics", &norm_statistics_cpu);
}

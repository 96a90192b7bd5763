// A norm followed by an activation, as one op, on CUDA.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "norm_stages.h"
#include "norm_tensors.h"

namespace pwlu {
namespace {

// The layout for kernels that treat each channel by itself.
Layout channels_of(const Tensor& dense, at::MemoryFormat format) { return layout_of(dense, dense.size(1), format); }

void compute_statistics(const Tensor& dense, at::MemoryFormat format, const Tensor& mean, const Tensor& var) {
  const Layout layout = channels_of(dense, format);
  const auto element = element_of(dense);
  const Tensor workspace = make_workspace(dense, pwlu_phase1_workspace(layout, element));
  check_launched(launch_norm_statistics(layout, element, dense.const_data_ptr(), mean.mutable_data_ptr(),
                                        var.mutable_data_ptr(), data_or_null<double>(workspace), current_stream()));
}

Tensor empty_statistics(const Tensor& x, int64_t rows) {
  return at::zeros({rows, x.size(1)}, x.options().dtype(compute_dtype(x)));
}

// The arguments as the kernels take them. `statistics`, if there are any, are used for norms without mean and var.
struct NormInputs {
  std::unique_ptr<Stage> stage;
  bool fits;
  at::MemoryFormat format;
  Tensor x, added;  // dense; added may be undefined
  Tensor statistics;
  std::vector<NormTensors> norms;

  explicit NormInputs(const NormArguments& a)
      : stage(make_stage(a.activation, a.x, a.parameters)),
        fits(stage->channels_last_fits(a.x)),
        format(fits ? format_of(a.x) : at::MemoryFormat::Contiguous),
        x(a.x.contiguous(format)),
        added(a.added.empty() ? Tensor() : a.added[0].contiguous(format)),
        statistics(empty_statistics(a.x, a.norm.size() == 4   ? 0
                                         : a.added.size() > 1 ? 4
                                                              : 2)) {
    take(x, a.norm, a.eps);
    if (a.added.size() > 1) take(added, a.added.slice(1), a.added_eps);
  }
  NormCall call() const {
    const Norm none{};
    Layout layout = channels_of(x, format);
    layout.channels_last = layout.channels_last && fits;  // with a single pixel, both are the same in memory
    return {layout, element_of(x),
            NormSource{x.const_data_ptr(), norms[0].arrays(), added.defined() ? added.const_data_ptr() : nullptr,
                       norms.size() > 1 ? norms[1].arrays() : none}};
  }

 private:
  void take(const Tensor& dense, at::TensorList norm, double eps) {
    const bool given = norm.size() == 4;
    const int64_t row = 2 * int64_t(norms.size());
    const Tensor mean = given ? norm[2] : statistics[row], var = given ? norm[3] : statistics[row + 1];
    if (!given && dense.numel() > 0) compute_statistics(dense, format, mean, var);
    norms.emplace_back(dense, mean, var, norm[0], norm[1], eps);
  }
};

std::tuple<Tensor, Tensor> norm_activation_cuda(const Tensor& x, at::TensorList norm, double eps,
                                                at::TensorList added, double added_eps, c10::string_view activation,
                                                at::TensorList parameters) {
  const NormArguments a{"norm_activation", x, norm, eps, added, added_eps, activation, parameters};
  check_norm(a, nullptr, false);
  const c10::cuda::CUDAGuard guard(x.device());
  const NormInputs in(a);
  const Tensor y = at::empty_like(in.x);
  if (x.numel() > 0) check_launched(in.stage->forward(in.call(), y.mutable_data_ptr()));
  return {with_layout_of(x, in.x, y), in.statistics};
}

Tensor norm_statistics_cuda(const Tensor& x) {
  check_tensors("norm_statistics", {{"x: B C *", x}});
  const c10::cuda::CUDAGuard guard(x.device());
  const auto format = format_of(x);
  const Tensor statistics = empty_statistics(x, 2);
  if (x.numel() > 0) compute_statistics(x.contiguous(format), format, statistics[0], statistics[1]);
  return statistics;
}

// The gradients of x and of the added tensor from dz, which is one of them, and those of the norms, [2 or 4, C].
void finish(const NormInputs& in, bool batch_statistics, const Tensor& dz, const Tensor& norm_sums,
            const Tensor& grad_norm, const Tensor& grad_x, const Tensor& grad_added) {
  const NormCall call = in.call();
  check_launched(launch_norm_finish(call.layout, call.element, call.source, norm_sums.const_data_ptr<double>(),
                                    grad_norm.mutable_data_ptr(), current_stream()));
  const auto run = [&](size_t i, const Tensor& x, const Tensor& result) {
    check_launched(launch_norm_gradient(call.layout, call.element, in.norms[i].arrays(), dz.const_data_ptr(),
                                        x.const_data_ptr(),
                                        batch_statistics ? grad_norm[2 * int64_t(i)].const_data_ptr() : nullptr,
                                        result.mutable_data_ptr(), current_stream()));
  };
  if (in.norms.size() > 1) run(1, in.added, grad_added);
  run(0, in.x, grad_x);  // last, as it may overwrite dz
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> norm_activation_backward_cuda(
    const Tensor& grad, const Tensor& x, at::TensorList norm, double eps, at::TensorList added, double added_eps,
    c10::string_view activation, at::TensorList parameters, bool batch_statistics, std::array<bool, 2> output_mask) {
  const NormArguments a{"norm_activation_backward", x, norm, eps, added, added_eps, activation, parameters};
  check_norm(a, &grad, true);
  const c10::cuda::CUDAGuard guard(x.device());
  const NormInputs in(a);
  const auto [with_x, with_parameters] = output_mask;
  const bool has_added = in.added.defined();
  const Tensor grad_x = with_x ? at::empty_like(in.x) : Tensor();
  const Tensor grad_added = with_x && has_added ? at::empty_like(in.added) : Tensor();
  const Tensor grad_norm = empty_statistics(x, with_x ? 2 * int64_t(in.norms.size()) : 0);
  if (x.numel() > 0 && (with_x || with_parameters)) {
    // dz is the gradient of an added tensor without a norm. Otherwise it is kept in place of that of x.
    const Tensor dz = has_added && in.norms.size() == 1 ? grad_added : grad_x;
    const Tensor g = grad.contiguous(in.format);
    const NormCall call = in.call();
    const Tensor norm_sums = make_workspace(x, with_x ? norm_sums_size(call.layout, call.element) : 0);
    check_launched(in.stage->backward(call, g.const_data_ptr(), data_or_null(dz), data_or_null<double>(norm_sums)));
    if (with_x) finish(in, batch_statistics, dz, norm_sums, grad_norm, grad_x, grad_added);
  }
  std::vector<Tensor> grad_parameters;
  if (with_parameters) grad_parameters = in.stage->gradients();
  for (size_t i = grad_parameters.size(); i < parameters.size(); ++i)
    grad_parameters.push_back(not_computed(parameters[i]));
  return {with_layout_of(x, in.x, grad_x), grad_norm,
          has_added ? with_layout_of(added[0], in.added, grad_added) : not_computed(x), grad_parameters};
}

}  // namespace
}  // namespace pwlu

TORCH_LIBRARY_IMPL(pwlu_det, CUDA, m) {
  using namespace pwlu;
  m.impl("norm_activation", &norm_activation_cuda);
  m.impl("norm_activation_backward", &norm_activation_backward_cuda);
  m.impl("norm_statistics", &norm_statistics_cuda);
}

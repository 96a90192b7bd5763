#include "pointwise.cuh"

namespace pwlu {

int64_t pointwise_workspace(const Layout& layout, Element element, int size) {
  return with_items(layout, element, layout.channels_last, [&](auto, const auto& items) -> int64_t {
    return items.channels() * size * items.items_of_channel();
  });
}

int launch_pointwise_backward(Activation activation, const Layout& layout, Element element,
                              const PointwiseParameters& parameters, const void* grad, const void* x, void* grad_x,
                              const PointwiseGradients* gradients, double* workspace, void* stream) {
  return with_items(layout, element, layout.channels_last, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    using Items = std::decay_t<decltype(items)>;
    const int status = with_activation(activation, parameters.size, [&](const auto& function) {
      using F = std::decay_t<decltype(function)>;
      const auto kernel =
          gradients ? pointwise_backward_kernel<true, F, T, Items> : pointwise_backward_kernel<false, F, T, Items>;
      return launch(kernel, items.items(), kThreads, gradients ? sum_bytes(parameters.size) : 0, stream, items,
                    static_cast<const T*>(grad), static_cast<const T*>(x), static_cast<T*>(grad_x),
                    Site<F, Real<T>>(function, parameters), workspace);
    });
    if (status != 0 || !gradients) return status;
    const int64_t sums = items.channels() * parameters.size;
    return launch(pointwise_finish_kernel<Real<T>>, (sums + kWarps - 1) / kWarps, kThreads, 0, stream, workspace,
                  items.channels(), items.items_of_channel(), CoefficientTable<Real<T>>(*gradients));
  });
}

}  // namespace pwlu

#include "dispatch.cuh"
#include "norm.cuh"

namespace pwlu {

int64_t norm_sums_size(const Layout& layout, Element element) {
  return with_items(layout, element, layout.channels_last, [](auto, const auto& items) -> int64_t {
    return items.channels() * kNormSums * items.items_of_channel();
  });
}

int launch_norm_relu(const Layout& layout, Element element, const NormSource& source, void* y, void* stream) {
  return with_items(layout, element, layout.channels_last, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    return launch(norm_relu_kernel<T, std::decay_t<decltype(items)>>, items.items(), kThreads, 0, stream, items,
                  NormInput<T>(source), static_cast<T*>(y));
  });
}

int launch_norm_relu_backward(const Layout& layout, Element element, const NormSource& source, const void* grad,
                              void* dz, double* norm_sums, void* stream) {
  return with_items(layout, element, layout.channels_last, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    return launch(norm_relu_backward_kernel<T, std::decay_t<decltype(items)>>, items.items(), kThreads,
                  NormInput<T>::kSharedBytes, stream, items, static_cast<const T*>(grad),
                  NormInput<T>(source, norm_sums), static_cast<T*>(dz));
  });
}

int launch_norm_finish(const Layout& layout, Element element, const NormSource& source, const double* norm_sums,
                       void* gradients, void* stream) {
  return with_items(layout, element, layout.channels_last, [&](auto tag, const auto& items) {
    using R = Real<typename decltype(tag)::type>;
    const FinishNorm<R> finish{NormArrays<R>(source.norm), NormArrays<R>(source.added_norm), items.channels(),
                               static_cast<R*>(gradients)};
    return finish_sums<kNormSums>(items, norm_sums, finish, stream);
  });
}

int launch_norm_gradient(const Layout& layout, Element element, const Norm& norm, const void* dz, const void* x,
                         const void* gradients, void* grad_x, void* stream) {
  return with_items(layout, element, layout.channels_last, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    return launch(norm_gradient_kernel<T, std::decay_t<decltype(items)>>, items.items(), kThreads, 0, stream, items,
                  static_cast<const T*>(dz), static_cast<const T*>(x), NormArrays<R>(norm),
                  static_cast<const R*>(gradients), double(layout.batch) * double(layout.inner),
                  static_cast<T*>(grad_x));
  });
}

}  // namespace pwlu

#include "pointwise.cuh"

namespace pwlu {

int launch_pointwise(Activation activation, const Layout& layout, Element element,
                     const PointwiseParameters& parameters, const void* x, void* y, void* stream) {
  return with_items(layout, element, layout.channels_last, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    using Items = std::decay_t<decltype(items)>;
    return with_activation(activation, parameters.size, [&](const auto& function) {
      using F = std::decay_t<decltype(function)>;
      return launch(pointwise_kernel<F, T, Items>, items.items(), kThreads, 0, stream, items,
                    static_cast<const T*>(x), static_cast<T*>(y), Site<F, Real<T>>(function, parameters));
    });
  });
}

}  // namespace pwlu

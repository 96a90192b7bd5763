#include "dispatch.cuh"
#include "frelu_backward.cuh"
#include "frelu_convolve.cuh"

namespace pwlu {
namespace {

// Calls f(tag of the element type, strips).
template <typename F>
int with_strips(const Images& images, Element element, const F& f) {
  if (max(images.height, images.width) >= int64_t(1) << 31) return kInvalidValue;
  return with_element(element, [&](auto tag) {
    const auto run = [&](const auto& strips) { return strips.fits() ? f(tag, strips) : kInvalidValue; };
    // With a single pixel, both layouts are the same in memory.
    return images.channels_last || images.height * images.width == 1 ? run(Strips<kWarp>(images))
                                                                     : run(Strips<1>(images));
  });
}

// Calls f(tag of the element type, items), for kernels that need no neighboring pixels.
template <typename F>
auto with_pixels(const Images& images, Element element, const F& f) {
  const int64_t pixels = images.height * images.width;
  const bool rows = images.channels_last || pixels == 1;
  return with_items({images.batch, images.channels, pixels, rows}, element, rows, f);
}

}  // namespace

int64_t frelu_workspace(const Images& images, Element element) {
  int64_t size = 0;
  with_strips(images, element, [&](auto, const auto& strips) {
    size = strips.channels() * kConvolutionSums * strips.items_of_channel();
    return 0;
  });
  with_pixels(images, element,
              [&](auto, const auto& items) { size = max(size, items.channels() * 2 * items.items_of_channel()); });
  return size;
}

int launch_frelu_inference(const Images& images, Element element, const Convolution& convolution, const void* x,
                           void* y, void* stream) {
  return with_strips(images, element, [&](auto tag, const auto& strips) {
    using T = typename decltype(tag)::type;
    return launch(frelu_inference_kernel<T, std::decay_t<decltype(strips)>::kLanes>, strips.items(), kThreads, 0,
                  stream, strips, static_cast<const T*>(x), static_cast<T*>(y),
                  ConvolutionArrays<Real<T>>(convolution));
  });
}

int launch_frelu_convolve(const Images& images, Element element, const Convolution& convolution, const void* x,
                          void* conv, void* mean, void* var, double* workspace, void* stream) {
  return with_strips(images, element, [&](auto tag, const auto& strips) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const ConvolutionArrays<R> arrays(convolution);
    const auto* from = static_cast<const T*>(x);
    const int status =
        launch(frelu_convolve_kernel<T, std::decay_t<decltype(strips)>::kLanes>, strips.items(), kThreads,
               kSumsBytes<2>, stream, strips, from, static_cast<T*>(conv), arrays, workspace);
    if (status != 0) return status;
    const double count = double(images.batch) * double(images.height) * double(images.width);
    const FinishStatistics<T> finish{from,  strips.plane(),        arrays,
                                     count, static_cast<R*>(mean), static_cast<R*>(var)};
    return finish_sums<2>(strips, workspace, finish, stream);
  });
}

int launch_frelu_normalise(const Images& images, Element element, const Norm& norm, const void* x, const void* conv,
                           void* y, void* stream) {
  return with_pixels(images, element, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    return launch(frelu_normalise_kernel<T, std::decay_t<decltype(items)>>, items.items(), kThreads, 0, stream, items,
                  static_cast<const T*>(x), static_cast<const T*>(conv), static_cast<T*>(y),
                  NormArrays<Real<T>>(norm));
  });
}

int launch_frelu_norm_sums(const Images& images, Element element, const Norm& norm, const void* grad, const void* x,
                           const void* conv, void* sums, double* workspace, void* stream) {
  return with_pixels(images, element, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    const NormArrays<Real<T>> arrays(norm);
    const int status = launch(frelu_norm_sums_kernel<T, std::decay_t<decltype(items)>>, items.items(), kThreads,
                              kSumsBytes<2>, stream, items, static_cast<const T*>(grad), static_cast<const T*>(x),
                              static_cast<const T*>(conv), arrays, workspace);
    if (status != 0) return status;
    return finish_sums<2>(items, workspace,
                          FinishNormSums<Real<T>>{arrays, items.channels(), static_cast<Real<T>*>(sums)}, stream);
  });
}

int launch_frelu_backward(const Images& images, Element element, const Convolution& convolution, const Norm* norm,
                          const void* norm_means, const void* grad, const void* x, const void* saved, void* grad_x,
                          const ConvolutionGradients* gradients, double* workspace, void* stream) {
  return with_strips(images, element, [&](auto tag, const auto& strips) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    constexpr int kLanes = std::decay_t<decltype(strips)>::kLanes;
    const auto run = [&](auto kernel, const auto& arrays) {
      return launch(kernel, strips.items(), kThreads, gradients ? kSumsBytes<kConvolutionSums> : 0, stream, strips,
                    static_cast<const T*>(grad), static_cast<const T*>(x), static_cast<const T*>(saved),
                    static_cast<T*>(grad_x), ConvolutionArrays<R>(convolution), arrays, workspace);
    };
    const int status = norm ? run(frelu_backward_kernel<T, kLanes, BatchNorm<R>>,
                                  typename BatchNorm<R>::Arrays{NormArrays<R>(*norm),
                                                                static_cast<const R*>(norm_means), strips.channels()})
                            : run(frelu_backward_kernel<T, kLanes, FixedNorm<R>>, typename FixedNorm<R>::Arrays{});
    if (status != 0 || !gradients) return status;
    const FinishConvolution<R> finish{static_cast<R*>(gradients->weight), static_cast<R*>(gradients->bias)};
    return finish_sums<kConvolutionSums>(strips, workspace, finish, stream);
  });
}

}  // namespace pwlu

// Calls Funnel ReLU's launchers for the tests.
#include "emulation.h"

#include "frelu.cu"

enum { kInference, kInferenceBackward, kConvolve, kNormalise, kNormSums, kBackward };
enum { kInferenceBackwardX = 6, kInferenceBackwardConvolution, kBackwardX, kBackwardConvolution };

// See cuda_frelu.py. numbers: batch, channels, height, width, channels last, element, op. buffers: weight, bias, the
// norm's mean, var, weight and bias, norm_means, x, grad, saved, and then the outputs of the op.
extern "C" int run_case(const int64_t* numbers, void** buffers) {
  using namespace pwlu;
  const Images images{numbers[0], numbers[1], numbers[2], numbers[3], numbers[4] != 0};
  const auto element = Element(numbers[5]);
  const Convolution convolution{buffers[0], buffers[1]};
  const Norm norm{buffers[2], buffers[3], buffers[4], buffers[5], 1e-5};
  void *means = buffers[6], *x = buffers[7], *grad = buffers[8], *saved = buffers[9], **out = buffers + 10;
  std::vector<double> workspace(frelu_workspace(images, element), NAN);
  double* space = workspace.data();
  const auto backward = [&](const Norm* norm, void* grad_x, void** by) {
    const ConvolutionGradients gradients{by ? by[0] : nullptr, by ? by[1] : nullptr};
    return launch_frelu_backward(images, element, convolution, norm, norm ? means : nullptr, grad, x, saved, grad_x,
                                 by ? &gradients : nullptr, by ? space : nullptr, nullptr);
  };
  switch (numbers[6]) {
    case kInference:
      return launch_frelu_inference(images, element, convolution, x, out[0], nullptr);
    case kInferenceBackward:
      return backward(nullptr, out[0], out + 1);
    case kInferenceBackwardX:
      return backward(nullptr, out[0], nullptr);
    case kInferenceBackwardConvolution:
      return backward(nullptr, nullptr, out);
    case kConvolve:
      return launch_frelu_convolve(images, element, convolution, x, out[0], out[1], out[2], space, nullptr);
    case kNormalise:
      return launch_frelu_normalise(images, element, norm, x, saved, out[0], nullptr);
    case kNormSums:
      return launch_frelu_norm_sums(images, element, norm, grad, x, saved, out[0], space, nullptr);
    case kBackward:
      return backward(&norm, out[0], out + 1);
    case kBackwardX:
      return backward(&norm, out[0], nullptr);
    default:
      return backward(&norm, nullptr, out);
  }
}

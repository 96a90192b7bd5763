#include "norm_input.cuh"
#include "pointwise.cuh"

namespace pwlu {

int launch_norm_pointwise_backward(Activation activation, const Layout& layout, Element element,
                                   const NormSource& source, const PointwiseParameters& parameters, const void* grad,
                                   void* dz, const PointwiseGradients& gradients, double* workspace,
                                   double* norm_sums, void* stream) {
  return launch_pointwise_backward_of<true, NormInput>(
      activation, layout, element, parameters, grad, std::pair(source, norm_sums), dz, &gradients, workspace, stream);
}

}  // namespace pwlu

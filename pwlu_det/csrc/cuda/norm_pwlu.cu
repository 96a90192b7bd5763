#include "norm_input.cuh"
#include "pwlu_backward.cuh"
#include "pwlu_forward.cuh"

namespace pwlu {

int launch_norm_pwlu(const Layout& layout, Element element, const NormSource& source,
                     const PwluParameters& parameters, void* y, void* stream) {
  return launch_pwlu_of<NormInput>(layout, element, parameters, source, y, stream);
}

int launch_norm_pwlu_backward(const Layout& layout, Element element, const NormSource& source,
                              const PwluParameters& parameters, const void* grad, void* dz,
                              const PwluGradients& gradients, double* workspace, double* norm_sums, void* stream) {
  return launch_pwlu_backward_of<true, NormInput>(layout, element, parameters, grad, std::pair(source, norm_sums), dz,
                                                  &gradients, workspace, stream);
}

}  // namespace pwlu

#include "norm_input.cuh"
#include "pointwise.cuh"

namespace pwlu {

int launch_norm_pointwise(Activation activation, const Layout& layout, Element element, const NormSource& source,
                          const PointwiseParameters& parameters, void* y, void* stream) {
  return launch_pointwise_of<NormInput>(activation, layout, element, parameters, source, y, stream);
}

}  // namespace pwlu

#include "pointwise.cuh"

namespace pwlu {

int launch_pointwise(Activation activation, const Layout& layout, Element element,
                     const PointwiseParameters& parameters, const void* x, void* y, void* stream) {
  return launch_pointwise_of<TensorInput>(activation, layout, element, parameters, x, y, stream);
}

}  // namespace pwlu

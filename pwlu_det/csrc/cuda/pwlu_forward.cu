#include "pwlu_forward.cuh"

namespace pwlu {

bool pwlu_channels_last_fits(Element element, int num_intervals) {
  return with_element(element, [&](auto tag) {
    using R = Real<typename decltype(tag)::type>;
    return table_bytes<R>(PwluTable<R, Rows::kLanes>::kNumbers, num_intervals, Rows::kLanes) <= kTableBytes;
  });
}

int launch_pwlu(const Layout& layout, Element element, const PwluParameters& parameters, const void* x, void* y,
                void* stream) {
  return launch_pwlu_of<TensorInput>(layout, element, parameters, x, y, stream);
}

}  // namespace pwlu

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
  const int n = parameters.num_intervals;
  if (!is_supported(layout, element, n)) return kInvalidValue;
  return with_pwlu_items(layout, element, n, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    using Items = std::decay_t<decltype(items)>;
    const int64_t bytes = table_bytes<R>(PwluTable<R, Items::kLanes>::kNumbers, n, Items::kLanes);
    const bool use_table = bytes <= kTableBytes;
    return launch(pwlu_kernel<T, Items>, items.items(), kThreads, use_table ? bytes : 0, stream, items,
                  static_cast<const T*>(x), static_cast<T*>(y), ParameterArrays<R>(parameters), use_table);
  });
}

}  // namespace pwlu

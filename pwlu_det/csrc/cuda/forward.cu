#include "dispatch.cuh"
#include "pwlu_forward.cuh"

namespace pwlu {

bool channels_last_fits(Element element, int num_intervals) {
  return with_element(element, [&](auto tag) {
    using R = Real<typename decltype(tag)::type>;
    return table_bytes<R>(ForwardTable<R, Rows::kLanes>::kNumbers, num_intervals, Rows::kLanes) <= kTableBytes;
  });
}

int launch_forward(const Layout& layout, Element element, const Functions& functions, const void* x, void* y,
                   void* stream) {
  const int n = functions.num_intervals;
  if (!is_supported(layout, element, n)) return kInvalidValue;
  return with_items(layout, element, by_rows(layout, element, n), [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    using Items = std::decay_t<decltype(items)>;
    const int64_t bytes = table_bytes<R>(ForwardTable<R, Items::kLanes>::kNumbers, n, Items::kLanes);
    const bool tabled = bytes <= kTableBytes;
    return launch(forward_kernel<T, Items>, items.items(), kThreads, tabled ? bytes : 0, stream, items,
                  static_cast<const T*>(x), static_cast<T*>(y), ParameterArrays<R>(functions), tabled);
  });
}

}  // namespace pwlu

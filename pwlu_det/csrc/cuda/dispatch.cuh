// Selects the kernels' template arguments from values that are known at run time.
#pragma once

#include "element.h"
#include "items.cuh"

namespace pwlu {

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

template <typename T>
struct Tag {
  using type = T;
};

template <typename F>
auto with_element(Element element, const F& f) {
  switch (element) {
    case Element::kDouble:
      return f(Tag<double>{});
    case Element::kHalf:
      return f(Tag<Half>{});
    case Element::kBFloat16:
      return f(Tag<BFloat16>{});
    default:
      return f(Tag<float>{});
  }
}

// Calls f(tag of the element type, items).
template <typename F>
auto with_items(const Layout& layout, Element element, bool rows, const F& f) {
  return with_element(element, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (rows) return f(tag, Rows(layout, Pack<T>::kSize));
    return f(tag, Planes(layout, Pack<T>::kSize));
  });
}

}  // namespace pwlu

#include "dispatch.cuh"
#include "norm_launch.h"
#include "pwlu_phase1.cuh"

namespace pwlu {
namespace {

double count_of(const Layout& layout) { return double(layout.batch) * double(layout.inner); }

int launch_moments(const Layout& layout, Element element, const void* x, void* y, double divisor, void* mean,
                   void* deviation, double* workspace, void* stream) {
  return with_items(layout, element, layout.channels_last, [&](auto tag, const auto& items) {
    using T = typename decltype(tag)::type;
    using Items = std::decay_t<decltype(items)>;
    const auto* from = static_cast<const T*>(x);
    const int status = launch(pwlu_phase1_kernel<T, Items>, items.items(), kThreads,
                              kThreads * int64_t(sizeof(double)), stream, items, from, static_cast<T*>(y), workspace);
    if (status != 0) return status;
    return launch(pwlu_phase1_finish_kernel<T, Items>, (items.channels() + kWarps - 1) / kWarps, kThreads, 0, stream,
                  items, from, workspace, count_of(layout), divisor, static_cast<Real<T>*>(mean),
                  static_cast<Real<T>*>(deviation));
  });
}

}  // namespace

int64_t pwlu_phase1_workspace(const Layout& layout, Element element) {
  return with_items(layout, element, layout.channels_last,
                    [](auto, const auto& items) { return items.channels() * 2 * items.items_of_channel(); });
}

int launch_pwlu_phase1(const Layout& layout, Element element, const void* x, void* y, void* mean, void* deviation,
                       double* workspace, void* stream) {
  return launch_moments(layout, element, x, y, 1, mean, deviation, workspace, stream);
}

int launch_norm_statistics(const Layout& layout, Element element, const void* x, void* mean, void* var,
                           double* workspace, void* stream) {
  return launch_moments(layout, element, x, nullptr, count_of(layout), mean, var, workspace, stream);
}

}  // namespace pwlu

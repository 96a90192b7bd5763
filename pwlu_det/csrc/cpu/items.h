// How work on tensors is cut up.
//
// The number and the order of the items depend on the shapes alone; each item sums in its own place, and the places
// are added up in order. So results do not depend on the number of threads, or on the run.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../layout.h"
#include "types.h"

namespace pwlu {
namespace {

constexpr int64_t kItemSize = 1 << 16;  // elements, about

// An item's share of the elements: rows [begin, end) of one channel's batch, or of all pixels of a block of
// channels; or, of a single row, a range of its elements.
struct Item {
  int64_t channel;
  int num_channels;
  int64_t begin, end;
};

std::vector<Item> make_items(const Layout& layout) {
  std::vector<Item> items;
  const auto cut = [&](int64_t channel, int num_channels, int64_t size, int64_t step) {
    for (int64_t begin = 0; begin < size; begin += step) {
      items.push_back({channel, num_channels, begin, std::min(size, begin + step)});
    }
  };
  if (layout.channels_last) {
    for (int64_t c = 0; c < layout.channels; c += kBlockChannels) {
      const int num_channels = int(std::min<int64_t>(kBlockChannels, layout.channels - c));
      cut(c, num_channels, layout.batch * layout.inner, kItemSize / num_channels);
    }
  } else if (layout.batch == 1) {
    for (int64_t c = 0; c < layout.channels; ++c) cut(c, 1, layout.inner, kItemSize);
  } else {
    const int64_t planes = std::max<int64_t>(1, kItemSize / std::max<int64_t>(1, layout.inner));
    for (int64_t c = 0; c < layout.channels; ++c) cut(c, 1, layout.batch, planes);
  }
  return items;
}

// Calls run(i) for items 0 ... count - 1, on all threads where there is enough to do.
template <typename F>
void for_indices(int64_t count, int64_t numel, const F& run) {
  if (numel < 1 << 15) {
    for (int64_t i = 0; i < count; ++i) run(i);
    return;
  }
  const int64_t grain = std::max<int64_t>(1, count * (1 << 14) / numel);
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(i);
  });
}

template <typename F>
void for_items(const Layout& layout, const F& run) {
  const auto items = make_items(layout);
  for_indices(items.size(), layout.numel(), [&](int64_t i) { run(items[i]); });
}

// Calls run(item, sums) for all items, with places for `width` sums for each of the item's channels, and adds these
// up by channel: [channels, width]. Of width 0 the sums are a null pointer.
template <typename S, typename F>
std::vector<S> sum_by_channel(const Layout& layout, int64_t channels, int64_t width, const F& run) {
  const auto items = make_items(layout);
  const int64_t per_item = (layout.channels_last ? std::min<int64_t>(kBlockChannels, channels) : 1) * width;
  std::vector<S> parts(items.size() * per_item, S{}), sums(channels * width, S{});
  for_indices(items.size(), layout.numel(),
              [&](int64_t i) { run(items[i], width ? parts.data() + i * per_item : nullptr); });
  for (size_t i = 0; i < items.size(); ++i) {
    const S* part = parts.data() + i * per_item;
    S* sum = sums.data() + items[i].channel * width;
    for (int64_t j = 0; j < items[i].num_channels * width; ++j) sum[j] += part[j];
  }
  return sums;
}

// Calls row(offset, n) for each stretch of memory that belongs to an item of one channel.
template <typename F>
void for_rows(const Layout& layout, const Item& item, const F& row) {
  if (layout.batch == 1) return row(item.channel * layout.inner + item.begin, item.end - item.begin);
  for (int64_t b = item.begin; b < item.end; ++b) {
    row((b * layout.channels + item.channel) * layout.inner, layout.inner);
  }
}

}  // namespace
}  // namespace pwlu

// How the work on a tensor is divided.
//
// The number and order of the items depend only on the shapes. Each item has its own partial sums, which are added up
// in order, so results do not depend on the number of threads and do not change from run to run.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../layout.h"
#include "types.h"

namespace pwlu {
namespace {

constexpr int64_t kItemSize = 1 << 16;  // approximate number of elements

// The elements of an item: samples [begin, end) of one channel, pixels [begin, end) of a block of channels (channels
// last), or, with a batch of 1, elements [begin, end) of one channel.
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

// Calls run(i) for items 0 ... count - 1, on all threads if there is enough work.
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

// Calls run(item, sums) for all items, with room for `width` sums for each channel of the item, and adds them up by
// channel: [channels, width]. If width is 0, `sums` is a null pointer.
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

// Calls row(offset, n) for each contiguous range of memory in an item of one channel.
template <typename F>
void for_rows(const Layout& layout, const Item& item, const F& row) {
  if (layout.batch == 1) return row(item.channel * layout.inner + item.begin, item.end - item.begin);
  for (int64_t b = item.begin; b < item.end; ++b) {
    row((b * layout.channels + item.channel) * layout.inner, layout.inner);
  }
}

}  // namespace
}  // namespace pwlu

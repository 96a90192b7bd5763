// How tensors lie in memory, and how work on them is cut up.
//
// The number and the order of the items depend on the shapes alone; each item sums in its own place, and the places
// are added up in order. So results do not depend on the number of threads, or on the run.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace pwlu {
namespace {

using at::Tensor;

constexpr int64_t kItemSize = 1 << 16;  // elements, about

// How a tensor [B, C, *] lies in memory, as seen by `functions` functions.
struct Layout {
  int64_t batch, channels, inner;  // [batch, channels, inner], or channels last: [batch, inner, channels]
  bool channels_last;

  int64_t numel() const { return batch * channels * inner; }
};

// The memory format that the kernels work in: that of x where it is dense, else contiguous.
at::MemoryFormat format_of(const Tensor& x) {
  if (x.is_contiguous()) return at::MemoryFormat::Contiguous;
  if (x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast)) return at::MemoryFormat::ChannelsLast;
  if (x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d)) return at::MemoryFormat::ChannelsLast3d;
  return at::MemoryFormat::Contiguous;
}

Layout layout_of(const Tensor& x, int64_t functions, at::MemoryFormat format) {
  if (functions == 1 || x.numel() == 0) return {1, 1, x.numel(), false};  // one row
  const int64_t inner = x.numel() / (x.size(0) * x.size(1));
  return {x.size(0), x.size(1), inner, inner == 1 || format != at::MemoryFormat::Contiguous};
}

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
// up by channel: [channels, width].
template <typename S, typename F>
std::vector<S> sum_by_channel(const Layout& layout, int64_t channels, int64_t width, const F& run) {
  const auto items = make_items(layout);
  const int64_t per_item = (layout.channels_last ? std::min<int64_t>(kBlockChannels, channels) : 1) * width;
  std::vector<S> parts(items.size() * per_item, S{}), sums(channels * width, S{});
  for_indices(items.size(), layout.numel(), [&](int64_t i) { run(items[i], parts.data() + i * per_item); });
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

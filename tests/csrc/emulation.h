// Shared by the emulations of all kernels: a program that runs the cases in a file. Each family of kernels includes
// this file and defines run_case, which can also be called directly from a shared library.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

// Runs the case described by `numbers` on its buffers, and returns the status of the launcher.
extern "C" int run_case(const int64_t* numbers, void** buffers);

// Runs the cases of the first file and writes their buffers to the second one. A case consists of a count of numbers,
// the numbers, a count of buffers, and for each buffer its size in bytes, the offset of its address from a multiple
// of 16, and its content.
int main(int, char** paths) {
  std::FILE *in = std::fopen(paths[1], "rb"), *out = std::fopen(paths[2], "wb");
  if (!in || !out) return 2;
  int64_t count;
  while (std::fread(&count, sizeof count, 1, in) == 1) {
    std::vector<int64_t> numbers(count), sizes;
    std::vector<void*> allocations, buffers;
    if (std::fread(numbers.data(), sizeof count, numbers.size(), in) != numbers.size()) return 3;
    if (std::fread(&count, sizeof count, 1, in) != 1) return 3;
    for (int64_t i = 0; i < count; ++i) {
      int64_t header[2];
      if (std::fread(header, sizeof header, 1, in) != 1) return 3;
      // Exactly this size, so that AddressSanitizer detects accesses beyond the end.
      allocations.push_back(std::malloc(header[0] + header[1]));
      buffers.push_back(static_cast<char*>(allocations.back()) + header[1]);
      sizes.push_back(header[0]);
      if (std::fread(buffers.back(), 1, header[0], in) != size_t(header[0])) return 3;
    }
    if (run_case(numbers.data(), buffers.data()) != 0) return 4;
    for (int64_t i = 0; i < count; ++i) {
      std::fwrite(buffers[i], 1, sizes[i], out);
      std::free(allocations[i]);
    }
  }
  return std::fclose(in) | std::fclose(out);
}

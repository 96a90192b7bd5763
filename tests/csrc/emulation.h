// What the emulations of all kernels share: a program that runs the cases of a file. A family of kernels includes this
// and defines run_case; it is then also called by itself, as a C function.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

// The numbers that say what the case is, and its buffers; gives what the launcher returned.
extern "C" int run_case(const int64_t* numbers, void** buffers);

// A file of cases. Each is a count of numbers and these, then a count of buffers and for each of them its size in
// bytes, its distance from a multiple of 16, and its content. All buffers are written back in the same order, after
// what they are to be.
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
      // Of just the size, so that the address sanitizer sees an access past the end.
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

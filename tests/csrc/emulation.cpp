// The launchers for the tests: as C functions, and as a program that runs the cases of a file.
#include <cstdio>
#include <cstdlib>

#include "backward.cu"
#include "forward.cu"
#include "phase1.cu"

namespace {

// As in test_cuda_emulation.py.
struct Case {
  int64_t batch, channels, inner, channels_last, element, num_intervals, op;
};
enum { kForward, kBackward, kPhase1 };

}  // namespace

// buffers: points, left_bound, right_bound, left_slope, right_slope, x, grad, and then the outputs of the op.
extern "C" int run_case(const Case* c, void** buffers) {
  using namespace pwlu;
  const Layout layout{c->batch, c->channels, c->inner, c->channels_last != 0};
  const auto element = Element(c->element);
  const Functions functions{buffers[0], buffers[1], buffers[2], buffers[3], buffers[4], int(c->num_intervals)};
  void *x = buffers[5], *grad = buffers[6], **out = buffers + 7;
  if (c->op == kForward) return launch_forward(layout, element, functions, x, out[0], nullptr);
  const int64_t doubles = c->op == kBackward ? backward_workspace(layout, element, functions.num_intervals)
                                             : phase1_workspace(layout, element);
  std::vector<double> workspace(doubles, NAN);
  if (c->op == kBackward) {
    const FunctionGradients gradients{out[1], out[2], out[3], out[4], out[5]};
    return launch_backward(layout, element, functions, grad, x, out[0], gradients, workspace.data(), nullptr);
  }
  return launch_phase1(layout, element, x, out[0], out[1], out[2], workspace.data(), nullptr);
}

// A file of cases, each a Case and then for each of the 13 buffers its size in bytes, its distance from a multiple of
// 16, and its content; all buffers are written back in the same order, after what they are to be.
int main(int, char** paths) {
  std::FILE *in = std::fopen(paths[1], "rb"), *out = std::fopen(paths[2], "wb");
  if (!in || !out) return 2;
  Case c;
  while (std::fread(&c, sizeof c, 1, in) == 1) {
    std::vector<void*> allocations, buffers;
    std::vector<int64_t> sizes;
    for (int i = 0; i < 13; ++i) {
      int64_t header[2];
      if (std::fread(header, sizeof header, 1, in) != 1) return 3;
      // Of just the size, so that the address sanitizer sees an access past the end.
      allocations.push_back(std::malloc(header[0] + header[1]));
      buffers.push_back(static_cast<char*>(allocations.back()) + header[1]);
      sizes.push_back(header[0]);
      if (std::fread(buffers.back(), 1, header[0], in) != size_t(header[0])) return 3;
    }
    if (run_case(&c, buffers.data()) != 0) return 4;
    for (int i = 0; i < 13; ++i) {
      std::fwrite(buffers[i], 1, sizes[i], out);
      std::free(allocations[i]);
    }
  }
  return std::fclose(in) | std::fclose(out);
}

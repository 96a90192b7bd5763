// The arguments of the ops and their checks for CPU and CUDA; ops/library.py has the same checks for plain torch.
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace pwlu {
namespace {

using at::Tensor;

// The name of an op, and "name: shape" for each argument in order. The shape of x is "B C *" or "B C H W"; that of
// the others is "x" for a tensor with the shape and dtype of x, or a list of sizes: C, the number of channels of x;
// P, which is C or 1 (one function per layer); S, at least 1; N+1, at least 2; or a digit. "eps" has no shape, and
// output_mask is not listed.
struct Signature {
  const char* op;
  const char* arguments[12];
};

struct Argument {
  std::string_view name, shape;
  const Tensor& tensor;

  Argument(std::string_view text, const Tensor& tensor)
      : name(text.substr(0, text.find(':'))), shape(text.substr(name.size() + 2)), tensor(tensor) {}
};

// "C S" to "C, S"
inline std::string with_commas(std::string_view shape) {
  std::string text;
  for (char symbol : shape) text += symbol == ' ' ? ", " : std::string(1, symbol);
  return text;
}

// The sizes that the letters in shapes stand for. The first argument with P, S or N+1 determines that size.
class SymbolicSizes {
 public:
  explicit SymbolicSizes(int64_t channels) : channels_(channels) {}

  bool fit(at::IntArrayRef sizes, std::string_view shape) {
    for (int64_t size : sizes) {
      if (shape.empty() || size != expected(shape[0], size)) return false;
      shape.remove_prefix(std::min(shape.size(), shape.find(' ')));
      if (!shape.empty()) shape.remove_prefix(1);
    }
    return shape.empty();
  }
  std::string text() const {
    std::string text = "C = " + std::to_string(channels_);
    if (functions_ >= 0) text += ", P = " + std::to_string(functions_);
    if (coefficients_ >= 0) text += ", S = " + std::to_string(coefficients_);
    return text;
  }

 private:
  int64_t expected(char symbol, int64_t size) {
    switch (symbol) {
      case 'C':
        return channels_;
      case 'P':
        return decide(functions_, size, size == 1 || size == channels_);
      case 'S':
        return decide(coefficients_, size, size >= 1);
      case 'N':
        return decide(points_, size, size >= 2);
      default:
        return symbol - '0';
    }
  }
  static int64_t decide(int64_t& known, int64_t size, bool allowed) {
    if (known < 0 && allowed) known = size;
    return known;
  }

  int64_t channels_, functions_ = -1, coefficients_ = -1, points_ = -1;
};

// The dtype and layout, which have the same requirements for every tensor.
inline void check_kind(const char* op, const Argument& argument) {
  const at::ScalarType dtype = argument.tensor.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16, op,
                    ": ", argument.name, " has dtype ", dtype,
                    "; float32, float64, float16 and bfloat16 are allowed");
  TORCH_CHECK_VALUE(argument.tensor.layout() == at::kStrided, op, ": ", argument.name, " has layout ",
                    argument.tensor.layout(), "; it must be strided");
}

inline void check_x(const char* op, const Argument& x) {
  check_kind(op, x);
  TORCH_CHECK_VALUE(x.shape == "B C *" ? x.tensor.dim() >= 2 : x.tensor.dim() == 4, op, ": x has shape ",
                    x.tensor.sizes(), "; it must be [", with_commas(x.shape), "]");
}

inline void check_beside(const char* op, const Tensor& x, const Argument& argument, SymbolicSizes& sizes) {
  const Tensor& tensor = argument.tensor;
  check_kind(op, argument);
  TORCH_CHECK_VALUE(tensor.device() == x.device(), op, ": ", argument.name, " is on ", tensor.device(), ", and x on ",
                    x.device());
  if (argument.shape == "x") {
    TORCH_CHECK_VALUE(tensor.sizes() == x.sizes() && tensor.scalar_type() == x.scalar_type(), op, ": ", argument.name,
                      " has shape ", tensor.sizes(), " and dtype ", tensor.scalar_type(), "; x has ", x.sizes(),
                      " and ", x.scalar_type());
  } else {
    TORCH_CHECK_VALUE(sizes.fit(tensor.sizes(), argument.shape), op, ": ", argument.name, " has shape ",
                      tensor.sizes(), "; for x of shape ", x.sizes(), " it must be [", with_commas(argument.shape),
                      "] with ", sizes.text());
  }
}

inline void check_tensors(const char* op, const std::vector<Argument>& arguments) {
  const Argument* x = &arguments[0];
  while (x->name != "x") ++x;
  check_x(op, *x);
  SymbolicSizes sizes(x->tensor.size(1));
  for (const Argument& argument : arguments) {
    if (&argument != x) check_beside(op, x->tensor, argument, sizes);
  }
}

inline void check_eps(const char* op, double eps, const char* name = "eps") {
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps >= 0, op, ": ", name, " is ", eps,
                    "; it must be finite and not negative");
}

// The number of results of an op: 1 for a tensor.
template <typename>
constexpr size_t kNumResults = 1;
template <typename... Results>
constexpr size_t kNumResults<std::tuple<Results...>> = sizeof...(Results);

// Checks the arguments of an op, then calls its function.
template <const Signature& kSignature, auto kFunction>
struct CheckedOp;

template <const Signature& kSignature, typename Result, typename... Arguments, Result (*kFunction)(Arguments...)>
struct CheckedOp<kSignature, kFunction> {
  static Result call(Arguments... arguments) {
    std::vector<Argument> tensors;
    const char* const* text = kSignature.arguments;
    const auto take = [&](const auto& argument) {
      using T = std::decay_t<decltype(argument)>;
      if constexpr (std::is_same_v<T, Tensor>) tensors.emplace_back(*text, argument);
      if constexpr (std::is_same_v<T, double>) check_eps(kSignature.op, argument);
      ++text;
    };
    (take(arguments), ...);
    check_tensors(kSignature.op, tensors);
    return kFunction(arguments...);
  }

  // Such as "pwlu(Tensor x, Tensor points) -> (Tensor)".
  static std::string schema() {
    std::string text = std::string(kSignature.op) + "(";
    const char* const* name = kSignature.arguments;
    const auto add = [&](const char* type, std::string_view label) {
      if (text.back() != '(') text += ", ";
      text.append(type).append(" ").append(label.substr(0, label.find(':')));
    };
    (add(kTypeName<std::decay_t<Arguments>>, *name ? *name++ : "output_mask"), ...);
    text += ") -> (";
    for (size_t i = 0; i < kNumResults<Result>; ++i) text += i ? ", Tensor" : "Tensor";
    return text + ")";
  }

 private:
  template <typename T>
  static constexpr const char* kTypeName = std::is_same_v<T, Tensor>   ? "Tensor"
                                           : std::is_same_v<T, double> ? "float"
                                                                       : "bool[2]";
};

// Registers a kernel for the dispatch key of the library.
template <const Signature& kSignature, auto kFunction>
void add_op(torch::Library& m) {
  m.impl(kSignature.op, &CheckedOp<kSignature, kFunction>::call);
}

// Defines an op, so that an exported model can be run without this package's Python, and registers its kernel for
// CPUs if there is one for this processor.
template <const Signature& kSignature, auto kFunction>
void define_op(torch::Library& m, bool has_kernel = true) {
  using Op = CheckedOp<kSignature, kFunction>;
  m.def(torch::schema(Op::schema().c_str()));
  if (has_kernel) m.impl(kSignature.op, torch::dispatch(c10::DispatchKey::CPU, &Op::call));
}

}  // namespace
}  // namespace pwlu

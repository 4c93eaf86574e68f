// The matrix products of dense_conv2d: `count` of them, one behind the other in memory. A task is a
// panel of columns of one.
#include <type_traits>

#include "common/cpu_matrix_parts.h"
#include "common/cpu_products.h"
#include "dense_conv2d/dense_conv2d.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

template <class A>
void multiply(const DenseConv2dProductArgs& args) {
  const DenseConv2dProduct& s = args.size;
  Product<A> first{};
  first.a = static_cast<const A*>(args.a), first.b = static_cast<const A*>(args.b);
  first.bias = static_cast<const A*>(args.bias), first.c = static_cast<A*>(args.c);
  first.m = s.m, first.n = s.n, first.k = s.k;
  first.a_row = s.a_transposed ? 1 : s.k, first.a_column = s.a_transposed ? s.m : 1;
  first.b_row = s.b_transposed ? s.k : s.n, first.b_transposed = s.b_transposed;
  // The gradient of a weight; of several, Winograd's, the weight's own is made at once.
  first.read_late = s.a_transposed && s.count == 1;
  const auto number = [&](int64_t i) {
    Product<A> product = first;
    product.a += i * s.m * s.k, product.b += i * s.k * s.n, product.c += i * s.m * s.n;
    return product;
  };
#if defined(__AMX_BF16__)
  if constexpr (std::is_same_v<A, float>)
    if (parts_pay(first)) {
      for (int64_t i = 0; i < s.count; ++i) multiply_in_parts(number(i), args.threads);
      return;
    }
#endif
  const int64_t each = panels(first);
  parallel_tasks(s.count * each, args.threads, [&](int64_t task, int) {
    multiply_panel(number(task / each), task % each * 2 * kLanes<A>);
  });
}

}  // namespace

void dense_conv2d_products(const DenseConv2dProductArgs& args) {
  if (args.dtype == DType::kFloat64)
    multiply<double>(args);
  else
    multiply<float>(args);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather

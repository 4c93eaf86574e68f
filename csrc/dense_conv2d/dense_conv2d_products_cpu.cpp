// The matrix products of dense_conv2d: `count` of them, one behind the other in memory.
#include <cstring>
#include <type_traits>

#include "common/cpu_matrix_parts.h"
#include "common/cpu_packed_products.h"
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
  for (int64_t i = 0; i < s.count; ++i) multiply_packed(number(i), args.threads);
}

constexpr int64_t kSummedColumns = 64;  // of one task
constexpr int64_t kSummedRows = 64;     // at once: sums of sums lose less

// What every column of `from` (rows, columns) sums to.
template <class A>
void sum_columns(const A* from, A* to, int64_t rows, int64_t columns, int threads) {
  parallel_tasks(ceil_div(columns, kSummedColumns), threads, [&](int64_t task, int) {
    const int64_t first = task * kSummedColumns, left = columns - first;
    const int64_t count = left < kSummedColumns ? left : kSummedColumns;
    A sums[kSummedColumns] = {};
    for (int64_t r0 = 0; r0 < rows; r0 += kSummedRows) {
      const int64_t end = r0 + kSummedRows < rows ? r0 + kSummedRows : rows;
      A part[kSummedColumns] = {};
      for (int64_t r = r0; r < end; ++r) {
        const A* row = from + r * columns + first;
        if (count == kSummedColumns)
          for (int64_t i = 0; i < kSummedColumns; ++i) part[i] += row[i];
        else
          for (int64_t i = 0; i < count; ++i) part[i] += row[i];
      }
      for (int64_t i = 0; i < count; ++i) sums[i] += part[i];
    }
    std::memcpy(to + first, sums, static_cast<size_t>(count) * sizeof(A));
  });
}

template <class A>
void gradients(const DenseConv2dGradientArgs& args) {
  const auto product = [&](const void* a, const void* b, void* c, const DenseConv2dProduct& size) {
    if (c != nullptr) multiply<A>({a, b, nullptr, c, size, args.dtype, args.threads});
  };
  const int64_t rows = args.rows, inputs = args.inputs, outputs = args.outputs;
  if (args.grad_bias != nullptr)
    sum_columns(static_cast<const A*>(args.grad_y), static_cast<A*>(args.grad_bias), rows, outputs,
                args.threads);
  product(args.grad_y, args.weight, args.grad_x, {1, rows, inputs, outputs, false, false});
  product(args.grad_y, args.x, args.grad_weight, {1, outputs, inputs, rows, true, false});
}

}  // namespace

void dense_conv2d_products(const DenseConv2dProductArgs& args) {
  if (args.dtype == DType::kFloat64)
    multiply<double>(args);
  else
    multiply<float>(args);
}

void dense_conv2d_gradients(const DenseConv2dGradientArgs& args) {
  if (args.dtype == DType::kFloat64)
    gradients<double>(args);
  else
    gradients<float>(args);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather

#include "common/bindings.h"
#include "residual_norm/residual_norm.h"

namespace clipweather {
namespace {

using Norm = std::tuple<Address, Address, double>;  // weight, bias, eps

NormParameters norm_of(const Norm& norm) {
  return {pointer<const float>(std::get<0>(norm)), pointer<const float>(std::get<1>(norm)),
          static_cast<float>(std::get<2>(norm))};
}

void residual_norm(Address branch, int branch_type, Address residual, const Norm& before,
                   const Norm& after, Address sum, Address normed, int normed_type, int64_t rows,
                   int64_t c, int threads) {
  ResidualNormArgs args{};
  args.branch = pointer<const void>(branch);
  args.residual = pointer<const float>(residual);
  args.before = norm_of(before);
  args.after = norm_of(after);
  args.sum = pointer<float>(sum);
  args.normed = pointer<void>(normed);
  args.rows = rows, args.c = c;
  args.branch_type = static_cast<DType>(branch_type);
  args.normed_type = static_cast<DType>(normed_type);
  args.threads = threads;
  CLIPWEATHER_CPU_CALL(residual_norm, args);
}

// grads: of the sum, of the norm's weight and bias; 0: not wanted.
void residual_norm_backward(Address grad_normed, Address grad_sum, Address sum, const Norm& after,
                            const std::array<Address, 3>& grads, int64_t rows, int64_t c,
                            int threads) {
  ResidualNormBackwardArgs args{};
  args.grad_normed = pointer<const float>(grad_normed);
  args.grad_sum = pointer<const float>(grad_sum);
  args.sum = pointer<const float>(sum);
  args.after = norm_of(after);
  args.grad_x = pointer<float>(grads[0]);
  args.grad_weight = pointer<float>(grads[1]), args.grad_bias = pointer<float>(grads[2]);
  args.rows = rows, args.c = c, args.threads = threads;
  CLIPWEATHER_CPU_CALL(residual_norm_backward, args);
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(residual_norm) {
  const pybind11::call_guard<pybind11::gil_scoped_release> released;
  module.def("residual_norm_cpu", &clipweather::residual_norm, released);
  module.def("residual_norm_backward_cpu", &clipweather::residual_norm_backward, released);
}

#include "reduced_kv_attention/reduced_kv_attention_bind.h"

namespace clipweather {
namespace {

void forward_cpu(Address q, Address k, Address v, Address out, Address lse, Address workspace,
                 int64_t workspace_bytes, const AttentionLengths& lengths,
                 const AttentionStrides& strides, double scale, int dtype, int threads) {
  AttentionForwardArgs args{};
  args.q = pointer<const void>(q);
  args.k = pointer<const void>(k);
  args.v = pointer<const void>(v);
  args.out = pointer<void>(out);
  args.lse = pointer<void>(lse);
  args.workspace = pointer<void>(workspace);
  args.workspace_bytes = workspace_bytes;
  args.size = attention_sizes(lengths, strides, scale, dtype);
  args.threads = threads;
  const pybind11::gil_scoped_release release;
  CLIPWEATHER_CPU_CALL(reduced_kv_attention_forward, args);
}

void backward_cpu(Address grad, Address q, Address k, Address v, Address out, Address lse,
                  Address grad_q, Address grad_k, Address grad_v, Address partials,
                  Address workspace, int64_t workspace_bytes, const AttentionLengths& lengths,
                  const AttentionStrides& strides, double scale, int dtype, int threads) {
  AttentionBackwardArgs args{};
  args.grad = pointer<const void>(grad);
  args.q = pointer<const void>(q);
  args.k = pointer<const void>(k);
  args.v = pointer<const void>(v);
  args.out = pointer<const void>(out);
  args.lse = pointer<const void>(lse);
  args.grad_q = pointer<void>(grad_q);
  args.grad_k = pointer<void>(grad_k);
  args.grad_v = pointer<void>(grad_v);
  args.partials = pointer<void>(partials);
  args.workspace = pointer<void>(workspace);
  args.workspace_bytes = workspace_bytes;
  args.size = attention_sizes(lengths, strides, scale, dtype);
  args.threads = threads;
  const pybind11::gil_scoped_release release;
  CLIPWEATHER_CPU_CALL(reduced_kv_attention_backward, args);
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(reduced_kv_attention) {
  using namespace clipweather;
  module.def("reduced_kv_attention_forward_cpu", &forward_cpu);
  module.def("reduced_kv_attention_backward_cpu", &backward_cpu);
  // Bytes per thread, and elements of partial sums: (forward, backward, partials).
  module.def("reduced_kv_attention_workspace_cpu", [](const AttentionLengths& lengths, int dtype) {
    const AttentionSizes size = attention_sizes(lengths, AttentionStrides{}, 1.0, dtype);
    return std::array<int64_t, 3>{attention_workspace(size), attention_backward_workspace(size),
                                  attention_partials(size)};
  });
}

// reduced_kv_attention: out = softmax(scale * q k^T) v per image and head; the scores never reach
// memory.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/dtype.h"

namespace clipweather {

inline constexpr int kMaxHeadDim = 256;

// T: storage type `dtype`. A: float, or double for float64. The last axis of every tensor is
// contiguous; the strides, in elements, are those of the other axes in the order (N, L, heads).
struct AttentionSizes {
  int64_t n, heads, queries, keys, d;
  int64_t q_stride[3];
  int64_t k_stride[3];
  int64_t v_stride[3];
  double scale;
  DType dtype;
};

// The CPU kernels' tiling, which the size of their workspace follows from.
inline constexpr int64_t kAttentionRows = 32;          // most queries of a forward tile
inline constexpr int64_t kAttentionChunk = 384;        // queries of a forward task
inline constexpr int64_t kAttentionLongChunk = 768;    // the same where products are in parts
inline constexpr int64_t kAttentionKeyBlock = 384;     // keys packed at a time
inline constexpr int64_t kAttentionKeysAtOnce = 64;    // of them, weighed at a time in parts
inline constexpr int64_t kAttentionBackwardRows = 24;  // queries of a backward tile

// Keys packed at a time by the backward pass: three operands and two sums of them share L2.
inline int64_t attention_backward_block(const AttentionSizes& size) {
  return size.d > 128 || size.dtype == DType::kFloat64 ? 128 : 256;
}

// How the backward pass cuts the queries of each head into tasks: few enough that the partial sums
// of dK and dV stay small, enough to feed the threads of a machine, whatever their number.
struct AttentionRuns {
  int64_t count;
  int64_t length;
};
inline AttentionRuns attention_runs(const AttentionSizes& size) {
  const int64_t heads = size.n * size.heads;
  const int64_t wanted = (15 + heads) / heads, most = (size.queries + 383) / 384;
  const int64_t count = wanted < most ? wanted : most;
  const int64_t length = (size.queries + count - 1) / count;
  const int64_t whole =
      (length + kAttentionBackwardRows - 1) / kAttentionBackwardRows * kAttentionBackwardRows;
  return {(size.queries + whole - 1) / whole, whole};
}

// Bytes a thread of the CPU kernels needs, for any instruction set. In float32 operands and some
// weights may be kept in three parts of two bytes.
inline int64_t attention_workspace(const AttentionSizes& size) {
  const int64_t width = size.dtype == DType::kFloat64 ? 8 : 4, slack = 32 * 64;
  const int64_t d = (size.d + 31) / 32 * 32, keys = kAttentionKeyBlock, rows = kAttentionRows;
  const int64_t operands = 2 * keys * d + rows * d;
  if (size.dtype == DType::kFloat32) {
    const int64_t weights = 2 * rows * kAttentionKeysAtOnce;
    const int64_t scores = rows * (keys + kAttentionKeysAtOnce);
    return 6 * (operands + weights) +
           4 * (scores + rows * (d + 64) + kAttentionLongChunk * (d + 2)) + slack;
  }
  return width * (operands + rows * (keys + 32) + kAttentionChunk * (d + 2)) + slack;
}
inline int64_t attention_backward_workspace(const AttentionSizes& size) {
  const int64_t width = size.dtype == DType::kFloat64 ? 8 : 4, slack = 32 * 64;
  const int64_t d = (size.d + 31) / 32 * 32, keys = attention_backward_block(size) + 8;
  const int64_t rows = kAttentionBackwardRows;
  const int64_t query_rows = size.keys > keys - 8 ? attention_runs(size).length : rows;
  return width * (5 * keys * d + 4 * rows * d + 3 * rows * (keys + 16) + query_rows * d) + slack;
}
// Elements of type A for the partial sums of dK and dV; 0 where each head is one task.
inline int64_t attention_partials(const AttentionSizes& size) {
  const int64_t runs = attention_runs(size).count;
  return runs == 1 ? 0 : runs * size.n * size.heads * size.keys * 2 * size.d;
}

struct AttentionForwardArgs {
  const void* q;            // (N, Lq, heads, d) T
  const void* k;            // (N, Lk, heads, d) T
  const void* v;            // (N, Lk, heads, d) T
  void* out;                // (N, Lq, heads, d) T, dense
  void* lse;                // (N, heads, Lq) A, dense: log sum_j exp(scale * q . k_j); or null
  void* workspace;          // attention_workspace(size) bytes for each thread, 64-byte aligned
  int64_t workspace_bytes;  // of one thread
  AttentionSizes size;
  int threads;
};

struct AttentionBackwardArgs {
  const void* grad;  // (N, Lq, heads, d) T, dense
  const void* q;
  const void* k;
  const void* v;
  const void* out;
  const void* lse;
  void* grad_q;             // (N, Lq, heads, d) T, dense
  void* grad_k;             // (N, Lk, heads, d) T, dense
  void* grad_v;             // (N, Lk, heads, d) T, dense
  void* partials;           // attention_partials(size) A
  void* workspace;          // attention_backward_workspace(size) bytes for each thread
  int64_t workspace_bytes;  // of one thread
  AttentionSizes size;
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(reduced_kv_attention_forward, AttentionForwardArgs)
CLIPWEATHER_CPU_KERNEL(reduced_kv_attention_backward, AttentionBackwardArgs)

// Forward on the CPU: a task is up to a chunk of queries of one head; its memory is bounded
// whatever the number of keys. Three walks: float32 by the matrix unit in parts, bfloat16 by pairs,
// and all else, with queries in the lanes.
#include "reduced_kv_attention/cpu_lane_forward.h"
#include "reduced_kv_attention/cpu_pair_forward.h"
#include "reduced_kv_attention/cpu_part_forward.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

// Calls body(n, head, begin, end, workspace) for chunks of nearly equal length, whole tiles each.
template <class Body>
void for_chunks(const AttentionForwardArgs& args, int64_t most, int64_t tile_rows,
                const Body& body) {
  const AttentionSizes& size = args.size;
  const int64_t chunks = ceil_div(size.queries, most);
  const int64_t chunk = round_up(ceil_div(size.queries, chunks), tile_rows);
  parallel_tasks(size.n * size.heads * chunks, args.threads, [&](int64_t task, int64_t thread) {
    const int64_t begin = task % chunks * chunk, end = smaller(begin + chunk, size.queries);
    if (begin >= end) return;
    char* const workspace = static_cast<char*>(args.workspace) + thread * args.workspace_bytes;
    body(task / chunks / size.heads, task / chunks % size.heads, begin, end, workspace);
  });
}

// K and V are packed once for a task's queries.
template <class Walk>
void forward_by(const AttentionForwardArgs& args) {
  for_chunks(args, kAttentionChunk, Walk::kRows,
             [&](int64_t n, int64_t head, int64_t begin, int64_t end, char* workspace) {
               [[maybe_unused]] const typename Walk::Hardware hardware;
               Walk(args, workspace).task(n, head, begin, end);
             });
}

#if defined(__AMX_BF16__)
void forward_in_parts(const AttentionForwardArgs& args) {
  for_chunks(
      args, PartForward::most_queries(args.size), PartForward::kRows,
      [&](int64_t n, int64_t head, int64_t begin, int64_t end, char* workspace) {
        const MatrixUnit unit;
        if (PartForward(args, workspace).task(n, head, begin, end)) return;
        for (int64_t i = begin; i < end; i += kAttentionChunk)
          LaneForward<float>(args, workspace).task(n, head, i, smaller(i + kAttentionChunk, end));
      });
}
#endif

}  // namespace

void reduced_kv_attention_forward(const AttentionForwardArgs& args) {
  switch (args.size.dtype) {
    case DType::kFloat32:
#if defined(__AMX_BF16__)
      if (attention_parts_pay(args.size)) return forward_in_parts(args);
#endif
      forward_by<LaneForward<float>>(args);
      break;
    case DType::kBFloat16:
#if defined(__AVX512BF16__)
      forward_by<PairForward>(args);
#else
      forward_by<LaneForward<bfloat16_t>>(args);
#endif
      break;
    case DType::kFloat16:
      forward_by<LaneForward<float16_t>>(args);
      break;
    case DType::kFloat64:
      forward_by<LaneForward<double>>(args);
      break;
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather

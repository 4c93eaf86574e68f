// Forward of sar_logits on the CPU.
#include "sar_logits/cpu_logits_row.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

template <int kMaps, class T>
void forward(const SarLogitsForwardArgs& args) {
  using A = typename Accumulate<T>::type;
  const SarLogitsSizes& s = args.size;
  Predictor<A> predictor(args.in, s.c, s.kernels);
  predictor.banks.template pair_taps<T>();
  const ForwardCut cut(s.h, s.w, s.c, sizeof(T));
  Buffer<T> zeros(s.c);
  zeros.zero(s.c);
  const int threads = args.threads > 0 ? args.threads : 1;
  const int64_t room = s.kernels * padded<A>(cut.tile);
  Buffer<A> planar(threads * room);
  parallel_tasks(s.n * cut.strips * cut.tiles, threads, [&](int64_t task, int thread) {
    const int64_t tile = task % cut.tiles, strip = task / cut.tiles % cut.strips;
    const int64_t n = task / (cut.tiles * cut.strips);
    const Image<T> image{static_cast<const T*>(args.in.x) + n * s.h * s.w * s.c, s.h, s.w, s.c,
                         zeros.get()};
    const int64_t w0 = tile * cut.tile;
    const int64_t count = w0 + cut.tile < s.w ? cut.tile : s.w - w0;
    const int64_t end = (strip + 1) * cut.strip < s.h ? (strip + 1) * cut.strip : s.h;
    A* own = planar.get() + thread * room;
    for (int64_t h = strip * cut.strip; h < end; ++h) {
      logits_row<kMaps>(image, predictor, h, w0, count, own);
      write_logits_row(own, s.kernels, count,
                       static_cast<T*>(args.logits) + ((n * s.h + h) * s.w + w0) * s.kernels);
    }
  });
}

template <class T>
void forward_of(const SarLogitsForwardArgs& args) {
  if (args.size.kernels == 3 && sizeof(T) <= 4) return forward<3, T>(args);
  forward<-1, T>(args);
}

}  // namespace

void sar_logits_forward(const SarLogitsForwardArgs& args) {
  switch (args.size.dtype) {
    case DType::kFloat32:
      return forward_of<float>(args);
    case DType::kBFloat16:
      return forward_of<bfloat16_t>(args);
    case DType::kFloat16:
      return forward_of<float16_t>(args);
    case DType::kFloat64:
      return forward_of<double>(args);
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather

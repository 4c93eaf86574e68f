// Forward of sar_conv2d on the CPU: see cpu_rows.h for the inner loops and their bound.
#include "sar_conv2d/cpu_rows.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

template <int kCount, int kSize, class T>
void forward(const SarConv2dForwardArgs& args, const Folding& folding) {
  using A = typename Accumulate<T>::type;
  const SarConv2dSizes& s = args.size;
  Banks<A> banks(1 + folding.mixed, s.kernel_size, s.c);
  fill_banks(banks, args.in, s, folding);
  banks.template pair_taps<T>();
  const ForwardCut cut(s.h, s.w, s.c, sizeof(T));
  Buffer<T> zeros(s.c);
  zeros.zero(s.c);
  const int threads = args.threads > 0 ? args.threads : 1;
  const int64_t map_room = s.kernels * padded<A>(cut.tile) + kGroup;
  Buffer<A> maps(threads * map_room);
  Buffer<T> dump(threads * s.c);
  parallel_tasks(s.n * cut.strips * cut.tiles, threads, [&](int64_t task, int thread) {
    const int64_t tile = task % cut.tiles, strip = task / cut.tiles % cut.strips;
    const int64_t n = task / (cut.tiles * cut.strips), plane = s.h * s.w * s.c;
    const Image<T> image{static_cast<const T*>(args.in.x) + n * plane, s.h, s.w, s.c, zeros.get()};
    const int64_t w0 = tile * cut.tile;
    const int64_t count = w0 + cut.tile < s.w ? cut.tile : s.w - w0;
    const int64_t end = (strip + 1) * cut.strip < s.h ? (strip + 1) * cut.strip : s.h;
    T* y = static_cast<T*>(args.y) + n * plane;
    T* residual = args.residual == nullptr ? nullptr : static_cast<T*>(args.residual) + n * plane;
    A* own_maps = maps.get() + thread * map_room;
    for (int64_t h = strip * cut.strip; h < end; ++h) {
      if (s.kernels > 0) {
        read_logits(static_cast<const T*>(args.in.logits), s.logits_stride, s.kernels, n, h, w0,
                    count, own_maps);
        apply_gate(s.gate, s.kernels, count, own_maps);
      }
      mix_row<kCount, kSize>(image, banks, own_maps, s.activation, y, residual, h, w0, count,
                             dump.get() + thread * s.c);
    }
  });
}

template <class T>
void forward_of(const SarConv2dForwardArgs& args) {
  const bool pairs = kPairsTaps<T> && args.size.kernel_size == 3 && args.size.kernels <= 3;
  const Folding folding(args.size, args.residual != nullptr || pairs);
  if (args.size.kernel_size == 3 && sizeof(T) <= 4) {
    switch (folding.mixed) {
      case 0:
        return forward<1, 3, T>(args, folding);
      case 1:
        return forward<2, 3, T>(args, folding);
      case 2:
        return forward<3, 3, T>(args, folding);
      case 3:
        return forward<4, 3, T>(args, folding);
      default:
        break;
    }
  }
  forward<kAnyBanks, kAnyBanks, T>(args, folding);
}

}  // namespace

void sar_conv2d_forward(const SarConv2dForwardArgs& args) {
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

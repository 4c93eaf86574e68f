// Forward of sar_mixer on the CPU: a row's logits, its maps, then the row itself, while the three
// rows of z are in cache. So z comes from memory once and y goes there once.
#include "sar_logits/cpu_logits_row.h"
#include "sar_mixer/sar_mixer.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

template <int kCount, int kSize, int kMaps, class T>
void forward(const SarMixerForwardArgs& args, const Folding& folding) {
  using A = typename Accumulate<T>::type;
  const SarConv2dSizes& s = args.size;
  Predictor<A> predictor(args.predictor, s.c, s.kernels);
  predictor.banks.template pair_taps<T>();
  Banks<A> banks(1 + folding.mixed, s.kernel_size, s.c);
  fill_banks(banks, args.kernels, s, folding);
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
    const Image<T> image{static_cast<const T*>(args.kernels.x) + n * plane, s.h, s.w, s.c,
                         zeros.get()};
    const int64_t w0 = tile * cut.tile;
    const int64_t count = w0 + cut.tile < s.w ? cut.tile : s.w - w0;
    const int64_t end = (strip + 1) * cut.strip < s.h ? (strip + 1) * cut.strip : s.h;
    T* y = static_cast<T*>(args.y) + n * plane;
    T* residual = args.residual == nullptr ? nullptr : static_cast<T*>(args.residual) + n * plane;
    A* own_maps = maps.get() + thread * map_room;
    for (int64_t h = strip * cut.strip; h < end; ++h) {
      logits_row<kMaps>(image, predictor, h, w0, count, own_maps);
      write_logits_row(own_maps, s.kernels, count,
                       static_cast<T*>(args.logits) + ((n * s.h + h) * s.w + w0) * s.kernels);
      apply_gate(s.gate, s.kernels, count, own_maps);
      mix_row<kCount, kSize>(image, banks, own_maps, Activation::kGelu, y, residual, h, w0, count,
                             dump.get() + thread * s.c);
    }
  });
}

template <class T>
void forward_of(const SarMixerForwardArgs& args) {
  const bool pairs = kPairsTaps<T> && args.size.kernel_size == 3 && args.size.kernels == 3;
  const Folding folding(args.size, args.residual != nullptr || pairs);
  if (args.size.kernels == 3 && args.size.kernel_size == 3 && sizeof(T) <= 4)
    return folding.folded ? forward<3, 3, 3, T>(args, folding) : forward<4, 3, 3, T>(args, folding);
  forward<kAnyBanks, kAnyBanks, -1, T>(args, folding);
}

}  // namespace

void sar_mixer_forward(const SarMixerForwardArgs& args) {
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

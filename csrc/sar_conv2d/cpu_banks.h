// What every CPU kernel of the family shares: the kernels packed as banks, and the gate.
//
// A "bank" is a depthwise kernel with its bias. Bank 0, the unit bank, has weight one at every
// pixel; bank m >= 1 has weight maps[m - 1]. Where the maps are a softmax, which sums to one,
// kernel K-1 is folded into the unit bank and the others become differences to it: exact algebra,
// one convolution fewer and the static one for free. Differences are formed in A (fp32), never in
// 16 bits. A wanted residual needs the static part alone, so then nothing is folded; nor is it
// where taps are rounded to be multiplied in pairs: what is rounded are the kernels as they are.
#pragma once

#include "common/cpu_buffer.h"
#include "common/cpu_math.h"
#include "common/cpu_threads.h"
#include "common/cpu_vector.h"
#include "sar_conv2d/cpu_tap_pairs.h"
#include "sar_conv2d/sar_conv2d.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

struct Folding {
  bool folded;
  int mixed;  // banks that have a map

  // One softmax map alone is kept (it is 1, or NaN where its logit is), so that NaN shows.
  Folding(const SarConv2dSizes& size, bool stays_apart)
      : folded(size.gate == Gate::kSoftmax && size.kernels > 1 && !stays_apart),
        mixed(folded ? size.kernels - 1 : size.kernels) {}
};

// One depthwise kernel as it comes: taps (C, k, k) and bias (C), or null.
template <class A>
struct Kernel {
  const A* taps = nullptr;
  const A* bias = nullptr;
};

// Banks of one call, channel block by channel block (kLanes<A> channels each):
//   taps   [block][row of the kernel][bank][column of the kernel][lane]
//   biases [block][bank][lane]
//   pairs  [block][bank][pair of taps][lane], once pair_taps made them of 3 x 3 taps
template <class A>
struct Banks {
  int count;  // 1 + mixed
  int kernel_size;
  int64_t channels, blocks;
  Buffer<A> taps, biases, pairs;

  Banks(int count_, int kernel_size_, int64_t channels_)
      : count(count_),
        kernel_size(kernel_size_),
        channels(channels_),
        blocks(ceil_div(channels_, kLanes<A>)),
        taps(blocks * tap_stride()),
        biases(blocks * count * kLanes<A>),
        pairs(blocks * count * kTapPairs * kLanes<A>) {}

  int64_t tap_stride() const { return int64_t{count} * kernel_size * kernel_size * kLanes<A>; }
  const A* taps_of(int64_t block) const { return taps.get() + block * tap_stride(); }
  const A* biases_of(int64_t block) const { return biases.get() + block * count * kLanes<A>; }

  const A* pairs_of(int64_t block) const {
    return pairs.get() + block * count * kTapPairs * kLanes<A>;
  }

  // What convolutions of T read beside the taps: to be called once all banks are set.
  template <class T>
  void pair_taps() {
#if defined(CLIPWEATHER_PAIRS)
    if constexpr (kPairsTaps<T>) {
      if (kernel_size != 3) return;
      for (int64_t block = 0; block < blocks; ++block)
        for (int bank = 0; bank < count; ++bank) {
          const A* of_bank[9];
          for (int t = 0; t < 9; ++t)
            of_bank[t] = taps_of(block) + ((t / 3 * count + bank) * 3 + t % 3) * kLanes<A>;
          TapPairs::pack(of_bank, pairs.get() + (block * count + bank) * kTapPairs * kLanes<A>);
        }
    }
#endif
  }

  // bank = kernel (C, k, k) + sign * base, and its bias (C) likewise; null pointers are zeros.
  void set(int bank, const Kernel<A>& kernel, A sign, const Kernel<A>& base) {
    const int area = kernel_size * kernel_size;
    A merged[kLanes<A> * kMaxKernelSize * kMaxKernelSize];
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * kLanes<A>;
      const int live =
          static_cast<int>(first + kLanes<A> <= channels ? kLanes<A> : channels - first);
      A* out = taps.get() + block * tap_stride() + bank * kernel_size * kLanes<A>;
      merge(merged, live, first, kernel.bias, sign, base.bias);
      store_lanes(biases.get() + (block * count + bank) * kLanes<A>, merged, live);
      merge(merged, live * area, first * area, kernel.taps, sign, base.taps);
      A column[kLanes<A>];
      for (int t = 0; t < area; ++t) {
        for (int lane = 0; lane < live; ++lane) column[lane] = merged[lane * area + t];
        const int row = t / kernel_size;
        store_lanes(out + (row * (count - 1) * kernel_size + t) * kLanes<A>, column, live);
      }
    }
  }

 private:
  static void merge(A* out, int64_t n, int64_t from, const A* plus, A sign, const A* base) {
    for (int64_t i = 0; i < n; ++i) out[i] = plus == nullptr ? A(0) : plus[from + i];
    if (base == nullptr) return;
    for (int64_t i = 0; i < n; ++i) out[i] += sign * base[from + i];
  }
  // Lanes past the last channel stay zero.
  static void store_lanes(A* out, const A* values, int live) {
    for (int lane = 0; lane < kLanes<A>; ++lane) out[lane] = lane < live ? values[lane] : A(0);
  }
};

template <class A>
void fill_banks(Banks<A>& banks, const SarConv2dInputs& in, const SarConv2dSizes& size,
                const Folding& folding) {
  const int64_t area = size.c * size.kernel_size * size.kernel_size;
  const A* weight = static_cast<const A*>(in.weight);
  const A* bias = static_cast<const A*>(in.bias);
  const auto mixed = [&](int n) {
    return Kernel<A>{weight + n * area, bias == nullptr ? nullptr : bias + n * size.c};
  };
  const Kernel<A> none{};
  const Kernel<A> last = folding.folded ? mixed(size.kernels - 1) : none;
  const Kernel<A> fixed{static_cast<const A*>(in.static_weight),
                        static_cast<const A*>(in.static_bias)};
  banks.set(0, fixed, A(1), last);
  for (int m = 0; m < folding.mixed; ++m) banks.set(m + 1, mixed(m), A(-1), last);
}

CLIPWEATHER_INLINE float load_one(const float* p) { return *p; }
CLIPWEATHER_INLINE double load_one(const double* p) { return *p; }
CLIPWEATHER_INLINE float load_one(const bfloat16_t* p) {
  const uint32_t bits = uint32_t{p->bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
CLIPWEATHER_INLINE float load_one(const float16_t* p) {
#if defined(__F16C__)
  return _cvtsh_ss(p->bits);
#else
  return load_first(p, 1)[0];
#endif
}

// Room for one row of maps, planar: [K][padded width]. Padding lets whole vectors run over the end.
template <class A>
inline int64_t padded(int64_t width) {
  return ceil_div(width, kLanes<A>) * kLanes<A>;
}

// Logits of `count` pixels from (n, k, h, w0) on, to planar[k * padded + i].
template <class T, class A>
void read_logits(const T* logits, const int64_t* stride, int kernels, int64_t n, int64_t h,
                 int64_t w0, int64_t count, A* planar) {
  const int64_t width = padded<A>(count);
  for (int k = 0; k < kernels; ++k) {
    const T* p = logits + n * stride[0] + k * stride[1] + h * stride[2] + w0 * stride[3];
    A* out = planar + k * width;
    for (int64_t i = 0; i < count; ++i) out[i] = load_one(p + i * stride[3]);
    for (int64_t i = count; i < width; ++i) out[i] = 0;
  }
}

// Turns planar logits into weight maps, in place.
template <class A>
void apply_gate(Gate gate, int kernels, int64_t count, A* planar) {
  const int64_t width = padded<A>(count);
  if (gate == Gate::kNone) return;
  for (int64_t i = 0; i < width; i += kLanes<A>) {
    if (gate == Gate::kSigmoid) {
      for (int k = 0; k < kernels; ++k) {
        A* p = planar + k * width + i;
        store(p, A(1) / (A(1) + exp(-load(p))));
      }
      continue;
    }
    Vector<A> highest = load(planar + i);
    for (int k = 1; k < kernels; ++k) highest = max(highest, load(planar + k * width + i));
    Vector<A> total{};
    for (int k = 0; k < kernels; ++k) {
      A* p = planar + k * width + i;
      const Vector<A> e = exp(load(p) - highest);
      store(p, e);
      total += e;
    }
    for (int k = 0; k < kernels; ++k) {
      A* p = planar + k * width + i;
      store(p, load(p) / total);
    }
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather

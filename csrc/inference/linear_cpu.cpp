// A task is a panel of the weight, or with a matrix unit several, for a block of rows, which stays
// in cache for all panels. The activation passes over the task's results while they are in the
// first cache; with a matrix unit over the sums.
#include <algorithm>

#include "common/cpu_exp2.h"
#include "common/cpu_math.h"
#include "inference/cpu_pairs.h"
#include "inference/cpu_panel_parts.h"
#include "inference/cpu_panels.h"
#include "inference/linear.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int64_t kBlockBytes = 256 << 10;  // of x
constexpr int64_t kLeastRows = 96;          // that the weight is read for

// v sigma(v) = v / (1 + 2^x), x = -v / ln 2. NaN stays NaN.
template <class Out>
CLIPWEATHER_INLINE Vector<float> swish(Vector<float> v) {
#if defined(__AVX512F__)
  // Where the result is rounded to bfloat16, an approximate reciprocal is enough.
  constexpr bool kRounded = sizeof(Out) == 2;
  const Vector<float> sum = exp2_by_parts<kRounded>(v * -1.44269504f) + 1.0f;
  if constexpr (kRounded)
    return v * (Vector<float>)_mm512_rcp14_ps((__m512)sum);
  else
    return v / sum;
#else
  return v / (exp(-v) + 1.0f);
#endif
}

template <class Out>
void activate(LinearActivation activation, Out* rows, int64_t count, int64_t columns, int64_t row) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t i = 0; i < columns; i += kLanes<float>) {
      const Vector<float> v = load(rows + r * row + i);
      store(rows + r * row + i,
            activation == LinearActivation::kGelu ? gelu<Out>(v) : swish<Out>(v));
    }
}

// Products by panels, of rows [begin, end) of x. E: what x and the weight are read as, float or
// pairs of bfloat16; Out: numbers of y.
template <class E, class Out>
struct Layer {
  const LinearArgs& args;
  int64_t k;

  PanelProduct<E, Out> product(int64_t begin, int64_t end, int64_t column) const {
    PanelProduct<E, Out> p{};
    p.a = static_cast<const E*>(args.x) + begin * k, p.a_row = k;
    p.panel = static_cast<const E*>(args.weight) + column * k;
    p.bias = args.bias == nullptr ? nullptr : args.bias + column;
    p.c = static_cast<Out*>(args.y) + begin * args.n + column, p.c_row = args.n;
    p.rows = end - begin, p.depth = k;
    p.columns = args.n - column < kPanel ? args.n - column : kPanel;
    return p;
  }

  // Calls body(begin, end, first, after): products of these rows with panels [first, after), at
  // most `most` of them and so few that every thread has its share.
  template <class Body>
  void in_parts(int64_t most, const Body& body) const {
    const int64_t fitting = kBlockBytes / (k * static_cast<int64_t>(sizeof(E)));
    const int64_t blocks = ceil_div(args.m, fitting < kLeastRows ? kLeastRows : fitting);
    const int64_t panels = ceil_div(args.n, kPanel);
    const int64_t share = args.threads > 1 ? blocks * panels / (2 * args.threads) : panels;
    const int64_t at_once = std::max<int64_t>(1, std::min({most, share, panels}));
    const int64_t parts = ceil_div(panels, at_once);
    parallel_tasks(blocks * parts, args.threads, [&](int64_t task, int) {
      const int64_t block = task / parts, first = task % parts * at_once;
      body(args.m * block / blocks, args.m * (block + 1) / blocks, first,
           std::min(first + at_once, panels));
    });
  }
};

template <class E, class Out>
void run(const Layer<E, Out>& layer) {
  const LinearActivation activation = layer.args.activation;
  layer.in_parts(1, [&](int64_t begin, int64_t end, int64_t panel, int64_t) {
    const PanelProduct<E, Out> p = layer.product(begin, end, panel * kPanel);
    multiply(p);
    if (activation != LinearActivation::kNone)
      activate(activation, p.c, p.rows, p.columns, p.c_row);
  });
}

#if defined(__AMX_BF16__)
template <class Out>
struct Gelu {
  CLIPWEATHER_INLINE Vector<float> operator()(Vector<float> v) const { return gelu<Out>(v); }
};
template <class Out>
struct Swish {
  CLIPWEATHER_INLINE Vector<float> operator()(Vector<float> v) const { return swish<Out>(v); }
};

// The sums pass through the activation while the unit multiplies.
template <class After>
void run_by_unit(const Layer<uint32_t, bfloat16_t>& layer) {
  layer.in_parts(layer.args.n, [&](int64_t begin, int64_t end, int64_t first, int64_t after) {
    MatrixProducts<bfloat16_t, After> products;
    for (int64_t panel = first; panel < after; ++panel)
      products.add(layer.product(begin, end, panel * kPanel));
  });
}

template <>
void run(const Layer<uint32_t, bfloat16_t>& layer) {
  switch (layer.args.activation) {
    case LinearActivation::kNone:
      return run_by_unit<AsTheyAre>(layer);
    case LinearActivation::kGelu:
      return run_by_unit<Gelu<bfloat16_t>>(layer);
    case LinearActivation::kSwish:
      return run_by_unit<Swish<bfloat16_t>>(layer);
  }
}

template <class After>
void run_in_parts(const Layer<float, float>& layer) {
  constexpr int64_t kDepth = PartProducts<After>::kDepth;
  const int64_t k = layer.k, most = PartProducts<After>::most_rows(std::min(k, kDepth));
  layer.in_parts(layer.args.n, [&](int64_t begin, int64_t end, int64_t first, int64_t after) {
    PartProducts<After> products;
    const float* const weight = static_cast<const float*>(layer.args.weight);
    for (int64_t from = begin; from < end; from += most)
      for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
        const int64_t to = std::min(from + most, end), depth = std::min(k - k0, kDepth);
        const auto panel_at = [&](int64_t panel) { return weight + (panel * k + k0) * kPanel; };
        products.take_rows(static_cast<const float*>(layer.args.x) + from * k + k0, k, to - from,
                           depth);
        products.take_panel(panel_at(first), depth);
        for (int64_t panel = first; panel < after; ++panel) {
          PanelProduct<float, float> p = layer.product(from, to, panel * kPanel);
          p.panel = panel_at(panel), p.depth = depth;
          products.add(p, k0 > 0, k0 + depth == k,
                       panel + 1 < after ? panel_at(panel + 1) : nullptr, depth);
        }
      }
  });
}
#endif

}  // namespace

void linear(const LinearArgs& args) {
  if (args.m == 0) return;
#if defined(__AMX_BF16__)
  if (args.type == DType::kFloat32 && panel_parts_pay(args.m, args.n, args.k)) {
    const Layer<float, float> layer{args, args.k};
    switch (args.activation) {
      case LinearActivation::kNone:
        return run_in_parts<AsTheyAre>(layer);
      case LinearActivation::kGelu:
        return run_in_parts<Gelu<float>>(layer);
      case LinearActivation::kSwish:
        return run_in_parts<Swish<float>>(layer);
    }
  }
#endif
  if (args.type == DType::kBFloat16)
    run(Layer<uint32_t, bfloat16_t>{args, args.k / 2});
  else
    run(Layer<float, float>{args, args.k});
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather

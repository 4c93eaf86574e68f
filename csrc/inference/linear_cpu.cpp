// A task is a panel of the weight for a block of rows, which stays in cache for all panels.
#include "inference/cpu_panels.h"
#include "inference/linear.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int64_t kBlockFloats = 1 << 16;  // of x: 256 KB
constexpr int64_t kLeastRows = 96;         // that the weight is read for

}  // namespace

void linear(const LinearArgs& args) {
  if (args.m == 0) return;
  const int64_t fitting = kBlockFloats / args.k;
  const int64_t blocks = ceil_div(args.m, fitting < kLeastRows ? kLeastRows : fitting);
  const int64_t panels = ceil_div(args.n, kPanel);
  parallel_tasks(blocks * panels, args.threads, [&](int64_t task, int) {
    const int64_t block = task / panels, column = task % panels * kPanel;
    const int64_t begin = args.m * block / blocks, end = args.m * (block + 1) / blocks;
    PanelProduct p{};
    p.a = args.x + begin * args.k, p.a_row = args.k;
    p.panel = args.weight + column * args.k;
    p.bias = args.bias == nullptr ? nullptr : args.bias + column;
    p.c = args.y + begin * args.n + column, p.c_row = args.n;
    p.rows = end - begin, p.k = args.k;
    p.columns = args.n - column < kPanel ? args.n - column : kPanel;
    multiply(p);
  });
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather

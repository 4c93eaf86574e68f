// A task owns a rectangle of the picture, takes its pixels and those around it apart, once, and
// multiplies 64 of them at a time by 16 outputs' weights. Bound by the matrix unit.
#include "common/cpu_buffer.h"
#include "common/cpu_math.h"
#include "common/cpu_threads.h"
#include "inference/cpu_part_pixels.h"
#include "inference/direct.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
#if defined(__AMX_BF16__)
namespace {

constexpr int64_t kSide = kMatrixRows;  // pixels and outputs of a register
constexpr int64_t kGroups = 4;          // of pixels, at once
constexpr int64_t kRoom = 512 << 10;    // bytes of pixels that a task takes apart, to stay in L2
constexpr int64_t kColumns = 64;        // of a task, at most: fewer rows leave L1
// Steps of 32 channels of one running sum. More of them lose more digits than a library's sums.
constexpr int64_t kSummed = 24;
constexpr int64_t kTaps = 9;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Of the coarser side.
struct Rectangle {
  int64_t n, top, bottom, left, right;
};

class Direct {
 public:
  explicit Direct(const DirectArgs& args)
      : args_(args),
        up_(args.kind == ConvolutionKind::kUp),
        scale_(args.kind == ConvolutionKind::kDown ? 2 : 1),
        h_(ceil_div(args.h, scale_)),
        w_(ceil_div(args.w, scale_)),
        pixel_(args.c),
        side_(up_ ? 2 : 3),
        pieces_(ceil_div(side_ * side_ * pixel_.steps(), kSummed)) {
    // Strips of about the same width, and as many rows as there is room for, but some for each
    // thread: no sum depends on it.
    const int64_t strips = ceil_div(w_, kColumns);
    columns_ = least(round_up(ceil_div(w_, strips), kSide), w_);
    pixels_ = scale_ * columns_ + 2;
    const int64_t fit = (kRoom / (pixels_ * pixel_.bytes()) - 2) / scale_;
    const int64_t threads = args.threads > 0 ? args.threads : 1;
    rows_ = least(fit, ceil_div(h_, threads));
    if (rows_ < 1) rows_ = 1;
  }

  void run() const {
    const int threads = args_.threads > 0 ? args_.threads : 1;
    // Registers may look beyond the last pixel.
    const int64_t taken =
        round_up(((scale_ * rows_ + 2) * pixels_ + 2 * kSide) * pixel_.bytes(), 64);
    const int64_t sums =
        2 * pieces_ * kGroups * kPartRegister * static_cast<int64_t>(sizeof(float));
    Buffer<char> room(threads * (taken + sums));
    const int64_t bands = ceil_div(h_, rows_), strips = ceil_div(w_, columns_);
    parallel_tasks(args_.n * bands * strips, threads, [&](int64_t task, int thread) {
      const int64_t strip = task % strips, band = task / strips % bands;
      const Rectangle r{task / strips / bands, band * rows_, least((band + 1) * rows_, h_),
                        strip * columns_, least((strip + 1) * columns_, w_)};
      char* const pixels = room.get() + thread * (taken + sums);
      Aside aside(*this, r, pixels, reinterpret_cast<float*>(pixels + taken));
      const MatrixUnit unit;
      const int64_t phases = up_ ? 4 : 1, blocks = ceil_div(args_.d, kSide);
      for (int64_t phase = 0; phase < phases; ++phase)
        for (int64_t block = 0; block < blocks; ++block) multiply(r, pixels, phase, block, aside);
      aside.finish();
    });
  }

 private:
  // 16 pixels' sums and where they go.
  struct Group {
    const float* sums;
    float* y;
    const float* added[2];  // where args.sums are for y, or null
    int64_t pixels;
  };

  // What vectors do while the unit multiplies, a little between its instructions: they take pixels
  // apart that are multiplied next, and sums that were multiplied last become y.
  class Aside {
   public:
    Aside(const Direct& self, const Rectangle& r, char* pixels, float* sums)
        : self_(self), r_(r), pixels_(pixels), sums_(sums) {
      const int64_t bytes = self.pixel_.bytes(), left = self.scale_ * r.left - 1;
      wide_ = self.scale_ * (r.right - r.left) + 2;
      first_ = left < 0 ? 1 : 0, past_ = least(wide_, self.args_.w - left);
      rows_ = self.scale_ * (r.bottom - r.top) + 2;
      x_ = first_, top_ = self.scale_ * r.top - 1, left_ = left;
      for (int64_t i = 0; i < rows_; ++i) {  // what is beyond the image is zero
        char* const row = pixels + i * self.pixels_ * bytes;
        if (top_ + i < 0 || top_ + i >= self.args_.h) {
          std::memset(row, 0, static_cast<size_t>(wide_ * bytes));
          continue;
        }
        if (first_ > 0) std::memset(row, 0, static_cast<size_t>(bytes));
        if (past_ < wide_)
          std::memset(row + past_ * bytes, 0, static_cast<size_t>((wide_ - past_) * bytes));
      }
    }

    // Rows of pixels that are to be there at the end of the next product.
    void want(int64_t rows) { wanted_ = least(rows, rows_); }
    // In so many calls all that is wanted is done.
    void share(int64_t calls) {
      const int64_t pixels = wanted_ > y_ ? (wanted_ - y_) * (past_ - first_) : 0;
      take_each_ = ceil_div(pixels, calls);
      leave_each_ = ceil_div(waiting_ * kSide, calls);
    }
    CLIPWEATHER_INLINE void operator()() {
      if (y_ < wanted_) take(take_each_);
      if (group_ < waiting_) leave(leave_each_);
    }
    // Whatever is left of it.
    void finish() {
      while (y_ < wanted_) take(past_ - first_);
      while (group_ < waiting_) leave(kSide);
      waiting_ = group_ = i_ = 0;
    }

    // Where the next product's sums go; then, that they are there.
    float* sums() const { return sums_ + turn_ * self_.pieces_ * kGroups * kPartRegister; }
    void leave_next(const Group* groups, int64_t count, int64_t block) {
      turn_ ^= 1;
      for (int64_t g = 0; g < count; ++g) groups_[g] = groups[g];
      waiting_ = count, group_ = i_ = 0;
      const int64_t c = block * kSide;
      live_ = first_lanes(self_.args_.d - c);
      const float* const bias = self_.args_.bias;
      bias_ = bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(live_, bias + c);
    }

   private:
    CLIPWEATHER_INLINE void take(int64_t count) {
      const DirectArgs& a = self_.args_;
      const int64_t bytes = self_.pixel_.bytes(), y = top_ + y_;
      if (y >= 0 && y < a.h) {
        const float* const from = a.x + ((r_.n * a.h + y) * a.w + left_) * a.c;
        char* const to = pixels_ + y_ * self_.pixels_ * bytes;
        const int64_t end = least(x_ + count, past_);
        for (; x_ < end; ++x_) self_.pixel_.store(from + x_ * a.c, to + x_ * bytes);
        if (x_ < past_) return;
      }
      x_ = first_, ++y_;
    }

    CLIPWEATHER_INLINE void leave(int64_t count) {
      const Group& g = groups_[group_];
      const int64_t end = least(i_ + count, g.pixels);
      const int64_t next = self_.up_ ? 2 * self_.args_.d : self_.args_.d;
      for (; i_ < end; ++i_) {
        __m512 v = _mm512_add_ps(_mm512_load_ps(g.sums + i_ * kSide), bias_);
        for (int64_t piece = 1; piece < self_.pieces_; ++piece)
          v = _mm512_add_ps(v,
                            _mm512_load_ps(g.sums + piece * kGroups * kPartRegister + i_ * kSide));
        if (self_.args_.relu) v = (__m512)max(Vector<float>{}, (Vector<float>)v);  // NaN: the same
        for (const float* added : g.added)
          if (added != nullptr)
            v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(live_, added + i_ * next));
        _mm512_mask_storeu_ps(g.y + i_ * next, live_, v);
      }
      if (i_ >= g.pixels) i_ = 0, ++group_;
    }

    const Direct& self_;
    const Rectangle r_;
    char* const pixels_;
    float* const sums_;
    int64_t wide_, first_, past_, rows_, top_, left_;  // pixels of a row, rows; the first one's
    int64_t y_ = 0, x_, wanted_ = 0, take_each_ = 0;   // the next pixel that is taken
    Group groups_[kGroups];
    int64_t waiting_ = 0, group_ = 0, i_ = 0, leave_each_ = 0;  // the next sum that leaves
    int64_t turn_ = 0;
    __mmask16 live_ = 0;
    __m512 bias_ = _mm512_setzero_ps();
  };

  // A rectangle's pixels by 16 outputs.
  void multiply(const Rectangle& r, const char* pixels, int64_t phase, int64_t block,
                Aside& aside) const {
    const int64_t p = phase / 2, q = phase % 2, bytes = pixel_.bytes();
    int64_t taps[kTaps];
    for (int64_t i = 0; i < side_ * side_; ++i)
      taps[i] = ((i / side_ + p) * pixels_ + i % side_ + q) * bytes;
    const int64_t each = side_ * side_ * pixel_.steps() * PartPixel::kWeights;
    const uint32_t* const weights = static_cast<const uint32_t*>(args_.weight) +
                                    (phase * ceil_div(args_.d, kSide) + block) * each;
    const int64_t across = ceil_div(r.right - r.left, kSide);
    const int64_t groups = (r.bottom - r.top) * across;
    const auto rows_until = [&](int64_t group) {  // of x, that groups before this one look at
      return scale_ * (ceil_div(group, across) - 1) + 3;
    };
    aside.want(rows_until(least(kGroups, groups)));
    aside.finish();
    for (int64_t first = 0; first < groups; first += kGroups) {
      const char* from[kGroups];
      Group leaving[kGroups];
      const int64_t count = least(kGroups, groups - first);
      float* const sums = aside.sums();
      for (int64_t g = 0; g < count; ++g) {
        const int64_t row = (first + g) / across, column = (first + g) % across * kSide;
        from[g] = pixels + scale_ * (row * pixels_ + column) * bytes;
        leaving[g] = group_of(r, row, column, p, q, block, sums + g * kPartRegister);
      }
      aside.want(rows_until(least(first + 2 * kGroups, groups)));
      aside.share(count * side_ * side_ * pixel_.steps());
      switch (count) {
        case 1:
          multiply_groups<1>(from, taps, weights, sums, aside);
          break;
        case 2:
          multiply_groups<2>(from, taps, weights, sums, aside);
          break;
        case 3:
          multiply_groups<3>(from, taps, weights, sums, aside);
          break;
        default:
          multiply_groups<4>(from, taps, weights, sums, aside);
      }
      aside.finish();
      aside.leave_next(leaving, count, block);
    }
  }

  Group group_of(const Rectangle& r, int64_t row, int64_t column, int64_t p, int64_t q,
                 int64_t block, const float* sums) const {
    const int64_t scale = up_ ? 2 : 1, y = r.top + row, x = r.left + column;
    const int64_t at =
        ((r.n * scale * h_ + scale * y + p) * scale * w_ + scale * x + q) * args_.d + block * kSide;
    Group group{sums, args_.y + at, {nullptr, nullptr}, least(kSide, r.right - x)};
    for (int i = 0; i < 2; ++i)
      if (args_.sums[i] != nullptr) group.added[i] = args_.sums[i] + at;
    return group;
  }

  template <int kCount>
  void multiply_groups(const char* const* from, const int64_t* taps, const uint32_t* weights,
                       float* sums, Aside& aside) const {
    PartSums<kCount> unit(from, scale_ * pixel_.bytes());
    unit.clear();
    int64_t steps = 0;
    const auto step = [&](bool last) {
      weights += PartPixel::kWeights;
      if (last || ++steps < kSummed) return;
      unit.store(sums), unit.clear();
      sums += kGroups * kPartRegister, steps = 0;
    };
    for (int64_t tap = 0; tap < side_ * side_; ++tap) {
      int64_t at = taps[tap];
      const bool last = tap + 1 == side_ * side_;
      for (int64_t i = 0; i < pixel_.wide; ++i, at += PartPixel::kWideBytes) {
        unit.add_wide(at, weights, aside);
        step(last && i + 1 == pixel_.steps());
      }
      if (pixel_.narrow) {
        unit.add_narrow(at, weights, aside);
        step(last);
      }
    }
    unit.store(sums);
  }

  const DirectArgs& args_;
  const bool up_;
  const int64_t scale_;  // from a pixel of the coarser side to the next of x
  const int64_t h_, w_;  // of the coarser side
  const PartPixel pixel_;
  const int64_t side_;               // of taps
  const int64_t pieces_;             // of a sum
  int64_t columns_, rows_, pixels_;  // of a task; of x in a row of it
};

}  // namespace

void direct(const DirectArgs& args) {
  if (args.n * args.h * args.w > 0) Direct(args).run();
}
#else
void direct(const DirectArgs&) {}  // the binding refuses it
#endif
}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather

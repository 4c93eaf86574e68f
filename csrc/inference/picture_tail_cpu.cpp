// picture_tail on the CPU. Rows flow through the layers: each computes a row as soon as the rows it
// needs are there, and keeps four of them, so that everything between the features and the picture
// stays in the second cache. A task owns a rectangle of the picture and computes the few rows and
// columns around it that the layers look at anew. Bound by the multipliers.
#include "common/cpu_buffer.h"
#include "common/cpu_threads.h"
#include "inference/cpu_matrix_tail.h"
#include "inference/cpu_planes.h"
#include "inference/picture_tail.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int64_t kBand = 128;               // rows of a task
constexpr int64_t kStrip = 288;              // columns of a task, at most
constexpr int64_t kRing = 4;                 // rows a layer keeps; three are looked at
constexpr int64_t kHalo = 8;                 // columns beside a strip: 3 are looked at
constexpr int64_t kSlack = 4 * 3 * kPixels;  // whole vectors may run past the end of a row

// A layer's weights as lanes, outputs in groups of kGroup.
struct Packed {
  float* weight;
  float* bias;
  int64_t planes;  // of the input

  const float* group(int64_t first, int64_t taps) const { return weight + first * planes * taps; }
};

template <class Channels>
int64_t planes_of(int64_t channels) {
  return ceil_div(channels, Channels::kChannels);
}

// to[(group, plane, tap, output of the group)] = lane of weight(channel, output, tap).
template <class Channels, class Weight>
void pack(Packed& to, const float* bias, int64_t in, int64_t out, int64_t taps, int64_t group,
          const Weight& weight) {
  to.planes = planes_of<Channels>(in);
  float* at = to.weight;
  for (int64_t first = 0; first < out; first += group)
    for (int64_t plane = 0; plane < to.planes; ++plane)
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t o = first; o < first + group; ++o) {
          float values[2] = {0, 0};
          for (int k = 0; k < Channels::kChannels; ++k) {
            const int64_t channel = plane * Channels::kChannels + k;
            if (o < out && channel < in) values[k] = weight(channel, o, tap);
          }
          *at++ = Channels::lane(values);
        }
  for (int64_t o = 0; o < padded_count(out, group); ++o)
    to.bias[o] = o < out && bias != nullptr ? bias[o] : 0.0f;
}

// Rows of a layer by their number modulo kRing.
struct Ring {
  float* data;
  int64_t planes, stride;  // of a plane of a row
  int64_t next;            // the first row that is not there yet

  float* row(int64_t y) const { return data + (y & (kRing - 1)) * planes * stride; }
};

// Weights of all layers, one copy for all tasks.
template <class Channels>
struct Layers {
  explicit Layers(const PictureTailArgs& a)
      : room(16 * 2 * a.c * padded_count(a.d, 8) +
             9 * ((a.d + 4) * padded_count(a.e, 8) + (a.e + 1) * padded_count(a.d, 8)) +
             9 * (a.d + 1) * 4 + 64 + 2 * padded_count(a.d, 8) + padded_count(a.e, 8)) {
    float* at = room.get();
    const auto take = [&](int64_t count) {
      float* taken = at;
      at += count;
      return taken;
    };
    const int64_t up_planes = planes_of<Channels>(a.c);
    const float* w = a.up.weight;
    for (int parity = 0; parity < 2; ++parity) {
      // Taps by row, then: even pixels from here and before, odd ones from after and here.
      const int ky[2][2] = {{1, 3}, {2, 0}};
      const int kx[4] = {1, 3, 0, 2};
      up[parity].weight = take(up_planes * 8 * padded_count(a.d, kUpOutputs));
      up[parity].bias = take(padded_count(a.d, kUpOutputs));
      pack<Channels>(up[parity], a.up.bias, a.c, a.d, 8, kUpOutputs,
                     [&](int64_t c, int64_t o, int64_t tap) {
                       return w[((c * a.d + o) * 4 + ky[parity][tap / 4]) * 4 + kx[tap % 4]];
                     });
    }
    const auto convolution = [&](Packed& to, const ConvParameters& layer, int64_t in, int64_t out,
                                 int64_t group) {
      to.weight = take(planes_of<Channels>(in) * 9 * padded_count(out, group));
      to.bias = take(padded_count(out, group));
      pack<Channels>(to, layer.bias, in, out, 9, group, [&](int64_t c, int64_t o, int64_t tap) {
        return layer.weight[(o * in + c) * 9 + tap];
      });
    };
    if (a.first.weight != nullptr) {
      convolution(first, a.first, a.d + 3, a.e, kOutputs);
      convolution(second, a.second, a.e, a.d, kOutputs);
    }
    const int64_t outputs = a.adds == Adds::kGated ? 4 : 3;
    convolution(last, a.last, a.d, outputs, outputs);
  }

  Buffer<float> room;
  Packed up[2], first, second, last;
};

// One task's rows.
template <class Channels, class T>
class Flow {
 public:
  Flow(const PictureTailArgs& args, const Layers<Channels>& layers, float* memory, int64_t n,
       int64_t top, int64_t bottom, int64_t left, int64_t right)
      : a_(args), layers_(layers), n_(n), left_(left), right_(right), base_(left - kHalo) {
    const bool branch = a_.first.weight != nullptr;
    reach_ = branch ? 3 : 1;
    place(input_, memory, planes_of<Channels>(a_.c), (right - left) / 2 + kHalo + kSlack);
    // Behind the features come the picture's three channels, for the branch.
    const int64_t d = padded_count(a_.d, kOutputs), picture = branch ? 4 : 0;
    const int64_t wide = right - left + 2 * kHalo + kSlack;
    place(features_, memory, planes_of<Channels>(d + picture), wide);
    if (branch) {
      place(hidden_, memory, planes_of<Channels>(padded_count(a_.e, kOutputs)), wide);
      place(detailed_, memory, planes_of<Channels>(d), wide);
    }
    detailed_.next = top - 1;
    hidden_.next = top - 2;
    features_.next = top - reach_;
    input_.next = (features_.next - 2) / 2 - 1;
    for (int64_t y = top; y < bottom; ++y) picture_row(y);
  }

  static int64_t memory(const PictureTailArgs& a) {
    const int64_t d = padded_count(a.d, kOutputs), e = padded_count(a.e, kOutputs);
    const int64_t wide = kStrip + 2 * kHalo + kSlack;
    return kRing * (a.c * (kStrip / 2 + kHalo + kSlack) + (2 * d + 4 + e) * wide) + 64;
  }

 private:
  static void place(Ring& ring, float*& memory, int64_t planes, int64_t stride) {
    ring.data = memory;
    ring.planes = planes;
    ring.stride = stride;
    std::memset(memory, 0, sizeof(float) * static_cast<size_t>(kRing * planes * stride));
    memory += kRing * planes * stride;
  }

  // Three rows about y, shifted so that pixel x of the picture is [x].
  void about(const Ring& ring, int64_t y, const float* (&rows)[3]) const {
    for (int i = 0; i < 3; ++i) rows[i] = ring.row(y - 1 + i) - base_;
  }

  // Columns that a layer computes whose results reach `more` columns beyond the strip.
  int64_t begin(int64_t more) const { return left_ - more > 0 ? left_ - more : 0; }
  int64_t end(int64_t more) const { return right_ + more < a_.w ? right_ + more : a_.w; }

  // Right of the picture there are zeros again.
  void clear_beyond(const Ring& ring, int64_t y, int64_t first, int64_t planes, int64_t width,
                    int64_t base) const {
    for (int64_t plane = first; plane < first + planes; ++plane) {
      float* row = ring.row(y) + plane * ring.stride;
      const int64_t at = width - base;
      if (at < ring.stride)
        std::memset(row + at, 0, sizeof(float) * static_cast<size_t>(ring.stride - at));
    }
  }
  void clear(const Ring& ring, int64_t y) const {
    std::memset(ring.row(y), 0, sizeof(float) * static_cast<size_t>(ring.planes * ring.stride));
  }

  int64_t input_base() const { return base_ / 2 - 1; }

  void input_row(int64_t y) {
    const int64_t wide = a_.w / 2, base = input_base();
    if (y < 0 || y >= a_.h / 2) return clear(input_, y);
    const int64_t from = base > 0 ? base : 0;
    const int64_t past = right_ / 2 + kHalo < wide ? right_ / 2 + kHalo : wide;
    const T* pixels = static_cast<const T*>(a_.x) + ((n_ * (a_.h / 2) + y) * wide) * a_.c;
    float* row = input_.row(y) - base;
    if constexpr (Channels::kChannels * sizeof(T) == 4) {  // lanes as they are, but transposed
      for (int64_t plane = 0; plane < input_.planes; ++plane) {
        const char* lane = reinterpret_cast<const char*>(pixels) + 4 * plane;
        const int64_t step = static_cast<int64_t>(sizeof(T)) * a_.c;
        float* to = row + plane * input_.stride;
        int64_t x = from;
#if defined(__AVX512F__)
        const __m512i places = _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
            _mm512_set1_epi32(static_cast<int>(step)));
        for (; x + kPixels <= past; x += kPixels)
          _mm512_storeu_ps(to + x, _mm512_i32gather_ps(places, lane + x * step, 1));
#endif
        for (; x < past; ++x) std::memcpy(to + x, lane + x * step, 4);
      }
    } else {
      for (int64_t x = from; x < past; ++x)
        for (int64_t plane = 0; plane < input_.planes; ++plane)
          row[plane * input_.stride + x] = one(pixels + x * a_.c + plane);
    }
    if (past == wide) clear_beyond(input_, y, 0, input_.planes, wide, base);
  }

  static float one(const float* p) { return *p; }
  static float one(const bfloat16_t* p) {
    const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }

  void features_row(int64_t y) {
    if (y < 0 || y >= a_.h) return clear(features_, y);
    // Output rows 2 m look at rows m and m - 1, rows 2 m + 1 at m and m + 1.
    const int64_t m = y >> 1, other = y & 1 ? m + 1 : m - 1;
    for (; input_.next <= (other > m ? other : m); ++input_.next) input_row(input_.next);
    const float* rows[2] = {input_.row(m) - input_base(), input_.row(other) - input_base()};
    const Packed& layer = layers_.up[y & 1];
    float* to = features_.row(y) - base_;
    const int64_t past = (end(reach_) + 1) / 2;
    for (int64_t o = 0; o < a_.d; o += kUpOutputs) {
      const auto finish = [&](int64_t n, const Lanes* even, const Lanes* odd) {
#pragma GCC unroll 4
        for (int i = 0; i < kUpOutputs; i += Channels::kChannels) {
          Lanes lanes[2];
          if constexpr (Channels::kChannels == 2) {
            lanes[0] = Channels::packed(even[i], even[i + 1]);
            lanes[1] = Channels::packed(odd[i], odd[i + 1]);
          } else {
            lanes[0] = even[i], lanes[1] = odd[i];
          }
          float* plane = to + (o + i) / Channels::kChannels * features_.stride;
          store_interleaved(plane + 2 * n, lanes[0], lanes[1]);
        }
      };
      const float* weights = layer.group(o, 8);
      const int64_t n =
          double_row<Channels, kUpVectors>(rows, input_.stride, layer.planes, weights,
                                           layer.bias + o, begin(reach_) / 2, past, finish);
      double_row<Channels, 1>(rows, input_.stride, layer.planes, weights, layer.bias + o, n, past,
                              finish);
    }
    if (end(reach_) == a_.w)
      clear_beyond(features_, y, 0, planes_of<Channels>(padded_count(a_.d, kUpOutputs)), a_.w,
                   base_);
    if (a_.first.weight != nullptr) show_picture(y);
  }

  // The picture's row into the three planes behind the features, as lanes.
  void show_picture(int64_t y) {
    const float* pixels = a_.picture + ((n_ * a_.h + y) * a_.w) * 3;
    float* to = features_.row(y) - base_ + planes_of<Channels>(a_.d) * features_.stride;
    for (int64_t x = begin(reach_); x < end(reach_); ++x) {
      const float* pixel = pixels + 3 * x;
      if constexpr (Channels::kChannels == 2) {
        const float last[2] = {pixel[2], 0.0f};
        to[x] = Channels::lane(pixel);
        to[features_.stride + x] = Channels::lane(last);
      } else {
        for (int k = 0; k < 3; ++k) to[k * features_.stride + x] = pixel[k];
      }
    }
  }

  void hidden_row(int64_t y) {
    if (y < 0 || y >= a_.h) return clear(hidden_, y);
    for (; features_.next <= y + 1; ++features_.next) features_row(features_.next);
    const float* rows[3];
    about(features_, y, rows);
    float* to = hidden_.row(y) - base_;
    for (int64_t o = 0; o < a_.e; o += kOutputs)
      convolve_row<Channels, kOutputs, kVectors>(
          rows, features_.stride, layers_.first.planes, layers_.first.group(o, 9),
          layers_.first.bias + o, begin(2), end(2), [&](int64_t x, Lanes* sums) {
#pragma GCC unroll 8
            for (int i = 0; i < kOutputs; ++i) sums[i] = max(Lanes{}, sums[i]);  // a NaN stays one
            store_planes(to + o / Channels::kChannels * hidden_.stride, hidden_.stride, x, sums);
          });
    if (end(2) == a_.w) clear_beyond(hidden_, y, 0, hidden_.planes, a_.w, base_);
  }

  void detailed_row(int64_t y) {
    if (y < 0 || y >= a_.h) return clear(detailed_, y);
    for (; hidden_.next <= y + 1; ++hidden_.next) hidden_row(hidden_.next);
    const float* rows[3];
    about(hidden_, y, rows);
    float* to = detailed_.row(y) - base_;
    const float* from = features_.row(y) - base_;
    for (int64_t o = 0; o < a_.d; o += kOutputs)
      convolve_row<Channels, kOutputs, kVectors>(
          rows, hidden_.stride, layers_.second.planes, layers_.second.group(o, 9),
          layers_.second.bias + o, begin(1), end(1), [&](int64_t x, Lanes* sums) {
#pragma GCC unroll 8
            for (int i = 0; i < kOutputs; ++i) {
              const int64_t plane = (o + i) / Channels::kChannels;
              if (o + i < a_.d)
                sums[i] += Channels::unpack(load(from + plane * features_.stride + x),
                                            i % Channels::kChannels);
            }
            store_planes(to + o / Channels::kChannels * detailed_.stride, detailed_.stride, x,
                         sums);
          });
    if (end(1) == a_.w) clear_beyond(detailed_, y, 0, detailed_.planes, a_.w, base_);
  }

  static CLIPWEATHER_INLINE void store_planes(float* to, int64_t stride, int64_t x,
                                              const Lanes* sums) {
#pragma GCC unroll 8
    for (int i = 0; i < kOutputs; i += Channels::kChannels) {
      if constexpr (Channels::kChannels == 2)
        store(to + i / 2 * stride + x, Channels::packed(sums[i], sums[i + 1]));
      else
        store(to + i * stride + x, sums[i]);
    }
  }

  void picture_row(int64_t y) {
    const bool branch = a_.first.weight != nullptr;
    Ring& source = branch ? detailed_ : features_;
    for (; source.next <= y + 1; ++source.next)
      branch ? detailed_row(source.next) : features_row(source.next);
    const float* rows[3];
    about(source, y, rows);
    const int64_t stride = source.stride;
    switch (a_.adds) {
      case Adds::kNothing:
        last_row<Adds::kNothing>(rows, stride, y);
        break;
      case Adds::kPicture:
        last_row<Adds::kPicture>(rows, stride, y);
        break;
      case Adds::kGated:
        last_row<Adds::kGated>(rows, stride, y);
    }
  }

  template <Adds kAdds>
  void last_row(const float* const (&rows)[3], int64_t stride, int64_t y) {
    constexpr int kOut = kAdds == Adds::kGated ? 4 : 3;
    constexpr int kWide = kOutputs == 8 ? (kOut == 4 ? 6 : 8) : (kOut == 4 ? 3 : 4);
    const float* pixels = a_.picture + ((n_ * a_.h + y) * a_.w) * 3;
    float* to = a_.y + ((n_ * a_.rows + y) * a_.columns) * 3;
    convolve_row<Channels, kOut, kWide>(
        rows, stride, layers_.last.planes, layers_.last.weight, layers_.last.bias, left_, right_,
        [&](int64_t x, const Lanes* sums) {
          float values[kOut][kPixels];
          for (int k = 0; k < kOut; ++k) store(values[k], tanh(sums[k]));
          const int64_t count = right_ - x < kPixels ? right_ - x : kPixels;
          for (int64_t i = 0; i < count; ++i)
            for (int k = 0; k < 3; ++k) {
              const int64_t at = 3 * (x + i) + k;
              float value = values[k][i];
              if constexpr (kAdds != Adds::kNothing) {
                float added = (pixels[at] + 1.0f) * 0.5f;
                if constexpr (kAdds == Adds::kGated) added *= 1.0f - values[3][i];
                value += added;
              }
              to[at] = value;
            }
        });
  }

  const PictureTailArgs& a_;
  const Layers<Channels>& layers_;
  int64_t n_, left_, right_, base_;
  int64_t reach_;  // columns and rows of features beyond the strip that the layers look at
  Ring input_, features_, hidden_, detailed_;
};

// flow(thread, n, top, bottom, left, right) for every task.
template <class Flow>
void in_tasks(const PictureTailArgs& args, int threads, const Flow& flow) {
  const int64_t bands = ceil_div(args.rows, kBand);
  const int64_t each = padded_count(ceil_div(args.columns, ceil_div(args.columns, kStrip)), 16);
  const int64_t strips = ceil_div(args.columns, each);
  parallel_tasks(args.n * bands * strips, threads, [&](int64_t task, int thread) {
    const int64_t strip = task % strips, band = task / strips % bands, n = task / strips / bands;
    const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
    flow(thread, n, band * kBand, least((band + 1) * kBand, args.rows), strip * each,
         least((strip + 1) * each, args.columns));
  });
}

template <class Channels, class T>
void run(const PictureTailArgs& args) {
  const Layers<Channels> layers(args);
  const int threads = args.threads > 0 ? args.threads : 1;
  const int64_t room = padded_count(Flow<Channels, T>::memory(args), 16);
  Buffer<float> memory(threads * room);
  in_tasks(args, threads,
           [&](int thread, int64_t n, int64_t top, int64_t bottom, int64_t left, int64_t right) {
             Flow<Channels, T>(args, layers, memory.get() + thread * room, n, top, bottom, left,
                               right);
           });
}

#if defined(__AMX_BF16__)
void run_by_matrix_unit(const PictureTailArgs& args) {
  const MatrixLayers layers(args);
  const int threads = args.threads > 0 ? args.threads : 1;
  const int64_t room = padded_count(MatrixFlow::memory(kStrip), 32);
  Buffer<bfloat16_t> memory(threads * room);
  in_tasks(args, threads,
           [&](int thread, int64_t n, int64_t top, int64_t bottom, int64_t left, int64_t right) {
             MatrixFlow(args, layers, memory.get() + thread * room, n, top, bottom, left, right);
           });
}
#endif

}  // namespace

void picture_tail(const PictureTailArgs& args) {
  if (args.n * args.rows * args.columns == 0) return;
  if (args.x_type != DType::kBFloat16) return run<OneChannel, float>(args);
#if defined(__AMX_BF16__)
  if (matrix_tail_suits(args)) return run_by_matrix_unit(args);
#endif
#if defined(CLIPWEATHER_PAIRS)
  if (args.c % 2 == 0 && args.d % 2 == 0) return run<TwoChannels, bfloat16_t>(args);
#endif
  run<OneChannel, bfloat16_t>(args);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather

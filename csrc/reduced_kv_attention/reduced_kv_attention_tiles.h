// What the CUDA kernels of attention share: a block's own rows meet rows that stream past, tile by
// tile, in shared memory; a thread holds a small rectangle of every product in registers. Included
// by .cu files only.
#pragma once

#include <type_traits>

#include "common/cuda_launch.h"
#include "common/cuda_vector.h"
#include "reduced_kv_attention/reduced_kv_attention.h"

namespace clipweather {

// Threads side by side along the streamed rows and along d; half a warp, so what 16 threads
// exchange about their rows needs a warp's barrier only.
inline constexpr int kAcross = 16;
inline constexpr double kLog2E = 1.4426950408889634;
inline constexpr float kLn2 = 0.6931471805599453f;

// kOwned rows of the block's own against kStreamed rows at a time, kRows of them a thread.
template <int kDim_, int kOwned_, int kStreamed_, int kRows_>
struct AttentionTile {
  static constexpr int kDim = kDim_;  // d, padded with zeros
  static constexpr int kOwned = kOwned_, kStreamed = kStreamed_, kRows = kRows_;
  static constexpr int kColumns = kStreamed / kAcross;
  static constexpr int kThreads = kOwned / kRows * kAcross;
  // Four more than a multiple of 16: sixteen-byte reads of neighbouring rows meet different banks.
  static constexpr int kStride = kDim + 4;
  static constexpr int kWeightStride = kStreamed + 4;
  static constexpr int kOwnedFloats = kOwned * kStride;
  static constexpr int kStreamedFloats = kStreamed * kStride;
  static constexpr int kWeightFloats = kOwned * kWeightStride;
  // Columns of d a thread sums, in groups of neighbours.
  static constexpr int kSums = kDim / kAcross;
  static constexpr int kVector = kSums % 4 == 0 ? 4 : kSums % 2 == 0 ? 2 : 1;
  // Of these, summed over a tile at a time.
  static constexpr int kGroup = kSums > 8 ? 8 : kSums;
  // Blocks a multiprocessor should hold: what bounds registers to 128 or 168.
  static constexpr int kBlocks = kThreads > 128 ? 2 : 3;
  static_assert(kSums % kGroup == 0 && kGroup % kVector == 0, "");
  static_assert(kDim % kAcross == 0 && kStreamed % kAcross == 0 && kOwned % kRows == 0, "");
  static_assert(kThreads % kWarpSize == 0, "whole warps");
};

// A thread's place in the block: its first row, and its place among the 16 across.
template <class Tile>
struct Seat {
  int across, row;
  __device__ __forceinline__ Seat()
      : across(static_cast<int>(threadIdx.x) % kAcross),
        row(static_cast<int>(threadIdx.x) / kAcross * Tile::kRows) {}
  // The streamed row of product j, and the column of d of sum c.
  __device__ __forceinline__ int streamed(int j) const { return across + kAcross * j; }
  __device__ __forceinline__ int column(int c) const {
    return c / Tile::kVector * Tile::kVector * kAcross + across * Tile::kVector + c % Tile::kVector;
  }
};

// Rows of one head of one tensor.
template <class T>
struct Rows {
  T* first;
  int64_t stride;
  __device__ __forceinline__ Rows(T* base, const int64_t (&strides)[3], int64_t n, int64_t h)
      : first(base + n * strides[0] + h * strides[2]), stride(strides[1]) {}
  // Of a dense (N, length, heads, d).
  __device__ __forceinline__ Rows(T* base, int64_t length, const AttentionSizes& size, int64_t n,
                                  int64_t h)
      : first(base + (n * length * size.heads + h) * size.d), stride(size.heads * size.d) {}
  __device__ __forceinline__ T* at(int64_t row) const { return first + row * stride; }
};

// The first `count` of kCount rows from `row` on into shared memory, as floats; zeros elsewhere.
// `wide`: every row starts where four elements may be read at once, and d is a multiple of four.
template <class Tile, int kCount, class T>
__device__ __forceinline__ void stage(const Rows<const T>& rows, int64_t row, int64_t count,
                                      int64_t d, bool wide, float* to) {
  const T* const from = rows.at(row);
  if (wide) {
    constexpr int kGroups = Tile::kDim / 4;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < kCount * kGroups; i += Tile::kThreads) {
      const int r = i / kGroups, column = i % kGroups * 4;
      store<4>(to + r * Tile::kStride + column,
               load<4>(from + r * rows.stride + column, r < count && column < d));
    }
  } else {
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < kCount * Tile::kDim; i += Tile::kThreads) {
      const int r = i / Tile::kDim, column = i % Tile::kDim;
      to[r * Tile::kStride + column] =
          load<1>(from + r * rows.stride + column, r < count && column < d).v[0];
    }
  }
}

// products[i][j] = own row i . streamed row j. `own` begins at the thread's first row.
template <class Tile>
__device__ __forceinline__ void multiply(const float* own, const float* streamed,
                                         const Seat<Tile>& seat,
                                         float (&products)[Tile::kRows][Tile::kColumns]) {
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) products[i][j] = 0.0f;
#pragma unroll 1  // a step is 8 loads and 64 FMA; more steps at once spill
  for (int k = 0; k < Tile::kDim; k += 4) {
    Lanes<4> a[Tile::kRows], b[Tile::kColumns];
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) a[i] = load_shared<4>(own + i * Tile::kStride + k);
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j)
      b[j] = load_shared<4>(streamed + seat.streamed(j) * Tile::kStride + k);
#pragma unroll
    for (int v = 0; v < 4; ++v)
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kColumns; ++j)
          products[i][j] = fmaf(a[i].v[v], b[j].v[v], products[i][j]);
  }
}

// sums[i][c] += sum over streamed rows of weight[i][row] * streamed[row][column(c)]. `weights`
// begins at the thread's first row; rows from `count` on weigh nothing. A tile is summed apart: one
// chain over thousands of rows would lose bits that PyTorch's blocked sums keep.
template <class Tile>
__device__ __forceinline__ void add_weighted(const float* weights, const float* streamed, int count,
                                             const Seat<Tile>& seat,
                                             float (&sums)[Tile::kRows][Tile::kSums]) {
  constexpr int V = Tile::kVector, kGroup = Tile::kGroup;
#pragma unroll
  for (int first = 0; first < Tile::kSums; first += kGroup) {
    float part[Tile::kRows][kGroup] = {};
#pragma unroll 1
    for (int row = 0; row < count; row += 4) {
      Lanes<4> w[Tile::kRows];
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i)
        w[i] = load_shared<4>(weights + i * Tile::kWeightStride + row);
#pragma unroll
      for (int step = 0; step < 4; ++step)
#pragma unroll
        for (int c = 0; c < kGroup; c += V) {
          const Lanes<V> b =
              load_shared<V>(streamed + (row + step) * Tile::kStride + seat.column(first + c));
#pragma unroll
          for (int v = 0; v < V; ++v)
#pragma unroll
            for (int i = 0; i < Tile::kRows; ++i)
              part[i][c + v] = fmaf(w[i].v[step], b.v[v], part[i][c + v]);
        }
    }
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
      for (int c = 0; c < kGroup; ++c) sums[i][first + c] += part[i][c];
  }
}

// One of the thread's rows of sums, times `factor`, to where the row begins in memory.
template <class Tile, class T>
__device__ __forceinline__ void store_row(const float (&sums)[Tile::kSums], float factor, int64_t d,
                                          bool wide, const Seat<Tile>& seat, T* to) {
  constexpr int V = Tile::kVector;
#pragma unroll
  for (int c = 0; c < Tile::kSums; c += V) {
    const int column = seat.column(c);
    Lanes<V> values;
#pragma unroll
    for (int v = 0; v < V; ++v) values.v[v] = sums[c + v] * factor;
    if (wide) {
      if (column < d) store<V>(to + column, values);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (column + v < d) store_one(to + column + v, values.v[v]);
    }
  }
}

// Over the 16 threads of a row; every one gets the result, formed in the same order. A NaN does not
// win the maximum.
__device__ __forceinline__ float row_maximum(float value) {
#pragma unroll
  for (int flip = kAcross / 2; flip > 0; flip /= 2)
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, flip));
  return value;
}
__device__ __forceinline__ float row_sum(float value) {
#pragma unroll
  for (int flip = kAcross / 2; flip > 0; flip /= 2)
    value += __shfl_xor_sync(kWholeWarp, value, flip);
  return value;
}

// A row without a finite score has no maximum to subtract: its weights are 0, not NaN.
__device__ __forceinline__ float finite_shift(float maximum) {
  return maximum == -INFINITY ? 0.0f : maximum;
}

// Whether four elements at a time may be read from every row of this tensor.
inline bool is_wide(const void* base, const int64_t (&stride)[3], const AttentionSizes& size,
                    int64_t length) {
  const std::size_t width = size.dtype == DType::kFloat32 ? 16 : 8;
  const int64_t axes[3] = {size.n, length, size.heads};
  bool wide = size.d % 4 == 0 && reinterpret_cast<std::uintptr_t>(base) % width == 0;
  for (int axis = 0; axis < 3; ++axis) wide = wide && (axes[axis] == 1 || stride[axis] % 4 == 0);
  return wide;
}
inline bool is_wide(const void* base, const AttentionSizes& size) {
  return is_wide(base, {0, 0, 0}, size, 1);
}

// Calls body(std::integral_constant) with the narrowest padded width that holds d. Kernels for the
// networks' 80 and 160 as well would save them three eighths of the products and cost every
// installation another minute of compiling.
template <class Body>
void for_padded_dim(int64_t d, const Body& body) {
  if (d <= 64) return body(std::integral_constant<int, 64>{});
  if (d <= 128) return body(std::integral_constant<int, 128>{});
  return body(std::integral_constant<int, kMaxHeadDim>{});
}

// A kernel may use more than 48 KiB of shared memory only if it says so. Not a stream's work, so it
// may happen while a CUDA graph is captured.
template <int kFloats, class Kernel>
void allow_shared(Kernel kernel, const char* name) {
  constexpr int kBytes = kFloats * static_cast<int>(sizeof(float));
  static_assert(kBytes <= 99 * 1024, "what a block of sm_86, sm_89 and sm_120 can have");
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
             name);
}

}  // namespace clipweather

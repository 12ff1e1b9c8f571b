// Which thread takes which packs of which row, and the sum of each row.
#pragma once

#include "access.h"
#include "sums.h"

namespace vk::cuda {

// Groups of threads, `lanes` quads wide, take a row or one of the equal parts of a long row: each thread every
// (lanes / kQuads)-th pack. Where that makes too few blocks, each thread takes one pack (`spread`), and a second pass
// adds up what the quads came to as the group would have. So a row's sum depends on the length of the row alone:
// neither the other rows, nor the type, nor the device change it.
struct RowGrid {
  static constexpr int64_t kPart = 2048;       // quads of a part; a row of up to twice as many stays whole
  static constexpr int64_t kEnough = 2 * 132;  // blocks, two for each multiprocessor of an H100

  int64_t rows, quads;
  int64_t parts = 1;
  int lanes = 1;
  bool spread = false;
  Divisor packs;  // of a row

  RowGrid(int64_t rows, int64_t cols) : rows(rows), quads((cols + 3) / 4) {
    while (lanes < 32 && lanes < quads) lanes *= 2;
    if (quads > 8 * lanes) lanes = kBlockQuads;
    if (quads > 2 * kPart) parts = (quads + kPart - 1) / kPart;
  }

  int64_t tasks() const { return rows * parts; }
  int64_t packs_of_a_lane() const { return (std::min(quads, parts > 1 ? kPart : quads) + lanes - 1) / lanes; }
  int64_t padded_quads(int of_a_pack) const { return int64_t(packs.number) * of_a_pack; }
};

// Threads of a block: fewer where there would else be too few blocks for `threads` threads in all.
inline int block_threads(int64_t threads, int least, int most) {
  int block = most;
  while (block > std::max(32, least) && (threads + block - 1) / block < RowGrid::kEnough) block /= 2;
  return block;
}

// Adds the sum of each quad of a pack to that of its thread's quads.
template <class T, int kQuads, int kWidth>
__device__ __forceinline__ void add_quads(const T (&values)[kWidth], T (&sums)[kQuads]) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    sums[q] += ((values[4 * q] + values[4 * q + 1]) + values[4 * q + 2]) + values[4 * q + 3];
  }
}

// body(packs, sums) adds to sums[q] what the packs' q-th quads add to the row's sum, one quad after the other; sums is
// (rows, parts), or (rows, quads of whole packs) of a spread grid, null where no sum is wanted.
template <class Body>
__global__ void __launch_bounds__(Body::kThreads, 65536 / (Body::kThreads * Body::kRegisters))
    rows_kernel(const __grid_constant__ Body body, const __grid_constant__ RowGrid grid, int threads,
                typename Body::T* sums) {
  constexpr int kQuads = Body::kQuads;
  const int lane = int(threadIdx.x) & (threads - 1);
  const int64_t task = int64_t(blockIdx.x) * (int(blockDim.x) / threads) + int(threadIdx.x) / threads;
  Packs packs;
  if (grid.spread) {
    int64_t pack;
    const int64_t row = grid.packs.quotient(task, pack);
    packs = {row, 0, int(pack), int(pack) + 1, 1};
  } else {
    const int64_t row = grid.parts == 1 ? task : task / grid.parts;
    const int64_t first = (task - row * grid.parts) * RowGrid::kPart, left = grid.quads - first;
    const int quads = int(grid.parts == 1 || left < RowGrid::kPart ? left : RowGrid::kPart);
    packs = {row, first / kQuads, lane, (quads + kQuads - 1) / kQuads, threads};
  }
  typename Body::T sum[kQuads] = {};
  if (packs.row < grid.rows) body(packs, sum);
  if constexpr (Body::kSums) {
    if (!sums) return;
    if (grid.spread) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        if (packs.row < grid.rows) sums[task * kQuads + q] = sum[q];
      }
      return;
    }
    typename Body::T total = 0;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) total += group_sum<Body::kThreads>(sum[q], threads);
    if (lane == 0 && packs.row < grid.rows) sums[task] = total;
  }
}

// The second pass of a spread grid.
template <class Number>
struct QuadSums {
  using T = Number;
  static constexpr int kQuads = 1, kThreads = kBlockQuads, kRegisters = 64;
  static constexpr bool kSums = true;
  const T* sums;
  int64_t padded_quads;

  __device__ __forceinline__ void operator()(const Packs& packs, T (&sum)[1]) const {
    const T* row = sums + packs.row * padded_quads + packs.first;
    for (int quad = packs.begin; quad < packs.end; quad += packs.step) sum[0] += row[quad];
  }
};

// Runs the body over all rows and puts their sums into `sums`, (rows), if it is given.
template <class Body>
void launch_groups(const char* op, const Body& body, const RowGrid& grid, typename Body::T* sums, const Queue& queue) {
  using T = typename Body::T;
  const int threads = std::max(1, grid.lanes / Body::kQuads);
  const int block = block_threads(grid.tasks() * threads, threads, Body::kThreads), groups = block / threads;
  T* partial = sums;
  if (sums && grid.parts > 1) partial = static_cast<T*>(queue.scratch(grid.tasks() * sizeof(T)));
  launch(op, rows_kernel<Body>, (grid.tasks() + groups - 1) / groups, block, queue, body, grid, threads, partial);
  if (partial != sums) sum_axis<T>(op, partial, grid.rows, grid.parts, 1, sums, type_of<T>, queue);
}

// Likewise, spread where that fills a GPU better: without sums at no cost, with them by a second launch, which only few
// and long rows are worth.
template <class Body>
void launch_rows(const char* op, const Body& body, RowGrid grid, typename Body::T* sums, const Queue& queue) {
  using T = typename Body::T;
  const bool summed = Body::kSums && sums;
  const int64_t threads = grid.tasks() * std::max(1, grid.lanes / Body::kQuads);
  const int64_t enough = summed ? RowGrid::kEnough / 2 : RowGrid::kEnough, worth = summed ? 8 : 2;
  if (threads >= enough * Body::kThreads || grid.packs_of_a_lane() < worth) {
    return launch_groups(op, body, grid, sums, queue);
  }
  grid.spread = true;
  grid.packs = Divisor((grid.quads + Body::kQuads - 1) / Body::kQuads);
  const int64_t packs = grid.rows * int64_t(grid.packs.number);
  const int block = block_threads(packs, 1, Body::kThreads);
  T* partial = nullptr;
  if (summed) partial = static_cast<T*>(queue.scratch(packs * Body::kQuads * sizeof(T)));
  launch(op, rows_kernel<Body>, (packs + block - 1) / block, block, queue, body, grid, 1, partial);
  if (!summed) return;
  grid.spread = false;
  launch_groups(op, QuadSums<T>{partial, grid.padded_quads(Body::kQuads)}, grid, sums, queue);
}

}  // namespace vk::cuda

// Which thread takes which packs of which row, and the sum of each row.
#pragma once

#include "access.h"
#include "sums.h"

namespace vk::cuda {

// A group of threads, `lanes` quads wide, takes a row, or one of the equal parts of a long row. Each thread takes every
// (lanes / kQuads)-th pack. If that makes too few blocks, each thread takes one pack (`pack_per_thread`), and a second
// pass adds the sums of the quads in the order of the group. So a row's sum depends on the length of the row alone:
// neither other rows, nor the type, nor the device change it.
struct RowGrid {
  static constexpr int64_t kPart = 2048;       // quads of a part; a row of up to twice as many is not split
  static constexpr int64_t kEnough = 2 * 132;  // blocks: two for each multiprocessor of an H100

  int64_t rows, quads;
  int64_t parts = 1;
  int lanes = 1;
  bool pack_per_thread = false;
  Divisor packs_per_row;

  RowGrid(int64_t rows, int64_t cols) : rows(rows), quads((cols + 3) / 4) {
    while (lanes < 32 && lanes < quads) lanes *= 2;
    if (quads > 8 * lanes) lanes = kBlockQuads;
    if (quads > 2 * kPart) parts = (quads + kPart - 1) / kPart;
  }

  int64_t tasks() const { return rows * parts; }
  int64_t packs_per_lane() const { return (std::min(quads, parts > 1 ? kPart : quads) + lanes - 1) / lanes; }
  int64_t padded_quads(int quads_per_pack) const { return int64_t(packs_per_row.number) * quads_per_pack; }
};

// Threads of a block: fewer than `most` if there would be too few blocks otherwise, for `threads` threads in all.
inline int block_threads(int64_t threads, int least, int most) {
  int block = most;
  while (block > std::max(32, least) && (threads + block - 1) / block < RowGrid::kEnough) block /= 2;
  return block;
}

// Adds the sum of each quad of a pack to the thread's sum for this quad.
template <class T, int kQuads, int kWidth>
__device__ __forceinline__ void add_quads(const T (&values)[kWidth], T (&sums)[kQuads]) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    sums[q] += ((values[4 * q] + values[4 * q + 1]) + values[4 * q + 2]) + values[4 * q + 3];
  }
}

// body(packs, sums) adds the sums of the packs' q-th quads to sums[q], one quad after the other. `sums` is
// (rows, parts), or (rows, quads of whole packs) with one pack per thread, or null if no sum is wanted.
template <class Body>
__global__ void __launch_bounds__(Body::kThreads, 65536 / (Body::kThreads * Body::kRegisters))
    rows_kernel(const __grid_constant__ Body body, const __grid_constant__ RowGrid grid, int threads,
                typename Body::T* sums) {
  constexpr int kQuads = Body::kQuads;
  const int lane = int(threadIdx.x) & (threads - 1);
  const int64_t task = int64_t(blockIdx.x) * (int(blockDim.x) / threads) + int(threadIdx.x) / threads;
  Packs packs;
  if (grid.pack_per_thread) {
    int64_t pack;
    const int64_t row = grid.packs_per_row.quotient(task, pack);
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
    if (grid.pack_per_thread) {
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

// The second pass of a grid with one pack per thread.
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

// Runs the body over all rows, and puts the sum of each row into `sums`, (rows), unless it is null.
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

// As launch_groups(), but with one pack per thread if that fills a GPU better. Without sums this costs nothing. With
// sums it costs a second launch, which pays only for few and long rows.
template <class Body>
void launch_rows(const char* op, const Body& body, RowGrid grid, typename Body::T* sums, const Queue& queue) {
  using T = typename Body::T;
  const bool summed = Body::kSums && sums;
  const int64_t threads = grid.tasks() * std::max(1, grid.lanes / Body::kQuads);
  const int64_t enough = summed ? RowGrid::kEnough / 2 : RowGrid::kEnough, worth = summed ? 8 : 2;
  if (threads >= enough * Body::kThreads || grid.packs_per_lane() < worth) {
    return launch_groups(op, body, grid, sums, queue);
  }
  grid.pack_per_thread = true;
  grid.packs_per_row = Divisor((grid.quads + Body::kQuads - 1) / Body::kQuads);
  const int64_t all_packs = grid.rows * int64_t(grid.packs_per_row.number);
  const int block = block_threads(all_packs, 1, Body::kThreads);
  T* partial = nullptr;
  if (summed) partial = static_cast<T*>(queue.scratch(all_packs * Body::kQuads * sizeof(T)));
  launch(op, rows_kernel<Body>, (all_packs + block - 1) / block, block, queue, body, grid, 1, partial);
  if (!summed) return;
  grid.pack_per_thread = false;
  launch_groups(op, QuadSums<T>{partial, grid.padded_quads(Body::kQuads)}, grid, sums, queue);
}

}  // namespace vk::cuda

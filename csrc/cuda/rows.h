// Which thread takes which packs of which row, and the sum of each row.
#pragma once

#include "access.h"
#include "sums.h"

namespace vk::cuda {

// Groups of threads, `lanes` quads wide, take a row or one of the equal parts of a long row: each thread every
// (lanes / kQuads)-th pack. All of it depends on the length of a row alone: neither the other rows, nor the type, nor
// the device change a row's sum.
struct RowGrid {
  static constexpr int64_t kPart = 2048;  // quads of a part; a row of up to twice as many stays whole

  int64_t rows, quads;
  int64_t parts = 1;
  int lanes = 1;

  RowGrid(int64_t rows, int64_t cols) : rows(rows), quads((cols + 3) / 4) {
    while (lanes < 32 && lanes < quads) lanes *= 2;
    if (quads > 8 * lanes) lanes = kBlockQuads;
    if (quads > 2 * kPart) parts = (quads + kPart - 1) / kPart;
  }
};

// body(packs, sums) adds to sums[q] what the packs' q-th quads add to the row's sum; sums is (rows, parts), null where
// no sum is wanted.
template <class Body>
__global__ void __launch_bounds__(Body::kThreads, 65536 / (Body::kThreads * Body::kRegisters))
    rows_kernel(const __grid_constant__ Body body, const __grid_constant__ RowGrid grid, int threads,
                typename Body::T* sums) {
  constexpr int kQuads = Body::kQuads;
  const int lane = int(threadIdx.x) & (threads - 1);
  const int64_t task = int64_t(blockIdx.x) * (Body::kThreads / threads) + int(threadIdx.x) / threads;
  const int64_t row = grid.parts == 1 ? task : task / grid.parts;
  const int64_t first = (task - row * grid.parts) * RowGrid::kPart, left = grid.quads - first;
  const int quads = int(grid.parts == 1 || left < RowGrid::kPart ? left : RowGrid::kPart);
  typename Body::T sum[kQuads] = {};
  if (row < grid.rows) body(Packs{row, first / kQuads, lane, (quads + kQuads - 1) / kQuads, threads}, sum);
  if constexpr (Body::kSums) {
    typename Body::T total = 0;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) total += group_sum<Body::kThreads>(sum[q], threads);
    if (lane == 0 && row < grid.rows && sums) sums[task] = total;
  }
}

// Runs the body over all rows and puts their sums into `sums`, (rows), if it is given.
template <class Body>
void launch_rows(const char* op, const Body& body, const RowGrid& grid, typename Body::T* sums, const Queue& queue) {
  using T = typename Body::T;
  const int threads = std::max(1, grid.lanes / Body::kQuads), groups = Body::kThreads / threads;
  T* partial = sums;
  if (sums && grid.parts > 1) partial = static_cast<T*>(queue.scratch(grid.rows * grid.parts * sizeof(T)));
  launch(op, rows_kernel<Body>, (grid.rows * grid.parts + groups - 1) / groups, Body::kThreads, queue, body, grid,
         threads, partial);
  if (partial != sums) sum_axis<T>(op, partial, grid.rows, grid.parts, 1, sums, type_of<T>, queue);
}

}  // namespace vk::cuda

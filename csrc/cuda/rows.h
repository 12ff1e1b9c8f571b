// Which thread takes which packs of which row, and the sum of each row.
#pragma once

#include "device.h"
#include "sums.h"

namespace vk::cuda {

// Groups of `lanes` threads take a row, or one of the equal parts of a long row, each thread every lanes-th pack. All of
// it depends on the length of a row alone: neither the other rows nor the device can change a row's sum.
struct RowGrid {
  static constexpr int64_t kPart = 2048;  // packs of a part; a row of up to twice as many is not divided

  int64_t rows, packs;
  int64_t parts = 1;
  int lanes = 1;

  RowGrid(int64_t rows, int64_t cols, int width) : rows(rows), packs((cols + width - 1) / width) {
    while (lanes < 32 && lanes < packs) lanes *= 2;
    if (packs > 8 * lanes) lanes = kThreads;
    if (packs > 2 * kPart) parts = (packs + kPart - 1) / kPart;
  }
  int64_t blocks() const { return (rows * parts + kThreads / lanes - 1) / (kThreads / lanes); }
};

// body(row, first, end, step) takes the packs first, first + step, … below end and returns the sum of what it adds to
// the row's; sums is (rows, parts), null where rows have no sum.
template <class Body>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(const __grid_constant__ Body body, const __grid_constant__ RowGrid grid, typename Body::T* sums) {
  const int lane = int(threadIdx.x) & (grid.lanes - 1);
  const int64_t task = int64_t(blockIdx.x) * (kThreads / grid.lanes) + int(threadIdx.x) / grid.lanes;
  const int64_t row = grid.parts == 1 ? task : task / grid.parts;
  const int64_t first = (task - row * grid.parts) * RowGrid::kPart;
  const int64_t end = grid.parts == 1 || grid.packs < first + RowGrid::kPart ? grid.packs : first + RowGrid::kPart;
  typename Body::T sum = 0;
  if (row < grid.rows) sum = body(row, first + lane, end, grid.lanes);
  if constexpr (Body::kSums) {
    sum = group_sum(sum, grid.lanes);
    if (lane == 0 && row < grid.rows) sums[task] = sum;
  }
}

// Runs the body over all rows and puts their sums into `sums`, (rows).
template <class Body>
void launch_rows(const char* op, const Body& body, const RowGrid& grid, typename Body::T* sums, const Queue& queue) {
  using T = typename Body::T;
  T* partial = sums;
  if (Body::kSums && grid.parts > 1) partial = static_cast<T*>(queue.scratch(grid.rows * grid.parts * sizeof(T)));
  launch(op, rows_kernel<Body>, grid.blocks(), queue, body, grid, partial);
  if (partial == sums) return;
  View out;
  out.data = sums;
  out.type = type_of<T>;
  out.stride[3] = 1;
  out.col_inner = grid.rows;
  sum_slots(op, Slots<T>{partial, grid.rows, grid.parts, grid.parts, 0, 1, grid.parts, 1}, out, queue);
}

}  // namespace vk::cuda

// Sums down the columns, for the gradients of parameters that all rows share.
#pragma once

#include "access.h"
#include "sums.h"

namespace vk::cuda {

// A block takes a tile: `lanes` quads side by side, above() threads above one another, and `depth` rows for each
// thread. This depends on the sizes alone.
struct ColumnGrid {
  int64_t rows, cols;
  int64_t depth, tiles, chunks;  // tiles across the columns, chunks down the rows
  int lanes = 2;

  ColumnGrid(int64_t rows, int64_t cols) : rows(rows), cols(cols) {
    const int64_t quads = (cols + 3) / 4;
    while (lanes < 32 && lanes < quads) lanes *= 2;
    // If there are few rows, a thread takes few, so that there are more blocks.
    depth = std::clamp<int64_t>(rows * quads >> 18, 1, 8);
    tiles = (quads + lanes - 1) / lanes;
    chunks = (rows + depth * above() - 1) / (depth * above());
  }
  __host__ __device__ int above() const { return kBlockQuads / lanes; }  // threads above one another
};

// Puts the sums over a block's rows, one for each column, into their place in partial, (chunks, cols).
template <class T, int kWidth>
__device__ __forceinline__ void sum_block(const ColumnGrid& grid, const T (&sums)[kWidth], int64_t chunk, int64_t tile,
                                          T* partial) {
  __shared__ T shared[4 * kBlockQuads];
#pragma unroll
  for (int k = 0; k < kWidth; ++k) shared[threadIdx.x * kWidth + k] = sums[k];
  __syncthreads();
  const int width = 4 * grid.lanes, column = int(threadIdx.x);
  const int64_t col = tile * width + column;
  if (column < width && col < grid.cols) {
    T sum = shared[column];
    for (int i = 1; i < grid.above(); ++i) sum += shared[i * width + column];
    partial[chunk * grid.cols + col] = sum;
  }
  __syncthreads();
}

// body(packs, sums) adds its values for the columns of a pack to sums[i], for each i < kSums; partial is
// (kSums, chunks, cols).
template <class Body>
__global__ void __launch_bounds__(Body::kThreads, 65536 / (Body::kThreads * Body::kRegisters))
    columns_kernel(const __grid_constant__ Body body, const __grid_constant__ ColumnGrid grid,
                   typename Body::T* partial) {
  const int lanes = grid.lanes / Body::kQuads;
  const int64_t tile = blockIdx.x % grid.tiles, chunk = blockIdx.x / grid.tiles;
  const int64_t pack = tile * lanes + (int(threadIdx.x) & (lanes - 1));
  typename Body::T sums[Body::kSums][Body::kWidth] = {};
  for (int64_t i = 0; i < grid.depth; ++i) {
    const int64_t row = (chunk * grid.depth + i) * grid.above() + int(threadIdx.x) / lanes;
    if (row < grid.rows && pack * Body::kWidth < grid.cols) body(Packs{row, pack, 0, 1, 1}, sums);
  }
#pragma unroll
  for (int i = 0; i < Body::kSums; ++i) {
    if (body.wanted(i)) sum_block(grid, sums[i], chunk, tile, partial + i * grid.chunks * grid.cols);
  }
}

// Runs the body over all rows, and sums its values for parameter i into gradients[i], which is a sum.
template <class Body>
void launch_columns(const char* op, const Body& body, int64_t rows, int64_t cols, const Gradient* const* gradients,
                    const Queue& queue) {
  using T = typename Body::T;
  const ColumnGrid grid(rows, cols);
  const int64_t size = grid.chunks * cols;
  T* partial = static_cast<T*>(queue.scratch(Body::kSums * size * sizeof(T)));
  launch(op, columns_kernel<Body>, grid.tiles * grid.chunks, Body::kThreads, queue, body, grid, partial);
  for (int i = 0; i < Body::kSums; ++i) {
    if (!body.wanted(i)) continue;
    std::vector<Axis> axes = gradients[i]->columns;
    axes.insert(axes.begin(), {grid.chunks, false});
    sum_axes<T>(op, partial + i * size, axes, gradients[i]->view.data, gradients[i]->view.type, queue);
  }
}

}  // namespace vk::cuda

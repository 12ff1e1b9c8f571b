// Prints cuRAND's normals for a seed, as the floats they are: rows are subsequences, four columns a call.
#include <curand_kernel.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

__global__ void normals(unsigned long long seed, unsigned long long first_row, int rows, int quads, float4* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= rows * quads) return;
  curandStatePhilox4_32_10_t state;
  curand_init(seed, first_row + i / quads, 4ull * (i % quads), &state);
  out[i] = curand_normal4(&state);
}

int main(int count, char** given) {
  if (count != 5) return 2;
  const unsigned long long seed = strtoull(given[1], nullptr, 10), first_row = strtoull(given[2], nullptr, 10);
  const int rows = atoi(given[3]), quads = atoi(given[4]);
  float4* out;
  if (cudaMalloc(&out, sizeof(float4) * rows * quads) != cudaSuccess) return 1;
  normals<<<(rows * quads + 127) / 128, 128>>>(seed, first_row, rows, quads, out);
  std::vector<float4> host(rows * quads);
  if (cudaMemcpy(host.data(), out, sizeof(float4) * host.size(), cudaMemcpyDeviceToHost) != cudaSuccess) return 1;
  fwrite(host.data(), sizeof(float4), host.size(), stdout);
  return 0;
}

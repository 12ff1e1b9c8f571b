// How csrc/cuda/rows.h spreads rows over blocks: each line of the input is rows, columns and whether sums are wanted; each
// of the output the most blocks of a launch, the most packs that a thread took, and how many packs were not taken once.
#include <cstdio>
#include <memory>

#include "../csrc/cuda/rows.h"

using namespace vk::cuda;

static std::vector<int> taken;
static int64_t packs_of_a_row;
static unsigned last_block;
static int most_packs;

template <bool kSummed>
struct Body {
  using T = float;
  static constexpr int kQuads = 1, kThreads = kBlockQuads, kRegisters = 64;
  static constexpr bool kSums = kSummed;

  void operator()(const Packs& packs, float (&)[1]) const {
    int count = 0;
    for (int pack = packs.begin; pack < packs.end; pack += packs.step, ++count) {
      ++taken[packs.row * packs_of_a_row + packs.first + pack];
    }
    most_packs = std::max(most_packs, count);
    last_block = std::max(last_block, blockIdx.x);
  }
};

// Adds nothing, as there is nothing to add here.
template <class T>
void vk::cuda::sum_axis(const char*, const T*, int64_t, int64_t, int64_t, void*, vk::Type, const Queue&) {}
template void vk::cuda::sum_axis(const char*, const float*, int64_t, int64_t, int64_t, void*, vk::Type, const Queue&);

int main() {
  std::vector<std::unique_ptr<char[]>> scratch;
  const Queue queue{nullptr, [&](size_t bytes) {
                      scratch.emplace_back(new char[bytes]);
                      return static_cast<void*>(scratch.back().get());
                    }};
  long rows, cols;
  int summed;
  while (std::scanf("%ld %ld %d", &rows, &cols, &summed) == 3) {
    packs_of_a_row = (cols + 3) / 4;
    taken.assign(rows * packs_of_a_row, 0);
    last_block = most_packs = 0;
    std::vector<float> sums(rows);
    if (summed) {
      launch_rows("op", Body<true>(), RowGrid(rows, cols), sums.data(), queue);
    } else {
      launch_rows("op", Body<false>(), RowGrid(rows, cols), static_cast<float*>(nullptr), queue);
    }
    const long wrong = std::count_if(taken.begin(), taken.end(), [](int n) { return n != 1; });
    std::printf("%u %d %ld\n", last_block + 1, most_packs, wrong);
    scratch.clear();
  }
}

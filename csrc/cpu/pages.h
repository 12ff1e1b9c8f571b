// Fresh memory in large pages. Most systems give them to who asks (/sys/kernel/mm/transparent_hugepage/enabled), and
// torch does not ask: each 4 KiB of a large result then costs a page fault.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace vk::cpu {

// Asks for them in the pages that lie wholly in [data, data + bytes), before these are written first. A result of less
// than 4 MiB gets its memory from the allocator's own store, where it was written before. 32 MiB were filled in 3.6 ms
// instead of 21 to 25 (Linux 6.18 in a virtual machine, one thread).
inline void prefer_large_pages(void* data, size_t bytes) {
#ifdef __linux__
  if (bytes < size_t(4) << 20) return;
  static const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (uintptr_t(data) + page - 1) & ~(page - 1), end = (uintptr_t(data) + bytes) & ~(page - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: refused, nothing changes
#endif
}

}  // namespace vk::cpu

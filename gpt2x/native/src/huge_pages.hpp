// Pages of 2 MB instead of 4 KB. Weights whose rows lie pages apart are read a fifth faster, and fresh outputs cost one page
// fault instead of 512. On a system without them the calls change nothing.
#pragma once

#include <sys/mman.h>

#include <cstdint>

namespace gpt2x {

constexpr uintptr_t kHugePage = 2 << 20;

inline int advise_whole_pages(const void* data, int64_t bytes, int advice, uintptr_t page = kHugePage) {
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  return begin < end ? madvise(reinterpret_cast<void*>(begin), end - begin, advice) : 0;
}

// For memory that has not been written yet.
inline void want_huge_pages(void* data, int64_t bytes) { advise_whole_pages(data, bytes, MADV_HUGEPAGE); }

// For memory in use, which is moved (MADV_COLLAPSE, Linux 6.1).
inline void move_to_huge_pages(const void* data, int64_t bytes) {
  constexpr int kCollapse = 25;
  advise_whole_pages(data, bytes, MADV_HUGEPAGE);
  advise_whole_pages(data, bytes, kCollapse);
}

// For memory that is read before it is written for the first time. Reading would map the kernel's page of zeros, and replacing
// that page by page stops every thread of the process (MADV_POPULATE_WRITE, Linux 5.14).
inline void populate(const void* data, int64_t bytes) {
  constexpr int kPopulateWrite = 23;
  advise_whole_pages(data, bytes, kPopulateWrite, 4096);
}

}  // namespace gpt2x

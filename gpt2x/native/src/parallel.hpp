// A thread pool whose threads stay awake between kernels.
#pragma once

#include <cstdint>
#include <functional>

namespace gpt2x {

// The interface by which oneDNN borrows threads: dnnl::threadpool_interop::threadpool_iface of oneDNN 3.10
// (include/oneapi/dnnl/dnnl_threadpool_iface.hpp), the release in MindSpore 2.10. Order and signatures are its ABI.
class ThreadpoolInterface {
 public:
  virtual int get_num_threads() const = 0;
  virtual bool get_in_parallel() const = 0;
  virtual void parallel_for(int count, const std::function<void(int, int)>& task) = 0;
  virtual uint64_t get_flags() const = 0;  // 0: parallel_for returns after all tasks
  virtual void wait() = 0;
  virtual ~ThreadpoolInterface() = default;
};

void start_pool(int num_threads);  // once per process; the calling thread works too

ThreadpoolInterface* pool();

int num_threads();

// Run task(i) once for each i in [0, count), on whichever thread is free. Concurrent calls wait for each other.
void parallel_for(int64_t count, const std::function<void(int64_t)>& task);

// Run task(begin, end) on ranges of `grain` that cover [0, count). Their bounds do not depend on the number of threads.
void parallel_ranges(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& task);

}  // namespace gpt2x

#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

namespace gpt2x {
namespace {

constexpr int kSpins = 2000;  // about 0.1 ms, longer than MindSpore's pause between two kernels
thread_local bool is_in_parallel = false;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

class Pool : public ThreadpoolInterface {
 public:
  explicit Pool(int size) : size_(size) {
    for (int index = 1; index < size; ++index) std::thread([this] { serve(); }).detach();
  }

  int get_num_threads() const override { return size_; }
  bool get_in_parallel() const override { return is_in_parallel; }
  uint64_t get_flags() const override { return 0; }
  void wait() override {}

  void parallel_for(int count, const std::function<void(int, int)>& task) override {
    if (count == 1 || size_ == 1 || is_in_parallel) {
      for (int index = 0; index < count; ++index) task(index, count);
      return;
    }
    std::lock_guard<std::mutex> turn(turn_);
    task_ = &task;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(size_ - 1, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    work();
    for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) spins < kSpins ? pause() : std::this_thread::yield();
  }

 private:
  void serve() {
    for (uint32_t seen = 0;;) {
      int spins = 0;
      while (round_.load(std::memory_order_acquire) == seen)
        if (++spins < kSpins) pause(); else round_.wait(seen, std::memory_order_acquire);
      ++seen;
      work();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  void work() {
    is_in_parallel = true;
    for (int index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*task_)(index, count_);
    is_in_parallel = false;
  }

  const int size_;
  std::mutex turn_;
  const std::function<void(int, int)>* task_ = nullptr;
  int count_ = 0;
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> busy_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

Pool* instance = nullptr;  // never destroyed, because its threads outlive main

}  // namespace

void start_pool(int num_threads) {
  if (instance == nullptr) instance = new Pool(num_threads);
}

ThreadpoolInterface* pool() { return instance; }

int num_threads() { return pool()->get_num_threads(); }

void parallel_for(int64_t count, const std::function<void(int64_t)>& task) {
  pool()->parallel_for(static_cast<int>(count), [&](int index, int) { task(index); });
}

void parallel_ranges(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& task) {
  parallel_for((count + grain - 1) / grain,
               [&](int64_t index) { task(index * grain, std::min(count, (index + 1) * grain)); });
}

}  // namespace gpt2x

// Threads that run all phases of one operator together: they share the items of a phase and meet before the next.
//
// Waking threads for every operator costs a narrow model more than its arithmetic. Items are claimed one by one, so a
// thread that shares its core with another program does fewer of them. A barrier spins for some microseconds, then
// gives its core away. Where another program keeps a thread from its core for long, all would wait for it: then the
// next passes are run by one thread alone, more and more of them as long as that lasts.
#pragma once

#include "vectors.h"

#include <atomic>
#include <chrono>
#include <sched.h>
#include <stdexcept>

// Passes that one thread runs alone, and how many there will be if a pass is late again; one pair for all operators.
inline std::atomic<int> passes_alone{0}, next_alone{0};

namespace {

constexpr int kSpins = 2000;
constexpr int kLateUs = 1000;  // a program that takes a core keeps it for milliseconds
constexpr int kMostAlone = 127;

class Team {
  std::vector<std::atomic<int64_t>> claimed;  // items of each phase
  std::atomic<int> size{0}, arrived{0}, barriers{0};
  std::atomic<bool> failed{false}, late{false};

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  template <typename F>
  void wait(const F& ready) {
    using Clock = std::chrono::steady_clock;
    Clock::time_point begin;
    for (int spins = 0; !ready(); ++spins) {
      if (failed.load()) throw std::runtime_error("another thread of this pass failed");  // it comes to no barrier
      if (spins < kSpins) relax();
      else if (spins == kSpins) begin = Clock::now();
      else {
        sched_yield();
        if (!late && Clock::now() - begin > std::chrono::microseconds(kLateUs)) late = true;
      }
    }
  }

 public:
  const int64_t threads = torch::stable::get_num_threads();

  explicit Team(int64_t phases) : claimed(phases) {}

  // Calls work() in every thread. A thread pool that gives fewer threads than asked for hands one of them several parts.
  template <typename F>
  void run(const F& work) {
    if (passes_alone > 0) {
      --passes_alone, size = 1;
      return work();
    }
    torch::stable::parallel_for(0, threads, 1, [&](int64_t from, int64_t to) {
      if (from == 0) size = int((threads + to - 1) / to);
      wait([&] { return size.load() > 0; });
      try {
        work();
      } catch (...) {  // out of memory
        failed = true;
        throw;
      }
    });
    if (late) passes_alone = next_alone.load();
    next_alone = late ? std::min(2 * next_alone + 1, kMostAlone) : next_alone / 2;
  }

  // Shares `count` items of a phase, `step` at a time: calls part(from, to). Every thread calls it once a phase.
  template <typename F>
  void share(int64_t phase, int64_t count, int64_t step, const F& part) {
    for (int64_t from; (from = claimed[phase].fetch_add(step, std::memory_order_relaxed)) < count;)
      part(from, std::min(count, from + step));
  }

  // Returns once all threads are here; what they wrote is visible then.
  void meet() {
    const int generation = barriers.load();
    if (arrived.fetch_add(1) + 1 == size.load()) {
      arrived = 0;
      barriers.fetch_add(1);
    } else {
      wait([&] { return barriers.load() != generation; });
    }
  }
};

}  // namespace

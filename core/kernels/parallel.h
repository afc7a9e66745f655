// Tasks over the threads of torch's own OpenMP pool; a second pool would fight the first for the cores.
#pragma once
#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace parallel {

using Body = void (*)(void*);
using GompParallel = void (*)(Body, void*, unsigned threads, unsigned flags);

// torch loads its OpenMP runtime (libgomp, or libomp with the same entry point) with global symbols.
inline GompParallel& pool() {
    static GompParallel entry = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return entry;
}

// libgomp's threads do not survive a fork, and calling it in the child would hang: armed when the library is loaded.
[[maybe_unused]] static const int armed = pthread_atfork(nullptr, nullptr, [] { pool() = nullptr; });

// Threads that so much work is worth, `limit` at most.
inline int worth(int64_t elements, int limit) { return int(std::min<int64_t>(limit, elements / 16384 + 1)); }

template <class Task>
struct Work {
    Task& task;
    int64_t tasks;
    std::atomic<int64_t> next{0};

    static void run(void* self) {
        Work& work = *static_cast<Work*>(self);
        for (int64_t i; (i = work.next.fetch_add(1, std::memory_order_relaxed)) < work.tasks;) work.task(i);
    }
};

// Calls task(i) for i in [0, tasks), each once, in any order, on at most `threads` threads.
template <class Task>
void run(int64_t tasks, int threads, Task task) {
    if (threads > tasks) threads = static_cast<int>(tasks);
    Work<Task> work{task, tasks};
    if (threads <= 1) {
        Work<Task>::run(&work);
    } else if (pool()) {
        pool()(Work<Task>::run, &work, static_cast<unsigned>(threads), 0);
    } else {
        std::vector<std::thread> helpers;
        for (int i = 1; i < threads; ++i) helpers.emplace_back(Work<Task>::run, &work);
        Work<Task>::run(&work);
        for (std::thread& helper : helpers) helper.join();
    }
}

}  // namespace parallel

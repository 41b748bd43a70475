// Runs the CPU kernels on four threads of std::thread, for ThreadSanitizer, which does not understand OpenMP's.
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels.h"
#include "team.h"

namespace tgan_fast::cpu {

extern const Kernels baseline;

double* scratch(std::int64_t count) {
    thread_local std::vector<double> memory;
    memory.resize(count);
    return memory.data();
}

}  // namespace tgan_fast::cpu

using namespace tgan_fast::cpu;

namespace {

constexpr int kThreads = 4;
thread_local int rank = 0;
int size = 1, most_threads = 0;

class Barrier {
  public:
    void wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        const int round = round_;
        if (++waiting_ == size) {
            waiting_ = 0, ++round_;
            all_.notify_all();
        } else {
            all_.wait(lock, [&] { return round_ != round; });
        }
    }

  private:
    std::mutex mutex_;
    std::condition_variable all_;
    int waiting_ = 0, round_ = 0;
} barrier;

void parallel(void (*body)(void*), void* argument, unsigned threads, unsigned) {
    size = static_cast<int>(threads);
    most_threads = size > most_threads ? size : most_threads;
    std::vector<std::thread> others;
    for (int i = 1; i < size; ++i)
        others.emplace_back([=] {
            rank = i;
            body(argument);
        });
    body(argument);
    for (std::thread& other : others) other.join();
}

void batch_norm(const Shape& shape) {
    const std::int64_t count = shape.groups * shape.rows * shape.channels * shape.cols;
    std::vector<float> x(count), residual(count, 1), dy(count, 1), y(count), dx(count), dresidual(count);
    for (std::int64_t i = 0; i < count; ++i) x[i] = static_cast<float>(i % 97);
    const std::int64_t row = shape.channels * shape.cols, channel = shape.cols;
    std::vector<float> vectors(6 * shape.channels, 1);
    std::vector<double> mean(shape.groups * shape.channels), rstd(mean.size());
    float* const weight = vectors.data();
    const BatchNorm common = {shape,
                              Type::float32,
                              weight,
                              weight + shape.channels,
                              mean.data(),
                              rstd.data(),
                              true,
                              Activation::leaky_relu,
                              0.2,
                              {x.data(), row, channel},
                              {residual.data(), row, channel}};
    BatchNormForward forward = {
        common, {y.data(), row, channel}, weight + 2 * shape.channels, weight + 3 * shape.channels, nullptr, false, 0.1,
        1e-5};
    BatchNormBackward backward = {common,
                                  {dy.data(), row, channel},
                                  {dx.data(), row, channel},
                                  {dresidual.data(), row, channel},
                                  weight + 4 * shape.channels,
                                  weight + 5 * shape.channels};
    baseline.batch_norm_forward(forward, kThreads);
    baseline.batch_norm_backward(backward, kThreads);
}

void optimizers() {
    constexpr std::int64_t kCount = kThreads * kValuesOfThread + 5;
    std::vector<float> p(kCount, 1), g(kCount, 1), m(kCount), v(kCount);
    std::vector<std::uint16_t> copy(kCount);
    const OptimizerStep step = {kCount,   p.data(),    g.data(),       Type::float32,
                                v.data(), copy.data(), Type::bfloat16, 1e-8f};
    baseline.rmsprop({step, 0.1f, 0.99f, 0.01f}, kThreads);
    baseline.adam({step, m.data(), 0.1f, 0.1f, 0.1f, 0.999f, 0.001f}, kThreads);
}

}  // namespace

int main() {
    use_openmp({parallel, [] { barrier.wait(); }, [] { return rank; }, [] { return size; }});
    batch_norm({true, 2, 6000, 1, 13});   // columns
    batch_norm({false, 2, 1200, 9, 13});  // samples
    batch_norm({false, 2, 3, 5000, 9});   // runs
    optimizers();
    return most_threads == kThreads ? 0 : 2;
}

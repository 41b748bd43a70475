// Fibers, their scheduler and the simulated device; cuda_on_host.h explains their purpose.

#include "cuda_on_host.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <map>

#include "cuda_on_host_internal.h"

HostIndex threadIdx, blockIdx, blockDim, gridDim;

namespace tgan_fast {
namespace host {

Fiber* current;

namespace {

// A block's shared memory is surrounded by bytes that must not change, and those by memory without access.
constexpr size_t kGuardBytes = 4096;  // a page
constexpr size_t kForbiddenBytes = 1 << 20;
constexpr size_t kMisalignment = 16;  // shared memory is aligned to 16 bytes, and not to 32
// All bits set are a NaN in every floating-point type.
constexpr int kPoison = 0xff;
constexpr size_t kDefaultSharedBytes = 48 << 10;
constexpr size_t kReservedSharedBytes = 1 << 10;  // that a GPU reserves per block
constexpr int kThreadsPerMultiprocessor = 2048;
constexpr int kThreadsPerBlock = 1024;

struct Device {
    int index = 0;
    int multiprocessors = 132;
    size_t shared_bytes_optin = 232448;
    int blocks_per_multiprocessor = 32;
    unsigned seed = 0;
    std::map<Function, size_t> allowed_shared_bytes;
    cudaError_t last_error = cudaSuccess;
    char message[1024] = "";
};

enum { kStarted, kDone, kFailed };  // what setjmp returns in run_fibers

Device device;
Launch current_launch;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<Block> blocks;
size_t blocks_started, blocks_running;
std::vector<uint64_t> ready_warps;  // one bit each
std::vector<Fiber*> at_grid_barrier;
jmp_buf launcher, creator;
Fiber* created;
unsigned random_state;

unsigned random_number() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    return random_state ^= random_state << 5;
}

void* map_memory(size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    return memory;
}

// ---- Fibers --------------------------------------------------------------------------------------------------------

[[noreturn]] void enter(Fiber* fiber) {
    current = fiber;
    threadIdx.x = fiber->thread;
    blockIdx.x = fiber->block->index;
    _longjmp(fiber->context, 1);
}

// setjmp and longjmp, because swapcontext makes a system call.
__attribute__((noinline)) void switch_to(Fiber* next) {
    if (next == current) return;
    if (_setjmp(current->context) == 0) enter(next);
}

void exit_thread();

void fiber_main() {
    Fiber* self = created;
    // Every launch enters here again, however the launch before ended.
    if (_setjmp(self->start) == 0) _longjmp(creator, 1);
    current_launch.call(current_launch.kernel, current_launch.argument);
    exit_thread();
}

__attribute__((noinline)) void create_fiber(Fiber& fiber, char* stack) {
    ucontext_t context;
    getcontext(&context);
    // Otherwise the same variable of all fibers would compete for the same few cache lines.
    const size_t offset = (&fiber - fibers.data()) % 64 * 192;
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes - offset;
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
    fiber.stack = stack;
    created = &fiber;
    if (_setjmp(creator) == 0) setcontext(&context);
}

void create_fibers(size_t count) {
    if (fibers.size() >= count) return;
    const size_t missing = count - fibers.size();
    char* stacks = static_cast<char*>(map_memory(missing * kStackBytes));
    madvise(stacks, missing * kStackBytes, MADV_NOHUGEPAGE);
    fibers.resize(count);
    for (size_t i = 0; i < missing; ++i) create_fiber(fibers[count - missing + i], stacks + i * kStackBytes);
}

// ---- Scheduler -----------------------------------------------------------------------------------------------------

// Returns the next set bit in the order of the seed; `bits` must not be 0.
int choose_bit(uint64_t bits, int width) {
    if (device.seed == 0) return __builtin_ctzll(bits);
    if (device.seed == 1) return 63 - __builtin_clzll(bits);
    const int first = random_number() % width;
    const uint64_t behind = bits >> first << first;
    return __builtin_ctzll(behind ? behind : bits);
}

Warp* choose_warp() {
    const size_t words = ready_warps.size();
    const size_t first = device.seed < 2 ? 0 : random_number() % words;
    for (size_t i = 0; i < words; ++i) {
        const size_t word = device.seed == 1 ? words - 1 - i : (first + i) % words;
        if (ready_warps[word]) return &warps[word * 64 + choose_bit(ready_warps[word], 64)];
    }
    return nullptr;
}

const char* name(State state) {
    switch (state) {
        case State::ready:
            return "ready";
        case State::multiply_add:
            return "in multiply_add";
        case State::multiply_add_digits:
            return "in multiply_add of digits";
        case State::load_matrices:
            return "in load_matrices";
        case State::syncwarp:
            return "in __syncwarp";
        case State::syncthreads:
            return "in __syncthreads";
        case State::grid_barrier:
            return "in grid_barrier";
        case State::exited:
            return "exited";
    }
    return "";
}

std::string describe(const Block& block) {
    std::array<int, kStates> counts = {};
    for (unsigned i = 0; i < block.threads; ++i) ++counts[static_cast<size_t>(block.first_fiber[i].state)];
    std::string text = "block " + std::to_string(block.index) + ":";
    for (size_t i = 0; i < counts.size(); ++i)
        if (counts[i]) text += " " + std::to_string(counts[i]) + " " + name(static_cast<State>(i)) + ",";
    text.back() = ';';
    return text;
}

[[noreturn]] void fail_of_deadlock() {
    std::string text;
    int described = 0;
    for (size_t i = 0; i < blocks_started; ++i)
        if (blocks[i].exited < blocks[i].threads && ++described <= 4) text += " " + describe(blocks[i]);
    text.pop_back();
    fail("deadlock: no thread can go on;%s", text.c_str());
}

Fiber* choose_fiber(Warp* warp) {
    if (!warp || !warp->ready) warp = choose_warp();
    if (!warp) fail_of_deadlock();
    return warp->lanes + choose_bit(warp->ready, kLanes);
}

void make_ready(Fiber& fiber) {
    fiber.state = State::ready;
    fiber.warp->ready |= 1u << fiber.lane;
    const size_t warp = fiber.warp - warps.data();
    ready_warps[warp / 64] |= uint64_t{1} << warp % 64;
}

void leave_ready(State state) {
    Warp* warp = current->warp;
    current->state = state;
    warp->ready &= ~(1u << current->lane);
    if (warp->ready) return;
    const size_t index = warp - warps.data();
    ready_warps[index / 64] &= ~(uint64_t{1} << index % 64);
}

// A thread runs until it waits; then another lane of its warp runs, and if there is none, another warp.
void wait(State state) {
    leave_ready(state);
    switch_to(choose_fiber(current->warp));
}

// Returns true for the lane that arrives last, which all others wait for.
bool last_of_warp(State state) {
    Warp& warp = *current->warp;
    if (++warp.arrived[static_cast<size_t>(state)] == warp.size) {
        warp.arrived[static_cast<size_t>(state)] = 0;
        return true;
    }
    wait(state);
    return false;
}

void release_warp() {
    Warp& warp = *current->warp;
    for (unsigned i = 0; i < warp.size; ++i) make_ready(warp.lanes[i]);
    // A random order sometimes continues with another warp.
    const bool any_warp = device.seed > 1 && random_number() % 8 == 0;
    switch_to(choose_fiber(any_warp ? nullptr : &warp));
}

// ---- Blocks --------------------------------------------------------------------------------------------------------

void allocate_shared_memory(Block& block, size_t bytes) {
    if (block.forbidden && block.shared_capacity >= bytes) return;
    const size_t usable = (kMisalignment + bytes + 3 * kGuardBytes - 1) / kGuardBytes * kGuardBytes;
    if (block.forbidden) munmap(block.forbidden, block.mapped_bytes);
    block.mapped_bytes = usable + 2 * kForbiddenBytes;
    block.forbidden = static_cast<char*>(map_memory(block.mapped_bytes));
    mprotect(block.forbidden, kForbiddenBytes, PROT_NONE);
    mprotect(block.forbidden + kForbiddenBytes + usable, kForbiddenBytes, PROT_NONE);
    block.shared = block.forbidden + kForbiddenBytes + kGuardBytes + kMisalignment;
    block.shared_capacity = usable - 2 * kGuardBytes - kMisalignment;
}

bool is_poison(const char* bytes, size_t count) {
    return static_cast<unsigned char>(bytes[0]) == kPoison && memcmp(bytes, bytes + 1, count - 1) == 0;
}

void check_guards(const Block& block) {
    if (!is_poison(block.shared - kGuardBytes, kGuardBytes))
        fail("block %u wrote before its shared memory", block.index);
    if (!is_poison(block.shared + block.shared_bytes, kGuardBytes))
        fail("block %u wrote behind its %zu bytes of shared memory", block.index, block.shared_bytes);
}

void start_fiber(Fiber& fiber, Block& block, Warp& warp, unsigned thread) {
    memcpy(&fiber.context, &fiber.start, sizeof fiber.start);
    fiber.block = &block;
    fiber.warp = &warp;
    fiber.thread = thread;
    fiber.lane = thread % kLanes;
    fiber.copies.clear();
    fiber.groups.clear();
    make_ready(fiber);
}

void start_block(Block& block, unsigned index, Fiber* first_fiber, Warp* first_warp) {
    block.index = index;
    block.threads = current_launch.threads;
    block.arrived = block.exited = 0;
    block.first_fiber = first_fiber;
    block.shared_bytes = current_launch.shared_bytes;
    allocate_shared_memory(block, block.shared_bytes);
    memset(block.shared - kGuardBytes, kPoison, block.shared_bytes + 2 * kGuardBytes);
    for (unsigned thread = 0; thread < block.threads; ++thread) {
        Warp& warp = first_warp[thread / kLanes];
        if (thread % kLanes == 0) {
            warp = Warp{};
            warp.lanes = first_fiber + thread;
            warp.size = std::min<unsigned>(kLanes, block.threads - thread);
        }
        start_fiber(first_fiber[thread], block, warp, thread);
    }
    race::block_starts(block);
}

// Runs the fibers until all have exited or one has failed.
__attribute__((noinline)) cudaError_t run_fibers() {
    switch (_setjmp(launcher)) {
        case kStarted:
            enter(choose_fiber(nullptr));
        case kDone:
            return cudaSuccess;
        default:
            return cudaErrorLaunchFailure;
    }
}

// Runs the blocks with these indices, all at once.
cudaError_t run_blocks(const unsigned* indices, size_t count) {
    const size_t warps_per_block = (current_launch.threads + kLanes - 1) / kLanes;
    create_fibers(count * warps_per_block * kLanes);
    if (blocks.size() < count) blocks.resize(count);
    warps.assign(count * warps_per_block, Warp{});
    ready_warps.assign((warps.size() + 63) / 64, 0);
    at_grid_barrier.clear();
    blocks_started = blocks_running = count;
    for (size_t i = 0; i < count; ++i)
        start_block(blocks[i], indices[i], &fibers[i * warps_per_block * kLanes], &warps[i * warps_per_block]);
    const cudaError_t error = run_fibers();
    current = nullptr;
    return error;
}

void end_block(const Block& block) {
    check_guards(block);
    if (--blocks_running == 0) _longjmp(launcher, kDone);
}

void exit_thread() {
    Block& block = *current->block;
    if (!current->copies.empty())
        fail("thread %u of block %u ends with copies that it has not waited for", current->thread, block.index);
    if (block.arrived)
        fail("thread %u of block %u ends while %u others are in __syncthreads", current->thread, block.index,
             block.arrived);
    leave_ready(State::exited);
    if (++block.exited == block.threads) end_block(block);
    enter(choose_fiber(current->warp));
}

// ---- Asynchronous copies -------------------------------------------------------------------------------------------

void check_copy(const char* to, const void* from) {
    const Block& block = *current->block;
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
        fail("copy_async between addresses that are no multiples of 16: %p, %p", static_cast<const void*>(to), from);
    if (to < block.shared || to + 16 > block.shared + block.shared_bytes)
        fail("copy_async to byte %td of %zu bytes of shared memory", to - block.shared, block.shared_bytes);
}

void complete(const Copy& copy) {
    if (memcmp(copy.from, copy.bytes.data(), 16))
        fail("the source %p of a copy_async changed before its wait", static_cast<const void*>(copy.from));
    race::copy_ends(copy);
    memcpy(copy.to, copy.from, 16);
}

// ---- Launches ------------------------------------------------------------------------------------------------------

cudaError_t refusal(const Launch& launch) {
    if (device.multiprocessors < 1) return cudaErrorNoDevice;
    if (launch.blocks < 1 || launch.threads < 1 || launch.threads > kThreadsPerBlock)
        return cudaErrorInvalidConfiguration;
    if (launch.shared_bytes > allowed_shared_bytes(launch.kernel)) return cudaErrorInvalidValue;
    const int resident = resident_blocks(launch.kernel, launch.threads, launch.shared_bytes);
    if (launch.cooperative && launch.blocks > resident * device.multiprocessors)
        return cudaErrorCooperativeLaunchTooLarge;
    return cudaSuccess;
}

std::vector<unsigned> block_order(unsigned count) {
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; ++i) order[i] = i;
    if (device.seed == 1) std::reverse(order.begin(), order.end());
    if (device.seed > 1)
        for (unsigned i = count - 1; i > 0; --i) std::swap(order[i], order[random_number() % (i + 1)]);
    return order;
}

cudaError_t run_all_blocks() {
    const std::vector<unsigned> order = block_order(current_launch.blocks);
    if (current_launch.cooperative) return run_blocks(order.data(), order.size());
    for (const unsigned& index : order)
        if (const cudaError_t error = run_blocks(&index, 1)) return error;
    return cudaSuccess;
}

uint32_t interrupted_place(const void* context) {
    const mcontext_t& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
#ifdef __x86_64__
    const auto code = machine.gregs[REG_RIP];
#else
    const auto code = machine.pc;
#endif
    return place_in_library(reinterpret_cast<const void*>(code)) + 1;  // like a return address, not the first byte
}

[[noreturn]] void fail_of_access(char* address, uint32_t place) {
    const Block& block = *current->block;
    if (address >= block.forbidden && address < block.forbidden + block.mapped_bytes)
        fail("thread %u of block %u accesses byte %td of %zu bytes of shared memory at +0x%x", current->thread,
             block.index, address - block.shared, block.shared_bytes, place);
    fail("thread %u of block %u accesses %p, where no memory is, at +0x%x", current->thread, block.index,
         static_cast<void*>(address), place);
}

[[noreturn]] void fail_of_signal(int number, siginfo_t* info, void* context) {
    if (!current) {
        signal(number, SIG_DFL);
        raise(number);
    }
    const uint32_t place = interrupted_place(context);
    if (number == SIGSEGV || number == SIGBUS) fail_of_access(static_cast<char*>(info->si_addr), place);
    fail("thread %u of block %u does what C++ leaves undefined (an overflow, an index out of bounds, a misaligned "
         "address) at +0x%x",
         current->thread, current->block->index, place);
}

// Turns signals into an error of the launch: those of invalid accesses, and those of g++ -fsanitize=undefined.
class CatchSignals {
  public:
    CatchSignals() {
        static char stack[1 << 16];
        stack_t own = {};
        own.ss_sp = stack;
        own.ss_size = sizeof stack;
        sigaltstack(&own, &old_stack_);
        struct sigaction action = {};
        action.sa_sigaction = fail_of_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler is left by longjmp
        for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &old_[i]);
    }
    ~CatchSignals() {
        for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &old_[i], nullptr);
        sigaltstack(&old_stack_, nullptr);
    }

  private:
    static constexpr std::array<int, 5> kSignals = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
    stack_t old_stack_;
    struct sigaction old_[kSignals.size()];
};

cudaError_t remember(cudaError_t error) {
    if (error) device.last_error = error;
    return error;
}

}  // namespace

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(device.message, sizeof device.message, format, arguments);
    va_end(arguments);
    _longjmp(launcher, kFailed);
}

cudaError_t run(const Launch& launch) {
    if (const cudaError_t error = refusal(launch)) return remember(error);
    const CatchSignals catch_signals;
    current_launch = launch;
    random_state = device.seed * 2654435761u | 1;
    blockDim.x = launch.threads;
    gridDim.x = launch.blocks;
    race::launch_starts();
    return remember(run_all_blocks());
}

cudaError_t allow_shared_memory(Function kernel, int bytes) {
    if (bytes < 0 || static_cast<size_t>(bytes) > device.shared_bytes_optin) return remember(cudaErrorInvalidValue);
    device.allowed_shared_bytes[kernel] = bytes;
    return cudaSuccess;
}

size_t allowed_shared_bytes(Function kernel) {
    const auto found = device.allowed_shared_bytes.find(kernel);
    return found == device.allowed_shared_bytes.end() ? kDefaultSharedBytes : found->second;
}

int resident_blocks(Function kernel, int threads, size_t shared_bytes) {
    if (threads < 1 || threads > kThreadsPerBlock || shared_bytes > allowed_shared_bytes(kernel)) return 0;
    const int warps = (threads + kLanes - 1) / kLanes;
    const int by_threads = kThreadsPerMultiprocessor / (warps * kLanes);
    const int by_memory = (device.shared_bytes_optin + kReservedSharedBytes) / (shared_bytes + kReservedSharedBytes);
    return std::min({device.blocks_per_multiprocessor, by_threads, by_memory});
}

void wait_for_copies(size_t pending) {
    Fiber& fiber = *current;
    if (fiber.groups.size() <= pending) return;
    const size_t groups = fiber.groups.size() - pending;
    const size_t copies = fiber.groups[groups - 1];
    for (size_t i = 0; i < copies; ++i) complete(fiber.copies[i]);
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + copies);
    fiber.groups.erase(fiber.groups.begin(), fiber.groups.begin() + groups);
    for (size_t& end : fiber.groups) end -= copies;
}

}  // namespace host

using namespace host;

// ---- What kernels call ---------------------------------------------------------------------------------------------

namespace {

template <typename T>
auto& operand(const void* pointer) {
    return *static_cast<const T*>(pointer);
}

// C += A·B of the whole warp.
void multiply_add(const Fiber* lanes) {
    double a[16][8], b[8][8], c[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const Fiber& fiber = lanes[lane];
        const int g = lane / 4, t = lane % 4;
        for (int e = 0; e < 4; ++e) a[g + e % 2 * 8][t + e / 2 * 4] = operand<double[4]>(fiber.a)[e];
        for (int e = 0; e < 2; ++e) b[t + 4 * e][g] = operand<double[2]>(fiber.b)[e];
        for (int e = 0; e < 4; ++e) c[g + e / 2 * 8][2 * t + e % 2] = operand<double[4]>(fiber.c)[e];
    }
    for (int i = 0; i < 16; ++i)
        for (int k = 0; k < 8; ++k)
            for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; ++lane)
        for (int e = 0; e < 4; ++e)
            static_cast<double*>(lanes[lane].c)[e] = c[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
}

int16_t signed_byte(unsigned word, int k) { return static_cast<int8_t>(word >> 8 * k & 255); }

// The same for digits: a sum for every weight, which must not leave the range of an int.
void multiply_add_digits(const Fiber* lanes) {
    int16_t a[4][16][32], b[4][8][32];  // digit, row of A or column of B, depth
    for (int lane = 0; lane < 32; ++lane) {
        const auto& left = operand<unsigned[4][4]>(lanes[lane].a);
        const auto& right = operand<unsigned[4][2]>(lanes[lane].b);
        const int g = lane / 4, t = lane % 4;
        for (int d = 0; d < 4; ++d)
            for (int k = 0; k < 4; ++k) {
                for (int e = 0; e < 4; ++e) a[d][g + e % 2 * 8][e / 2 * 16 + 4 * t + k] = signed_byte(left[d][e], k);
                for (int e = 0; e < 2; ++e) b[d][g][e * 16 + 4 * t + k] = signed_byte(right[d][e], k);
            }
    }
    int64_t sums[kWeights][16][8] = {};
    for (int left = 0; left < 4; ++left)
        for (int right = 0; right < 4; ++right) {
            if (left + right < kLowestWeight) continue;
            for (int i = 0; i < 16; ++i)
                for (int j = 0; j < 8; ++j) {
                    int sum = 0;
                    for (int k = 0; k < 32; ++k) sum += a[left][i][k] * b[right][j][k];
                    sums[left + right - kLowestWeight][i][j] += sum;
                }
        }
    for (int lane = 0; lane < 32; ++lane)
        for (int w = 0; w < kWeights; ++w)
            for (int e = 0; e < 4; ++e) {
                int& c = static_cast<int (*)[4]>(lanes[lane].c)[w][e];
                const int64_t sum = c + sums[w][lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
                if (sum != static_cast<int>(sum)) fail("an int32 sum of digits' products overflows");
                c = static_cast<int>(sum);
            }
}

// Every lane gets a word of each of four matrices, whose rows eight lanes each have passed.
void load_matrices(const Fiber* lanes) {
    for (int lane = 0; lane < 32; ++lane)
        for (int matrix = 0; matrix < 4; ++matrix) {
            const char* const row = &operand<char>(lanes[8 * matrix + lane / 4].a);
            memcpy(static_cast<unsigned*>(lanes[lane].c) + matrix, row + lane % 4 * 4, 4);
        }
}

void run_as_warp(State state, void (*multiply)(const Fiber*), void* c, const void* a, const void* b) {
    if (current->warp->size < kLanes) fail("%s in a warp of %u threads", name(state) + 3, current->warp->size);
    current->c = c;
    current->a = a;
    current->b = b;
    if (!last_of_warp(state)) return;
    multiply(current->warp->lanes);
    release_warp();
}

}  // namespace

void multiply_add(double (&c)[4], const double (&a)[4], const double (&b)[2]) {
    run_as_warp(State::multiply_add, multiply_add, c, a, b);
}

void multiply_add(int (&c)[kWeights][4], const unsigned (&a)[4][4], const unsigned (&b)[4][2]) {
    run_as_warp(State::multiply_add_digits, multiply_add_digits, c, a, b);
}

void load_matrices(unsigned (&words)[4], const char* row) {
    const Block& block = *current->block;
    const ptrdiff_t offset = row - block.shared;
    if (offset < 0 || offset + 16 > static_cast<ptrdiff_t>(block.shared_bytes) || offset % 16 != 0)
        fail("load_matrices from byte %td of %zu bytes of shared memory", offset, block.shared_bytes);
    race::row_is_read(row, __builtin_return_address(0));
    run_as_warp(State::load_matrices, load_matrices, words, row, nullptr);
}

unsigned permute_bytes(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return result;
}

int round_to_int(double value) {
    if (std::isnan(value)) return 0;
    const double rounded = std::nearbyint(value);  // to even
    return static_cast<int>(std::min(std::max(rounded, -2147483648.0), 2147483647.0));
}

// The destination is undefined until the wait, so it is NaN until then.
void copy_async(void* shared, const void* global) {
    char* to = static_cast<char*>(shared);
    check_copy(to, global);
    Copy copy = {to, static_cast<const char*>(global), {}, __builtin_return_address(0)};
    race::copy_starts(copy);
    memcpy(copy.bytes.data(), global, 16);
    memset(to, kPoison, 16);
    current->copies.push_back(copy);
}

void commit_copies() { current->groups.push_back(current->copies.size()); }

char* shared_memory() { return current->block->shared; }

namespace {

// Thread 0's part of a grid barrier: all blocks wait until the number of arrivals is `target`.
void arrive(unsigned* arrivals, unsigned target) {
    if (++*arrivals > target) fail("a grid_barrier had arrivals before the launch");
    if (*arrivals < target) {
        current->arrivals = arrivals;
        current->target = target;
        at_grid_barrier.push_back(current);
        return wait(State::grid_barrier);
    }
    race::grid_synchronized();
    for (Fiber* fiber : at_grid_barrier) {
        if (fiber->arrivals != arrivals || fiber->target != target) fail("blocks wait at different grid barriers");
        make_ready(*fiber);
    }
    at_grid_barrier.clear();
}

}  // namespace

void grid_barrier(unsigned* arrivals, unsigned& barriers) {
    if (!current_launch.cooperative && gridDim.x > 1) fail("grid_barrier in a launch that is not cooperative");
    ++barriers;
    __syncthreads();
    if (threadIdx.x == 0) arrive(arrivals, barriers * gridDim.x);
    __syncthreads();
}

unsigned short round_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520, which is half way to the next power of two
    if (magnitude < 0x38800000)                         // subnormal: multiples of 2^-24
        return sign | static_cast<uint32_t>(nearbyintf(fabsf(value) * 16777216.0f));
    return sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

unsigned short round_to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace tgan_fast

using namespace tgan_fast::host;

void __syncthreads() {
    Block& block = *current->block;
    if (block.exited)
        fail("thread %u of block %u is in __syncthreads, but %u others have ended", current->thread, block.index,
             block.exited);
    if (++block.arrived < block.threads) return wait(State::syncthreads);
    block.arrived = 0;
    check_guards(block);
    race::block_synchronized(block);
    for (unsigned i = 0; i < block.threads; ++i) make_ready(block.first_fiber[i]);
    switch_to(choose_fiber(nullptr));
}

void __syncwarp(unsigned mask) {
    const Warp& warp = *current->warp;
    if (mask != 0xffffffff && mask != (uint64_t{1} << warp.size) - 1) fail("__syncwarp of a part of a warp");
    if (!last_of_warp(State::syncwarp)) return;
    race::warp_synchronized(*current);
    release_warp();
}

// ---- The device ----------------------------------------------------------------------------------------------------

int configure_host_device(int multiprocessors, int shared_bytes_optin, int blocks_per_multiprocessor,
                          unsigned schedule_seed) {
    const int index = device.index + 1;
    device = Device{};
    device.index = index;
    device.multiprocessors = multiprocessors;
    device.shared_bytes_optin = shared_bytes_optin;
    device.blocks_per_multiprocessor = blocks_per_multiprocessor;
    device.seed = schedule_seed;
    return index;
}

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorInsufficientDriver:
            return "CUDA driver version is insufficient for CUDA runtime version";
        case cudaErrorNoDevice:
            return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorInvalidDeviceFunction:
            return "invalid device function";
        case cudaErrorNoKernelImageForDevice:
            return "no kernel image is available for execution on the device";
        case cudaErrorCooperativeLaunchTooLarge:
            return "too many blocks in cooperative launch";
        case cudaErrorLaunchFailure:
            return device.message;
    }
    return "unrecognized error code";
}

cudaError_t cudaGetLastError() { return std::exchange(device.last_error, cudaSuccess); }

cudaError_t cudaGetDevice(int* index) {
    if (device.multiprocessors < 1) return remember(cudaErrorNoDevice);
    *index = device.index;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int index) {
    if (device.multiprocessors < 1) return remember(cudaErrorNoDevice);
    return index == device.index ? cudaSuccess : remember(cudaErrorInvalidDevice);
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
    if (const cudaError_t error = cudaSetDevice(index)) return error;
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount:
            *value = device.multiprocessors;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = device.shared_bytes_optin;
            break;
    }
    return cudaSuccess;
}

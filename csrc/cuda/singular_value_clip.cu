// The host side of singular_value_clip.h: prepares devices, plans the work of a call, and launches the kernels.
#include "singular_value_clip.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>

#include "apply.cuh"
#include "gram.cuh"
#include "quantize.cuh"
#include "shrinkage.cuh"

namespace tgan_fast {
namespace {

constexpr int kLargestSide = 1024;
static_assert(sizeof(GramArguments) <= 4096 && sizeof(ShrinkageArguments) <= 4096 && sizeof(ApplyArguments) <= 4096,
              "kernel arguments have 4 KB");

MatrixPlan plan_of(const Matrix& matrix) {
    MatrixPlan m = {};
    m.data = matrix.data;
    m.copy = matrix.copy;
    m.copy_type = matrix.copy == nullptr ? CopyType::none : matrix.copy_type;
    m.threshold = matrix.threshold;
    const bool wide = matrix.rows <= matrix.columns;
    m.rows = static_cast<int>(wide ? matrix.rows : matrix.columns);
    m.columns = wide ? matrix.columns : matrix.rows;
    m.row_stride = wide ? matrix.row_stride : matrix.column_stride;
    m.column_stride = wide ? matrix.column_stride : matrix.row_stride;
    m.vectorized = m.column_stride == 1 && (m.rows == 1 || m.row_stride % 4 == 0) &&
                   reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0;
    return m;
}

struct Layout {
    Plan plan;
    std::int64_t doubles;
};

// Plans the matrices [first, last), the largest first, so that the tiles that some blocks take in addition to their
// equal share are those of small matrices.
Layout lay_out(const std::vector<Matrix>& matrices, std::size_t first, std::size_t last) {
    Layout layout = {};
    Plan& plan = layout.plan;
    for (std::size_t i = first; i < last; ++i) plan.matrices[plan.count++] = plan_of(matrices[i]);
    std::stable_sort(plan.matrices, plan.matrices + plan.count,
                     [](const MatrixPlan& a, const MatrixPlan& b) { return a.rows > b.rows; });
    for (int i = 0; i < plan.count; ++i) {
        MatrixPlan& m = plan.matrices[i];
        m.first_block = plan.blocks;
        m.first_gram_item = plan.gram_items;
        m.first_tile = plan.tiles;
        plan.blocks += blocks_of_side(m) * splits(m);
        plan.gram_items += lower_blocks(m) * splits(m);
        plan.tiles += 2 * lower_blocks(m);
    }
    layout.doubles = kControlDoubles + rounded_up(2 * plan.tiles, 32);
    for (int i = 0; i < plan.count; ++i) {
        plan.matrices[i].workspace = layout.doubles;
        layout.doubles += workspace_doubles(plan.matrices[i]);
    }
    return layout;
}

void cut_into_strips(Plan& plan, int width) {
    for (int i = 0; i < plan.count; ++i) {
        plan.matrices[i].first_strip = plan.strips;
        plan.strips += static_cast<int>(ceil_div(plan.matrices[i].columns, width));
    }
}

// The matrices of a plan are sorted, the largest first.
int largest_padded(const Plan& plan) { return plan.count > 0 ? padded(plan.matrices[0]) : 0; }

// Calls cudaSetDevice only where needed, because it would leave a green context.
cudaError_t make_current(int device) {
    int current = 0;
    const cudaError_t error = cudaGetDevice(&current);
    return error == cudaSuccess && current != device ? cudaSetDevice(device) : error;
}

// The operands of one round of launches.
struct Call {
    Plan plan;
    const BatchNormScale* scales;
    int scale_count;
    double* workspace;
    int* non_finite;
    cudaStream_t stream;
};

cudaError_t launch_quantize(const Call& call) {
    return launch(quantize_kernel, call.plan.blocks, kQuantizeThreads, kQuantizeShared, false, call.stream,
                  QuantizeArguments{call.plan, call.workspace});
}

cudaError_t launch_gram(const Call& call) {
    return launch(gram_kernel, call.plan.gram_items, kGramThreads, kGramShared, false, call.stream,
                  GramArguments{call.plan, call.workspace});
}

cudaError_t launch_shrinkage(const Call& call, const Constraint& constraint, const Device& device) {
    ShrinkageArguments arguments = {};
    arguments.plan = call.plan;
    arguments.schedule.count = static_cast<int>(constraint.polynomials.size());
    std::copy(constraint.polynomials.begin(), constraint.polynomials.end(), arguments.schedule.polynomials);
    arguments.schedule.deviation = constraint.deviation;
    arguments.workspace = call.workspace;
    arguments.non_finite = call.non_finite;
    // One block per multiprocessor: more would only make the barriers slower.
    return launch(shrinkage_kernel, std::min(call.plan.tiles, device.multiprocessors), kShrinkageThreads,
                  kShrinkageShared, true, call.stream, arguments);
}

template <int Width>
cudaError_t launch_apply_of_width(const Call& call, ApplyArguments arguments) {
    cut_into_strips(arguments.plan, Width);
    return launch(apply_kernel<Width>, arguments.plan.strips + call.scale_count, kApplyThreads<Width>,
                  apply_shared<Width>(largest_padded(call.plan)), false, call.stream, arguments);
}

cudaError_t launch_apply(const Call& call, const Constraint& constraint, const Device& device) {
    ApplyArguments arguments = {};
    arguments.plan = call.plan;
    arguments.workspace = call.workspace;
    std::copy_n(call.scales, call.scale_count, arguments.scales);
    arguments.lowest = static_cast<float>(constraint.lowest);
    arguments.epsilon = static_cast<float>(constraint.epsilon);
    // A wider strip reads R less often.
    if (apply_shared<64>(largest_padded(call.plan)) <= device.shared_bytes)
        return launch_apply_of_width<64>(call, arguments);
    return launch_apply_of_width<32>(call, arguments);
}

cudaError_t launch_all(const Call& call, const Constraint& constraint, const Device& device) {
    cudaError_t error = cudaSuccess;
    if (call.plan.count > 0) error = launch_quantize(call);
    if (call.plan.count > 0 && error == cudaSuccess) error = launch_gram(call);
    if (call.plan.count > 0 && error == cudaSuccess) error = launch_shrinkage(call, constraint, device);
    return error == cudaSuccess ? launch_apply(call, constraint, device) : error;
}

std::string text_of(cudaError_t error) {
    int driver = 0;
    // CUDA reports a missing driver as one that is too old.
    if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
        return "no CUDA driver is installed";
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction)
        return "it was not compiled for this GPU; build it with the GPU's compute capability, 8.0 or later, in "
               "TGAN_FAST_CUDA_ARCHS";
    if (error == cudaErrorCooperativeLaunchTooLarge)
        return "a green context or MPS leaves the stream fewer multiprocessors than the device reports, too few for "
               "blocks that wait for one another; use a stream of the whole device";
    return cudaGetErrorString(error);
}

// Allows a kernel all the shared memory that a block may have. Fails if it was not compiled for the device.
template <typename Argument>
cudaError_t allow_shared_memory(void (*kernel)(Argument), int bytes) {
    return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                bytes);
}

int largest_side(int shared_bytes) {
    if (shared_bytes < std::max(kShrinkageShared, kGramShared)) return 0;
    int side = kLargestSide;
    while (side > 0 && apply_shared<32>(side) > shared_bytes) side -= kBlock;
    return std::max(side, 0);
}

// Does the work of `prepare` at its first call for a device.
Device newly_prepared(int index) {
    Device device = {};
    int& bytes = device.shared_bytes;
    cudaError_t error = make_current(index);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
    if (error == cudaSuccess) error = allow_shared_memory(gram_kernel, bytes);
    if (error == cudaSuccess) error = allow_shared_memory(shrinkage_kernel, bytes);
    if (error == cudaSuccess) error = allow_shared_memory(apply_kernel<64>, bytes);
    if (error == cudaSuccess) error = allow_shared_memory(apply_kernel<32>, bytes);
    if (error == cudaSuccess) device.largest_side = largest_side(bytes);
    if (error != cudaSuccess)
        device.error = text_of(error);
    else if (device.largest_side == 0)
        device.error = "the kernels need more than a block's " + std::to_string(bytes) + " bytes of shared memory";
    return device;
}

std::string refusal(const std::vector<Matrix>& matrices, const Constraint& constraint, std::size_t workspace_size,
                    int side) {
    if (constraint.polynomials.empty() || constraint.polynomials.size() > kPolynomials)
        return "1 to 32 polynomials are needed";
    for (const Matrix& matrix : matrices) {
        const double squared = matrix.threshold * matrix.threshold;
        if (!(matrix.threshold > 0 && squared > 0 && std::isfinite(squared)))
            return "a threshold and its square must be positive numbers";
        if (matrix.rows < 1 || matrix.columns < 1) return "a matrix is empty";
        if (std::min(matrix.rows, matrix.columns) > side)
            return "a matrix of " + std::to_string(matrix.rows) + "×" + std::to_string(matrix.columns) +
                   " is too large: the smaller side must be at most " + std::to_string(side);
    }
    if (workspace_size < workspace_bytes(matrices)) return "the workspace is too small";
    return "";
}

}  // namespace

const Device& prepare(int device) {
    static std::mutex mutex;
    static std::map<int, Device> devices;
    const std::lock_guard<std::mutex> lock(mutex);
    auto known = devices.find(device);
    if (known == devices.end()) known = devices.emplace(device, newly_prepared(device)).first;
    return known->second;
}

std::vector<std::pair<std::string, int>> shared_bytes(int side) {
    const int padded = static_cast<int>(rounded_up(side, kBlock));
    return {{"quantize_kernel", kQuantizeShared},
            {"gram_kernel", kGramShared},
            {"shrinkage_kernel", kShrinkageShared},
            {"apply_kernel<64>", apply_shared<64>(padded)},
            {"apply_kernel<32>", apply_shared<32>(padded)}};
}

std::size_t workspace_bytes(const std::vector<Matrix>& matrices) {
    std::int64_t doubles = 0;
    for (std::size_t first = 0; first < matrices.size(); first += kMatricesPerCall)
        doubles =
            std::max(doubles, lay_out(matrices, first, std::min(matrices.size(), first + kMatricesPerCall)).doubles);
    return static_cast<std::size_t>(doubles) * sizeof(double);
}

std::string constrain(int device, const std::vector<Matrix>& matrices, const std::vector<BatchNormScale>& scales,
                      const Constraint& constraint, void* workspace, std::size_t workspace_size, int* non_finite,
                      void* stream) {
    const Device& prepared = prepare(device);
    if (!prepared.error.empty()) return prepared.error;
    const std::string error = refusal(matrices, constraint, workspace_size, prepared.largest_side);
    if (!error.empty()) return error;
    cudaError_t state = make_current(device);
    std::size_t matrix = 0, scale = 0;
    while (state == cudaSuccess && (matrix < matrices.size() || scale < scales.size())) {
        const std::size_t matrix_end = std::min(matrices.size(), matrix + kMatricesPerCall);
        const std::size_t scale_end = std::min(scales.size(), scale + kScalesPerCall);
        Plan plan = lay_out(matrices, matrix, matrix_end).plan;
        plan.float64_only = constraint.float64_only;
        const Call call = {plan,
                           scales.data() + scale,
                           static_cast<int>(scale_end - scale),
                           static_cast<double*>(workspace),
                           non_finite,
                           static_cast<cudaStream_t>(stream)};
        state = launch_all(call, constraint, prepared);
        matrix = matrix_end;
        scale = scale_end;
    }
    return state == cudaSuccess ? "" : text_of(state);
}

}  // namespace tgan_fast

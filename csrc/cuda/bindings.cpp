// The only file that knows Python. It takes tensors as addresses with sizes and strides, and returns errors as text.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "singular_value_clip.h"

namespace py = pybind11;
using tgan_fast::BatchNormScale;
using tgan_fast::Constraint;
using tgan_fast::CopyType;
using tgan_fast::Matrix;

namespace {

using Address = std::uintptr_t;
// address, rows, columns, row stride, column stride, threshold, address of the copy (0: none), its type (1: float16,
// 2: bfloat16)
using MatrixTuple = std::tuple<Address, std::int64_t, std::int64_t, std::int64_t, std::int64_t, double, Address, int>;
// address of the scale, address of the running variance, channels
using ScaleTuple = std::tuple<Address, Address, std::int64_t>;
// lower, upper, a, b, c
using PolynomialTuple = std::tuple<double, double, double, double, double>;

template <typename T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

std::vector<Matrix> matrices_of(const std::vector<MatrixTuple>& tuples) {
    std::vector<Matrix> matrices;
    for (const auto& [data, rows, columns, row_stride, column_stride, threshold, copy, type] : tuples)
        matrices.push_back({pointer<float>(data), rows, columns, row_stride, column_stride, threshold,
                            pointer<void>(copy), static_cast<CopyType>(type)});
    return matrices;
}

std::string constrain(int device, const std::vector<MatrixTuple>& matrices, const std::vector<ScaleTuple>& scales,
                      double lowest, double epsilon, const std::vector<PolynomialTuple>& polynomials, double deviation,
                      bool float64_only, Address workspace, std::size_t workspace_size, Address non_finite,
                      Address stream) {
    std::vector<BatchNormScale> batch_norms;
    for (const auto& [scale, running_var, channels] : scales)
        batch_norms.push_back({pointer<float>(scale), pointer<const float>(running_var), channels});
    Constraint constraint = {lowest, epsilon, {}, deviation, float64_only};
    for (const auto& [lower, upper, a, b, c] : polynomials) constraint.polynomials.push_back({lower, upper, a, b, c});
    // The GIL stays locked, because the launches of two threads on one stream and workspace must not mix.
    return tgan_fast::constrain(device, matrices_of(matrices), batch_norms, constraint, pointer<void>(workspace),
                                workspace_size, pointer<int>(non_finite), pointer<void>(stream));
}

std::tuple<int, std::string> prepare(int device) {
    const tgan_fast::Device& prepared = tgan_fast::prepare(device);
    return {prepared.largest_side, prepared.error};
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    module.doc() = "CUDA kernels of tgan_fast; csrc/cuda/singular_value_clip.h describes them.";
    module.def("prepare", &prepare, py::arg("device"),
               "Prepares the kernels on a device, once; returns the largest min(rows, columns) that they take, and the "
               "reason why they cannot run there, or \"\".");
    module.def("shared_bytes", &tgan_fast::shared_bytes, py::arg("side"),
               "Returns the dynamic shared memory of each kernel in bytes, for matrices whose smaller side is `side`.");
    module.def(
        "workspace_bytes",
        [](const std::vector<MatrixTuple>& matrices) { return tgan_fast::workspace_bytes(matrices_of(matrices)); },
        py::arg("matrices"));
    module.def("constrain", &constrain, py::arg("device"), py::arg("matrices"), py::arg("scales"), py::arg("lowest"),
               py::arg("epsilon"), py::arg("polynomials"), py::arg("deviation"), py::arg("float64_only"),
               py::arg("workspace"), py::arg("workspace_size"), py::arg("non_finite"), py::arg("stream"),
               "Clips and clamps in the order of the stream; returns an error message, or \"\".");
}

// The only file of the CPU kernels that knows Python. It takes tensors as addresses with sizes and strides.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "kernels.h"
#include "team.h"

namespace py = pybind11;
using namespace tgan_fast::cpu;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

const Kernels* kernels = instruction_sets().front().kernels;

std::vector<std::string> names_of_instruction_sets() {
    std::vector<std::string> names;
    for (const InstructionSet& set : instruction_sets()) names.push_back(set.name);
    return names;
}

void use_instruction_set(const std::string& name) {
    for (const InstructionSet& set : instruction_sets()) {
        if (set.name != name) continue;
        kernels = set.kernels;
        return;
    }
    throw py::value_error("this CPU has no kernels for the instruction set " + name);
}

// Arguments that do not change between calls: dtype, shape, and the strides of x and of the other tensors of its shape.
struct Layout {
    Type type;
    Shape shape;
    Operand x, residual;
    Operand other;   // y or dy
    Operand output;  // dx and dresidual

    static Operand at(Operand strides, Address address) {
        return {pointer<void>(address), strides.row, strides.channel};
    }
};

Layout make_layout(Type type, bool channels_last, std::int64_t groups, std::int64_t rows, std::int64_t cols,
                   std::int64_t channels, const std::vector<std::int64_t>& strides) {
    if (strides.size() != 8) throw py::value_error("a layout needs the strides of a row and a channel for 4 tensors");
    const Shape shape = {channels_last, groups, rows, cols, channels};
    return {type,
            shape,
            {nullptr, strides[0], strides[1]},
            {nullptr, strides[2], strides[3]},
            {nullptr, strides[4], strides[5]},
            {nullptr, strides[6], strides[7]}};
}

BatchNorm batch_norm(const Layout& layout, Address x, Address residual, Address mean, Address rstd, Address weight,
                     Address bias, bool training, Activation activation, double negative_slope) {
    return {layout.shape,
            layout.type,
            pointer<void>(weight),
            pointer<void>(bias),
            pointer<double>(mean),
            pointer<double>(rstd),
            training,
            activation,
            negative_slope,
            Layout::at(layout.x, x),
            Layout::at(layout.residual, residual)};
}

void forward(const Layout& layout, Address x, Address residual, Address y, Address mean, Address rstd, Address weight,
             Address bias, Address running_mean, Address running_var, Address batches, bool training,
             std::optional<double> momentum, double eps, Activation activation, double negative_slope, int threads) {
    BatchNormForward call;
    static_cast<BatchNorm&>(call) =
        batch_norm(layout, x, residual, mean, rstd, weight, bias, training, activation, negative_slope);
    call.y = Layout::at(layout.other, y);
    call.running_mean = pointer<void>(running_mean);
    call.running_var = pointer<void>(running_var);
    call.batches = pointer<std::int64_t>(batches);
    call.averages_batches = !momentum;
    call.momentum = momentum.value_or(0);
    call.eps = eps;
    py::gil_scoped_release released;
    kernels->batch_norm_forward(call, threads);
}

void backward(const Layout& layout, Address x, Address residual, Address dy, Address dx, Address dresidual,
              Address mean, Address rstd, Address weight, Address bias, Address dweight, Address dbias, bool training,
              Activation activation, double negative_slope, int threads) {
    BatchNormBackward call;
    static_cast<BatchNorm&>(call) =
        batch_norm(layout, x, residual, mean, rstd, weight, bias, training, activation, negative_slope);
    call.dy = Layout::at(layout.other, dy);
    call.dx = Layout::at(layout.output, dx);
    call.dresidual = Layout::at(layout.output, dresidual);
    call.dweight = pointer<void>(dweight);
    call.dbias = pointer<void>(dbias);
    py::gil_scoped_release released;
    kernels->batch_norm_backward(call, threads);
}

OptimizerStep optimizer_step(std::int64_t count, Address parameter, Address gradient, Type gradient_type,
                             Address square_average, Address copy, Type copy_type, float eps) {
    return {count,
            pointer<float>(parameter),
            pointer<void>(gradient),
            gradient_type,
            pointer<float>(square_average),
            pointer<void>(copy),
            copy_type,
            eps};
}

void rmsprop(std::int64_t count, Address parameter, Address gradient, Type gradient_type, Address square_average,
             Address copy, Type copy_type, double learning_rate, double alpha, double eps, int threads) {
    RMSprop step;
    static_cast<OptimizerStep&>(step) = optimizer_step(count, parameter, gradient, gradient_type, square_average, copy,
                                                       copy_type, static_cast<float>(eps));
    step.learning_rate = static_cast<float>(learning_rate);
    step.alpha = static_cast<float>(alpha);
    step.one_minus_alpha = static_cast<float>(1 - alpha);
    py::gil_scoped_release released;
    kernels->rmsprop(step, threads);
}

void adam(std::int64_t count, Address parameter, Address gradient, Type gradient_type, Address average,
          Address square_average, Address copy, Type copy_type, double size, double root, double beta1, double beta2,
          double eps, int threads) {
    Adam step;
    static_cast<OptimizerStep&>(step) = optimizer_step(count, parameter, gradient, gradient_type, square_average, copy,
                                                       copy_type, static_cast<float>(eps));
    step.average = pointer<float>(average);
    step.size = static_cast<float>(size);
    step.root = static_cast<float>(root);
    step.beta1 = static_cast<float>(beta1);
    step.one_minus_beta1 = static_cast<float>(1 - beta1);
    step.beta2 = static_cast<float>(beta2);
    step.one_minus_beta2 = static_cast<float>(1 - beta2);
    py::gil_scoped_release released;
    kernels->adam(step, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "CPU kernels of tgan_fast; csrc/cpu/kernels.h describes them.";
    py::enum_<Type>(module, "Type", py::module_local())
        .value("float32", Type::float32)
        .value("float64", Type::float64)
        .value("bfloat16", Type::bfloat16)
        .value("float16", Type::float16);
    py::enum_<Activation>(module, "Activation", py::module_local())
        .value("leaky_relu", Activation::leaky_relu)
        .value("relu6", Activation::relu6)
        .value("silu", Activation::silu)
        .value("gelu_tanh", Activation::gelu_tanh)
        .value("hardswish", Activation::hardswish);
    py::class_<Layout>(module, "Layout", py::module_local())
        .def(py::init(&make_layout), py::arg("type"), py::arg("channels_last"), py::arg("groups"), py::arg("rows"),
             py::arg("cols"), py::arg("channels"), py::arg("strides"));
    module.def("instruction_sets", &names_of_instruction_sets,
               "Returns the instruction sets that this CPU can run, the best first.");
    module.def("use_instruction_set", &use_instruction_set, py::arg("name"));
    module.def(
        "use_openmp",
        [](Address parallel, Address barrier, Address thread_num, Address num_threads) {
            use_openmp({reinterpret_cast<decltype(OpenMP::parallel)>(parallel),
                        reinterpret_cast<decltype(OpenMP::barrier)>(barrier),
                        reinterpret_cast<decltype(OpenMP::thread_num)>(thread_num),
                        reinterpret_cast<decltype(OpenMP::num_threads)>(num_threads)});
        },
        py::arg("parallel"), py::arg("barrier"), py::arg("thread_num"), py::arg("num_threads"),
        "Takes the addresses of GOMP_parallel, GOMP_barrier, omp_get_thread_num and omp_get_num_threads.");
    module.def("batch_norm_forward", &forward);
    module.def("batch_norm_backward", &backward);
    module.def("rmsprop", &rmsprop);
    module.def("adam", &adam);
}

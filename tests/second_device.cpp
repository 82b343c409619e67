// A device named "second": memory of its own kind in the CPU's memory, every operation computed on the CPU.
//
// It is there to find, without an accelerator, tensors that are on the wrong device: an operation on tensors of both
// devices is refused, as a GPU refuses it. Built and loaded by test_second_device.py.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>

using at::Tensor;

namespace {

constexpr auto kSecond = c10::DeviceType::PrivateUse1;
constexpr auto kKey = c10::DispatchKey::PrivateUse1;
const at::Device kHere(kSecond, 0);

void release(void* data) { std::free(data); }

struct Memory final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? std::malloc(bytes) : nullptr;
    return {data, data, &release, kHere};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::Stream stream() const { return c10::Stream(c10::Stream::DEFAULT, kHere); }
  c10::DeviceType type() const override { return kSecond; }
  at::Device exchangeDevice(at::Device) const override { return kHere; }
  at::Device getDevice() const override { return kHere; }
  void setDevice(at::Device) const override {}
  void uncheckedSetDevice(at::Device) const noexcept override {}
  c10::Stream getStream(at::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
Hooks hooks;

Tensor empty(
    c10::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<at::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(kKey), c10::dtype_or_default(type), format);
}

Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> type, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  const auto dtype = c10::dtype_or_default(type);
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(kKey), dtype);
}

// The same memory as a tensor of the CPU.
Tensor on_cpu(const Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != kSecond) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.dtype());
  if (tensor.numel() == 0) return at::empty(tensor.sizes(), options);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

const Tensor& resize(const Tensor& tensor, c10::SymIntArrayRef symbolic, std::optional<at::MemoryFormat>) {
  const auto size = C10_AS_INTARRAYREF_SLOW(symbolic);
  if (tensor.sizes() == size) return tensor;  // a part of another tensor keeps its strides
  const size_t entries = c10::multiply_integers(size) + tensor.storage_offset();
  const size_t bytes = entries * tensor.dtype().itemsize();
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  if (bytes > storage->nbytes()) {
    auto data = memory.allocate(bytes);
    if (storage->nbytes()) std::memcpy(data.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(data));
    storage->set_nbytes(bytes);
  }
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return tensor;
}

Tensor as_strided(const Tensor& t, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(t, size, stride, offset);
}

Tensor convolution(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding,
    int64_t groups) {
  const auto shift = bias ? std::optional<Tensor>(on_cpu(*bias)) : std::nullopt;
  return at::convolution(
             on_cpu(input), on_cpu(weight), shift, stride, padding, dilation, transposed, output_padding, groups)
      .to(kHere);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& slope, const Tensor& input, const Tensor& weight, c10::IntArrayRef stride, c10::IntArrayRef padding,
    c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  const int64_t channels = slope.size(1);
  auto [a, b, c] = at::convolution_backward(
      on_cpu(slope), on_cpu(input), on_cpu(weight), at::OptionalIntArrayRef(channels), stride, padding, dilation,
      transposed, output_padding, groups, mask);
  const auto moved = [](const Tensor& t) { return t.defined() ? t.to(kHere) : t; };
  return {moved(a), moved(b), moved(c)};
}

// Recurrent layers of torch ask devices other than the CPU for a fused cell: (h, c, gates) of the next step.
std::tuple<Tensor, Tensor, Tensor> lstm_cell(
    const Tensor& from_input, const Tensor& from_hidden, const Tensor& cell, const std::optional<Tensor>& input_bias,
    const std::optional<Tensor>& hidden_bias) {
  Tensor sum = from_input + from_hidden;
  if (input_bias && input_bias->defined()) sum = sum + *input_bias + *hidden_bias;
  const auto parts = sum.chunk(4, 1);
  const Tensor in = parts[0].sigmoid(), keep = parts[1].sigmoid(), fresh = parts[2].tanh(), out = parts[3].sigmoid();
  const Tensor next = keep * cell + in * fresh;
  return {out * next.tanh(), next, at::cat({in, keep, fresh, out}, 1)};
}

// Slopes in the gates before their nonlinearities, in the cell's state, and in the biases.
std::tuple<Tensor, Tensor, Tensor> lstm_cell_backward(
    const std::optional<Tensor>& hidden_slope, const std::optional<Tensor>& cell_slope, const Tensor& cell,
    const Tensor& next, const Tensor& gates, bool has_bias) {
  const auto parts = gates.chunk(4, 1);
  const Tensor &in = parts[0], &keep = parts[1], &fresh = parts[2], &out = parts[3];
  const auto given = [&](const std::optional<Tensor>& t) { return t && t->defined() ? *t : at::zeros_like(next); };
  const Tensor shown = next.tanh(), by_hidden = given(hidden_slope);
  const Tensor by_cell = given(cell_slope) + by_hidden * out * (1 - shown * shown);
  const Tensor slope = at::cat(
      {by_cell * fresh * in * (1 - in), by_cell * cell * keep * (1 - keep), by_cell * in * (1 - fresh * fresh),
       by_hidden * shown * out * (1 - out)}, 1);
  return {slope, by_cell * keep, has_bias ? slope.sum(0) : Tensor()};
}

// Everything else on the CPU, if all tensors are here. Numbers may come from the CPU, and so may indices: as on a GPU.
void on_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  bool here = false, there = false;
  const auto look = [&](const Tensor& tensor) {
    if (!tensor.defined()) return;
    here |= tensor.device().type() == kSecond;
    there |= tensor.device().type() != kSecond && tensor.dim() > 0;
  };
  for (const auto& argument : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (argument.isTensor()) look(argument.toTensor());
    if (argument.isTensorList())
      for (const Tensor& tensor : argument.toTensorVector()) look(tensor);
  }
  const std::string& name = op.schema().name();
  const bool indexing = name.find("aten::index") == 0 || name.find("aten::_index_put") == 0;
  TORCH_CHECK(indexing || !(here && there), name, ": expected all tensors on one device, found ", kHere, " and cpu");
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("resize_", &resize);
  library.impl("as_strided", &as_strided);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("convolution_overrideable", &convolution);
  library.impl("convolution_backward_overrideable", &convolution_backward);
  library.impl("_thnn_fused_lstm_cell", &lstm_cell);
  library.impl("_thnn_fused_lstm_cell_backward_impl", &lstm_cell_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>());
}

}  // namespace

REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory);
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("open", [] { at::RegisterPrivateUse1HooksInterface(&hooks); });
}

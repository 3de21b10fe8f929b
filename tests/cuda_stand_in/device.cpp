// The device cuda:0 on a machine without one. Its tensors lie in the processor's memory, and the processor computes with
// them: every operator of the dispatch key CUDA is handed the same memory as tensors of the processor, and what comes
// out is the device's. As on a real one, an operation over tensors of both devices is refused.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <unordered_map>

namespace {

using c10::DeviceType;
const c10::Device kDevice{DeviceType::CUDA, 0};

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  c10::Device getDevice() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
};
const c10::impl::DeviceGuardImplRegistrar registrar{DeviceType::CUDA, new Guard};

// Pinned memory is any memory, and known to be pinned.
struct Pinned final : at::HostAllocator {
  c10::DataPtr allocate(size_t size) override {
    void* made = c10::alloc_cpu(size);
    std::lock_guard<std::mutex> held(mutex());
    all().insert(made);
    return {made, made, &release, c10::Device(at::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
  bool record_event(void*, void*, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
  static bool holds(const void* data) {
    std::lock_guard<std::mutex> held(mutex());
    return all().count(const_cast<void*>(data)) > 0;
  }

 private:
  static std::set<void*>& all() {
    static auto* made = new std::set<void*>;
    return *made;
  }
  static std::mutex& mutex() {
    static auto* made = new std::mutex;
    return *made;
  }
  static void release(void* data) {
    std::lock_guard<std::mutex> held(mutex());
    all().erase(data);
    c10::free_cpu(data);
  }
};

Pinned* pinned() {
  static auto* made = new Pinned;
  return made;
}
const at::HostAllocatorRegistry<DeviceType::CUDA> pinned_registrar{pinned()};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return pinned(); }
  bool isPinnedPtr(const void* data) const override { return Pinned::holds(data); }
};

// Bytes that tensors of the device hold, and the most they held since the last reset.
std::atomic<int64_t> allocated{0}, most_allocated{0};

void release_alias(void* held) { delete static_cast<c10::Storage*>(held); }
void release_device(void* held) {
  allocated -= static_cast<c10::Storage*>(held)->nbytes();
  release_alias(held);
}

// The same memory as a storage of the other device, which it keeps alive.
c10::Storage seen_from(const c10::Storage& storage, c10::Device device) {
  auto release = device == kDevice ? &release_device : &release_alias;
  if (device == kDevice) {
    allocated += storage.nbytes();
    most_allocated = std::max(most_allocated.load(), allocated.load());
  }
  c10::DataPtr pointer{const_cast<void*>(storage.data()), new c10::Storage(storage), release, device};
  return {c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(pointer), c10::GetCPUAllocator(), true};
}

at::Tensor over(c10::Storage storage, const at::Tensor& like, DeviceType type) {
  using c10::BackendComponent;
  const bool cuda = type == DeviceType::CUDA;
  auto keys = like.key_set().remove_backend(cuda ? BackendComponent::CPUBit : BackendComponent::CUDABit) |
              c10::DispatchKeySet(cuda ? BackendComponent::CUDABit : BackendComponent::CPUBit);
  auto made =
      at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, std::move(storage), keys, like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

at::Tensor allocate(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::MemoryFormat> format) {
  auto held = at::empty(size, at::TensorOptions().dtype(dtype).device(at::kCPU), format);
  return over(seen_from(held.storage(), kDevice), held, DeviceType::CUDA);
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return allocate(size, dtype, format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  auto held = at::empty_strided(size, stride, at::TensorOptions().dtype(dtype).device(at::kCPU));
  return over(seen_from(held.storage(), kDevice), held, DeviceType::CUDA);
}

// One call: its tensors of the device as the processor's, and back.
class Call {
 public:
  Call(std::string name, bool mixes) : name_(std::move(name)), mixes_(mixes) {}

  at::Tensor to_processor(const at::Tensor& tensor, bool index) {
    if (!tensor.defined()) return tensor;
    if (tensor.device().type() != DeviceType::CUDA) {
      if (tensor.dim() > 0 && !index) other_ = true;
      return tensor;
    }
    device_ = true;
    auto found = tensors_.find(tensor.unsafeGetTensorImpl());
    if (found != tensors_.end()) return found->second.second;
    auto* place = tensor.storage().unsafeGetStorageImpl();
    if (!storages_.count(place)) {
      auto mine = seen_from(tensor.storage(), at::kCPU);
      theirs_.emplace(mine.unsafeGetStorageImpl(), tensor.storage());
      storages_.emplace(place, mine);
    }
    auto made = over(storages_.at(place), tensor, DeviceType::CPU);
    tensors_.emplace(tensor.unsafeGetTensorImpl(), std::make_pair(tensor, made));
    back_.emplace(made.unsafeGetTensorImpl(), tensor);
    return made;
  }

  void check() const {
    TORCH_CHECK(mixes_ || !(device_ && other_), "Expected all tensors to be on the same device, but found at least two "
                "devices, cuda:0 and cpu! (", name_, ")");
  }

  at::Tensor to_device(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    auto same = back_.find(tensor.unsafeGetTensorImpl());
    if (same != back_.end()) return same->second;
    return over(place_of(tensor), tensor, DeviceType::CUDA);
  }

  // What the operation resized.
  void write_back() {
    for (auto& entry : tensors_) {
      auto& [given, made] = entry.second;
      bool moved = made.storage().data() != given.storage().data();
      if (!moved && made.sizes() == given.sizes() && made.strides() == given.strides()) continue;
      auto* impl = given.unsafeGetTensorImpl();
      if (moved) impl->set_storage_keep_dtype(seen_from(made.storage(), kDevice));
      impl->set_sizes_and_strides(made.sizes(), made.strides(), made.storage_offset());
    }
  }

 private:
  c10::Storage place_of(const at::Tensor& tensor) {
    auto found = theirs_.find(tensor.storage().unsafeGetStorageImpl());
    return found != theirs_.end() ? found->second : seen_from(tensor.storage(), kDevice);
  }

  std::string name_;
  bool mixes_, device_ = false, other_ = false;
  std::unordered_map<c10::StorageImpl*, c10::Storage> storages_, theirs_;
  std::unordered_map<c10::TensorImpl*, std::pair<at::Tensor, at::Tensor>> tensors_;
  std::unordered_map<c10::TensorImpl*, at::Tensor> back_;
};

void on_processor(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& name = schema.name();
  Call call(name, name == "aten::copy_" || name == "aten::_copy_from");
  const bool indexes = name.find("index") != std::string::npos;  // on a real device too, indices may be the host's
  auto given = torch::jit::last(*stack, schema.arguments().size());
  std::vector<c10::IValue> arguments(given.begin(), given.end());
  torch::jit::drop(*stack, arguments.size());
  for (auto& value : arguments) {
    if (value.isTensor()) {
      value = call.to_processor(value.toTensor(), false);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& one : value.toTensorVector()) list.push_back(call.to_processor(one, false));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& one : value.toOptionalTensorVector())
        list.push_back(one ? std::optional(call.to_processor(*one, indexes)) : one);
      value = list;
    } else if (value.isDevice()) {
      value = c10::Device(at::kCPU);
    }
  }
  call.check();
  for (auto& value : arguments) torch::jit::push(*stack, std::move(value));
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.write_back();
  for (auto& value : torch::jit::last(*stack, schema.returns().size())) {
    auto& out = const_cast<c10::IValue&>(value);
    if (out.isTensor()) {
      out = call.to_device(out.toTensor());
    } else if (out.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& one : out.toTensorVector()) list.push_back(call.to_device(one));
      out = list;
    }
  }
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_processor>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  // These choose by device what to do in ways that leave the dispatcher.
  for (const char* name : {"copy_", "convolution", "scaled_dot_product_attention", "_fused_sdp_choice"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_processor>());
}

TORCH_LIBRARY(cuda_stand_in, m) {
  m.def("allocated() -> int", [] { return allocated.load(); });
  m.def("most_allocated() -> int", [] { return most_allocated.load(); });
  m.def("reset_most_allocated() -> ()", [] { most_allocated = allocated.load(); });
}

}  // namespace

namespace at {
using CUDAHooks = Hooks;  // the name it is looked for by
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

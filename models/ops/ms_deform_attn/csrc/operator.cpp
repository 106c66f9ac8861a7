// Multi-scale deformable attention on the CPU: memory, threads and the choice of the instruction set.
//
// The work is cut into slices, one head of one image each. Where many points read a slice, its cells are first packed
// into a table of their own: in `value` they lie a row of all heads apart, which wastes the caches. As many slices as
// there are threads are in work at a time, so the scratch memory is a few heads whatever the batch.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

#include "kernel.h"

namespace ms_deform_attn {
namespace {

using at::Tensor;

template <typename T>
Kernels<T> kernels() {
#define RETURN_KERNELS_OF(capability)              \
  if constexpr (std::is_same_v<T, float>) {        \
    return capability::float_kernels();            \
  } else {                                         \
    return capability::double_kernels();           \
  }
#if defined(HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
    RETURN_KERNELS_OF(avx512)
  }
#endif
#if defined(HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    RETURN_KERNELS_OF(avx2)
  }
#endif
  RETURN_KERNELS_OF(baseline)
#undef RETURN_KERNELS_OF
}

// What a call was given, in any types and strides.
struct Inputs {
  Tensor value;                        // (B, S, H, C)
  std::vector<int64_t> shapes;         // h and w of each level in turn
  Tensor locations, weights;           // plain
  Tensor references, offsets, logits;  // fused

  bool fused() const { return references.defined(); }
  const Tensor& pairs() const { return fused() ? offsets : locations; }
  const Tensor& scalars() const { return fused() ? logits : weights; }

  at::ScalarType widest() const {
    at::ScalarType type = at::promoteTypes(value.scalar_type(), pairs().scalar_type());
    type = at::promoteTypes(type, scalars().scalar_type());
    if (fused()) type = at::promoteTypes(type, references.scalar_type());
    return type == at::kDouble ? at::kDouble : at::kFloat;
  }
};

// The kernels trust these sizes; who calls torch.ops directly has not passed the checks in Python.
void check_sizes(const Inputs& inputs) {
  const Tensor& value = inputs.value;
  const Tensor& pairs = inputs.pairs();
  TORCH_CHECK_VALUE(value.dim() == 4 && pairs.dim() == 6 && pairs.size(5) == 2, "value has sizes ", value.sizes(),
                    " and locations or offsets ", pairs.sizes(), ", expected (B, S, H, C) and (B, Q, H, L, P, 2)");
  TORCH_CHECK_VALUE(pairs.size(0) == value.size(0) && pairs.size(2) == value.size(2), "locations or offsets have sizes ",
                    pairs.sizes(), ", expected B and H of value ", value.sizes());
  TORCH_CHECK_VALUE(inputs.scalars().sizes() == pairs.sizes().slice(0, 5), "weights or logits have sizes ",
                    inputs.scalars().sizes(), ", expected ", pairs.sizes().slice(0, 5));
  int64_t tokens = 0;
  bool positive = true;
  for (size_t l = 0; l + 1 < inputs.shapes.size(); l += 2) {
    tokens += inputs.shapes[l] * inputs.shapes[l + 1];
    positive = positive && inputs.shapes[l] > 0 && inputs.shapes[l + 1] > 0;
  }
  TORCH_CHECK_VALUE(inputs.scalars().numel() > 0 && value.numel() > 0, "nothing to compute, expected no empty input");
  TORCH_CHECK_VALUE(positive && static_cast<int64_t>(inputs.shapes.size()) == 2 * pairs.size(3) &&
                        tokens == value.size(1),
                    "levels are ", inputs.shapes, ", expected ", pairs.size(3), " positive heights and widths with ",
                    value.size(1), " cells in all");
  if (inputs.fused()) {
    const Tensor& references = inputs.references;
    TORCH_CHECK_VALUE(references.dim() == 4 && references.size(0) == pairs.size(0) &&
                          references.size(1) == pairs.size(1) && references.size(2) == pairs.size(3) &&
                          (references.size(3) == 2 || references.size(3) == 4),
                      "references have sizes ", references.sizes(), ", expected (B, Q, L, 2) or (B, Q, L, 4)");
  }
}

// Memory that is about to be written whole. What malloc takes from the system for one tensor comes without pages, and
// half of a backward pass of two images and more went into making them, 4 KiB at a time: ask for large ones.
Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options) {
  Tensor tensor = at::empty(sizes, options);
#if defined(MADV_HUGEPAGE)
  constexpr size_t kAlwaysOfItsOwn = size_t(32) << 20;  // glibc maps what is larger alone, whatever was freed before
  constexpr uintptr_t kPage = 4096;
  if (tensor.nbytes() > kAlwaysOfItsOwn) {
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + kPage - 1) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + tensor.nbytes()) / kPage * kPage;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: it may be declined
  }
#endif
  return tensor;
}

// Memory that somebody mapped need not lie where the processor wants numbers of this type.
Tensor aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % tensor.element_size() == 0 ? tensor : tensor.clone();
}

struct Level {
  int64_t height, width;
  int64_t start;  // its first cell among those of value
  int64_t block;  // its first row in a packed table

  // Two rows of zeros above the cells and one below; the zero at the end of a row is also the one before the next row.
  int64_t pitch() const { return width + 1; }
  int64_t origin() const { return block + 2 * pitch() + 1; }
  int64_t rows() const { return (height + 3) * pitch() + 1; }
};

// A call in the type T that everything is accumulated in.
template <typename T>
class Problem {
 public:
  explicit Problem(const Inputs& inputs) : given_(inputs.value.scalar_type()) {
    check_sizes(inputs);
    const at::TensorOptions options = inputs.value.options().dtype(c10::CppTypeToScalarType<T>::value);
    options_ = options;
    images_ = inputs.value.size(0);
    tokens_ = inputs.value.size(1);
    call_.queries = inputs.pairs().size(1);
    call_.heads = inputs.pairs().size(2);
    call_.channels = inputs.value.size(3);
    call_.levels = inputs.pairs().size(3);
    call_.points = inputs.pairs().size(4);
    const int64_t per_query = call_.levels * call_.points;
    call_.tile = std::clamp<int64_t>(kTilePoints / per_query, 1, call_.queries);
    int64_t start = 0;
    for (int64_t l = 0; l < call_.levels; ++l) {
      levels_.push_back({inputs.shapes[2 * l], inputs.shapes[2 * l + 1], start, table_rows_});
      start += levels_.back().height * levels_.back().width;
      table_rows_ += levels_.back().rows();
      lines_ += levels_.back().height;
    }
    TORCH_CHECK_VALUE(table_rows_ < INT32_MAX, "value has ", tokens_, " tokens, expected fewer than 2^31");
    // Packing reads and writes a whole slice once: worth it where its points are more than its cells (measured).
    packed_ = call_.queries * per_query > 2 * tokens_;
    value_ = aligned(packed_ ? inputs.value.contiguous() : inputs.value.to(options).contiguous());
    prepare_points();
    if (inputs.fused()) {
      call_.references = hold(inputs.references);
      call_.reference_size = inputs.references.size(3);
      call_.offsets = hold(inputs.offsets);
      call_.logits = hold(inputs.logits);
    } else {
      call_.locations = hold(inputs.locations);
      call_.weights = hold(inputs.weights);
    }
    zeros_.assign(call_.channels, T(0));
  }

  Tensor forward() {
    Tensor output = fresh({images_, call_.queries, call_.heads * call_.channels}, options_);
    call_.output = output.mutable_data_ptr<T>();
    const Kernels<T> kernel = kernels<T>();
    const int64_t tiles = (call_.queries + call_.tile - 1) / call_.tile;
    const Tensor table = packed_ ? at::zeros({wave(), table_rows_, call_.channels}, options_) : Tensor();
    for (int64_t first = 0; first < slices(); first += wave()) {
      const int64_t count = std::min(wave(), slices() - first);
      if (packed_) pack(table.mutable_data_ptr<T>(), first, count);
      at::parallel_for(0, count * tiles, /*grain_size=*/4, [&](int64_t begin, int64_t end) {
        std::vector<T> workspace(workspace_elements(call_.tile * call_.levels * call_.points));
        while (begin < end) {
          const int64_t s = begin / tiles;
          const int64_t stop = std::min(end, (s + 1) * tiles);
          kernel.forward(call_, slice(table, first + s, s), (begin - s * tiles) * call_.tile,
                         std::min((stop - s * tiles) * call_.tile, call_.queries), workspace.data());
          begin = stop;
        }
      });
    }
    return output.to(given_);
  }

  // Gradients of value, of locations or offsets, of weights or logits, and of references for each head.
  std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_output, bool needs_reference) {
    TORCH_CHECK_VALUE(grad_output.numel() == images_ * call_.queries * call_.heads * call_.channels,
                      "grad_output has sizes ", grad_output.sizes(), ", expected those of the output");
    call_.grad_output = hold(grad_output);
    const int64_t heads = call_.heads, points = call_.points, levels = call_.levels;
    Tensor grad_pairs = fresh({images_, call_.queries, heads, levels, points, 2}, options_);
    Tensor grad_scalars = fresh({images_, call_.queries, heads, levels, points}, options_);
    Tensor grad_references = at::empty(
        {images_, call_.queries, heads, levels, needs_reference ? call_.reference_size : 0}, options_);
    call_.grad_locations = grad_pairs.mutable_data_ptr<T>();
    call_.grad_weights = grad_scalars.mutable_data_ptr<T>();
    call_.grad_references = needs_reference ? grad_references.mutable_data_ptr<T>() : nullptr;

    Tensor grad_value, table, grad_table;
    if (packed_) {
      grad_value = fresh(value_.sizes(), value_.options());
      table = at::zeros({wave(), table_rows_, call_.channels}, options_);
      grad_table = at::empty(table.sizes(), options_);
    } else {
      grad_value = fresh(value_.sizes(), options_);
      clear(grad_value.mutable_data_ptr<T>(), grad_value.numel());
    }
    const Kernels<T> kernel = kernels<T>();
    for (int64_t first = 0; first < slices(); first += wave()) {
      const int64_t count = std::min(wave(), slices() - first);
      if (packed_) {
        pack(table.mutable_data_ptr<T>(), first, count);
        clear(grad_table.mutable_data_ptr<T>(), count * table_rows_ * call_.channels);
      }
      // Threads without a slice of their own share one: each takes a part of its queries and a part of its rows. A row
      // is added to by one thread and in one order, so the sums have the same bits for any number of threads.
      const int64_t parts = (threads() + count - 1) / count;
      at::parallel_for(0, count * parts, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
        std::vector<T> workspace(workspace_elements(call_.tile * levels * points));
        for (int64_t task = begin; task < end; ++task) {
          const int64_t s = task / parts, part = task % parts;
          Slice<T> work = slice(table, first + s, s);
          work.grad_rows = packed_ ? grad_table.mutable_data_ptr<T>() + s * table_rows_ * call_.channels
                                   : grad_value.mutable_data_ptr<T>() + value_offset(first + s);
          work.first_row = boundary(part, parts);
          work.last_row = boundary(part + 1, parts);
          work.whole_table = parts == 1;
          kernel.backward(call_, work, query(part, parts), query(part + 1, parts), workspace.data());
        }
      });
      if (packed_) unpack(grad_table.const_data_ptr<T>(), first, count, grad_value);
    }
    return {grad_value.to(given_), grad_pairs, grad_scalars, grad_references};
  }

 private:
  static int64_t threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }
  int64_t slices() const { return images_ * call_.heads; }
  int64_t wave() const { return packed_ ? std::min(slices(), threads()) : slices(); }
  int64_t value_offset(int64_t slice) const {
    return (slice / call_.heads * tokens_ * call_.heads + slice % call_.heads) * call_.channels;
  }

  const T* hold(const Tensor& tensor) {
    held_.push_back(aligned(tensor.to(options_).contiguous()));
    return held_.back().template const_data_ptr<T>();
  }

  void prepare_points() {
    for (int64_t q = 0; q < call_.tile; ++q) {
      for (int64_t l = 0; l < call_.levels; ++l) {
        const Level& level = levels_[l];
        for (int64_t p = 0; p < call_.points; ++p) {
          width_.push_back(static_cast<T>(level.width));
          height_.push_back(static_cast<T>(level.height));
          pitch_.push_back(static_cast<int32_t>(packed_ ? level.pitch() : level.width));
          origin_.push_back(static_cast<int32_t>(packed_ ? level.origin() : level.start));
          pair_.push_back(static_cast<int32_t>(q * call_.levels + l));
        }
      }
    }
    const size_t padded = (width_.size() + kPadding - 1) / kPadding * kPadding;
    for (std::vector<T>* constant : {&width_, &height_}) constant->resize(padded);
    for (std::vector<int32_t>* constant : {&pitch_, &origin_, &pair_}) constant->resize(padded);
    call_.width = width_.data();
    call_.height = height_.data();
    call_.pitch = pitch_.data();
    call_.origin = origin_.data();
    call_.pair = pair_.data();
  }

  Slice<T> slice(const Tensor& table, int64_t which, int64_t place) const {
    Slice<T> slice{};
    slice.image = which / call_.heads;
    slice.head = which % call_.heads;
    slice.packed = packed_;
    slice.rows = packed_ ? table.const_data_ptr<T>() + place * table_rows_ * call_.channels
                         : value_.const_data_ptr<T>() + value_offset(which);
    slice.stride = packed_ ? call_.channels : call_.heads * call_.channels;
    slice.zeros = zeros_.data();
    return slice;
  }

  // The first query of a part; parts begin with a tile.
  int64_t query(int64_t part, int64_t parts) const {
    const int64_t tiles = (call_.queries + call_.tile - 1) / call_.tile;
    return std::min(part * tiles / parts * call_.tile, call_.queries);
  }

  // The first row of a part: every level is read by as many points, so a part is as many levels, not as many rows.
  int64_t boundary(int64_t part, int64_t parts) const {
    const int64_t l = part * call_.levels / parts;
    if (l == call_.levels) return packed_ ? table_rows_ : tokens_;
    const int64_t rest = part * call_.levels % parts;
    const Level& level = levels_[l];
    return packed_ ? level.block + level.rows() * rest / parts
                   : level.start + level.height * level.width * rest / parts;
  }

  // Calls row(cells, table): a line of cells of one level and slice, and its place in the table of that slice.
  template <typename Line>
  void for_lines(int64_t first, int64_t count, const Line& line) const {
    at::parallel_for(0, count * lines_, /*grain_size=*/16, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t s = at / lines_;
        int64_t i = at % lines_;
        size_t l = 0;
        while (i >= levels_[l].height) i -= levels_[l++].height;
        const Level& level = levels_[l];
        line(value_offset(first + s) + (level.start + i * level.width) * call_.heads * call_.channels,
             (s * table_rows_ + level.origin() + i * level.pitch()) * call_.channels, level.width);
      }
    });
  }

  // The borders of the table are zero and stay so.
  void pack(T* table, int64_t first, int64_t count) const {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value_.scalar_type(), "ms_deform_attn", [&] {
      const scalar_t* value = value_.const_data_ptr<scalar_t>();
      const int64_t channels = call_.channels, stride = call_.heads * channels;
      for_lines(first, count, [&](int64_t cells, int64_t row, int64_t width) {
        for (int64_t j = 0; j < width; ++j) {
          copy(value + cells + j * stride, table + row + j * channels, channels);
        }
      });
    });
  }

  void unpack(const T* table, int64_t first, int64_t count, Tensor& grad_value) const {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value_.scalar_type(), "ms_deform_attn", [&] {
      scalar_t* value = grad_value.mutable_data_ptr<scalar_t>();
      const int64_t channels = call_.channels, stride = call_.heads * channels;
      for_lines(first, count, [&](int64_t cells, int64_t row, int64_t width) {
        for (int64_t j = 0; j < width; ++j) {
          copy(table + row + j * channels, value + cells + j * stride, channels);
        }
      });
    });
  }

  template <typename From, typename To>
  static void copy(const From* from, To* to, int64_t count) {
    if constexpr (std::is_same_v<From, To>) {
      std::memcpy(to, from, count * sizeof(To));
    } else {
      for (int64_t c = 0; c < count; ++c) to[c] = static_cast<To>(from[c]);
    }
  }

  static void clear(T* values, int64_t count) {
    at::parallel_for(0, count, /*grain_size=*/32768, [&](int64_t begin, int64_t end) {
      std::memset(values + begin, 0, (end - begin) * sizeof(T));
    });
  }

  const at::ScalarType given_;
  at::TensorOptions options_;
  int64_t images_ = 0, tokens_ = 0;
  Tensor value_;
  bool packed_ = false;
  std::vector<Level> levels_;
  int64_t table_rows_ = 0;  // of a packed slice
  int64_t lines_ = 0;       // rows of cells of all levels
  std::vector<Tensor> held_;
  std::vector<T> width_, height_, zeros_;
  std::vector<int32_t> pitch_, origin_, pair_;
  Call<T> call_{};
};

Tensor run_forward(const Inputs& inputs) {
  return inputs.widest() == at::kDouble ? Problem<double>(inputs).forward() : Problem<float>(inputs).forward();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> run_backward(const Inputs& inputs, const Tensor& grad_output,
                                                        bool needs_reference) {
  return inputs.widest() == at::kDouble ? Problem<double>(inputs).backward(grad_output, needs_reference)
                                        : Problem<float>(inputs).backward(grad_output, needs_reference);
}

Tensor forward(const Tensor& value, at::IntArrayRef levels, const Tensor& locations, const Tensor& weights) {
  return run_forward({value, levels.vec(), locations, weights, {}, {}, {}});
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& value, at::IntArrayRef levels,
                                            const Tensor& locations, const Tensor& weights) {
  const auto [grad_value, grad_locations, grad_weights, none] =
      run_backward({value, levels.vec(), locations, weights, {}, {}, {}}, grad_output, false);
  return {grad_value, grad_locations.to(locations.scalar_type()), grad_weights.to(weights.scalar_type())};
}

Tensor fused_forward(const Tensor& value, at::IntArrayRef levels, const Tensor& references, const Tensor& offsets,
                     const Tensor& logits) {
  return run_forward({value, levels.vec(), {}, {}, references, offsets, logits});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward(const Tensor& grad_output, const Tensor& value,
                                                          at::IntArrayRef levels, const Tensor& references,
                                                          const Tensor& offsets, const Tensor& logits,
                                                          bool needs_reference) {
  const auto [grad_value, grad_offsets, grad_logits, grad_references] =
      run_backward({value, levels.vec(), {}, {}, references, offsets, logits}, grad_output, needs_reference);
  return {grad_value, grad_references.sum(2).to(references.scalar_type()), grad_offsets.to(offsets.scalar_type()),
          grad_logits.to(logits.scalar_type())};
}

}  // namespace
}  // namespace ms_deform_attn

TORCH_LIBRARY(ms_deform_attn_cpu, library) {
  library.def("forward(Tensor value, int[] levels, Tensor locations, Tensor weights) -> Tensor");
  library.def(
      "backward(Tensor grad_output, Tensor value, int[] levels, Tensor locations, Tensor weights)"
      " -> (Tensor, Tensor, Tensor)");
  library.def("fused_forward(Tensor value, int[] levels, Tensor references, Tensor offsets, Tensor logits) -> Tensor");
  library.def(
      "fused_backward(Tensor grad_output, Tensor value, int[] levels, Tensor references, Tensor offsets,"
      " Tensor logits, bool needs_reference) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(ms_deform_attn_cpu, CPU, library) {
  library.impl("forward", TORCH_FN(ms_deform_attn::forward));
  library.impl("backward", TORCH_FN(ms_deform_attn::backward));
  library.impl("fused_forward", TORCH_FN(ms_deform_attn::fused_forward));
  library.impl("fused_backward", TORCH_FN(ms_deform_attn::fused_backward));
}

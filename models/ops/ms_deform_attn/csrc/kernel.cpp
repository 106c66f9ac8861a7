// The sampling loops. Compiled once per instruction set: CAPABILITY names the namespace, the compiler's flags the set.
//
// A tile of queries goes through three stages: where its points lie (vectorised over points), which rows of the table and
// with which coefficients (the same), and the sums over rows (vectorised over channels).

#include "kernel.h"
#include "vectors.h"

namespace ms_deform_attn {
namespace CAPABILITY {
namespace {

// The arrays of a tile, each with an entry per point.
template <typename T>
struct Tile {
  int64_t size;  // entries
  T* x;          // position in cells from the centre of the level's first cell, then the distance from the left cell
  T* y;
  T* weight;
  T* scale_x;  // fused, references with four numbers: cells per unit of offset
  T* scale_y;
  T* coefficient[4];  // bilinear coefficient times weight of the upper left, upper right, lower left, lower right cell
  T* product;         // (size, 4): of these four rows with the query's cotangent
  int32_t* row[4];    // packed: row[0] alone, of the upper left cell; unpacked: all four, -1 outside the map

  Tile(T* workspace, int64_t points) : size(points) {
    const int64_t length = (points + kPadding - 1) / kPadding * kPadding;
    T* next = workspace;
    auto take = [&]() {
      T* array = next;
      next += length;
      return array;
    };
    x = take(), y = take(), weight = take(), scale_x = take(), scale_y = take();
    for (T*& array : coefficient) array = take();
    product = take();
    take(), take(), take();
    for (int32_t*& array : row) array = reinterpret_cast<int32_t*>(take());
  }
};

// Position and weight of every point of queries [first, first + count) of the slice's head.
template <typename T>
INLINE void place(const Call<T>& call, const Slice<T>& slice, int64_t first, int64_t count, Tile<T>& tile) {
  const int64_t per_query = call.levels * call.points;
  const int64_t size = count * per_query;
  const T* given = call.references ? call.offsets : call.locations;
  const T* weights = call.references ? call.logits : call.weights;
  T* __restrict x = tile.x;
  T* __restrict y = tile.y;
  for (int64_t q = 0; q < count; ++q) {
    const int64_t at = (((slice.image * call.queries + first + q) * call.heads) + slice.head) * per_query;
    const T* __restrict pairs = given + 2 * at;
    // What the next tile will read; heads lie between two queries, a stride that the processor does not foresee.
    const int64_t next = call.tile * call.heads * per_query;
    for (int64_t i = 0; i < per_query; i += 64 / sizeof(T)) {
      __builtin_prefetch(pairs + 2 * (next + i));
      __builtin_prefetch(pairs + 2 * (next + i) + 64 / sizeof(T));
      __builtin_prefetch(weights + at + next + i);
    }
    for (int64_t i = 0; i < per_query; ++i) {
      x[q * per_query + i] = pairs[2 * i];
      y[q * per_query + i] = pairs[2 * i + 1];
    }
    __builtin_memcpy(tile.weight + q * per_query, weights + at, per_query * sizeof(T));
  }
  const T* __restrict width = call.width;
  const T* __restrict height = call.height;
  if (!call.references) {
    for (int64_t i = 0; i < size; ++i) {
      x[i] = x[i] * width[i] - T(0.5);
      y[i] = y[i] * height[i] - T(0.5);
    }
    return;
  }
  // The position without its offset, and cells per unit of offset, are the same for the points of a query's level.
  T* __restrict base_x = tile.coefficient[0];
  T* __restrict base_y = tile.coefficient[1];
  T* __restrict step_x = tile.coefficient[2];
  T* __restrict step_y = tile.coefficient[3];
  const T step = T(0.5) / T(call.points);
  const T* reference = call.references + (slice.image * call.queries + first) * call.levels * call.reference_size;
  for (int64_t i = 0; i < count * call.levels; ++i, reference += call.reference_size) {
    base_x[i] = reference[0] * width[i * call.points] - T(0.5);
    base_y[i] = reference[1] * height[i * call.points] - T(0.5);
    if (call.reference_size == 4) {
      step_x[i] = reference[2] * width[i * call.points] * step;
      step_y[i] = reference[3] * height[i * call.points] * step;
    }
  }
  const int32_t* __restrict pair = call.pair;
  if (call.reference_size == 2) {
    for (int64_t i = 0; i < size; ++i) {
      x[i] += base_x[pair[i]];
      y[i] += base_y[pair[i]];
    }
  } else {
    T* __restrict scale_x = tile.scale_x;
    T* __restrict scale_y = tile.scale_y;
    for (int64_t i = 0; i < size; ++i) {
      scale_x[i] = step_x[pair[i]];
      scale_y[i] = step_y[pair[i]];
      x[i] = x[i] * scale_x[i] + base_x[pair[i]];
      y[i] = y[i] * scale_y[i] + base_y[pair[i]];
    }
  }
  for (int64_t q = 0; q < count; ++q) {
    T* __restrict weight = tile.weight + q * per_query;
    T largest = weight[0];
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < per_query; ++i) largest = weight[i] > largest ? weight[i] : largest;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < per_query; ++i) {
      weight[i] = exponential(weight[i] - largest);
      sum += weight[i];
    }
    const T factor = T(1) / sum;
    for (int64_t i = 0; i < per_query; ++i) weight[i] *= factor;
  }
}

// Rows and coefficients of the tile's points; x and y become distances from the left (upper) cell.
//
// A point more than one cell outside reads rows of zeros with coefficient zero, whatever its location; a location that is
// not a number makes the coefficients so, and with them the output, but reads no other rows.
template <typename T, bool packed>
INLINE void find_rows(const Call<T>& call, const Tile<T>& tile, int64_t size) {
  typedef typename Points<T>::Values Values;
  typedef typename Points<T>::Numbers Numbers;
  const Values zero{};
  for (int64_t i = 0; i < size; i += Points<T>::kLanes) {
    const Values x = load<Values>(tile.x + i);
    const Values y = load<Values>(tile.y + i);
    const Values weight = load<Values>(tile.weight + i);
    const Values width = load<Values>(call.width + i);
    const Values height = load<Values>(call.height + i);
    const auto number = (x == x) & (y == y);
    const auto inside = (x >= T(-1)) & (x < width) & (y >= T(-1)) & (y < height);
    const Values bounded_x = inside ? x : zero;
    const Values bounded_y = inside ? y : zero;
    // Floor: the conversion rounds towards zero, which is one too many below zero; a true comparison is -1.
    Numbers column = __builtin_convertvector(bounded_x, Numbers);
    Numbers line = __builtin_convertvector(bounded_y, Numbers);
    column += __builtin_convertvector(__builtin_convertvector(column, Values) > bounded_x, Numbers);
    line += __builtin_convertvector(__builtin_convertvector(line, Values) > bounded_y, Numbers);
    const Values across = bounded_x - __builtin_convertvector(column, Values);
    const Values down = bounded_y - __builtin_convertvector(line, Values);
    const Values w = inside ? weight : number ? weight * zero : x + y;
    const Values lower = w * down;
    const Values upper = w - lower;
    const Values upper_right = upper * across;
    const Values lower_right = lower * across;
    store(upper - upper_right, tile.coefficient[0] + i);
    store(upper_right, tile.coefficient[1] + i);
    store(lower - lower_right, tile.coefficient[2] + i);
    store(lower_right, tile.coefficient[3] + i);
    store(number ? across : x, tile.x + i);
    store(number ? down : y, tile.y + i);

    const Numbers pitch = load<Numbers>(call.pitch + i);
    const Numbers origin = load<Numbers>(call.origin + i);
    const Numbers here = __builtin_convertvector(inside, Numbers);
    const Numbers first = origin + line * pitch + column;
    if (packed) {
      // Two rows of zeros lie above each level's first row of cells.
      store(here ? first : origin - 2 * pitch - 1, tile.row[0] + i);
    } else {
      const Numbers outside = Numbers{} - 1;
      const Numbers left = here & (column >= 0);
      const Numbers right = here & (column + 1 < __builtin_convertvector(width, Numbers));
      const Numbers above = line >= 0;
      const Numbers below = line + 1 < __builtin_convertvector(height, Numbers);
      store(left & above ? first : outside, tile.row[0] + i);
      store(right & above ? first + 1 : outside, tile.row[1] + i);
      store(left & below ? first + pitch : outside, tile.row[2] + i);
      store(right & below ? first + pitch + 1 : outside, tile.row[3] + i);
    }
  }
}

// The rows of a point's four cells.
template <typename T>
struct Corners {
  const T* row[4];
};

template <typename T, bool packed>
INLINE Corners<T> corners(const Slice<T>& slice, const Tile<T>& tile, int64_t i, int64_t pitch) {
  Corners<T> found;
  if (packed) {
    found.row[0] = slice.rows + tile.row[0][i] * slice.stride;
    found.row[1] = found.row[0] + slice.stride;
    found.row[2] = found.row[0] + pitch * slice.stride;
    found.row[3] = found.row[2] + slice.stride;
  } else {
    for (int k = 0; k < 4; ++k) {
      const int64_t row = tile.row[k][i];
      found.row[k] = row < 0 ? slice.zeros : slice.rows + row * slice.stride;
    }
  }
  return found;
}

// Asks for N channels of the rows of a point that is soon to be read. Rows of an unpacked table lie anywhere in memory;
// those of a packed one are mostly in the cache, where asking costs more than it brings (measured, and the distance too).
constexpr int64_t kPointsAhead = 16;
template <typename T, int N>
INLINE void prefetch(const Slice<T>& slice, const Tile<T>& tile, int64_t i, int64_t channel) {
  const Corners<T> next = corners<T, false>(slice, tile, i, 0);
  for (int k = 0; k < 4; ++k) {
    for (int c = 0; c < N; c += 64 / sizeof(T)) __builtin_prefetch(next.row[k] + channel + c);
  }
}

// The sums over rows of a query's points, channels [channel, channel + N).
template <typename T, int N, bool packed>
INLINE void gather(const Call<T>& call, const Slice<T>& slice, const Tile<T>& tile, int64_t begin, int64_t end,
                   int64_t filled, int64_t channel, T* output) {
  typedef Channels<T, N> Row;
  Row upper = Row::zero();
  Row lower = Row::zero();
  for (int64_t i = begin; i < end; ++i) {
    const Corners<T> from = corners<T, packed>(slice, tile, i, call.pitch[i]);
    if (!packed && i + kPointsAhead < filled) prefetch<T, N>(slice, tile, i + kPointsAhead, channel);
    upper.add(tile.coefficient[0][i], Row::load(from.row[0] + channel));
    lower.add(tile.coefficient[2][i], Row::load(from.row[2] + channel));
    upper.add(tile.coefficient[1][i], Row::load(from.row[1] + channel));
    lower.add(tile.coefficient[3][i], Row::load(from.row[3] + channel));
  }
  for (int i = 0; i < Row::kCount; ++i) upper.at[i] += lower.at[i];
  upper.store(output + channel);
}

// Calls step<N>(channel) for blocks of channels that together are all of them, the widest first.
#define FOR_CHANNELS(channels, STEP)                                    \
  do {                                                                  \
    int64_t channel = 0;                                                \
    for (; channel + 32 <= (channels); channel += 32) STEP(32);         \
    if (channel + 16 <= (channels)) { STEP(16); channel += 16; }        \
    if (channel + 8 <= (channels)) { STEP(8); channel += 8; }           \
    if (channel + 4 <= (channels)) { STEP(4); channel += 4; }           \
    if (channel + 2 <= (channels)) { STEP(2); channel += 2; }           \
    if (channel + 1 <= (channels)) { STEP(1); }                         \
  } while (0)

template <typename T, bool packed>
void forward(const Call<T>& call, const Slice<T>& slice, int64_t begin, int64_t end, T* workspace) {
  const int64_t per_query = call.levels * call.points;
  Tile<T> tile(workspace, call.tile * per_query);
  for (int64_t first = begin; first < end; first += call.tile) {
    const int64_t count = end - first < call.tile ? end - first : call.tile;
    place(call, slice, first, count, tile);
    find_rows<T, packed>(call, tile, count * per_query);
    for (int64_t q = 0; q < count; ++q) {
      T* output = call.output + ((slice.image * call.queries + first + q) * call.heads + slice.head) * call.channels;
#define GATHER(N) \
  gather<T, N, packed>(call, slice, tile, q * per_query, (q + 1) * per_query, count * per_query, channel, output)
      FOR_CHANNELS(call.channels, GATHER);
#undef GATHER
    }
  }
}

// A query's products of rows with its cotangent, and its part of the rows' gradients, channels [channel, channel + N).
// Where channels come in several blocks the products add up.
template <typename T, int N, bool packed, bool whole_table>
INLINE void scatter(const Call<T>& call, const Slice<T>& slice, const Tile<T>& tile, int64_t begin, int64_t end,
                    int64_t channel, const T* cotangent, bool first_block, bool wants_products) {
  typedef Channels<T, N> Row;
  const Row g = Row::load(cotangent + channel);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t pitch = call.pitch[i];
    const Corners<T> from = corners<T, packed>(slice, tile, i, pitch);
    if (whole_table || wants_products) {
      T products[4];
      sums_of_lanes<T, typename Row::Vector>(
          Row::load(from.row[0] + channel).product(g), Row::load(from.row[1] + channel).product(g),
          Row::load(from.row[2] + channel).product(g), Row::load(from.row[3] + channel).product(g), products);
      T* stored = tile.product + 4 * i;
      for (int k = 0; k < 4; ++k) stored[k] = first_block ? products[k] : stored[k] + products[k];
    }
    const int64_t neighbour[4] = {0, 1, pitch, pitch + 1};
    for (int k = 0; k < 4; ++k) {
      if (!packed || !whole_table) {
        const int64_t row = packed ? tile.row[0][i] + neighbour[k] : tile.row[k][i];
        if (row < slice.first_row || row >= slice.last_row) continue;
      }
      T* target = slice.grad_rows + (from.row[k] - slice.rows) + channel;
      Row sum = Row::load(target);
      sum.add(tile.coefficient[k][i], g);
      sum.store(target);
    }
  }
}

// Gradients of locations and weights (or offsets, logits and references) from the products of rows and cotangent.
template <typename T>
INLINE void finish(const Call<T>& call, const Slice<T>& slice, int64_t first, int64_t count, Tile<T>& tile) {
  const int64_t per_query = call.levels * call.points;
  const int64_t size = count * per_query;
  const T* __restrict product = tile.product;
  const T* __restrict weight = tile.weight;
  const T* __restrict width = call.width;
  const T* __restrict height = call.height;
  T* __restrict x = tile.x;
  T* __restrict y = tile.y;
  T* __restrict grad_weight = tile.coefficient[0];
  // Slopes of the weighted sample in cells; x and y have served.
  for (int64_t i = 0; i < size; ++i) {
    const T upper = product[4 * i + 1] - product[4 * i];
    const T lower = product[4 * i + 3] - product[4 * i + 2];
    const T left = product[4 * i + 2] - product[4 * i];
    const T slope_x = upper + y[i] * (lower - upper);
    const T slope_y = left + x[i] * (lower - upper);
    grad_weight[i] = product[4 * i] + x[i] * upper + y[i] * slope_y;
    x[i] = weight[i] * slope_x;
    y[i] = weight[i] * slope_y;
  }
  if (!call.references) {
    for (int64_t i = 0; i < size; ++i) {
      x[i] *= width[i];
      y[i] *= height[i];
    }
  }
  for (int64_t q = 0; q < count; ++q) {
    const int64_t at = ((slice.image * call.queries + first + q) * call.heads + slice.head) * per_query;
    T* __restrict pairs = call.grad_locations + 2 * at;
    T* __restrict grad = grad_weight + q * per_query;
    const T* __restrict xs = x + q * per_query;
    const T* __restrict ys = y + q * per_query;
    if (call.references) {
      const T* __restrict softmax = weight + q * per_query;
      T mean = 0;
#pragma omp simd reduction(+ : mean)
      for (int64_t i = 0; i < per_query; ++i) mean += softmax[i] * grad[i];
      for (int64_t i = 0; i < per_query; ++i) grad[i] = softmax[i] * (grad[i] - mean);
    }
    __builtin_memcpy(call.grad_weights + at, grad, per_query * sizeof(T));
    if (call.references && call.reference_size == 4) {
      const T* __restrict scale_x = tile.scale_x + q * per_query;
      const T* __restrict scale_y = tile.scale_y + q * per_query;
      for (int64_t i = 0; i < per_query; ++i) {
        pairs[2 * i] = xs[i] * scale_x[i];
        pairs[2 * i + 1] = ys[i] * scale_y[i];
      }
    } else {
      for (int64_t i = 0; i < per_query; ++i) {
        pairs[2 * i] = xs[i];
        pairs[2 * i + 1] = ys[i];
      }
    }
    if (call.grad_references) {
      T* sums = call.grad_references + at / call.points * call.reference_size;
      const T* offsets = call.offsets + 2 * at;
      for (int64_t level = 0; level < call.levels; ++level, sums += call.reference_size) {
        T sum[4] = {0, 0, 0, 0};
        for (int64_t i = level * call.points; i < (level + 1) * call.points; ++i) {
          sum[0] += xs[i], sum[1] += ys[i];
          // A point far outside has no slope, and zero times an infinite offset would not be zero.
          if (xs[i] != T(0)) sum[2] += xs[i] * offsets[2 * i];
          if (ys[i] != T(0)) sum[3] += ys[i] * offsets[2 * i + 1];
        }
        const T step = T(0.5) / T(call.points);
        const int64_t i = level * call.points;
        const T factor[4] = {width[i], height[i], width[i] * step, height[i] * step};
        for (int64_t j = 0; j < call.reference_size; ++j) sums[j] = sum[j] * factor[j];
      }
    }
  }
}

template <typename T, bool packed, bool whole_table>
void backward(const Call<T>& call, const Slice<T>& slice, int64_t begin, int64_t end, T* workspace) {
  const int64_t per_query = call.levels * call.points;
  Tile<T> tile(workspace, call.tile * per_query);
  for (int64_t first = 0; first < call.queries; first += call.tile) {
    const int64_t count = call.queries - first < call.tile ? call.queries - first : call.tile;
    place(call, slice, first, count, tile);
    find_rows<T, packed>(call, tile, count * per_query);
    // Parts begin and end with a tile.
    const bool wants_products = first >= begin && first < end;
    for (int64_t q = 0; q < count; ++q) {
      const T* cotangent =
          call.grad_output + ((slice.image * call.queries + first + q) * call.heads + slice.head) * call.channels;
#define SCATTER(N)                                                                                                  \
  scatter<T, N, packed, whole_table>(call, slice, tile, q * per_query, (q + 1) * per_query, channel, cotangent, \
                                     channel == 0, wants_products)
      FOR_CHANNELS(call.channels, SCATTER);
#undef SCATTER
    }
    if (wants_products) finish(call, slice, first, count, tile);
  }
}

template <typename T>
void forward_any(const Call<T>& call, const Slice<T>& slice, int64_t begin, int64_t end, T* workspace) {
  (slice.packed ? forward<T, true> : forward<T, false>)(call, slice, begin, end, workspace);
}

template <typename T>
void backward_any(const Call<T>& call, const Slice<T>& slice, int64_t begin, int64_t end, T* workspace) {
  const bool whole = slice.whole_table;
  if (slice.packed) {
    (whole ? backward<T, true, true> : backward<T, true, false>)(call, slice, begin, end, workspace);
  } else {
    (whole ? backward<T, false, true> : backward<T, false, false>)(call, slice, begin, end, workspace);
  }
}

}  // namespace

Kernels<float> float_kernels() { return {forward_any<float>, backward_any<float>}; }
Kernels<double> double_kernels() { return {forward_any<double>, backward_any<double>}; }

}  // namespace CAPABILITY
}  // namespace ms_deform_attn

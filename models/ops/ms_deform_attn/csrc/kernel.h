// What the kernels of every instruction set compute: one head of one image ("slice") for a range of its queries.
//
// Nothing of torch or of the standard library's templates may be used behind this header: kernel.cpp is compiled once
// per instruction set, and an inline function compiled with AVX-512 must not become the copy that everybody calls.
#pragma once

#include <cstdint>

namespace ms_deform_attn {

// Points of a tile: a few queries are prepared together, in arrays that stay in the first-level cache.
constexpr int64_t kTilePoints = 256;
constexpr int64_t kPadding = 16;  // arrays of points are as long as a multiple of this

// A call of the operator. T is the type that everything is accumulated in. Shapes as in Python, all contiguous.
template <typename T>
struct Call {
  int64_t queries, heads, channels, levels, points;  // Q, H, C, L, P
  int64_t tile;                                      // queries of a tile: tile * L * P points

  // Constants of the points of a tile, (tile, L, P) each and padded.
  const T* width;            // of the point's level, in cells
  const T* height;
  const int32_t* pitch;      // rows of the table from a cell to the one below it
  const int32_t* origin;     // row of the table of the level's first cell
  const int32_t* pair;       // number of the point's pair of query and level in the tile

  // Where to sample, plain: locations (B, Q, H, L, P, 2), weights (B, Q, H, L, P).
  // Fused: references (B, Q, L, reference_size), offsets (B, Q, H, L, P, 2), logits (B, Q, H, L, P).
  const T* locations;
  const T* weights;
  const T* references;  // null: plain
  int64_t reference_size;
  const T* offsets;
  const T* logits;

  T* output;  // (B, Q, H, C)

  // Only for gradients.
  const T* grad_output;    // (B, Q, H, C)
  T* grad_locations;       // as locations, or offsets where fused
  T* grad_weights;         // as weights, or logits where fused
  T* grad_references;      // (B, Q, H, L, reference_size), or null; the caller sums over heads
};

// The table that a slice reads, and the one that it adds gradients to. A packed table holds the head's cells alone, each
// level inside a border of zero rows, so that every point has four neighbours; an unpacked one is `value` itself.
template <typename T>
struct Slice {
  int64_t image, head;
  bool packed;
  const T* rows;      // row of the table's first cell
  int64_t stride;     // from one row to the next
  const T* zeros;     // unpacked: C zeros, read in place of neighbours outside the map
  T* grad_rows;       // the table of gradients, same layout
  int64_t first_row;  // rows that this call may add to: [first_row, last_row)
  int64_t last_row;
  bool whole_table;   // which are all of them
};

template <typename T>
struct Kernels {
  // Fill output of the slice's queries [begin, end).
  void (*forward)(const Call<T>&, const Slice<T>&, int64_t begin, int64_t end, T* workspace);
  // Fill grad_locations and grad_weights of the queries [begin, end), and add the gradient of the rows
  // [first_row, last_row) from all queries, each row's terms in the order of queries, points and corners.
  void (*backward)(const Call<T>&, const Slice<T>&, int64_t begin, int64_t end, T* workspace);
};

// Elements of the workspace that a thread needs.
constexpr int64_t workspace_elements(int64_t tile_points) { return 17 * (tile_points + kPadding); }

namespace baseline {
Kernels<float> float_kernels();
Kernels<double> double_kernels();
}  // namespace baseline
namespace avx2 {
Kernels<float> float_kernels();
Kernels<double> double_kernels();
}  // namespace avx2
namespace avx512 {
Kernels<float> float_kernels();
Kernels<double> double_kernels();
}  // namespace avx512

}  // namespace ms_deform_attn

// Lets clang share the threads of torch. Torch brings GNU's OpenMP runtime, clang speaks to LLVM's: a process with both
// has two pools of threads. So the one entry that at::parallel_for needs is said here in GNU's words (LLVM's runtime
// knows these too, should torch have been built with it). GCC needs nothing of it, and on macOS torch brings LLVM's.
#if defined(__clang__) && defined(_OPENMP) && !defined(__APPLE__)

#include <cstdarg>
#include <cstdlib>

namespace {

constexpr int kMost = 12;  // captured variables; at::parallel_for has half as many

// A parallel region as clang compiles it: a function of two thread numbers and of the captured variables.
using Region = void (*)(
    int*, int*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*);

struct Call {
  Region region;
  void* captured[kMost];
};

}  // namespace

extern "C" {

void GOMP_parallel(void (*run)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num();

static void run_region(void* data) {
  const Call& call = *static_cast<const Call*>(data);
  void* const* c = call.captured;
  int thread = omp_get_thread_num(), bound = 0;
  // the region takes the first of them; the others are passed in places that it never looks at
  call.region(&thread, &bound, c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9], c[10], c[11]);
}

__attribute__((visibility("hidden"))) void __kmpc_fork_call(void*, int count, Region region, ...) {
  if (count > kMost) std::abort();
  Call call{region, {}};
  va_list captured;
  va_start(captured, region);
  for (int i = 0; i < count; ++i) call.captured[i] = va_arg(captured, void*);
  va_end(captured);
  GOMP_parallel(run_region, &call, 0, 0);
}

}  // extern "C"

#endif
